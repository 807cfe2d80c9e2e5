"""Importance matrices: what the engine sees is what was multiplied, and both formats keep it."""

from __future__ import annotations

import json
import struct
from collections import defaultdict

import gguf
import numpy as np
import pytest
from grebe import BackendUnavailableError, cli
from grebe.errors import FormatError, InvalidArgumentError, UnsupportedModelError
from grebe.model import EMBEDDED_MODEL
from grebe.quantize.collect import collect, load_observed
from grebe.quantize.imatrix import Imatrix, Squares, read_imatrix

from tests.helpers import hf_to_gguf, models, reference
from tests.helpers.tiny_gguf import Shape, tiny_model
from tests.oracle.test_shapes import reference_model

TEXT = "Once upon a time there was a small bird that could dive. " * 8


@pytest.fixture(scope="module")
def real() -> Imatrix:
    with load_observed(EMBEDDED_MODEL, "inputs", n_threads=2) as model:
        *_, last = collect(model, [("a.txt", TEXT)], n_ctx=64)
    return last


# ------------------------------------------------------------------ what is collected


def test_observing_changes_no_number():
    tokens = models.tokens("tiny_a")
    expected = models.load("tiny_a").session().evaluate(tokens)
    for what in ("inputs", "hidden"):
        with load_observed(models.fixture_path("tiny_a"), what, n_threads=2) as model:
            np.testing.assert_array_equal(model.session().evaluate(tokens), expected)


def test_what_is_seen_is_what_the_reference_multiplies(tmp_path, monkeypatch):
    """Feed-forward inputs of every expert, and the streams after every layer."""
    shape = Shape()
    writer = tiny_model(shape)
    config, w = reference_model(writer, shape)
    path = writer.write(tmp_path / "m.gguf")
    ids = np.random.default_rng(2).integers(0, shape.vocab, 140).tolist()
    sums: dict[str, np.ndarray] = {}
    counts: dict[str, int] = defaultdict(int)
    multiply = reference.swiglu_mlp

    def watched(cfg, w, p, x, weight=None):
        captured = {p + "w1": x, p + "w3": x}
        eye = {p + "w2.weight": np.eye(w[p + "w1.weight"].shape[0])}
        captured[p + "w2"] = multiply(cfg, {**w, **eye}, p, x, weight)
        for name, rows in captured.items():
            sums[name] = sums.get(name, 0) + (rows**2).sum(0)
            counts[name] += len(rows)
        return multiply(cfg, w, p, x, weight)

    monkeypatch.setattr(reference, "swiglu_mlp", watched)
    traces: list[dict] = []
    reference.forward(config, w, ids, "none", traces)

    with load_observed(path, "inputs", kernels="exact", kv_rounding="off") as model:
        session = model.session()
        session.evaluate(ids[:83])
        session.evaluate(ids[83:])
        seen = {name: (s, c) for name, s, c in model._live.take_inputs()}
        assert model._live.take_inputs() == []
    parts = {"w1": "gate", "w2": "down", "w3": "up"}
    for i in range(config.layers):
        for theirs, ours in parts.items():
            found, n = seen[f"blk.{i}.ffn_{ours}_shexp.weight"]
            expected = sums[f"layers.{i}.ffn.shared_experts.{theirs}"]
            np.testing.assert_allclose(found[0], expected, rtol=1e-3, atol=1e-7)
            assert n.tolist() == [140]
            found, n = seen[f"blk.{i}.ffn_{ours}_exps.weight"]
            assert len(n) == config.experts
            for e in range(config.experts):
                name = f"layers.{i}.ffn.experts.{e}.{theirs}"
                assert n[e] == counts[name]
                np.testing.assert_allclose(found[e], sums.get(name, 0), rtol=1e-3, atol=1e-7)
        # What else x is multiplied with has seen the same rows.
        assert (seen[f"blk.{i}.attn_kv.weight"][0] == seen[f"blk.{i}.attn_q_a.weight"][0]).all()
        router, shared = (seen[f"blk.{i}.ffn_{n}.weight"][0] for n in ("gate_inp", "gate_shexp"))
        assert (router == shared).all()

    with load_observed(path, "hidden", kernels="exact", kv_rounding="off") as model:
        session = model.session()
        session.evaluate(ids[:83])
        session.evaluate(ids[83:])
        hidden = model._live.take_hidden()
        assert model._live.take_hidden() == []
    assert len(hidden) == config.layers
    for x, trace in zip(hidden, traces, strict=True):
        np.testing.assert_allclose(x, trace["X"], rtol=1e-3, atol=1e-4)


class Watched(np.ndarray):
    """A weight that keeps the squares of what it is multiplied with, in ``seen[name]``."""

    def __array_finalize__(self, other):
        self.name, self.seen = getattr(other, "name", ""), getattr(other, "seen", None)

    def __array_ufunc__(self, ufunc, method, *inputs, **kwargs):
        plain = [x.view(np.ndarray) if isinstance(x, Watched) else x for x in inputs]
        if ufunc is np.matmul and inputs[1] is self:
            self.seen[self.name] += [plain[0]]
        return getattr(ufunc, method)(*plain, **kwargs)

    def __array_function__(self, function, types, args, kwargs):
        plain = [x.view(np.ndarray) if isinstance(x, Watched) else x for x in args]
        if function is np.einsum and args[-1] is self:
            self.seen[self.name] += [plain[1].reshape(-1, plain[1].shape[-1])]
        return function(*plain, **kwargs)


