"""The KV store: what is committed is found, by whom, for how long, and at what cost in files and bytes."""

from __future__ import annotations

import errno
import os
import random
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from grebe import _engine
from grebe.errors import InvalidArgumentError, StorageError

from tests.helpers.kv_store import (
    ROOT,
    SMALL_BUDGET,
    add_root,
    chain,
    check,
    files_of,
    is_right,
    key_of,
    maintain,
    record,
    root_id,
)

DAY = 86400
REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def directory() -> Iterator[Path]:
    """In memory where there is such a place: these tests sync thousands of times."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as name:
        yield Path(name) / "kv"


def opened(directory: Path, **options: Any) -> Any:
    store = _engine.Store(directory, **{"budget_bytes": SMALL_BUDGET, **options})
    add_root(store)
    return store


def commit(store: Any, records: list[dict[str, Any]]) -> None:
    assert store.commit(records) == ["committed"] * len(records), store.stats()["last_error"]


# ------------------------------------------------------------------ records


def test_what_is_committed_is_there_again(directory: Path):
    records = chain(1, 3, n_bytes=5000)
    store = opened(directory)
    assert store.contains([key_of(r) for r in records]) == [False] * 4
    commit(store, records)
    commit(store, records)  # once more: they are there, nothing is written
    written = store.stats()["bytes_written"]
    for _ in range(2):
        assert [key_of(r) for r in store.records()] == [key_of(r) for r in records]
        for r, info in zip(records, store.records(), strict=True):
            assert is_right(store, key_of(r))
            assert store.tokens(key_of(r)) == r["tokens"]
            assert info["parent"] == r["parent"]
            assert info["root"] == ROOT
            assert info["pos"] == r["pos"]
            assert info["bytes"] == 5000 + 3 * 4
        assert store.verify() == []
        store.close()
        store = opened(directory)
    stats = store.stats()
    assert (stats["n_blocks"], stats["n_anchors"], stats["n_segments"], stats["n_roots"]) == (
        *(3, 1),
        *(2, 1),
    )
    assert stats["dropped_at_open"] == stats["last_error"] == ""
    assert stats["bytes_read"] > 0
    assert sum(files_of(directory).values()) <= stats["file_bytes"] < written * 1.05
    (root,) = store.roots()
    assert (root["id"], root["name"], root["numerics"]) == (ROOT, "a model", "cpu fast official 1")


def test_files_are_for_their_owner_alone(directory: Path):
    store = opened(directory)
    commit(store, chain(1, 3))
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert set(files_of(directory)) == {"lock", "manifest.kv", "segment-00000001.kv"}
    for path in directory.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path.name


def test_a_record_needs_what_it_follows(directory: Path):
    store = opened(directory)
    records = chain(1, 3)
    assert store.commit(records[1:]) == ["no_parent"] * 3
    assert store.commit([records[0], records[2], records[1], records[3]]) == [
        "committed",
        "no_parent",
        "committed",
        "no_parent",
    ]
    other = chain(2, 1, parent=root_id("other"))
    for r in other:
        r["root"] = root_id("other")
    assert store.commit(other) == ["no_parent"] * 2  # a root that nobody has made known
    add_root(store, root_id("other"))
    crossed = {**chain(3, 1)[0], "root": root_id("other")}
    assert store.commit([crossed]) == ["no_parent"]
    commit(store, other)
    twice = chain(4, 1, anchor=False)
    assert store.commit(twice + twice) == ["committed"] * 2
    assert store.stats()["n_blocks"] == 4
    assert store.commit([]) == []


def test_records_that_contradict_themselves_are_refused(directory: Path):
    store = opened(directory)
    good = chain(1, 1)[0]
    for change, message in [
        ({"pos": -1}, "position is -1"),
        ({"tokens": [0] * 513}, "513 tokens; at most 512"),
        ({"pages": [b"x" * (i + 1) for i in range(9)]}, "9 page groups"),
        ({"pages": [b""]}, "payload has"),
        ({"kind": "tree"}, "block or anchor is expected"),
        ({"id": b"short"}, "5 bytes; 32 are expected"),
    ]:
        with pytest.raises(InvalidArgumentError, match=message):
            store.commit([{**good, **change}])
    commit(store, [{**good, "pages": [b"a" * 10] * 1000 + [b"b"]}])
    empty = record("anchor", good["id"], [], 4, 0)
    commit(store, [empty])
    assert store.read(key_of(empty)) == b""
    assert store.tokens(key_of(empty)) == []
    assert store.verify() == []


def test_removal(directory: Path):
    store = opened(directory)
    trunk = chain(1, 4)
    branch = chain(2, 2, parent=trunk[1]["id"], pos=8)
    add_root(store, root_id("other"), "another")
    other = [{**r, "root": root_id("other")} for r in chain(3, 2, parent=root_id("other"))]
    commit(store, trunk + branch + other)
    assert store.remove(key_of(trunk[2])) == 3
    assert store.remove(key_of(trunk[2])) == 0
    assert store.remove(key_of(trunk[0])) == 5
    assert store.remove_root(root_id("nobody")) == 0
    store.close()
    store = opened(directory)
    assert {key_of(r) for r in store.records()} == {key_of(r) for r in other}
    assert store.remove_root(root_id("other")) == 3
    assert [r["id"] for r in store.roots()] == [ROOT]
    maintain(store)
    assert store.stats()["live_bytes"] == 0
    commit(store, trunk)
    store.close()
    check(directory, [key_of(r) for r in trunk])


def test_damage_that_a_reader_reports(directory: Path):
    store = opened(directory)
    records = chain(1, 4)
    commit(store, records)
    store.report_damage(key_of(records[2]))
    store.report_damage(key_of(records[2]))
    stats = store.stats()
    assert (stats["records_damaged"], stats["descendants_dropped"]) == (1, 2)
    store.close()
    store = opened(directory)
    assert {key_of(r) for r in store.records()} == {key_of(r) for r in records[:2]}
    commit(store, records)
    assert store.verify() == []


def test_verify_tells_how_far_it_is_and_can_be_ended(directory: Path):
    store = opened(directory)
    commit(store, chain(1, 5))
    told: list[tuple[int, int]] = []
    assert store.verify(lambda done, total: told.append((done, total))) == []
    assert told[0] == (0, told[-1][1])
    assert [t[0] for t in told] == sorted(t[0] for t in told)
    assert told[-1][0] == told[-1][1] == store.stats()["live_bytes"]

    def enough(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.verify(enough)
    assert store.stats()["n_blocks"] == 5


def test_a_closed_store_says_so(directory: Path):
    store = opened(directory)
    store.close()
    store.close()
    with pytest.raises(InvalidArgumentError, match="the store is closed"):
        store.records()


# ------------------------------------------------------------------ several at once


def test_the_second_one_reads(directory: Path):
    writer = opened(directory)
    commit(writer, chain(1, 2))
    reader = opened(directory)
    assert reader.stats()["read_only"]
    assert not writer.stats()["read_only"]
    assert reader.commit(chain(2, 1)) == ["read_only"] * 2
    assert reader.remove(key_of(chain(1, 1)[0])) == 0
    assert not reader.maintain()
    for i in range(3, 30):  # many segments
        records = chain(i, 2)
        assert not any(reader.contains([key_of(r) for r in records]))
        commit(writer, records)
        assert all(reader.contains([key_of(r) for r in records]))
        assert all(is_right(reader, key_of(r)) for r in records)
    writer.close()
    assert reader.stats()["read_only"]
    third = opened(directory)
    assert not third.stats()["read_only"]


def test_a_reader_follows_compaction_and_new_manifests(directory: Path):
    writer = opened(directory)
    kept = chain(1, 1)
    commit(writer, kept)
    reader = opened(directory, read_only=True)
    late = opened(directory, read_only=True)
    generations = set()
    for i in range(40):
        passing = chain(100 + i, 8)
        commit(writer, passing)
        assert is_right(reader, key_of(passing[-1]))
        writer.remove(key_of(passing[0]))
        for _ in range(60):
            writer.touch([key_of(kept[-1])])
        maintain(writer)
        generations.add((directory / "manifest.kv").read_bytes()[16:24])
        for r in kept:
            assert is_right(reader, key_of(r))
    assert writer.stats()["records_compacted"] > 0
    assert len(generations) > 1
    last = chain(999, 1)
    commit(writer, last)
    assert is_right(late, key_of(last[0]))  # which has missed all of it
    assert {key_of(r) for r in late.records()} == {key_of(r) for r in kept + last}
    assert late.verify() == []


def test_a_reader_beside_a_writer_whose_disk_fails(directory: Path):
    """What a failed batch leaves in the files and is cut off again is never taken for records."""
    storage = _engine.FaultyStorage()
    writer = opened(directory, storage=storage)
    kept = []
    reader = opened(directory, read_only=True)
    for i in range(30):
        storage.add(["write", "sync"][i % 2], "short_write" if i % 4 == 0 else "fail", first=i % 5)
        records = chain(i, 2)
        results = writer.commit(records)
        found = reader.contains([key_of(r) for r in records])
        if results == ["committed"] * 3:
            assert all(found)
            kept += records
        assert all(is_right(reader, key_of(r)) for r, f in zip(records, found, strict=True) if f)
        assert all(reader.contains([key_of(r) for r in kept]))
        storage.clear()
    assert 10 < len(kept) < 90
    assert all(is_right(reader, key_of(r)) for r in kept)


CHILD = """
import sys
from pathlib import Path
from tests.helpers.kv_store import SMALL_BUDGET, add_root, chain
from grebe import _engine
store = _engine.Store(Path(sys.argv[1]), budget_bytes=SMALL_BUDGET)
add_root(store)
for line in sys.stdin:
    print(*store.commit(chain(int(line), 2)), flush=True)
