"""The KV store on a disk that fails, tears, forgets and is damaged: what was committed is there, what is there is right.

A workload of commits, uses, removals, compactions and openings is run once for every operation that it asks of the disk; that one
fails, or is the last before the process is killed or the power goes. Then the store is opened again.

    python -m tests.property.test_store_faults DIRECTORY ACTION N_BYTES     # a killed process at every operation
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from grebe import _engine
from grebe.errors import FormatError, StorageError

from tests.helpers.kv_store import (
    ROOT,
    SMALL_BUDGET,
    Key,
    Workload,
    add_root,
    chain,
    check,
    files_of,
    is_right,
    key_of,
    maintain,
    pages_of,
)

ROOT_DIRECTORY = Path(__file__).parents[2]
MODULE = "tests.property.test_store_faults"


@pytest.fixture
def directory() -> Iterator[Path]:
    """A place that forgets quickly what it is told to sync: there are a hundred thousand of those."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as name:
        yield Path(name)


def counts_of(directory: Path) -> dict[str, int]:
    """Operations of the workload without faults."""
    storage = _engine.FaultyStorage()
    workload = Workload(directory / "counted", storage)
    workload.run()
    assert len(workload.kept) == 13
    assert check(directory / "counted", workload.kept) >= workload.kept
    counts = storage.counts
    shutil.rmtree(directory / "counted")
    assert counts["any"] > 200
    assert counts["rename"] == 2  # the first manifest and a new one
    return counts


# ------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("op", "action", "number"),
    [
        ("any", "fail", errno.EIO),
        ("any", "fail", errno.ENOSPC),
        ("write", "short_write", errno.EIO),
        ("write", "short_write", errno.ENOSPC),
    ],
)
@pytest.mark.parametrize("count", [1, 3])
def test_a_failed_operation(directory: Path, op: str, action: str, number: int, count: int):
    """One that fails, or three in a row, at every place: nothing that was committed is lost.

    A full disk gets room from evicted records, and they alone may be missing.
    """
    n_failed = n_evicted = 0
    for k in range(counts_of(directory)[op]):
        at = directory / str(k)
        storage = _engine.FaultyStorage()
        storage.add(op, action, first=k, count=count, errno=number)
        workload = Workload(at, storage)
        with contextlib.suppress(StorageError):  # of an opening, again and again
            workload.run()
        workload.close()
        n_failed += storage.n_fired > 0
        assert workload.n_evicted == 0 or number == errno.ENOSPC
        n_evicted += workload.n_evicted > 0
        check(at, workload.kept, may_miss=workload.n_evicted)
        shutil.rmtree(at, ignore_errors=True)
    assert n_failed > 80
    assert (n_evicted > 0) == (number == errno.ENOSPC)


def test_a_disk_that_fails_for_ever_and_comes_back(directory: Path):
    """The store goes on without it: reads what it can, commits nothing, and writes again when it may."""
    for op in ("write", "sync", "truncate", "sync_directory"):
        for k in range(0, counts_of(directory)[op], 3):
            storage = _engine.FaultyStorage()
            store = _engine.Store(directory / "d", budget_bytes=SMALL_BUDGET, storage=storage)
            add_root(store)
            before = chain(1, 3)
            assert set(store.commit(before)) == {"committed"}
            storage.add(op, "fail", first=k, count=None)
            storage.add("truncate", "fail", count=None)
            kept = {key_of(r) for r in before}
            for i in range(6):
                records = chain(10 + i, 3)
                if set(store.commit(records)) == {"committed"}:
                    kept |= {key_of(r) for r in records}
                store.maintain()
            assert all(is_right(store, key) for key in kept)
            storage.clear()
            after = chain(100, 3)
            assert set(store.commit(after)) == {"committed"}
            kept |= {key_of(r) for r in after}
            store.close()
            check(directory / "d", kept)
            shutil.rmtree(directory / "d")


