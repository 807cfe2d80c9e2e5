"""Sessions in files: replaced whole or not at all whatever the disk does, and together with a cache."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import grebe
import numpy as np
import pytest
from grebe import _engine

from tests.helpers import models


def text(model: grebe.Model, n: int) -> list[int]:
    return np.random.default_rng(0).integers(3, model.config.vocab_size - 200, n).tolist()


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


@pytest.fixture(scope="module")
def tiny():
    return models.load("tiny_gguf")


# ------------------------------------------------------------------ the disk


@pytest.fixture
def two(tiny, tmp_path):
    """A file with an older session, and a newer one that is to replace it."""
    old, new = tiny.session(), tiny.session()
    old.prefill(text(tiny, 30))
    new.prefill(text(tiny, 600))
    old.save(tmp_path / "s.grebe")
    return tmp_path / "s.grebe", old.snapshot(), new


@pytest.mark.parametrize("op", ["open", "write", "sync", "rename"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_failed_save_leaves_the_old_file(two, op, code):
    path, old, new = two
    storage = _engine.FaultyStorage()
    storage.add(op, "fail", errno=code)
    with pytest.raises(grebe.StorageError) as caught:
        new._live.save(path, storage)
    assert caught.value.errno == code
    assert caught.value.path == str(path)
    assert str(path) in str(caught.value)
    assert path.read_bytes() == old
    assert names(path.parent) == [path.name]
    new.save(path)
    assert path.read_bytes() == new.snapshot()


@pytest.mark.parametrize("action", ["short_write", "fail"])
def test_every_write_may_be_the_one_that_fails(two, action):
    path, old, new = two
    n_writes = 0
    while True:
        storage = _engine.FaultyStorage()
        storage.add("write", action, first=n_writes, errno=errno.ENOSPC)
        try:
            new._live.save(path, storage)
        except grebe.StorageError:
            assert path.read_bytes() == old
            assert names(path.parent) == [path.name]
            n_writes += 1
        else:
            break
    assert n_writes >= 1
    assert path.read_bytes() == new.snapshot()


def test_a_barrier_that_fails_last(two):
    path, _, new = two
    storage = _engine.FaultyStorage()
    storage.add("sync_directory", "fail", errno=errno.EIO)
    with pytest.raises(grebe.StorageError, match="power failure"):
        new._live.save(path, storage)
    assert path.read_bytes() == new.snapshot()


def test_a_disk_that_fails_to_read(tiny, two):
    path, _, _ = two
    for first in range(3):
        storage = _engine.FaultyStorage()
        storage.add("read", "fail", first=first)
        with pytest.raises(grebe.StorageError):
            tiny._live.restore(path, storage=storage)
    storage = _engine.FaultyStorage()
    storage.add("read", "flip_bit", first=2)
    with pytest.raises(grebe.FormatError):
        tiny._live.restore(path, storage=storage)


def test_no_such_folder_and_a_folder_in_the_way(tiny, tmp_path):
    session = tiny.session()
    with pytest.raises(grebe.StorageError) as caught:
        session.save(tmp_path / "none" / "s")
    assert caught.value.errno == errno.ENOENT
    with pytest.raises(grebe.StorageError):
        session.save(tmp_path)
    assert names(tmp_path) == []


KILLED = """
import sys, grebe
from grebe import _engine
path, n, action, end = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]
session = grebe.Model.load(n_threads=1).session(2048)
session.prefill([5 + i % 70 for i in range(150)])
storage = _engine.FaultyStorage(seed=n)
if end != "kill":
    storage.keep_unsynced()