"""


def test_two_processes(directory: Path):
    """One writes and the other reads; when the first is killed, its place is free."""
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, str(directory)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None

        def write(number: int) -> str:
            child.stdin.write(f"{number}\n")  # type: ignore[union-attr]
            child.stdin.flush()  # type: ignore[union-attr]
            return child.stdout.readline()  # type: ignore[union-attr]

        assert write(1) == "committed committed committed\n"
        reader = opened(directory)
        assert reader.stats()["read_only"]
        for i in range(2, 12):
            assert write(i) == "committed committed committed\n"
            assert all(is_right(reader, key_of(r)) for r in chain(i, 2))
        child.kill()
    mine = opened(directory)
    assert not mine.stats()["read_only"]
    commit(mine, chain(50, 2))
    assert all(is_right(reader, key_of(r)) for r in chain(50, 2))


def test_a_forked_child_does_not_write(directory: Path):
    script = f"""
import os, sys
from pathlib import Path
from tests.helpers.kv_store import add_root, chain
from grebe import _engine
store = _engine.Store(Path({str(directory)!r}))
add_root(store)
assert set(store.commit(chain(1, 2))) == {{"committed"}}
child = os.fork()
if child == 0:
    results = store.commit(chain(2, 1))
    assert store.contains([("block", chain(1, 1)[0]["id"])]) == [True]
    store.close()
    os._exit(0 if results == ["read_only"] * 2 else 1)