def test_a_full_disk_gets_room_once(directory: Path):
    """Evicted bytes are given back to it, but not all of the cache to somebody who takes whatever there is."""
    storage = _engine.FaultyStorage()
    store = _engine.Store(directory / "d", budget_bytes=SMALL_BUDGET, storage=storage)
    add_root(store)
    for i in range(20):
        assert set(store.commit(chain(i, 3))) == {"committed"}
    n = store.stats()["n_blocks"]
    storage.add("write", "fail", count=None, errno=errno.ENOSPC)
    for i in range(20):
        assert set(store.commit(chain(100 + i, 3))) == {"failed"}
    stats = store.stats()
    assert n / 2 < stats["n_blocks"] < n
    assert "No space" in stats["last_error"]
    storage.clear()
    fresh = chain(200, 3)
    assert set(store.commit(fresh)) == {"committed"}
    kept = {key_of(r) for r in store.records()}
    assert {key_of(r) for r in fresh} <= kept
    store.close()
    check(directory / "d", kept)


# ------------------------------------------------------------------ the end of the process, or of the power


def end_at_every_operation(directory: Path, action: str, n_bytes: int) -> int:
    """Kills a process of its own at each operation and opens what it leaves. Returns how many died."""
    op = "write" if action in ("torn_write", "garbage_write") else "any"
    n_killed = 0
    for k in range(counts_of(directory)[op]):
        at, journal = directory / str(k), directory / f"{k}.journal"
        child = os.fork()
        if child == 0:
            with journal.open("w", buffering=1) as lines:
                storage = _engine.FaultyStorage(seed=k)
                storage.add(op, action, first=k, n_bytes=n_bytes)
                Workload(at, storage, lines.write).run()
            os._exit(0)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status) or status == 0, status
        n_killed += os.WIFSIGNALED(status)
        kept: set[Key] = set()
        for line in journal.read_text().splitlines():
            kind, record_id = line[1:].split()
            (kept.add if line[0] == "+" else kept.discard)((kind, bytes.fromhex(record_id)))
        check(at, kept)
        shutil.rmtree(at, ignore_errors=True)
    return n_killed


# The end after an operation is the end before the next one.
@pytest.mark.parametrize(
    ("action", "n_bytes"), [("end_before", 0), ("torn_write", 100), ("garbage_write", 0)]
)
def test_a_killed_process(directory: Path, action: str, n_bytes: int):
    command = [sys.executable, "-m", MODULE, str(directory), action, str(n_bytes)]
    result = subprocess.run(
        command, cwd=ROOT_DIRECTORY, capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) > 80


@pytest.mark.parametrize(("action", "n_bytes"), [("end_before", 0), ("torn_write", 100)])
@pytest.mark.parametrize("seed", range(3))
def test_a_loss_of_power(directory: Path, action: str, n_bytes: int, seed: int):
    """Pages and names that were not synced may be there, or older ones, or none: in any mixture."""
    op = "write" if action == "torn_write" else "any"
    for k in range(counts_of(directory)[op]):
        at = directory / str(k)
        storage = _engine.FaultyStorage(seed=1000 * seed + k)
        storage.keep_unsynced()
        storage.add(op, action, first=k, n_bytes=n_bytes, end="power_loss")
        workload = Workload(at, storage)
        with contextlib.suppress(StorageError):
            workload.run()
        assert not storage.has_power
        workload.close()
        check(at, workload.kept)
        shutil.rmtree(at, ignore_errors=True)


def test_any_mixture(directory: Path):
    """Several faults of several kinds in one run, and at its end the power may go."""
    generator = random.Random(8)
    ops = ["write", "sync", "truncate", "remove", "rename", "sync_directory", "open", "list", "any"]
    n_evicted = 0
    for i in range(250):
        at = directory / str(i)
        storage = _engine.FaultyStorage(seed=i)
        storage.keep_unsynced()
        for _ in range(generator.randrange(1, 6)):
            storage.add(
                generator.choice(ops),
                "fail",
                first=generator.randrange(80),
                count=generator.choice([1, 1, 2, 5, 20]),
                errno=generator.choice([errno.EIO, errno.ENOSPC]),
            )
        if generator.random() < 0.7:
            first = generator.randrange(60, 280)
            storage.add("any", "end_after", first=first, end="power_loss")
        workload = Workload(at, storage)
        with contextlib.suppress(StorageError):
            workload.run()
        workload.close()
        n_evicted += workload.n_evicted > 0
        storage.clear()
        check(at, workload.kept, may_miss=workload.n_evicted)
        shutil.rmtree(at, ignore_errors=True)
    assert 10 < n_evicted < 200


