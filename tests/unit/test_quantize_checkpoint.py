"""A checkpoint folder becomes a GGUF file: exact where it should be, whole or not there at all."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import shutil
import struct
import subprocess
import sys
import time
from pathlib import Path

import gguf
import grebe
import numpy as np
import pytest
from grebe.errors import FormatError, InvalidArgumentError, StorageError, UnsupportedModelError
from grebe.quantize import convert, partial_file
from grebe.quantize.checkpoint import Checkpoint
from grebe.quantize.convert import Options, quantize
from grebe.quantize.recipes import RECIPES, choose, parse_rule, recipe

from tests.helpers import hf_to_gguf, models

FP4 = models.VECTORS / "tiny_fp4"


def run(folder: Path, out: Path, **options) -> convert.Report:
    return quantize(folder, out, Options(**{"tokenizer": False, "n_threads": 2, **options}))


def dequantized(path: Path) -> dict[str, np.ndarray]:
    """All tensors as the gguf package reads them, row-major."""
    out = {}
    for t in gguf.GGUFReader(path).tensors:
        shape = tuple(int(n) for n in reversed(t.shape))
        plain = t.tensor_type.name in ("I8", "I32")
        data = t.data if plain else gguf.quants.dequantize(t.data, t.tensor_type)
        out[t.name] = np.asarray(data).reshape(shape)
    return out


def leftovers(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir()}


# ------------------------------------------------------------------ what is exact


@pytest.mark.parametrize("name", ["tiny_fp4", "tiny_a"])
def test_native_loses_nothing(name, tmp_path):
    folder, path = models.VECTORS / name, tmp_path / "native.gguf"
    run(folder, path, recipe="native")
    expected, found = hf_to_gguf.convert(folder).write(tmp_path / "e.gguf"), dequantized(path)
    for tensor, values in dequantized(expected).items():
        np.testing.assert_array_equal(found[tensor], values, err_msg=tensor)
    model = grebe.Model.load(path, backend="cpu", kv_rounding="off", kernels="exact", n_threads=2)
    with model:
        logits = model.session().evaluate(models.tokens(name))
    assert np.abs(logits - models.expected(name, "none")).max() <= 1e-3


def test_types_of_llama_cpp_can_hold_an_fp4_checkpoint_exactly(tmp_path):
    """Experts are MXFP4 and FP8 numbers are BF16 numbers: nothing has to be rounded."""
    exact = ("attn_[qko]*=bf16", "indexer.attn_q_b=bf16", "ffn_*_shexp=bf16")
    path = tmp_path / "m.gguf"
    run(FP4, path, recipe="native", rules=tuple(map(parse_rule, exact)))
    assert "I8" not in {t.tensor_type.name for t in gguf.GGUFReader(path).tensors}
    model = grebe.Model.load(path, backend="cpu", kv_rounding="off", kernels="exact", n_threads=2)
    with model:
        logits = model.session().evaluate(models.tokens("tiny_fp4"))
    assert np.abs(logits - models.expected("tiny_fp4", "none")).max() <= 1e-3


def test_mxfp4_keeps_the_experts(tmp_path):
    run(FP4, tmp_path / "a.gguf", recipe="mxfp4")
    run(FP4, tmp_path / "b.gguf", recipe="f32")
    stored, wide = dequantized(tmp_path / "a.gguf"), dequantized(tmp_path / "b.gguf")
    experts = [n for n in stored if "_exps" in n]
    assert len(experts) == 9
    for name in experts:
        np.testing.assert_array_equal(stored[name], wide[name], err_msg=name)
    for name in set(stored) - set(experts):  # Q8_0 and F16
        close = np.abs(stored[name] - wide[name]).max() <= 0.01 * np.abs(wide[name]).max()
        assert close, name


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_loads(name, tmp_path):
    path = tmp_path / "m.gguf"
    run(FP4, path, recipe=name)
    with grebe.Model.load(path, backend="cpu", n_threads=1) as model:
        assert np.isfinite(model.session().evaluate(models.tokens("tiny_fp4")[:8])).all()


def test_the_types_of_q2_are_those_of_the_published_file(tmp_path):
    rules = recipe("q2", 43)
    expected = {
        "token_embd": "F16", "output": "Q8_0", "output_hc_fn": "F16", "blk.0.attn_q_b": "Q8_0",
        "blk.2.attn_compressor_kv": "F16", "blk.2.indexer.attn_q_b": "F16", "blk.2.indexer.proj": "F16",
        "blk.2.indexer_compressor_gate": "F16", "blk.9.ffn_gate_inp": "F16", "blk.0.hc_attn_fn": "F16",
        "blk.9.ffn_gate_exps": "IQ2_XXS", "blk.9.ffn_up_exps": "IQ2_XXS", "blk.9.ffn_down_exps": "Q2_K",
        "blk.9.ffn_down_shexp": "Q8_0",
    }  # fmt: skip
    assert {n: choose(rules, n + ".weight") for n in expected} == expected
    mixed = recipe("q2-q4", 43)
    types = [choose(mixed, f"blk.{i}.ffn_down_exps.weight") for i in range(43)]
    assert types == ["Q2_K"] * 37 + ["Q4_K"] * 6


def test_rules_decide_last_and_blocks_that_do_not_fit_fall_back(tmp_path):
    path = tmp_path / "m.gguf"
    rules = (parse_rule("attn_kv=q6_k"), parse_rule("blk.1.attn_*_b=q4_k"))
    report = run(FP4, path, recipe="q8", rules=rules)
    types = {t.name: t.tensor_type.name for t in gguf.GGUFReader(path).tensors}
    assert types["blk.0.attn_kv.weight"] == "Q6_K"
    assert types["blk.1.attn_output_b.weight"] == "Q4_K"
    assert types["blk.1.attn_q_b.weight"] == "Q8_0"  # rows of 128
    assert report.fallbacks == ["blk.1.attn_q_b.weight: Q8_0 instead of Q4_K"]
    with pytest.raises(InvalidArgumentError, match="must be the same"):
        run(FP4, tmp_path / "n.gguf", rules=(parse_rule("ffn_up_exps=q4_k"),))
    for text in ("q6_k", "=q6_k", "attn_kv=q7_k"):
        with pytest.raises(InvalidArgumentError, match="PATTERN=TYPE"):
            parse_rule(text)


def test_draft_layers_go_where_they_are_asked_to(tmp_path):
    run(FP4, tmp_path / "a.gguf", recipe="q8")
    run(FP4, tmp_path / "b.gguf", recipe="q8", drafts="file")
    run(FP4, tmp_path / "c.gguf", recipe="q8", drafts="sidecar")
    names = [{t.name for t in gguf.GGUFReader(tmp_path / f"{c}.gguf").tensors} for c in "abc"]
    assert names[1] == names[0] | names[2] and not names[0] & names[2]
    keys = gguf.GGUFReader(tmp_path / "c.gguf").fields
    assert keys["deepseek4.nextn_predict_layers"].contents() == 1
    assert len(names[2]) == 32 and "mtp.0.ffn_gate_exps.weight" in names[2]  # as published
    with grebe.Model.load(tmp_path / "b.gguf", backend="cpu", n_threads=1):
        pass


def write_imatrix(path: Path, entries: dict[str, np.ndarray], calls: int = 4) -> None:
    out = [struct.pack("<i", len(entries))]
    for name, values in entries.items():
        out.append(struct.pack("<i", len(name)) + name.encode())
        out.append(struct.pack("<ii", calls, values.size) + values.astype("<f4").tobytes())
    path.write_bytes(b"".join(out) + struct.pack("<ii", 7, 4) + b"text")


def test_an_importance_matrix_is_used_expert_by_expert(tmp_path):
    rng = np.random.default_rng(0)
    name = "blk.1.ffn_gate_exps.weight"
    w = np.exp(2 * rng.standard_normal((6, 256))).astype(np.float32)
    write_imatrix(tmp_path / "i.dat", {name: w})
    plain = run(FP4, tmp_path / "a.gguf")
    report = run(FP4, tmp_path / "b.gguf", imatrix=tmp_path / "i.dat")
    assert plain.unimportant == []
    assert name not in report.unimportant and "blk.1.ffn_up_exps.weight" in report.unimportant
    run(FP4, tmp_path / "f.gguf", recipe="f32")
    a, b, exact = (dequantized(tmp_path / f"{n}.gguf") for n in "abf")
    error = [(w[:, None] * (x[name] - exact[name]) ** 2).sum((1, 2)) for x in (a, b)]
    assert (error[1] < 0.9 * error[0]).all()
    other = "blk.1.ffn_up_exps.weight"
    np.testing.assert_array_equal(a[other], b[other])
    write_imatrix(tmp_path / "i.dat", {name: w[:5]})
    with pytest.raises(FormatError, match="has 1280 numbers; expected 1536"):
        run(FP4, tmp_path / "c.gguf", imatrix=tmp_path / "i.dat")
    raw = (tmp_path / "i.dat").read_bytes()
    for cut in (0, 3, 9, 60, 500):
        (tmp_path / "i.dat").write_bytes(raw[:cut])
        with pytest.raises(FormatError):
            run(FP4, tmp_path / "c.gguf", imatrix=tmp_path / "i.dat")


def test_the_manifest_has_the_hashes(tmp_path):
    path = tmp_path / "m.gguf"
    report = run(FP4, path, recipe="q4")
    manifest = json.loads((tmp_path / "m.gguf.json").read_text())
    raw = path.read_bytes()
    assert manifest["sha256"] == report.sha256 == hashlib.sha256(raw).hexdigest()
    assert manifest["bytes"] == len(raw)
    tensors = {t.name: t for t in gguf.GGUFReader(path).tensors}
    assert [t["name"] for t in manifest["tensors"]] == list(tensors)
    for t in manifest["tensors"]:
        data = raw[t["offset"] : t["offset"] + t["bytes"]]
        assert hashlib.sha256(data).hexdigest() == t["sha256"]
        assert tensors[t["name"]].data_offset == t["offset"]
        assert tensors[t["name"]].n_bytes == t["bytes"]


def test_scales_in_f32_are_read_and_kept_only_if_they_are_powers_of_two(tmp_path):
    tensors = hf_to_gguf.read_safetensors(FP4 / "model.safetensors")
    scale = "layers.0.attn.wq_a.scale"
    values = hf_to_gguf.e8m0(tensors[scale][1]).astype(np.float32)
    write_checkpoint(tmp_path / "hf", tensors | {scale: ("F32", values)})
    run(tmp_path / "hf", tmp_path / "a.gguf", recipe="native")
    run(FP4, tmp_path / "b.gguf", recipe="native")
    a, b = dequantized(tmp_path / "a.gguf"), dequantized(tmp_path / "b.gguf")
    np.testing.assert_array_equal(a["blk.0.attn_q_a.scale"], b["blk.0.attn_q_a.scale"])
    write_checkpoint(tmp_path / "hf", tensors | {scale: ("F32", values * np.float32(1.5))})
    with Checkpoint(tmp_path / "hf") as odd, Checkpoint(FP4) as even:
        name = "layers.0.attn.wq_a.weight"
        np.testing.assert_array_equal(odd.f32(name), even.f32(name) * np.float32(1.5))
    with pytest.raises(FormatError, match="not powers of two"):
        run(tmp_path / "hf", tmp_path / "c.gguf", recipe="native")


# ------------------------------------------------------------------ broken input


def write_checkpoint(
    folder: Path, tensors: dict[str, tuple[str, np.ndarray]], shards: int = 1
) -> None:
    folder.mkdir(exist_ok=True)
    shutil.copy(FP4 / "config.json", folder)
    weight_map = {}
    names = list(tensors)
    for i in range(shards):
        header, parts, at = {}, [], 0
        file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        for name in names[i::shards]:
            dtype, x = tensors[name]
            raw = np.ascontiguousarray(x).tobytes()
            span = [at, at + len(raw)]
            header[name] = {"dtype": dtype, "shape": list(x.shape), "data_offsets": span}
            parts.append(raw)
            at += len(raw)
            weight_map[name] = file
        text = json.dumps(header).encode()
        (folder / file).write_bytes(struct.pack("<Q", len(text)) + text + b"".join(parts))
    index = {"weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def test_shards_are_read_as_one(tmp_path):
    write_checkpoint(tmp_path / "hf", hf_to_gguf.read_safetensors(FP4 / "model.safetensors"), 5)
    run(tmp_path / "hf", tmp_path / "a.gguf", recipe="native")
    run(FP4, tmp_path / "b.gguf", recipe="native")
    a, b = dequantized(tmp_path / "a.gguf"), dequantized(tmp_path / "b.gguf")
    assert a.keys() == b.keys()
    assert all((a[n] == b[n]).all() for n in a)


def broken(folder: Path, how: str) -> tuple[type[Exception], str]:
    tensors = hf_to_gguf.read_safetensors(FP4 / "model.safetensors")
    name = "layers.1.attn.wkv.weight"
    if how == "missing tensor":
        del tensors[name]
    elif how == "wrong shape":
        dtype, x = tensors[name]
        tensors[name] = (dtype, x[:, :-1])
    elif how == "wrong scale":
        tensors[name[:-6] + "scale"] = ("F8_E8M0", np.full((3, 3), 127, np.uint8))
    elif how == "scale nan":
        x = tensors[name[:-6] + "scale"][1].copy()
        x.flat[0] = 255
        tensors[name[:-6] + "scale"] = ("F8_E8M0", x)
    elif how == "weight nan":
        dtype, x = tensors[name]
        x = x.copy()
        x[3, 4] = 127
        tensors[name] = (dtype, x)
    elif how == "missing expert":
        del tensors["layers.2.ffn.experts.4.w3.weight"]
    write_checkpoint(folder, tensors, 3)
    shard = folder / "model-00002-of-00003.safetensors"
    index = folder / "model.safetensors.index.json"
    if how == "missing shard":
        shard.unlink()
        return StorageError, "the index names this shard"
    if how == "cut shard":
        os.truncate(shard, shard.stat().st_size - 1)
        return FormatError, "the file is cut"
    if how == "header length":
        shard.write_bytes(struct.pack("<Q", 2**60) + shard.read_bytes()[8:])
        return FormatError, "its header does not fit"
    if how == "header text":
        shard.write_bytes(struct.pack("<Q", 20) + bytes(40))
        return FormatError, "not JSON"
    if how == "empty shard":
        shard.write_bytes(b"")
        return FormatError, "its header does not fit into 0 bytes"
    if how == "index":
        index.write_text('{"weight_map": 3}')
        return FormatError, "no weight_map"
    if how == "index text":
        index.write_text("{")
        return FormatError, "not JSON"
    if how == "config":
        (folder / "config.json").write_text('{"hidden_size": 256}')
        return UnsupportedModelError, "num_hidden_layers"
    if how == "other model":
        (folder / "config.json").write_text('{"model_type": "llama"}')
        return UnsupportedModelError, "expected deepseek_v4"
    if how == "no folder":
        shutil.rmtree(folder)
        return StorageError, "No such file"
    return FormatError, {
        "missing tensor": "layers.1.attn.wkv.weight is missing",
        "missing expert": "layers.2.ffn.experts.4.w3.weight is missing",
        "wrong shape": r"is \[128, 255\]; by config.json it is \[128, 256\]",
        "wrong scale": r"scales F8_E8M0 \[3, 3\]; expected",
        "scale nan": "scale that is not a number",
        "weight nan": "not finite",
    }[how]


WAYS = (
    "missing tensor", "missing expert", "wrong shape", "wrong scale", "scale nan", "weight nan",
    "missing shard", "cut shard", "header length", "header text", "empty shard", "index",
    "index text", "config", "other model", "no folder",
)  # fmt: skip


@pytest.mark.parametrize("how", WAYS)
def test_a_broken_checkpoint_is_an_error_and_no_file(how, tmp_path):
    error, words = broken(tmp_path / "hf", how)
    with pytest.raises(error, match=words):
        run(tmp_path / "hf", tmp_path / "m.gguf")
    late = {"m.gguf.partial", "m.gguf.journal"} if how in ("scale nan", "weight nan") else set()
    assert leftovers(tmp_path) - {"hf"} == late


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("n_routed_experts", 2**40),
        ("index_topk", -1),
        ("sliding_window", 2**40),
        ("rope_theta", 10**400),
        ("swiglu_limit", "x"),
        ("n_shared_experts", None),
        ("num_hash_layers", "x"),
    ],
)
def test_a_config_with_such_numbers_is_an_error(key, value, tmp_path):
    write_checkpoint(tmp_path / "hf", hf_to_gguf.read_safetensors(FP4 / "model.safetensors"))
    config = json.loads((FP4 / "config.json").read_text()) | {key: value}
    (tmp_path / "hf" / "config.json").write_text(json.dumps(config))
    with pytest.raises((FormatError, UnsupportedModelError), match=r"config\.json"):
        run(tmp_path / "hf", tmp_path / "m.gguf", recipe="f32")
    assert leftovers(tmp_path) == {"hf"}


@pytest.mark.parametrize("which", [3, 5])  # in between, and the last
def test_a_draft_stage_without_one_of_its_experts_is_an_error(which, tmp_path):
    tensors = hf_to_gguf.read_safetensors(FP4 / "model.safetensors")
    stem = f"mtp.0.ffn.experts.{which}."
    left = {n: x for n, x in tensors.items() if not n.startswith(stem)}
    assert len(left) == len(tensors) - 6
    write_checkpoint(tmp_path / "hf", left)
    with pytest.raises(
        FormatError, match=rf"mtp\.0\.ffn\.experts.{which}\.w[123]\.weight is missing"
    ):
        run(tmp_path / "hf", tmp_path / "m.gguf", drafts="sidecar")
    tensors["mtp.0.odd"] = ("F32", np.float32(3).reshape(()))
    write_checkpoint(tmp_path / "hf", tensors)
    with pytest.raises(FormatError, match=r"mtp\.0\.odd has no dimension"):
        run(tmp_path / "hf", tmp_path / "m.gguf", drafts="sidecar")
    assert leftovers(tmp_path) == {"hf"}


def test_tokenizer_that_is_missing_or_no_tokenizer(tmp_path):
    write_checkpoint(tmp_path / "hf", hf_to_gguf.read_safetensors(FP4 / "model.safetensors"))
    with pytest.raises(StorageError, match=r"tokenizer\.json"):
        run(tmp_path / "hf", tmp_path / "m.gguf", tokenizer=True)
    (tmp_path / "hf" / "tokenizer.json").write_text('{"model": {"vocab": {"a": 999999}}}')
    with pytest.raises(FormatError, match="not a tokenizer"):
        run(tmp_path / "hf", tmp_path / "m.gguf", tokenizer=True)
    assert leftovers(tmp_path) == {"hf"}


def test_an_existing_file_is_kept_unless_told(tmp_path):
    path = tmp_path / "m.gguf"
    path.write_bytes(b"precious")
    with pytest.raises(StorageError, match="exists already"):
        run(FP4, path)
    assert path.read_bytes() == b"precious"
    run(FP4, path, overwrite=True)
    assert path.read_bytes()[:4] == b"GGUF"


# ------------------------------------------------------------------ stopped and continued


def test_a_full_disk_leaves_what_can_be_continued(tmp_path, monkeypatch):
    run(FP4, tmp_path / "whole.gguf")
    room = 2_000_000
    pwrite = os.pwrite

    def full(fd: int, data: bytes, offset: int) -> int:
        if offset + len(data) > room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return pwrite(fd, data, offset)

    monkeypatch.setattr(partial_file, "JOURNAL_BYTES", 100_000)
    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(StorageError, match="run the same command again") as caught:
        run(FP4, tmp_path / "m.gguf")
    assert caught.value.errno == errno.ENOSPC
    assert not (tmp_path / "m.gguf").exists()
    monkeypatch.setattr(os, "pwrite", pwrite)
    report = run(FP4, tmp_path / "m.gguf")
    assert 1_000_000 < report.resumed_bytes < room
    assert (tmp_path / "m.gguf").read_bytes() == (tmp_path / "whole.gguf").read_bytes()
    assert leftovers(tmp_path) == {
        "m.gguf", "m.gguf.json", "whole.gguf", "whole.gguf.json"
    }  # fmt: skip


def test_too_little_room_is_seen_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(
        partial_file.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9, 8, 1000)
    )
    with pytest.raises(StorageError, match="1000 are free"):
        run(FP4, tmp_path / "m.gguf")
    assert (tmp_path / "m.gguf.partial").stat().st_size == 0


def test_two_at_once_on_one_file(tmp_path):
    first = partial_file.PartialFile(tmp_path / "m.gguf", "plan", 10)
    try:
        with pytest.raises(StorageError, match="another grebe quantize"):
            run(FP4, tmp_path / "m.gguf")
    finally:
        first.close()


def test_another_plan_or_a_damaged_journal_starts_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(partial_file, "JOURNAL_BYTES", 100_000)
    run(FP4, tmp_path / "whole.gguf", recipe="q4")
    good = (tmp_path / "whole.gguf").read_bytes()
    for journal in ("", "x", '{"plan": "other"}\n{"bytes": 1000000}\n', '{"plan": 1}\n[]\n'):
        (tmp_path / "m.gguf.partial").write_bytes(bytes(3_000_000))
        (tmp_path / "m.gguf.journal").write_text(journal)
        assert run(FP4, tmp_path / "m.gguf", recipe="q4", overwrite=True).resumed_bytes == 0
        assert (tmp_path / "m.gguf").read_bytes() == good


CHILD = """
import sys
from grebe.quantize import convert, outputs, partial_file
partial_file.JOURNAL_BYTES, outputs.PIECE_WEIGHTS = 60_000, 20_000
options = convert.Options(recipe="q2", tokenizer=False, n_threads=1)
print("go", flush=True)
report = convert.quantize(sys.argv[1], sys.argv[2], options)
print(report.resumed_bytes)
"""


def notes(journal: Path) -> int:
    return journal.read_text().count("\n") if journal.exists() else 0


def test_killed_again_and_again_the_bytes_are_the_same(tmp_path):
    run(FP4, tmp_path / "whole.gguf")
    out, journal = tmp_path / "m.gguf", tmp_path / "m.gguf.journal"
    command = [sys.executable, "-c", CHILD, str(FP4), str(out)]
    rng = random.Random(3)
    for n_notes in (2, 5, 9, 14, 0):  # in the journal when it is killed; 0: it may finish
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            assert child.stdout.readline() == "go\n"
            if n_notes:
                while notes(journal) < n_notes and child.poll() is None:
                    time.sleep(0.001)
                time.sleep(rng.uniform(0, 0.01))
                child.kill()
            rest = child.stdout.read()
        assert out.exists() == (n_notes == 0)
    assert int(rest) > 500_000
    assert out.read_bytes() == (tmp_path / "whole.gguf").read_bytes()