assert os.waitpid(child, 0)[1] == 0
assert set(store.commit(chain(3, 1))) == {{"committed"}}
assert _engine.Store(Path({str(directory)!r})).stats()["read_only"]
"""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    subprocess.run([sys.executable, "-c", script], check=True, cwd=REPOSITORY, env=env, timeout=60)


def test_threads_that_look_while_one_writes(directory: Path):
    store = opened(directory)
    known: list[dict[str, Any]] = []
    wrong: list[Any] = []
    done = threading.Event()

    def look(seed: int) -> None:
        generator = random.Random(seed)
        while not done.is_set():
            if not known:
                continue
            r = generator.choice(known)
            payload = store.read(key_of(r))  # or it has been evicted
            if payload is not None and not is_right_payload(r, payload):
                wrong.append(r)
            store.touch([key_of(r)])
            store.stats()
            if generator.random() < 0.01:
                store.report_damage(key_of(r))

    threads = [threading.Thread(target=look, args=(i,)) for i in range(3)]
    for t in threads:
        t.start()
    try:
        for i in range(150):
            records = chain(i, 4)
            store.commit(records)
            known.extend(records)
            store.maintain()
    finally:
        done.set()
        for t in threads:
            t.join()
    assert wrong == []
    assert store.verify() == []
    kept = {key_of(r) for r in store.records()}
    assert kept
    store.close()
    check(directory, kept)


def is_right_payload(r: dict[str, Any], payload: bytes) -> bool:
    at = 0
    for page in r["pages"]:
        if payload[at : at + len(page)] != page:
            return False
        at += len(page) + 4
    return at == len(payload)


# ------------------------------------------------------------------ budgets


def test_the_budget_is_kept(directory: Path):
    """Thousands of commits, uses and removals: bytes and number of files stay, and so do the records in use."""
    store = opened(directory)
    generator = random.Random(1)
    hot = chain(0, 3, n_bytes=200)
    commit(store, hot)
    most_bytes = most_files = 0
    for i in range(1, 1500):
        grown = chain(i, generator.randrange(1, 6), n_bytes=generator.choice([200, 1000, 3000]))
        commit(store, grown)
        if i % 5 == 0:
            store.touch([key_of(hot[-1])])
        if i % 50 == 0:
            maintain(store)
            files = files_of(directory)
            stats = store.stats()
            assert sum(files.values()) <= stats["file_bytes"] <= SMALL_BUDGET
            assert stats["n_segments"] == len(files) - 2
            most_files = max(most_files, len(files))
        most_bytes = max(most_bytes, sum(files_of(directory).values()))
    assert most_bytes <= SMALL_BUDGET
    assert most_files <= 22
    stats = store.stats()
    assert stats["live_bytes"] > SMALL_BUDGET / 2
    assert all(is_right(store, key_of(r)) for r in hot)
    assert stats["refused_by_budget"] == 0
    assert stats["bytes_written"] < 2.5 * stats["payload_written"]
    assert store.verify() == []
    kept = {key_of(r) for r in store.records()}
    store.close()
    check(directory, kept)


def test_a_smaller_budget_at_the_next_opening(directory: Path):
    store = opened(directory, budget_bytes=1 << 20)
    for i in range(80):
        commit(store, chain(i, 5))
    assert store.stats()["file_bytes"] > 700_000
    store.close()
    store = opened(directory, budget_bytes=200_000)
    maintain(store)
    assert sum(files_of(directory).values()) <= store.stats()["file_bytes"] <= 200_000
    assert store.stats()["n_anchors"] > 5
    assert store.verify() == []


def test_what_is_evicted(directory: Path):
    """Old sessions that nobody came back to go before those in use, a deep one after a shallow one."""
    store = opened(directory)
    deep = chain(1, 6)
    shallow = chain(2, 1)
    used = chain(3, 1)
    commit(store, deep + shallow + used)
    for r in deep[:-1] + deep[-1:]:
        assert store.contains([key_of(r)]) == [True]
    for i in range(60):
        commit(store, chain(100 + i, 6))
        store.touch([key_of(used[-1])])
        if store.stats()["records_evicted"] > 60:
            break
    assert is_right(store, key_of(used[-1]))
    assert is_right(store, key_of(used[0]))
    assert store.contains([key_of(shallow[-1])]) == [False]


def test_blocks_that_are_being_written_stay(directory: Path):
    """They have no anchor yet, which would make them worth nothing."""
    store = opened(directory)
    for i in range(10):
        commit(store, chain(100 + i, 6))
    parent, pos, mine = ROOT, 0, []
    for i in range(30):
        block = chain(7000 + i, 1, parent=parent, pos=pos, anchor=False)[0]
        commit(store, [block])
        commit(store, chain(200 + i, 3))
        mine.append(block)
        parent, pos = block["id"], block["pos"]
    anchor = record("anchor", parent, [1], pos + 1)
    commit(store, [anchor])
    assert store.stats()["records_evicted"] > 50
    assert all(is_right(store, key_of(r)) for r in [*mine, anchor])


def test_a_session_larger_than_the_budget_keeps_its_beginning(directory: Path):
    store = opened(directory)
    parent, pos, n = ROOT, 0, 0
    for i in range(400):
        made = chain(i, 1, parent=parent, pos=pos, anchor=i % 8 == 7)
        if set(store.commit(made)) != {"committed"}:
            break
        parent, pos, n = made[0]["id"], made[0]["pos"], i + 1
    assert 60 < n < 200
    stats = store.stats()
    assert stats["refused_by_budget"] > 0
    assert stats["file_bytes"] <= SMALL_BUDGET
    assert stats["n_blocks"] == n
    assert stats["n_anchors"] > 5


def test_a_record_that_is_too_large(directory: Path):
    store = opened(directory)
    commit(store, chain(1, 3))
    assert store.commit(chain(2, 1, n_bytes=SMALL_BUDGET // 3)) == ["refused", "no_parent"]
    assert store.stats()["refused_by_budget"] == 1
    commit(store, chain(3, 1, n_bytes=SMALL_BUDGET // 9))  # more than a segment
    assert store.contains([key_of(chain(1, 1)[0])]) == [True]


def test_compaction(directory: Path):
    """A segment that is mostly dead loses its file, and what lived in it is read from another."""
    store = opened(directory)
    kept, passing = chain(1, 1), chain(2, 5)
    commit(store, kept + passing)
    commit(store, chain(3, 4))  # another segment is open now
    epoch = store.epoch
    store.remove(key_of(passing[0]))
    assert maintain(store) > 0
    assert store.epoch > epoch
    assert "segment-00000001.kv" not in files_of(directory)
    stats = store.stats()
    assert stats["records_compacted"] == 3  # one of the second batch was in it
    assert stats["segments_removed"] == 1
    assert all(is_right(store, key_of(r)) for r in kept)
    store.close()
    check(directory, [key_of(r) for r in kept + chain(3, 4)])


def test_compaction_finds_damage(directory: Path):
    store = opened(directory)
    kept, passing = chain(1, 3), chain(2, 6)
    commit(store, kept + passing)
    commit(store, chain(3, 4))
    store.remove(key_of(passing[0]))
    path = directory / "segment-00000001.kv"
    data = path.read_bytes()
    page = kept[1]["pages"][1]
    path.write_bytes(data.replace(page, bytes(len(page))))
    maintain(store)
    assert store.contains([key_of(r) for r in kept]) == [True, False, False, False]
    stats = store.stats()
    assert (stats["records_damaged"], stats["descendants_dropped"]) == (1, 2)
    store.close()
    check(directory, [key_of(r) for r in [kept[0], *chain(3, 4)]])


def test_uses_outlive_the_process_and_the_manifest_does_not_grow(directory: Path):
    store = opened(directory)
    records = chain(1, 2)
    commit(store, records)
    for _ in range(5000):
        store.touch([key_of(records[-1])])
        store.touch([key_of(chain(77, 1)[0])])  # nobody
    for i in range(30):
        commit(store, chain(10 + i, 1))
        for _ in range(20):
            store.touch([key_of(r) for r in chain(10 + i, 1)])
        maintain(store)
    assert files_of(directory)["manifest.kv"] < 40_000
    store.close()
    store = opened(directory)
    info = {key_of(r): r for r in store.records()}
    assert info[key_of(records[-1])]["hits"] == 5000
    assert info[key_of(records[-1])]["age"] > info[key_of(chain(39, 1)[-1])]["age"]


def test_maintenance_always_ends(directory: Path):
    """Also with budgets that nothing fits in, and models whose names are long."""
    generator = random.Random(2)
    for i in range(60):
        d = directory / str(i)
        store = _engine.Store(d, budget_bytes=1 << 20)
        for k in range(generator.choice([0, 1, 5])):
            add_root(store, root_id(str(k)), "a name " * generator.choice([0, 1, 100, 5000]))
        add_root(store)
        made = [chain(k, generator.randrange(1, 6)) for k in range(generator.randrange(12))]
        for records in made:
            commit(store, records)
        for records in generator.sample(made, len(made) // generator.choice([1, 2])):
            store.remove(key_of(generator.choice(records)))
        if generator.random() < 0.3:
            for r in store.roots():
                store.remove_root(r["id"])
        store.close()
        store = _engine.Store(d, budget_bytes=generator.choice([0, 1, 100, 4096, 20_000, 200_000]))
        maintain(store)
        manifest = files_of(d)["manifest.kv"]
        assert not store.maintain()
        assert files_of(d)["manifest.kv"] == manifest
        assert store.verify() == []
        store.close()


def test_the_daily_write_budget(directory: Path):
    """By the days of the world: a clock that goes back gives nothing, one that goes forward a day's worth."""
    limit = 30_000
    storage = _engine.FaultyStorage()
    options = {"storage": storage, "daily_write_bytes": limit}
    store = opened(directory, **options)
    start = DAY - storage.now() % DAY  # to midnight

    def fill(name: int) -> int:
        """Commits until it is refused; returns the bytes written by it."""
        before = store.stats()["bytes_written"]
        for i in range(100):
            if store.commit(chain(1000 * name + i, 1, anchor=False)) == ["refused"]:
                break
        store.maintain()
        return store.stats()["bytes_written"] - before

    storage.set_clock_offset(start)
    assert 0.8 * limit < fill(1) <= limit
    assert store.stats()["refused_by_daily_budget"] == 1
    storage.set_clock_offset(start + DAY - 60)
    assert fill(2) == 0
    storage.set_clock_offset(start - 5 * DAY)  # back
    assert fill(3) == 0
    store.close()
    store = opened(directory, **options)
    assert fill(4) < 100
    storage.set_clock_offset(start + DAY)  # the next day
    assert 0.8 * limit < fill(5) <= limit
    storage.set_clock_offset(start + 1000 * DAY)  # far ahead
    assert 0.8 * limit < fill(6) <= limit
    storage.set_clock_offset(start + DAY)  # and back: this day has had its part
    assert fill(7) == 0
    storage.set_clock_offset(start + 2 * DAY)  # but time goes on
    assert 0.8 * limit < fill(8) <= limit
    assert store.stats()["read_only"] is False
    assert store.verify() == []


