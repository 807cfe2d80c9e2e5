"""grebe compare: its numbers against plain ones, its files, its command."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import grebe
import numpy as np
import pytest
from grebe import cli, compare_command, compare_reference, measure
from grebe.compare import _rows, compare, divergence, log_softmax
from grebe.compare_plot import svg
from grebe.compare_reference import cases_of, save_reference, score
from grebe.errors import FormatError, GrebeError, InvalidArgumentError, StorageError
from grebe.model import EMBEDDED_MODEL
from grebe.quantize.collect import load_observed

from tests.helpers import models

TEXT = "Once upon a time there was a small bird that could dive. It was cold. " * 12


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """The embedded model with half of an attention output of its middle set to zero."""
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
    assert found.kl_error == pytest.approx(kl.std(ddof=1) / len(kl) ** 0.5, rel=1e-6)
    assert found.kl_p99 == pytest.approx(np.quantile(kl, 0.99), rel=1e-6)
    assert found.top1 == np.concatenate(same).mean()
    x, y = (np.concatenate(h, axis=1).astype(np.float64) for h in hidden)
    error = np.sqrt(((x - y) ** 2).sum((1, 2, 3)) / (x**2).sum((1, 2, 3)))
    np.testing.assert_allclose(found.layers, error, rtol=1e-6)
    assert found.layers[0] == 0  # before the layer that was changed
    assert found.layers[1] > 0.01
    assert found.kl_mean > 1e-3


def test_small_steps_give_the_same_numbers(pair, monkeypatch):
    """What bounds memory at a large vocabulary: logits of a few tokens at once, and no more."""
    a, b = pair
    whole = compare(a, b, [TEXT], n_ctx=60, layers=True)
    rows = []
    monkeypatch.setattr(
        "grebe.compare._rows", lambda x, y, ids, f=_rows: rows.append(len(ids)) or f(x, y, ids)
    )
    monkeypatch.setattr("grebe.compare.LOGIT_BYTES", 7 * 8 * a.config.vocab_size)
    steps = compare(a, b, [TEXT], n_ctx=60, layers=True)
    assert max(rows) == 7
    assert sum(rows) == whole.n_tokens == steps.n_tokens
    assert steps.nats_a == pytest.approx(whole.nats_a, rel=1e-4)
    assert steps.kl_mean == pytest.approx(whole.kl_mean, rel=0.02)
    np.testing.assert_allclose(steps.layers, whole.layers, rtol=0.02)


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
    for broken in (np.nan, np.inf, -np.inf):
        with pytest.raises(GrebeError, match=r"b\.gguf: logits are not finite"):
            log_softmax(np.array([[0, broken]], np.float32), "b.gguf")


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
    assert (good.same_weights, bad.same_weights) == (True, False)
    with pytest.raises(InvalidArgumentError, match="too few for 100 cases"):
        cases_of(a, ["Short."])


def test_what_is_not_kept_counts_as_one(pair, tmp_path, monkeypatch):
    """KL over the likeliest tokens and the rest is at most that over all, and hardly less."""
    a, b = pair
    cases = cases_of(a, [TEXT * 3], 9, longest=60)
    save_reference(a, cases, tmp_path / "all.npz")
    monkeypatch.setattr(compare_reference, "N_KEPT", 64)
    save_reference(a, cases, tmp_path / "some.npz")
    assert (tmp_path / "some.npz").stat().st_size * 10 < (tmp_path / "all.npz").stat().st_size
    every, some = (score(b, tmp_path / name) for name in ("all.npz", "some.npz"))
    assert every.passed == some.passed
    assert 0.5 * every.kl_mean < some.kl_mean <= every.kl_mean
    expected = []
    for tokens in cases:
        logs = []
        for m in pair:
            session = m.session()
            session.prefill(tokens)
            logs.append(log_softmax(session.logits))
        best = np.argsort(-logs[0])[:64]
        p, q = (np.append(x, 1 - x.sum()) for x in (np.exp(row[best]) for row in logs))
        expected.append((p * np.log(p / q)).sum())
    assert some.kl_mean == pytest.approx(np.mean(expected), rel=1e-4)
    assert score(a, tmp_path / "some.npz").kl_max <= 1e-10


def test_a_reference_of_another_vocabulary_is_refused(pair, tmp_path, monkeypatch):
    path = tmp_path / "r.npz"
    save_reference(pair[0], [[0, 1, 2]], path)
    with np.load(path) as stored:
        fields = dict(stored)
    np.savez(path, **{**fields, "tokens": np.array([0, 1, 10**6], np.int32)})
    with pytest.raises(FormatError, match="beyond the vocabulary"):
        score(pair[0], path)
    np.savez(path, **{**fields, "vocabulary": np.array("0" * 64)})
    with pytest.raises(InvalidArgumentError, match="another vocabulary"):
        score(pair[0], path)


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
        {"version": np.int64(1)},
        {"kept": fields["kept"][:, ::-1] * 0},
        {"kept": fields["kept"][:, 1:]},
        {"rest": np.array([-0.1])},
        {"rest": np.array([0.5])},
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


def test_the_command(other, tmp_path, capsys, monkeypatch):
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
    bad = tmp_path / "bad.txt"
    bad.write_bytes(b"caf\xe9")
    nowhere = str(tmp_path / "none" / "x")
    for wrong, reason in (
        ([a, str(text)], "two models and a text"),
        ([a, b], "two models and a text"),
        ([a, b, str(text), "--against", str(npz)], "one model"),
        ([a, str(text), "--save-reference", str(npz), "--against", str(npz)], "two runs"),
        ([a, "--against", str(npz), "--plot", str(plot)], "needs two models"),
        ([a, b, str(text), "--cases", "3"], "--save-reference"),
        ([a, b, str(bad)], "bad.txt: not UTF-8 at byte 3"),
        ([a, b, nowhere], "No such file"),
        ([a, b, str(text), "--plot", nowhere], "No such file"),
        ([a, b, str(text), "--plot", str(tmp_path)], "Is a directory"),
        ([a, str(text), "--save-reference", nowhere], "No such file"),
    ):
        monkeypatch.setattr(grebe.Model, "session", None)  # it is found out before any work
        assert cli.main(["compare", *wrong]) in {1, 2}
        err = capsys.readouterr().err
        assert reason in err
        assert len(err.splitlines()) == 1


def test_the_page_names_options_that_there_are():
    page = (Path(__file__).parents[2] / "docs" / "quality.md").read_text(encoding="utf-8")
    parser = cli.make_parser()
    for command in re.findall(r"^grebe (compare .*?)(?:  +#.*)?$", page, re.M):
        assert parser.parse_args(command.split()).run is compare_command.run
    usage = parser._subparsers._group_actions[0].choices["compare"].format_help()
    usage += "--type --calibrate --text"  # of grebe quantize and of the script
    named = set(re.findall(r"--[a-z][a-z-]+", page))
    assert len(named) > 10
    assert named <= set(re.findall(r"--[a-z][a-z-]+", usage))