storage.add("any", action, first=n, end=end)
session._live.save(path, storage)
print(storage.n_fired)
"""


@pytest.mark.parametrize(
    ("action", "end"),
    [("end_before", "kill"), ("end_after", "kill"), ("end_after", "power_loss_kill")],
)
def test_killed_at_any_operation(tmp_path, action, end):
    """What is there is the old session or the new one, and the next save clears away the rest."""
    with grebe.Model.load(n_threads=1) as model:
        old, new = model.session(2048), model.session(2048)
        old.prefill([9, 9, 9])
        new.prefill([5 + i % 70 for i in range(150)])
        contents = {old.snapshot(): "old", new.snapshot(): "new"}
        path = tmp_path / "s.grebe"
        found = []
        for n in range(20):
            old.save(path)
            run = subprocess.run(
                [sys.executable, "-c", KILLED, str(path), str(n), action, end],
                capture_output=True,
                text=True,
            )
            found.append(contents[path.read_bytes()])
            old.save(path)
            assert names(tmp_path) == ["s.grebe"]
            if run.returncode == 0:
                break
            assert run.returncode == -signal.SIGKILL, run.stderr
        assert run.stdout == "0\n"
        assert set(found) == {"old", "new"}
        assert found == sorted(found, reverse=True)


def test_leftovers_of_the_living_stay(tiny, tmp_path):
    session = tiny.session()
    path = tmp_path / "s"
    mine = tmp_path / f"s.tmp-{os.getppid()}-1-0"
    dead = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True
    )
    theirs = tmp_path / f"s.tmp-{int(dead.stdout)}-1-0"
    former = tmp_path / f"s.tmp-{os.getpid()}-1-0"
    other = tmp_path / f"other.tmp-{int(dead.stdout)}-1-0"
    for leftover in (mine, theirs, former, other):
        leftover.write_bytes(b"x")
    session.save(path)
    assert names(tmp_path) == sorted([mine.name, other.name, "s"])


# ------------------------------------------------------------------ with a cache


def test_rows_on_disk_only_are_saved_as_any(tiny, tmp_path):
    ids = text(tiny, 3000)
    plain = tiny.session()
    plain.prefill(ids)
    with tiny.open_cache(tmp_path / "kv", ram_bytes=0) as cache, cache.session() as session:
        session.prefill(ids)
        assert cache.flush()
        cache.trim()
        with session.fork() as copy:
            copy.decode(5)  # looks where its rows are
            assert copy.nbytes < 0.6 * plain.nbytes
        assert session.snapshot() == plain.snapshot()
        session.save(tmp_path / "s.grebe")
        assert (tmp_path / "s.grebe").read_bytes() == plain.snapshot()
        session.rewind(1400)  # within a block whose rows are on disk
        plain.rewind(1400)
        assert tiny.restore(session.snapshot()).tokens == plain.tokens
        rest = session.evaluate(ids[1400:1500])
        assert np.array_equal(rest, plain.evaluate(ids[1400:1500]))


def test_a_session_that_another_began(tiny, tmp_path):
    """Its blocks come from the cache, one of them in the middle."""
    ids = text(tiny, 3300)
    with tiny.open_cache(tmp_path / "kv", ram_bytes=0) as cache:
        with cache.session() as first:
            first.prefill(ids, marks=[2500])
        cache.flush()
        cache.trim()
        with cache.session() as session:
            assert session.prefill(ids[:2600]) == 2600 - 2432
            again = tiny.restore(session.snapshot())
            assert np.array_equal(again.logits, session.logits)
            assert np.array_equal(again.evaluate(ids[2600:]), session.evaluate(ids[2600:]))


def test_rows_that_the_disk_has_lost_are_computed_again(tmp_path):
    model = models.load("embedded")
    ids = text(model, 2600)
    plain = model.session()
    plain.prefill(ids)
    with model.open_cache(tmp_path / "kv", ram_bytes=0) as cache, cache.session() as session:
        session.prefill(ids)
        generation = session.generate(ids, max_tokens=3)
        next(generation)
        cache.flush()
        cache.trim()
        for segment in (tmp_path / "kv").glob("segment-*"):
            os.truncate(segment, 0)
        session.save(tmp_path / "s.grebe")
        assert cache.stats().rows_lost > 0
        again = model.restore(tmp_path / "s.grebe")
        assert again.tokens == ids
        assert np.array_equal(again.logits, plain.logits)
        assert np.array_equal(again.evaluate([7, 8, 9]), plain.evaluate([7, 8, 9]))
        assert len(list(generation)) == 2  # for it nothing has changed


def test_restored_into_a_cache(tiny, tmp_path):
    ids = text(tiny, 2600)
    plain = tiny.session()
    plain.prefill(ids)
    with tiny.open_cache(tmp_path / "kv") as cache:
        session = tiny.restore(plain.snapshot(), cache=cache)
        assert session.cache is cache
        assert session.snapshot() == plain.snapshot()
        assert cache.stats().blocks_sealed == 5
        session.close()
        with cache.session() as other:
            assert other.prefill([*ids, 5]) < 200
            plain.decode(5)
            assert np.array_equal(other.logits, plain.logits)
    with tiny.open_cache(tmp_path / "kv") as cache:
        assert cache.stats().blocks_on_disk == 5
        with cache.session() as other:
            assert other.prefill(ids) < 200
        again = tiny.restore(plain.snapshot(), cache=cache)  # knows them by now
        assert again.snapshot() == plain.snapshot()
        assert cache.stats().blocks_on_disk == 5
    with pytest.raises(grebe.InvalidArgumentError, match=r"grebe\.Cache is expected"):
        tiny.restore(plain.snapshot(), cache="kv")
