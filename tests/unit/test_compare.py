"""grebe compare: its numbers against plain ones, its files, its command."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from grebe import cli, measure
from grebe.compare import compare, divergence, log_softmax
from grebe.compare_plot import svg
from grebe.compare_reference import cases_of, save_reference, score
from grebe.errors import FormatError, InvalidArgumentError, StorageError
from grebe.model import EMBEDDED_MODEL
from grebe.quantize.collect import load_observed

from tests.helpers import models

TEXT = "Once upon a time there was a small bird that could dive. It was cold. " * 12


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """The embedded model with one matrix of its middle changed: half of the output of an expert."""
    path = tmp_path_factory.mktemp("other") / "other.gguf"
    raw = bytearray(EMBEDDED_MODEL.read_bytes())
    from grebe import inspect

    tensors = {t.name: t for t in inspect(EMBEDDED_MODEL).tensors}
    t = tensors["blk.1.attn_output_b.weight"]
    raw[t.offset : t.offset + t.n_bytes // 2] = bytes(t.n_bytes // 2)
    path.write_bytes(raw)
    return path


@pytest.fixture(scope="module")
def pair(other):
    with load_observed(EMBEDDED_MODEL, "hidden") as a, load_observed(other, "hidden") as b:
        yield a, b


def test_a_model_is_at_no_distance_from_itself(pair):
    found = compare(pair[0], pair[0], [TEXT[:200]], n_ctx=40)
    assert (found.kl_mean, found.kl_max, found.top1, found.p_rms) == (0, 0, 1, 0)
    assert found.nats_a == found.nats_b
    assert found.nats_error == 0
    assert found.layers == []


def test_the_numbers_are_those_of_the_definition(pair):
    a, b = pair
    found = compare(a, b, [TEXT], n_ctx=50, layers=True)
    ids = a.tokenizer.encode(TEXT)
    assert found.n_tokens == len(ids)
    expected = measure.perplexity(a, TEXT, n_ctx=50)
    assert found.nats_a == pytest.approx(expected.nats_per_token, rel=1e-6)
    assert found.perplexity_b == pytest.approx(np.exp(found.nats_b))
    kl, same = [], []
    hidden: list[list[np.ndarray]] = [[], []]
    for i in range(0, len(ids), 49):
        inputs = [a.config.bos_token, *ids[i : i + 49]][: len(ids[i : i + 49])]
        logits = []
        for m, seen in zip(pair, hidden, strict=True):
            m._live.take_hidden()
            logits.append(m.session().evaluate(inputs).astype(np.float64))
            seen.append(np.stack(m._live.take_hidden()))
        p, q = (np.exp(x) / np.exp(x).sum(1, keepdims=True) for x in logits)
        kl.append((p * np.log(p / q)).sum(1))
        same.append(p.argmax(1) == q.argmax(1))
    kl = np.concatenate(kl)
    assert found.kl_mean == pytest.approx(kl.mean(), rel=1e-6)
    assert found.kl_p99 == pytest.approx(np.quantile(kl, 0.99), rel=1e-6)
    assert found.top1 == np.concatenate(same).mean()
    x, y = (np.concatenate(h, axis=1).astype(np.float64) for h in hidden)
    error = np.sqrt(((x - y) ** 2).sum((1, 2, 3)) / (x**2).sum((1, 2, 3)))
    np.testing.assert_allclose(found.layers, error, rtol=1e-6)
    assert found.layers[0] == 0  # before the layer that was changed
    assert found.layers[1] > 0.01
    assert found.kl_mean > 1e-3


def test_tokens_are_limited_over_all_texts(pair):
    found = compare(pair[0], pair[0], [TEXT[:50], TEXT, TEXT], n_ctx=30, max_tokens=40)
    assert found.n_tokens == 40
    for texts, n_ctx in ((["", ""], 30), ([TEXT], 1)):
        with pytest.raises(InvalidArgumentError):
            compare(pair[0], pair[0], texts, n_ctx=n_ctx)
    with pytest.raises(InvalidArgumentError, match=r"share a tokenizer|no tokenizer"):
        compare(pair[0], models.load("tiny_gguf"), [TEXT])


def test_divergence_is_never_negative_and_survives_certainty():
    a = log_softmax(np.array([[1e4, 0, 0], [1, 1, 1], [5, 0, -1]], np.float32))
    b = log_softmax(np.array([[0, 0, 0], [1, 1, 1], [5, 0, -1]], np.float32))
    np.testing.assert_allclose(divergence(a, b), [np.log(3), 0, 0], atol=1e-12)


# ------------------------------------------------------------------ saved cases


def test_saved_cases_find_a_change_and_nothing_else(pair, tmp_path):
    a, b = pair
    cases = cases_of(a, [TEXT * 3], 20, longest=100)
    lengths = sorted(len(c) - 1 for c in cases)
    assert (len(cases), lengths[0], lengths[-1]) == (20, 4, 100)
    assert all(c[0] == a.config.bos_token for c in cases)
    save_reference(a, cases, tmp_path / "r.npz")
    assert [p.name for p in tmp_path.iterdir()] == ["r.npz"]
    good = score(a, tmp_path / "r.npz")
    assert (good.passed, good.n_cases, good.reference) == (20, 20, a.fingerprint)
    assert good.kl_max <= 1e-10
    assert good.max_difference <= 1e-5
    bad = score(b, tmp_path / "r.npz")
    assert bad.kl_mean > 1e-3
    assert bad.max_difference > 0.1
    with pytest.raises(InvalidArgumentError, match="tokens; the model has"):
        score(models.load("tiny_gguf"), tmp_path / "r.npz")
    with pytest.raises(InvalidArgumentError, match="too few for 100 cases"):
        cases_of(a, ["Short."])


def test_a_file_that_is_no_reference(pair, tmp_path):
    path = tmp_path / "r.npz"
    with pytest.raises(StorageError):
        score(pair[0], path)
    save_reference(pair[0], [[0, 1, 2]], path)
    good = path.read_bytes()
    with np.load(path) as stored:
        fields = dict(stored)
    for raw in (b"", b"text", good[: len(good) // 2], good[:-30]):
        path.write_bytes(raw)
        with pytest.raises(FormatError):
            score(pair[0], path)
    for change in (
        {"version": np.int64(2)},
        {"lengths": np.array([9])},
        {"log_probabilities": fields["log_probabilities"] * np.float32(np.nan)},
        {"tokens": np.array([None])},
    ):
        np.savez(path, **{**fields, **change})
        with pytest.raises(FormatError):
            score(pair[0], path)


# ------------------------------------------------------------------ picture and command


def test_the_picture_is_xml_with_a_curve_for_each_panel():
    picture = svg("a < b", [0.0, 0.01, 0.1], [1e-12, 0.5, 3])
    root = ET.fromstring(picture)
    lines = [e.get("points") for e in root.iter("{http://www.w3.org/2000/svg}polyline")]
    assert [len(line.split()) for line in lines] == [3, 3]
    numbers = [float(x) for line in lines for point in line.split() for x in point.split(",")]
    assert min(numbers) >= 0
    assert max(numbers) <= 840
    assert len(ET.fromstring(svg("t", [], [0.0, 0.0])).findall(".//{*}polyline")) == 1


def test_the_command(other, tmp_path, capsys):
    text = tmp_path / "t.txt"
    text.write_text(TEXT)
    a, b = str(EMBEDDED_MODEL), str(other)
    plot = tmp_path / "p.svg"
    base = ["--tokens", "60", "--threads", "2"]
    assert cli.main(["compare", a, b, str(text), *base, "--json", "--plot", str(plot)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["n_tokens"] == 60
    assert len(found["layers"]) > 1
    ET.parse(plot)
    assert cli.main(["compare", a, b, str(text), *base]) == 0
    report = capsys.readouterr().out
    assert "perplexity" in report
    assert "error of the streams" in report
    assert cli.main(["compare", a, b, str(text), *base, "--no-layers", "--max-kl", "0"]) == 1
    assert "mean KL is" in capsys.readouterr().err
    npz = tmp_path / "r.npz"
    assert cli.main(["compare", a, str(text), "--save-reference", str(npz), "--cases", "9"]) == 0
    assert cli.main(["compare", a, "--against", str(npz), "--max-kl", "1e-9"]) == 0
    assert "9 of 9 cases" in capsys.readouterr().out
    assert cli.main(["compare", b, "--against", str(npz), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["kl_mean"] > 0
    for wrong in ([a, str(text)], [a, b], [a, b, str(text), "--against", str(npz)]):
        assert cli.main(["compare", *wrong]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1