def test_the_budget_is_kept_without_compaction(directory: Path):
    """When no bytes may be written any more, files are still removed for a budget that has shrunk."""
    storage = _engine.FaultyStorage()
    store = opened(directory, budget_bytes=1 << 20, storage=storage)
    for i in range(60):
        commit(store, chain(i, 5))
    store.close()
    store = opened(directory, budget_bytes=200_000, storage=storage, daily_write_bytes=1)
    maintain(store)
    assert store.stats()["file_bytes"] <= 200_000
    assert store.stats()["n_blocks"] > 10
    assert store.stats()["records_compacted"] == 0
    assert store.verify() == []


# ------------------------------------------------------------------ disks that do not do as they should


def test_a_directory_that_may_not_be_used(directory: Path):
    for op in ("make_directory", "list", "open"):
        storage = _engine.FaultyStorage()
        storage.add(op, "fail", count=None, errno=errno.EACCES)
        with pytest.raises(StorageError, match=str(directory)) as error:
            opened(directory, storage=storage)
        assert error.value.errno == errno.EACCES
    store = opened(directory)
    commit(store, chain(1, 2))
    store.close()
    storage = _engine.FaultyStorage()  # a file system that is mounted for reading
    for op in ("lock", "write", "truncate", "remove", "rename", "sync"):
        storage.add(op, "fail", count=None, errno=errno.EROFS)
    store = opened(directory, storage=storage)
    assert store.stats()["read_only"]
    assert "lock" in store.stats()["last_error"]
    assert all(is_right(store, key_of(r)) for r in chain(1, 2))
    assert store.commit(chain(2, 1)) == ["read_only"] * 2