# ------------------------------------------------------------------ damage


REMOVED = chain(14, 3, parent=chain(1, 3)[1]["id"], pos=8)


def filled(directory: Path) -> dict[Key, bytes]:
    """A store with some trees in three segments, uses and a removal. Returns what has ever been in it."""
    store = _engine.Store(directory, budget_bytes=SMALL_BUDGET)
    add_root(store)
    trunk = chain(1, 3)
    store.commit(trunk)
    for i in range(5):
        store.commit(chain(10 + i, 3, parent=trunk[i % 3]["id"], pos=4 * (i % 3 + 1)))
        store.touch([key_of(trunk[-1])])
    store.commit(chain(20, 2))
    content = {key_of(r): store.read(key_of(r)) for r in store.records()}
    assert store.remove(key_of(REMOVED[0])) == len(REMOVED)
    store.close()
    assert len(content) == 27
    return content


def found_in(
    directory: Path, content: dict[Key, bytes], *, writes: bool = True
) -> tuple[set[Key], str]:
    """What a store finds after damage, and what it says; none of it may be wrong where it is found sound."""
    store = _engine.Store(directory, budget_bytes=SMALL_BUDGET)
    said = store.stats()["dropped_at_open"]
    listed = {key_of(r) for r in store.records()}
    assert listed <= set(content)
    damaged = {key_of(r) for r in store.verify()}
    found = {key_of(r) for r in store.records()}
    assert not damaged & found
    for key in found:
        assert store.read(key) == content[key]
        assert store.tokens(key) is not None
    if damaged:
        said += f" {len(damaged)} damaged"
        stats = store.stats()
        assert stats["records_damaged"] + stats["descendants_dropped"] >= len(damaged)
    if not writes:
        store.close()
        return found, said
    add_root(store)
    assert set(store.commit(chain(777, 2))) == {"committed"}
    store.close()
    again = _engine.Store(directory, budget_bytes=SMALL_BUDGET, read_only=True)
    assert {key_of(r) for r in again.records()} >= found
    assert again.verify() == []
    again.close()
    return found, said


def entries_of(manifest: bytes) -> list[tuple[int, int, bytes]]:
    """End, type and payload of each entry."""
    out, at = [], 64
    while at < len(manifest):
        n = int.from_bytes(manifest[at : at + 4], "little")
        out.append((at + 9 + n, manifest[at + 8], manifest[at + 9 : at + 9 + n]))
        at += 9 + n
    assert at == len(manifest)
    return out


def test_a_flipped_bit_anywhere_in_the_manifest(directory: Path):
    """What was committed before the entry that is hit is there."""
    content = filled(directory / "whole")
    manifest = (directory / "whole" / "manifest.kv").read_bytes()
    entries = entries_of(manifest)
    kinds = {1: "block", 2: "anchor"}
    generator = random.Random(4)
    for at in range(len(manifest)):
        d = directory / "d"
        shutil.copytree(directory / "whole", d)
        damaged = bytearray(manifest)
        damaged[at] ^= 1 << generator.randrange(8)
        (d / "manifest.kv").write_bytes(damaged)
        found, said = found_in(d, content, writes=at % 8 == 0)
        good = [(kind, payload) for end, kind, payload in entries if end <= at or at < 8]
        expected = {(kinds[p[0]], p[1:33]) for kind, p in good if kind == 4}
        if any(kind == 5 for kind, _ in good):
            expected -= {key_of(r) for r in REMOVED}
        assert found == (expected if not 8 <= at < 64 else set())
        if at >= 8:
            good_end = max([64, *(end for end, _, _ in entries if end <= at)])
            lost = f"{len(manifest) - good_end} bytes of the manifest from byte {good_end} on: "
            assert said.startswith("everything" if at < 64 else lost)
        shutil.rmtree(d)


