"""``grebe cache``: what a directory holds, whether it is sound, what goes when it is told to."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from grebe import _engine
from grebe.cli import main

from tests.helpers import models
from tests.helpers.kv_store import add_root, chain

MODELS = ("embedded", "tiny_gguf")
N_TOKENS = 1200


def some_tokens(name: str, seed: int = 0, n: int = N_TOKENS) -> list[int]:
    vocab = models.load(name).config.vocab_size
    return [random.Random(seed + i * 10).randrange(vocab) for i in range(n)]


def fill(directory: Path, name: str, *texts: list[int]) -> None:
    with models.load(name).open_cache(directory) as cache:
        for tokens in texts:
            with cache.session(2048) as session:
                session.prefill(tokens)


@pytest.fixture(scope="module")
def filled(tmp_path_factory) -> Path:
    """Two models, each with two texts that part after 600 tokens."""
    directory = tmp_path_factory.mktemp("cache") / "kv"
    for name in MODELS:
        first, second = some_tokens(name), some_tokens(name, 1)
        fill(directory, name, first, first[:600] + second[:700])
    return directory


@pytest.fixture
def store(filled, tmp_path) -> Path:
    """A copy."""
    return Path(shutil.copytree(filled, tmp_path / "kv"))


@pytest.fixture
def run(capsys):
    """Runs the command and gives its stdout."""

    def call(*argv: object, status: int = 0) -> str:
        got = main(["cache", *map(str, argv)])
        out, call.err = capsys.readouterr()
        assert got == status, call.err
        return out

    return call


def listing(run, store: Path) -> dict[str, Any]:
    """By fingerprint."""
    roots = json.loads(run("ls", store, "--json"))["roots"]
    return {root["fingerprint"]: root for root in roots}


def records(directory: Path) -> list[dict[str, Any]]:
    store = _engine.Store(directory, read_only=True)
    try:
        return store.records()
    finally:
        store.close()


def file_bytes(directory: Path) -> int:
    return sum(f.stat().st_size for f in directory.glob("*.kv"))


# ------------------------------------------------------------------ ls and stats


def test_ls(run, store):
    roots = listing(run, store)
    assert list(roots) == [models.load(name).fingerprint for name in MODELS]
    text = run("ls", store)
    for root in roots.values():
        # Each text has two blocks; they share the first.
        assert root["n_blocks"] == 3
        assert root["n_anchors"] == len(root["anchors"])
        leaves = [a for a in root["anchors"] if a["leaf"]]
        assert [a["tokens"] for a in leaves] == [1280, 1152]
        assert root["fingerprint"][:16] in text
        assert root["fingerprint"] not in text
        assert f"3 blocks, {root['n_anchors']} anchors" in text
        for a in root["anchors"]:
            assert (f"  {a['id'][:12]}  " in text) == a["leaf"]
    assert sum(r["bytes"] for r in roots.values()) == sum(r["bytes"] for r in records(store))


def test_a_leaf_has_no_deeper_state_on_its_path(run, tmp_path):
    """Anchors inside one block are on one path only when their tokens agree."""
    tokens, other = some_tokens("embedded"), some_tokens("embedded", 1)
    for text in (tokens[:300], tokens[:450], tokens[:128] + other[:150], tokens[:700]):
        fill(tmp_path / "kv", "embedded", text)
    (root,) = listing(run, tmp_path / "kv").values()
    found = sorted((a["tokens"], a["leaf"]) for a in root["anchors"])
    assert found == [(256, False), (256, True), (384, False), (640, True)]


def test_stats(run, store):
    numbers = json.loads(run("stats", store, "--json"))
    roots = listing(run, store).values()
    assert numbers["n_roots"] == len(MODELS)
    assert numbers["n_blocks"] == sum(r["n_blocks"] for r in roots)
    assert 0 <= numbers["file_bytes"] - file_bytes(store) < 64 * numbers["n_segments"]
    rows = [line.split("  ", 1) for line in run("stats", store).splitlines()]
    assert len(rows) == len(numbers)
    shown = {name.strip(): value.strip() for name, value in rows}
    assert shown["roots"] == "2"
    assert shown["file bytes"].endswith(("kB", "MB"))
    assert shown["last error"] == "-"


def test_names_do_not_drive_a_terminal(run, tmp_path):
    store = _engine.Store(tmp_path)
    add_root(store, name="Flash \x1b[31m")
    assert store.commit(chain(1, 2)) == ["committed"] * 3
    store.close()
    assert run("ls", tmp_path).startswith("Flash \\x1b[31m, ")


def test_an_empty_store(run, tmp_path):
    _engine.Store(tmp_path).close()
    assert run("ls", tmp_path) == "nothing is stored\n"
    assert run("verify", tmp_path) == "all 0 records are as written\n"
    assert run("rm", tmp_path, "--all").startswith("removed 0 records")


# ------------------------------------------------------------------ verify


def flip(store: Path) -> None:
    """A bit in the last page of the last record."""
    (*_, segment) = sorted(store.glob("segment-*.kv"))
    data = bytearray(segment.read_bytes())
    data[-100] ^= 1
    segment.write_bytes(data)


def test_verify(run, store):
    n = len(records(store))
    assert run("verify", store) == f"all {n} records are as written\n"
    assert run.err == ""


def test_verify_drops_what_is_damaged(run, store):
    n = len(records(store))
    flip(store)
    out = run("verify", store, status=1)
    assert f"1 of {n} records are damaged" in run.err
    gone = n - len(records(store))
    assert gone >= 1
    assert f"{gone} are dropped" in run.err
    assert out.splitlines()[0].split() == ["damaged", "id", "tokens", "bytes"]
    assert run("verify", store) == f"all {n - gone} records are as written\n"


def test_verify_tells_of_a_missing_segment(run, store):
    next(store.glob("segment-*.kv")).unlink()
    assert "it is missing" in run("verify", store, status=1)
    assert run.err.count("\n") == 1
    run("verify", store)


# ------------------------------------------------------------------ rm


def test_rm_of_a_state(run, store):
    """It goes with the blocks that only led to it."""
    before = listing(run, store)
    fingerprint = models.load("embedded").fingerprint
    root = before[fingerprint]
    deepest = root["anchors"][0]
    assert run("rm", store, deepest["id"][:12]).startswith("removed 2 records of ")
    after = listing(run, store)
    assert after[fingerprint]["n_blocks"] == 2
    assert [a["id"] for a in after[fingerprint]["anchors"]] == [
        a["id"] for a in root["anchors"] if a is not deepest
    ]
    del before[fingerprint], after[fingerprint]
    assert before == after
    run("verify", store)
    again = [a["id"][:12] for a in root["anchors"] if a is not deepest]
    run("rm", store, *again)  # some go with others
    assert listing(run, store)[fingerprint]["n_blocks"] == 0


def test_rm_of_a_block_takes_what_follows(run, store):
    first = records(store)[0]
    assert (first["kind"], first["pos"]) == ("block", 512)
    run("rm", store, first["id"].hex().upper()[:20])
    roots = [root for root in listing(run, store).values() if root["n_blocks"] == 0]
    assert len(roots) == 1
    assert all(a["tokens"] < 512 for a in roots[0]["anchors"])


def test_rm_of_a_model(run, store):
    size, n = file_bytes(store), len(records(store))
    fingerprint = models.load("tiny_gguf").fingerprint
    n_own = sum(listing(run, store)[fingerprint][key] for key in ("n_blocks", "n_anchors"))
    assert run("rm", store, "--model", fingerprint[:8]).startswith(f"removed {n_own} records of ")
    assert list(listing(run, store)) == [models.load("embedded").fingerprint]
    assert len(records(store)) == n - n_own
    assert file_bytes(store) <= size
    run("verify", store)
    with models.load("embedded").open_cache(store) as cache, cache.session(2048) as session:
        session.prefill(some_tokens("embedded"))
        assert cache.stats().tokens_found == 1152


def test_rm_evicts_nothing_else(run, tmp_path):
    """Whatever the budget was with which the cache was written."""
    store = _engine.Store(tmp_path, budget_bytes=1 << 30)
    add_root(store)
    for i in range(40):
        assert set(store.commit(chain(i, 5))) == {"committed"}
    store.close()
    run("rm", tmp_path, chain(7, 1)[0]["id"].hex())
    assert len(records(tmp_path)) == 39 * 6
    run("verify", tmp_path)


def test_rm_gives_room_back(run, tmp_path):
    store = _engine.Store(tmp_path)
    add_root(store)
    for i in range(20):
        store.commit(chain(i, 5))
    store.close()
    before = file_bytes(tmp_path)
    run("rm", tmp_path, *(chain(i, 1)[0]["id"].hex() for i in range(18)))
    assert len(records(tmp_path)) == 2 * 6
    assert file_bytes(tmp_path) < before / 4
    run("verify", tmp_path)


def test_rm_of_everything(run, store):
    n, before = len(records(store)), file_bytes(store)
    out = run("rm", store, "--all")
    assert out.startswith(f"removed {n} records of ")
    assert out.endswith(" smaller\n")
    assert records(store) == []
    assert list(store.glob("segment-*.kv")) == []
    assert file_bytes(store) < before / 50
    assert run("ls", store) == "nothing is stored\n"


def test_rm_of_all_records_one_by_one(run, tmp_path):
    """A model without records stays known."""
    fill(tmp_path / "kv", "embedded", some_tokens("embedded"))
    run("rm", tmp_path / "kv", *(r["id"].hex() for r in records(tmp_path / "kv")))
    (root,) = listing(run, tmp_path / "kv").values()
    assert (root["n_blocks"], root["n_anchors"], root["bytes"]) == (0, 0, 0)
    assert list((tmp_path / "kv").glob("segment-*.kv")) == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "--all"),
        (["abcdef", "--all"], "either"),
        (["--all", "--model", "a"], "either"),
        (["abc"], "6 hex digits"),
        (["../../etc"], "hex digits"),
        (["ffffffffffffffff"], "no record"),
        (["--model", "ffffffffffffffff"], "no model"),
        (["--model", ""], "no model"),
    ],
)
def test_rm_of_what_is_not_there(run, store, options, words):
    before = records(store)
    run("rm", store, *options, status=2)
    assert words in run.err
    assert run.err.count("\n") == 1
    assert records(store) == before


# ------------------------------------------------------------------ errors


@pytest.mark.parametrize("command", [["ls"], ["stats"], ["verify"], ["rm", "--all"]])
def test_what_is_no_store(run, tmp_path, command):
    (tmp_path / "dir").mkdir()
    (tmp_path / "dir" / "letter.txt").write_text("dear")
    for directory in (tmp_path / "dir", tmp_path / "none", tmp_path / "dir" / "letter.txt"):
        run(command[0], directory, *command[1:], status=2)
        assert run.err.startswith("grebe: ")
        assert run.err.count("\n") == 1
        assert str(directory) in run.err
    assert [p.name for p in tmp_path.rglob("*")] == ["dir", "letter.txt"]


def test_another_process_writes(run, store):
    """Looking is fine; nothing is dropped."""
    code = f"""
import sys
from grebe import _engine
store = _engine.Store({str(store)!r})
print(store.stats()["read_only"], flush=True)
sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "False\n"
        n = len(records(store))
        run("ls", store)
        assert run("verify", store) == f"all {n} records are as written\n"
        run("rm", store, "--all", status=2)
        assert "another process" in run.err
        flip(store)
        run("verify", store, status=1)
        assert "nothing is dropped" in run.err
        assert len(records(store)) == n
        other.communicate("")
    run("rm", store, "--all")