def test_reads_that_fail_are_misses(directory: Path):
    storage = _engine.FaultyStorage()
    store = opened(directory, storage=storage)
    records = chain(1, 2)
    commit(store, records)
    storage.add("read", "fail", count=3)
    assert store.read(key_of(records[0])) is None
    assert store.tokens(key_of(records[0])) is None
    assert store.verify() == []  # which reads again
    assert store.stats()["read_failures"] == 3
    storage.add("read", "fail", count=None)
    assert len(store.verify()) == 3
    storage.clear()
    commit(store, records)
    assert store.verify() == []


def test_what_the_disk_does_not_give_is_not_moved_nor_dropped(directory: Path):
    storage = _engine.FaultyStorage()
    store = opened(directory, storage=storage)
    kept, passing = chain(1, 3), chain(2, 6)
    commit(store, kept + passing)
    commit(store, chain(3, 4))
    store.remove(key_of(passing[0]))
    storage.add("read", "fail", count=None)
    maintain(store)
    storage.clear()
    assert all(is_right(store, key_of(r)) for r in kept)
    commit(store, chain(4, 2))
    store.close()
    check(directory, [key_of(r) for r in kept + chain(3, 4) + chain(4, 2)])


def test_opening_a_large_store_reads_the_manifest_alone(directory: Path):
    """1,000 sessions, 6,000 blocks and 3,000 anchors; their payloads do not matter."""
    store = opened(directory, budget_bytes=1 << 30)
    for i in range(100):
        batch = []
        for k in range(10):
            blocks = chain(10 * i + k, 6, n_bytes=30, anchor=False)
            batch += blocks
            batch += [record("anchor", b["id"], [1, 2], b["pos"] + 2, 30) for b in blocks[1::2]]
        commit(store, batch)
    store.close()
    storage = _engine.FaultyStorage()
    start = time.perf_counter()
    store = _engine.Store(directory, budget_bytes=1 << 30, storage=storage)
    seconds = time.perf_counter() - start
    stats = store.stats()
    assert (stats["n_blocks"], stats["n_anchors"]) == (6000, 3000)
    read = sum(n for op, path, _, n, _ in storage.log() if op == "read" and "segment" in path)
    assert read == 64 * stats["n_segments"]
    assert seconds < 1.0