def test_flipped_bits_in_segments(directory: Path):
    """At sampled places: verify() names the one record that is damaged, or its segment is left out."""
    content = filled(directory / "whole")
    generator = random.Random(5)
    names = sorted(n for n in files_of(directory / "whole") if n.startswith("segment"))
    n_named = 0
    for _ in range(300):
        d = directory / "d"
        shutil.copytree(directory / "whole", d)
        path = d / generator.choice(names)
        data = bytearray(path.read_bytes())
        at = generator.randrange(len(data))
        data[at] ^= 1 << generator.randrange(8)
        path.write_bytes(data)
        found, said = found_in(d, content)
        if len(found) < len(content) - len(REMOVED):
            assert said
            n_named += " damaged" in said
        shutil.rmtree(d)
    assert n_named > 150  # the others hit removed records and gaps


def test_a_damaged_record_takes_what_follows_it(directory: Path):
    content = filled(directory / "d")
    block = chain(1, 1)[0]
    page = pages_of("block", block["id"], 1500)[1]
    (path,) = [p for p in (directory / "d").glob("segment*") if page in p.read_bytes()]
    data = path.read_bytes()
    path.write_bytes(data.replace(page, page[:-1] + bytes([page[-1] ^ 1])))
    store = _engine.Store(directory / "d", budget_bytes=SMALL_BUDGET)
    (damaged,) = store.verify()
    assert key_of(damaged) == key_of(block)
    left = {key_of(r) for r in store.records()}
    assert left == {key_of(r) for r in chain(20, 2)} < set(content)
    n_gone = len(content) - len(REMOVED) - len(left)
    assert store.stats()["descendants_dropped"] == n_gone - 1
    store.close()
    check(directory / "d", left)


@pytest.mark.parametrize(
    "what", ["deleted", "cut", "emptied", "swapped", "of another store", "text"]
)
def test_segments_that_are_not_as_they_were(directory: Path, what: str):
    content = filled(directory / "d")
    filled(directory / "other")
    paths = sorted((directory / "d").glob("segment*"))
    assert len(paths) == 3
    if what == "deleted":
        paths[1].unlink()
    elif what == "cut":
        os.truncate(paths[0], 9000)
    elif what == "emptied":
        os.truncate(paths[1], 0)
    elif what == "swapped":
        data = paths[0].read_bytes()
        paths[0].write_bytes(paths[1].read_bytes())
        paths[1].write_bytes(data)
    elif what == "of another store":
        shutil.copyfile(directory / "other" / paths[0].name, paths[0])
    else:
        paths[1].write_text("no segment" * 4000)
    found, said = found_in(directory / "d", content)
    assert len(found) < len(content) - len(REMOVED)
    assert "segment-0000000" in said


@pytest.mark.parametrize("n_bytes", [0, 1, 63, 64, 65, 1000, -1])
def test_a_manifest_that_is_cut(directory: Path, n_bytes: int):
    content = filled(directory / "d")
    path = directory / "d" / "manifest.kv"
    os.truncate(path, n_bytes if n_bytes >= 0 else path.stat().st_size - 1)
    found, said = found_in(directory / "d", content)
    # At 64 it is that of a new store, and the last entry says only what was written on that day.
    assert said or n_bytes in (64, -1)
    assert (len(found) == len(content) - len(REMOVED)) == (n_bytes == -1)


def test_a_manifest_of_another_directory(directory: Path):
    content = filled(directory / "d")
    filled(directory / "other")
    shutil.copyfile(directory / "other" / "manifest.kv", directory / "d" / "manifest.kv")
    found, said = found_in(directory / "d", content)
    assert found == set()
    assert "another store" in said


def test_files_that_are_no_stores(directory: Path):
    (directory / "text").mkdir()
    (directory / "text" / "manifest.kv").write_text("this is no manifest\n" * 10)
    with pytest.raises(FormatError, match=r"manifest\.kv: byte 0: no manifest of a KV store"):
        _engine.Store(directory / "text")
    assert (directory / "text" / "manifest.kv").exists()
    (directory / "photos").mkdir()
    (directory / "photos" / "cat.jpg").write_bytes(b"\xff\xd8")
    with pytest.raises(FormatError, match=r"holds 'cat\.jpg' and no manifest\.kv"):
        _engine.Store(directory / "photos")
    assert files_of(directory / "photos") == {"cat.jpg": 2}
    with pytest.raises(FormatError, match=r"no file manifest\.kv"):
        _engine.Store(directory / "photos", read_only=True)
    with pytest.raises(StorageError):
        _engine.Store(directory / "nothing", read_only=True)
    with pytest.raises(StorageError):
        _engine.Store(directory / "photos" / "cat.jpg")