def test_attention_and_head_see_what_the_reference_multiplies(tmp_path):
    """Every matrix of a layer that is neither an expert nor of the streams, and the head."""
    shape = Shape()
    writer = tiny_model(shape)
    config, w = reference_model(writer, shape)
    path = writer.write(tmp_path / "m.gguf")
    ids = np.random.default_rng(3).integers(0, shape.vocab, 140).tolist()
    seen: dict[str, list[np.ndarray]] = defaultdict(list)
    for name, x in w.items():
        if x.ndim == 2 and name.endswith(".weight"):
            w[name] = x.view(Watched)
            w[name].name, w[name].seen = name, seen
    reference.forward(config, w, ids)

    with load_observed(path, "inputs", kernels="exact", kv_rounding="off") as model:
        model.session().evaluate(ids)
        found = {name: (s, c) for name, s, c in model._live.take_inputs()}
    expected = {"output.weight": seen["head.weight"]}
    for i in range(config.layers):
        for name, ours in hf_to_gguf.LAYER.items():
            if f"layers.{i}.{name}" in seen:
                expected[f"blk.{i}.{ours}"] = seen[f"layers.{i}.{name}"]
    assert {name for name in found if "_exps" not in name} == expected.keys()
    assert len(expected) == 36
    for name, parts in expected.items():
        rows, (sums, n) = np.concatenate(parts), found[name]
        np.testing.assert_allclose(sums[0], (rows**2).sum(0), rtol=2e-3, atol=1e-7)
        assert n.tolist() == [len(rows)]


def test_what_is_not_observed_is_not_there():
    with load_observed(EMBEDDED_MODEL, "") as model:
        with pytest.raises(InvalidArgumentError, match="not observed"):
            model._live.take_inputs()
        with pytest.raises(InvalidArgumentError, match="not observed"):
            model._live.take_hidden()
    with pytest.raises(InvalidArgumentError, match="'inputs' or 'hidden'"):
        load_observed(EMBEDDED_MODEL, "everything")
    with pytest.raises(BackendUnavailableError):
        load_observed(EMBEDDED_MODEL, "inputs", backend="metal")


def test_windows_are_counted_and_add_up(real):
    with load_observed(EMBEDDED_MODEL, "inputs", n_threads=1) as model:
        windows = list(collect(model, [("a.txt", TEXT)], n_ctx=64))
        first = list(collect(model, [("a.txt", TEXT)], n_ctx=64, max_chunks=1))
        with pytest.raises(InvalidArgumentError, match="empty"):
            list(collect(model, [("a", "")]))
        with pytest.raises(InvalidArgumentError, match="n_ctx is 1"):
            list(collect(model, [("a", TEXT)], n_ctx=1))
    assert len(first) == 1
    assert len(windows) == real.n_chunks > 1
    # Every window adds to one sum: with threads or without, all at once or not.
    name = "blk.0.attn_q_a.weight"
    np.testing.assert_array_equal(windows[-1].entries[name].sums, real.entries[name].sums)


# ------------------------------------------------------------------ the files