# ------------------------------------------------------------------ the thread that writes


def test_queued_records_are_written(directory: Path):
    store = opened(directory)
    records = [r for i in range(20) for r in chain(i, 3)]
    assert store.write_queued(records) == ["committed"] * 80
    stats = store.writer_stats()
    assert (stats["n_committed"], stats["n_queued"], stats["queued_bytes"]) == (80, 0, 0)
    orphan = chain(99, 2)[1:]
    assert store.write_queued([*orphan, *chain(30, 1)]) == ["no_parent"] * 2 + ["committed"] * 2
    store.close()
    check(directory, [key_of(r) for r in records])


def test_a_full_queue_refuses(directory: Path):
    storage = _engine.FaultyStorage()
    store = opened(directory, storage=storage)
    storage.add("sync", "delay", count=None, seconds=0.05)
    results = store.write_queued([r for i in range(20) for r in chain(i, 1)], max_queued_bytes=9000)
    assert results[:3] == ["committed"] * 3
    assert "queue" in results
    assert store.writer_stats()["n_refused_by_queue"] == results.count("queue")


def test_the_writer_pauses_when_the_disk_fails(directory: Path):
    storage = _engine.FaultyStorage()
    store = opened(directory, storage=storage)
    assert store.write_queued(chain(0, 1)) == ["committed"] * 2
    storage.add("write", "fail", count=None)
    assert "failed" in store.write_queued(chain(1, 1))
    assert store.writer_stats()["paused"]
    assert store.write_queued(chain(2, 1)) == ["queue"] * 2
    storage.clear()
    deadline = time.monotonic() + 10
    while store.writer_stats()["paused"]:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert store.write_queued(chain(3, 1)) == ["committed"] * 2
    assert not store.writer_stats()["paused"]
    store.close()
    check(directory, [key_of(r) for r in chain(0, 1) + chain(3, 1)])


def test_the_writer_keeps_the_budget(directory: Path):
    store = opened(directory)
    for i in range(40):
        results = store.write_queued([r for k in range(10) for r in chain(100 * i + k, 2)])
        assert results == ["committed"] * 30
    stats = store.stats()
    assert stats["file_bytes"] <= SMALL_BUDGET
    assert stats["records_evicted"] > 0
    store.close()
    assert sum(files_of(directory).values()) <= SMALL_BUDGET