def test_a_newer_version_is_left_alone(directory: Path):
    filled(directory / "d")
    path = directory / "d" / "manifest.kv"
    data = bytearray(path.read_bytes())
    data[8] = 9
    data[60:64] = _engine.crc32c(bytes(data[8:60])).to_bytes(4, "little")
    path.write_bytes(data)
    with pytest.raises(FormatError, match="another version"):
        _engine.Store(directory / "d")
    assert path.read_bytes() == data


def test_garbage_is_no_danger(directory: Path):
    """Random bytes and random changes in any file: never a crash, never wrong data."""
    content = filled(directory / "whole")
    generator = random.Random(6)
    for _ in range(300):
        d = directory / "d"
        shutil.copytree(directory / "whole", d)
        path = generator.choice(sorted(p for p in d.iterdir() if p.name != "lock"))
        data = bytearray(path.read_bytes())
        for _ in range(generator.choice([1, 3, 20])):
            at = generator.randrange(8, len(data))
            n = min(generator.choice([1, 4, 8, 64, 500]), len(data) - at)
            data[at : at + n] = generator.choice(
                [generator.randbytes(n), b"\xff" * n, b"\0" * n, data[-n:]]
            )
        path.write_bytes(data)
        found_in(d, content)
        shutil.rmtree(d)


def entry(chain_sum: int, kind: int, payload: bytes) -> tuple[int, bytes]:
    """An entry of a manifest whose checksum is right, whatever it says."""
    length = len(payload).to_bytes(4, "little")
    chain_sum = _engine.crc32c(bytes([kind]) + payload, _engine.crc32c(length, chain_sum))
    return chain_sum, length + chain_sum.to_bytes(4, "little") + bytes([kind]) + payload


def test_entries_that_lie_with_right_checksums(directory: Path):
    """Offsets, lengths, counts and numbers of somebody who knows the format."""
    generator = random.Random(7)
    filled(directory / "whole")
    whole = (directory / "whole" / "manifest.kv").read_bytes()
    entries = entries_of(whole)
    start = len(whole) - 9 - len(entries[-1][2])
    last = int.from_bytes(whole[start + 4 : start + 8], "little")
    records = [payload for _, kind, payload in entries if kind == 4]
    extreme = [0, 1, 63, 2**31, 2**32 - 1, 2**47, 2**63, 2**64 - 1]
    for _ in range(400):
        d = directory / "d"
        shutil.copytree(directory / "whole", d)
        chain_sum, added = last, b""
        for _ in range(generator.choice([1, 5])):
            kind = generator.randrange(1, 9)
            payload = bytearray(generator.choice(records))
            if kind == 4:
                if generator.random() < 0.7:  # another name, so that it does not merely move
                    payload[1:33] = generator.randbytes(32)
                field = generator.choice([97, 105, 113, 117, 121, 129])
                n = 4 if field in (113, 117) else 8
                payload[field : field + n] = (generator.choice(extreme) % 2 ** (8 * n)).to_bytes(
                    n, "little"
                )
            else:
                size = {1: 38, 2: 4, 3: 4, 5: 33, 6: 45, 7: 16}.get(kind, 5)
                payload = bytearray(generator.randbytes(size))
                if kind in (2, 3):
                    payload[:] = generator.choice([0, 1, 2, 3, 4, 2**32 - 1, 2**31]).to_bytes(
                        4, "little"
                    )
                if kind == 5:
                    payload[:33] = generator.choice(records)[:33]
            chain_sum, one = entry(chain_sum, kind, bytes(payload))
            added += one
        (d / "manifest.kv").write_bytes(whole + added)
        store = _engine.Store(d, budget_bytes=SMALL_BUDGET)
        for r in store.records():
            store.tokens(key_of(r))
        store.verify()
        for r in store.records():
            assert is_right(store, key_of(r))
        add_root(store)
        if store.contains([("block", ROOT)]) is not None:
            assert set(store.commit(chain(777, 2))) == {"committed"}
        maintain(store)
        store.close()
        shutil.rmtree(d)


if __name__ == "__main__":
    print(end_at_every_operation(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