def test_the_gguf_package_reads_and_writes_the_same(real, tmp_path):
    real.write(tmp_path / "a.gguf")
    reader = gguf.GGUFReader(tmp_path / "a.gguf")
    tensors = {t.name: np.asarray(t.data) for t in reader.tensors}
    assert len(tensors) == 2 * len(real.entries)
    for name, squares in real.entries.items():
        sums = tensors[f"{name}.in_sum2"].reshape(squares.sums.shape)
        np.testing.assert_array_equal(sums, squares.sums.astype(np.float32))
        np.testing.assert_array_equal(tensors[f"{name}.counts"].reshape(-1), squares.counts)
    assert reader.get_field("general.type").contents() == "imatrix"
    assert reader.get_field("imatrix.datasets").contents() == ["a.txt"]
    assert reader.get_field("imatrix.chunk_size").contents() == 64

    writer = gguf.GGUFWriter(tmp_path / "b.gguf", "")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", ["é.txt", "b"])
    writer.add_uint32("imatrix.chunk_count", 7)
    writer.add_uint32("imatrix.chunk_size", 512)
    sums = np.arange(12, dtype=np.float32).reshape(3, 4)
    writer.add_tensor("blk.0.x.weight.in_sum2", sums)
    writer.add_tensor("blk.0.x.weight.counts", np.array([[2], [0], [4]], np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = Imatrix.read(tmp_path / "b.gguf")
    assert (found.datasets, found.n_chunks, found.chunk_size) == (["é.txt", "b"], 7, 512)
    means = read_imatrix(tmp_path / "b.gguf")["blk.0.x.weight"].reshape(3, 4)
    np.testing.assert_array_equal(means, [sums[0] / 2, np.ones(4), sums[2] / 4])


def test_dat_is_as_llama_cpp_writes_it(tmp_path):
    counts = np.array([1000.0, 0.0])
    sums = np.array([[2000.0, 4000.0], [0.0, 0.0]])
    matrix = Imatrix({"t": Squares(sums, counts)}, ["x.txt"], 512, 3)
    matrix.write(tmp_path / "a.dat")
    expected = struct.pack("<ii", 1, 1) + b"t" + struct.pack("<ii4f", 2, 4, 4.0, 8.0, 2.0, 2.0)
    expected += struct.pack("<ii", 3, 5) + b"x.txt"
    assert (tmp_path / "a.dat").read_bytes() == expected
    back = Imatrix.read(tmp_path / "a.dat")
    assert (back.datasets, back.n_chunks) == (["x.txt"], 3)
    assert read_imatrix(tmp_path / "a.dat")["t"].tolist() == [2, 4, 1, 1]
    assert {p.name for p in tmp_path.iterdir()} == {"a.dat"}


def test_merging_is_adding(real, tmp_path):
    twice = Imatrix()
    twice.merge(real)
    twice.merge(real)
    for name, squares in real.entries.items():
        np.testing.assert_array_equal(twice.entries[name].counts, 2 * squares.counts)
        np.testing.assert_allclose(twice.entries[name].means(), squares.means())
    assert twice.n_chunks == 2 * real.n_chunks
    assert twice.datasets == ["a.txt"]
    assert real.entries[name].counts is not twice.entries[name].counts
    # One row for all experts, as .dat has it, joins with one row each.
    flat = Squares(np.array([[512.0, 512.0, 1024.0, 1024.0]]), np.array([512.0]))
    split = Squares(np.array([[3.0, 3.0], [0.0, 0.0]]), np.array([1.0, 0.0]))
    assert flat.add(split)
    np.testing.assert_allclose(flat.means(), [[515 / 513] * 2, [2, 2]])
    other = Imatrix({name: Squares(np.ones((1, 3)), np.ones(1))})
    with pytest.raises(FormatError, match="different models"):
        twice.merge(other)


def broken_files(good: bytes):
    for cut in (3, 30, 200, len(good) // 2, len(good) - 33):
        yield good[:cut]
    yield good.replace(b"imatrix.chunk_size", b"imatrix.chunk_sizf")
    yield good.replace(b".counts", b".countz", 1)
    yield b"GGUF" + bytes(100)
    yield bytes(range(256))
    yield struct.pack("<iiI", 1, 1, 0x74) + struct.pack("<ii", 1, 2**30)
    yield struct.pack("<ii", 1, 1) + b"t" + struct.pack("<iif", 1, 1, float("nan"))
    yield struct.pack("<ii", 1, 1) + b"t" + struct.pack("<iif", 1, 1, -1.0)


def test_a_broken_file_is_one_clear_error(real, tmp_path):
    path = tmp_path / "a.gguf"
    small = Imatrix(dict([*real.entries.items()][:2]), ["a"], 64, 1)
    small.write(path)
    for raw in broken_files(path.read_bytes()):
        path.write_bytes(raw)
        with pytest.raises((FormatError, UnsupportedModelError)):
            Imatrix.read(path)


def test_the_command(tmp_path, capsys):
    text = tmp_path / "t.txt"
    text.write_text(TEXT)
    out = tmp_path / "m.gguf"
    base = ["imatrix", "--json", "--ctx", "64", "-o", str(out)]
    assert cli.main([*base, str(EMBEDDED_MODEL), str(text), "--threads", "1"]) == 0
    first = json.loads(capsys.readouterr().out)
    assert first["entries"] > 40
    assert first["datasets"] == ["t.txt"]
    again = [str(EMBEDDED_MODEL), str(text), "--merge", str(out), "--chunks", "1"]
    assert cli.main([*base, *again]) == 0
    assert json.loads(capsys.readouterr().out)["chunks"] == first["chunks"] + 1
    dat = tmp_path / "m.dat"
    assert cli.main(["imatrix", "--merge", str(out), "-o", str(dat)]) == 0
    assert f"{first['entries']} weights" in capsys.readouterr().out
    a, b = read_imatrix(out), read_imatrix(dat)
    assert a.keys() == b.keys()
    for name, values in a.items():
        np.testing.assert_allclose(b[name], values, rtol=1e-6)
    nowhere = str(tmp_path / "none" / "m.gguf")
    for wrong, reason in (
        ([str(EMBEDDED_MODEL)], "--merge FILE"),
        ([str(EMBEDDED_MODEL), "--merge", str(out)], "--merge FILE alone"),
        (["--merge", str(text)], "no imatrix, or damaged"),
        ([str(EMBEDDED_MODEL), str(text), "-o", nowhere], "No such file"),
    ):
        assert cli.main(["imatrix", "-o", str(dat), *wrong]) == 2
        assert reason in capsys.readouterr().err
