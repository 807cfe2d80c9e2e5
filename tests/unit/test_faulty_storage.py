"""The storage that fails as it is told: tests of crashes are worth what it is worth."""

from __future__ import annotations

import errno
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from grebe import _engine
from grebe.errors import InvalidArgumentError, StorageError


def faulty(seed: int = 0) -> Any:
    return _engine.FaultyStorage(seed=seed)


def error_of(call: Any, *args: Any) -> int | None:
    """The errno that a call ends with, None when it does not."""
    try:
        call(*args)
    except StorageError as e:
        return e.errno
    return None


def test_it_passes_everything_on_and_counts(tmp_path: Path):
    s = faulty()
    s.make_directory(tmp_path / "d")
    f = s.open(tmp_path / "d" / "a", "create")
    f.write(0, b"abc")
    f.write(3, b"def")
    assert f.read(1, 4) == b"bcde"
    assert f.size == 6
    f.sync()
    f.truncate(2)
    s.rename(tmp_path / "d" / "a", tmp_path / "d" / "b")
    s.sync_directory(tmp_path / "d")
    assert s.exists(tmp_path / "d" / "b")
    assert s.list(tmp_path / "d") == ["b"]
    lock = s.try_lock(tmp_path / "lock")
    assert lock is not None
    assert s.try_lock(tmp_path / "lock") is None
    s.remove(tmp_path / "d" / "b")
    assert abs(s.now() - time.time()) < 5
    counts = s.counts
    assert counts == {
        **dict.fromkeys(counts, 1),
        "any": 14,
        "write": 2,
        "lock": 2,
    }
    log = s.log()
    assert [entry[0] for entry in log[:4]] == ["make_directory", "open", "write", "write"]
    assert log[3] == ("write", str(tmp_path / "d" / "a"), 3, 3, "")
    assert s.n_fired == 0


def test_it_fails_what_it_is_told_to(tmp_path: Path):
    s = faulty()
    f = s.open(tmp_path / "a", "create")
    s.add("write", "fail", first=1, count=2, errno=errno.ENOSPC)
    assert [error_of(f.write, i, b"x") for i in range(5)] == [
        None,
        errno.ENOSPC,
        errno.ENOSPC,
        None,
        None,
    ]
    assert (tmp_path / "a").read_bytes() == b"x\0\0xx"
    assert s.n_fired == 2
    assert [entry[4] for entry in s.log()] == ["", "", "fail", "fail", "", ""]


def test_entries_count_from_when_they_were_added(tmp_path: Path):
    s = faulty()
    f = s.open(tmp_path / "a", "create")
    f.write(0, b"x")
    s.add("sync", "fail")
    f.write(0, b"x")
    assert error_of(f.sync) == errno.EIO
    assert error_of(f.sync) is None
    s.add("any", "fail", count=None)
    for call in (f.sync, lambda: f.read(0, 1), lambda: s.open(tmp_path / "a", "read")):
        assert error_of(call) == errno.EIO
    s.clear()
    assert f.read(0, 1) == b"x"


OPERATIONS: dict[str, Any] = {
    "open": lambda s, f, d: s.open(d / "a", "read"),
    "read": lambda s, f, d: f.read(0, 1),
    "write": lambda s, f, d: f.write(0, b"x"),
    "sync": lambda s, f, d: f.sync(),
    "truncate": lambda s, f, d: f.truncate(1),
    "rename": lambda s, f, d: s.rename(d / "a", d / "a"),
    "remove": lambda s, f, d: s.remove(d / "gone"),
    "sync_directory": lambda s, f, d: s.sync_directory(d),
    "list": lambda s, f, d: s.list(d),
    "lock": lambda s, f, d: s.try_lock(d / "lock"),
    "exists": lambda s, f, d: s.exists(d / "a"),
    "make_directory": lambda s, f, d: s.make_directory(d / "d"),
}


@pytest.mark.parametrize("op", OPERATIONS)
def test_every_operation_can_fail_alone(op: str, tmp_path: Path):
    s = faulty()
    (tmp_path / "gone").write_bytes(b"")
    f = s.open(tmp_path / "a", "create")
    f.write(0, b"abc")
    s.add(op, "fail", errno=errno.EACCES)
    for name, call in OPERATIONS.items():
        assert error_of(call, s, f, tmp_path) == (errno.EACCES if name == op else None), name
    if op == "remove":
        assert (tmp_path / "gone").exists()


def test_faults_of_some_files(tmp_path: Path):
    s = faulty()
    a, b = s.open(tmp_path / "seg.1", "create"), s.open(tmp_path / "manifest", "create")
    s.add("any", "fail", path="/seg.", count=None)
    assert error_of(a.write, 0, b"x") == errno.EIO
    assert error_of(b.write, 0, b"x") is None
    assert error_of(s.remove, tmp_path / "seg.1") == errno.EIO


def test_a_short_write(tmp_path: Path):
    s = faulty()
    f = s.open(tmp_path / "a", "create")
    s.add("any", "short_write", first=1, errno=errno.ENOSPC)  # counts what it can happen to
    f.sync()
    f.write(0, b"0123456789")
    f.sync()
    assert error_of(f.write, 10, b"abcdefghij") == errno.ENOSPC
    assert (tmp_path / "a").read_bytes() == b"0123456789abcde"


def test_a_flipped_bit(tmp_path: Path):
    s = faulty(1)
    f = s.open(tmp_path / "a", "create")
    f.write(0, bytes(100))
    s.add("read", "flip_bit", first=1, bit=9)
    s.add("read", "flip_bit", first=2, count=30)
    assert f.read(0, 4) == bytes(4)
    assert f.read(0, 4) == b"\0\2\0\0"
    positions = set()
    for _ in range(30):
        number = int.from_bytes(f.read(0, 100), "little")
        assert number.bit_count() == 1
        positions.add(number)
    assert len(positions) > 20
    assert f.read(0, 100) == bytes(100)
    assert (tmp_path / "a").read_bytes() == bytes(100)  # what is stored is sound


def test_a_delay_and_a_clock_that_jumps(tmp_path: Path):
    s = faulty()
    s.add("list", "delay", seconds=0.05)
    begin = time.monotonic()
    assert s.list(tmp_path) == []
    assert time.monotonic() - begin >= 0.05
    now = s.now()
    s.set_clock_offset(-1000)
    assert abs(s.now() - (now - 1000)) < 5
    s.add("now", "shift_clock", first=1, seconds=86400)
    shifts = [round((s.now() - now + 1000) / 86400) for _ in range(3)]
    assert shifts == [0, 1, 0]
    assert s.counts["any"] == 1  # to ask the clock is no operation of the disk


def test_slips_in_a_plan_are_refused():
    s = faulty()
    with pytest.raises(InvalidArgumentError, match="op is 'wrte'; it may be any, open, read"):
        s.add("wrte", "fail")
    with pytest.raises(InvalidArgumentError, match="action is 'explode'"):
        s.add("write", "explode")
    with pytest.raises(InvalidArgumentError, match="end is 'kil'"):
        s.add("write", "end_after", end="kil")


def test_many_threads(tmp_path: Path):
    s = faulty()
    s.keep_unsynced()
    n_threads, n_writes = 4, 200
    s.add("write", "fail", first=100, count=50)
    errors = []

    def work(i: int) -> None:
        f = s.open(tmp_path / str(i), "create")
        for k in range(n_writes):
            errors.append(error_of(f.write, k * 10, b"0123456789"))
            f.read(0, 1) if k > 60 else None

    threads = [threading.Thread(target=work, args=(i,)) for i in range(n_threads)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert s.counts["write"] == n_threads * n_writes
    assert sum(e is not None for e in errors) == s.n_fired == 50


# ---------------------------------------------------------------- the end of the process

PROGRAM = """
import sys
from grebe import _engine
directory, action, n_bytes, end = sys.argv[1:]
s = _engine.FaultyStorage(seed=5)
s.keep_unsynced()
f = s.open(directory + "/a", "create")
f.write(0, b"a" * 5000)
f.sync()
s.sync_directory(directory)
f.write(5000, b"b" * 1000)
s.add("write", action, n_bytes=int(n_bytes), end=end)
f.write(6000, b"c" * 5000)
print("alive")
"""


def content_after(directory: Path, action: str, n_bytes: int = 0, end: str = "kill") -> bytes:
    """The file of PROGRAM after its process was killed."""
    command = [sys.executable, "-c", PROGRAM, str(directory), action, str(n_bytes), end]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert done.stdout == ""
    return (directory / "a").read_bytes()


def test_killed_before_and_after_a_write(tmp_path: Path):
    """A process that dies loses nothing that it had written, synchronised or not."""
    before, after = tmp_path / "before", tmp_path / "after"
    before.mkdir()
    after.mkdir()
    assert content_after(before, "end_before") == b"a" * 5000 + b"b" * 1000
    assert content_after(after, "end_after") == b"a" * 5000 + b"b" * 1000 + b"c" * 5000


@pytest.mark.parametrize("n_bytes", [0, 1, 4096, 5000, 9999])
def test_a_torn_write(n_bytes: int, tmp_path: Path):
    got = content_after(tmp_path, "torn_write", n_bytes)
    assert got == b"a" * 5000 + b"b" * 1000 + b"c" * min(n_bytes, 5000)


def test_a_write_whose_last_page_is_garbage(tmp_path: Path):
    got = content_after(tmp_path, "garbage_write")
    assert len(got) == 11_000
    assert got[:8192] == b"a" * 5000 + b"b" * 1000 + b"c" * 2192
    assert got[8192:].count(b"c") < 100  # about one in 256 by chance


def test_killed_with_the_power(tmp_path: Path):
    got = content_after(tmp_path, "end_after", end="power_loss_kill")
    assert got[:5000] == b"a" * 5000
    assert len(got) in (5000, 6000, 11_000)


# ---------------------------------------------------------------- the end of the power


def test_without_power_nothing_works(tmp_path: Path):
    s = faulty()
    f = s.open(tmp_path / "a", "create")
    f.write(0, b"abc")
    s.add("write", "end_before", end="power_loss")
    assert s.has_power
    assert error_of(f.write, 0, b"x") == errno.EIO
    assert not s.has_power
    for call in OPERATIONS.values():
        assert error_of(call, s, f, tmp_path) == errno.EIO
    assert s.now() > 0
    assert (tmp_path / "a").read_bytes() == b"abc"  # nothing was to be lost here


def after_power_loss(path: Path, seed: int, work: Any) -> dict[str, bytes]:
    """Files of a fresh directory after work(storage, directory) and the loss of power."""
    path.mkdir()
    s = faulty(seed)
    s.keep_unsynced()
    work(s, path)
    s.power_loss()
    return {p.name: p.read_bytes() for p in path.iterdir()}


def test_what_was_synchronised_stays(tmp_path: Path):
    def work(s: Any, d: Path) -> None:
        f = s.open(d / "a", "create")
        f.write(0, b"a" * 10_000)
        f.truncate(9000)
        f.sync()
        s.sync_directory(d)

    for seed in range(20):
        assert after_power_loss(tmp_path / str(seed), seed, work) == {"a": b"a" * 9000}


def test_what_was_not_synchronised_may_be_lost_in_any_part(tmp_path: Path):
    def work(s: Any, d: Path) -> None:
        f = s.open(d / "a", "create")
        f.write(0, b"a" * 4096)
        f.sync()
        s.sync_directory(d)
        f.write(4096, b"b" * 8192)
        f.write(12_288, b"c" * 4096)

    seen = set()
    for seed in range(100):
        got = after_power_loss(tmp_path / str(seed), seed, work)["a"]
        assert got[:4096] == b"a" * 4096
        assert len(got) in (4096, 12_288, 16_384)
        for i in range(4096, len(got), 512):
            new = b"b" if i < 12_288 else b"c"
            assert got[i : i + 512] in (new * 512, bytes(512))
        seen.add("".join(chr(got[i] or ord(".")) for i in range(0, len(got), 4096)))
    # All, nothing, holes, and a later write that came before an earlier one.
    assert {"abbc", "a", "a..."} <= seen
    assert {"a..c", "a.bc", "ab.c"} & seen
    assert len(seen) >= 6


def test_overwritten_pages_are_of_some_version(tmp_path: Path):
    def work(s: Any, d: Path) -> None:
        f = s.open(d / "a", "create")
        f.write(0, b"0" * 8192)
        f.sync()
        s.sync_directory(d)
        for version in (b"1", b"2", b"3"):
            f.write(0, version * 8192)

    seen = set()
    for seed in range(50):
        got = after_power_loss(tmp_path / str(seed), seed, work)["a"]
        assert len(got) == 8192
        for i in range(0, 8192, 512):
            assert got[i : i + 512] == got[i : i + 1] * 512
        seen |= {got[0:1], got[4096:4097]}
    assert seen == {b"0", b"1", b"2", b"3"}


def test_creations_and_removals_need_their_directory_synchronised(tmp_path: Path):
    def work(s: Any, d: Path) -> None:
        s.open(d / "old", "create").write(0, b"old")
        s.open(d / "old", "read_write").sync()
        s.sync_directory(d)
        s.open(d / "new", "create").write(0, b"new")
        s.open(d / "new", "read_write").sync()
        s.remove(d / "old")

    seen = set()
    for seed in range(40):
        got = after_power_loss(tmp_path / str(seed), seed, work)
        assert got.get("old", b"old") == b"old"
        assert got.get("new", b"new") == b"new"
        seen.add(tuple(sorted(got)))
    assert seen == {("old",), ("new", "old"), ("new",)}  # in order: not neither


def test_a_file_replaced_by_the_rules_is_the_old_or_the_new_one(tmp_path: Path):
    """Write, sync, rename. Without the sync it may be neither: that is what the rule is for."""

    def replace(sync: bool) -> Any:
        def work(s: Any, d: Path) -> None:
            f = s.open(d / "m", "create")
            f.write(0, b"old" * 1000)
            f.sync()
            s.sync_directory(d)
            f = s.open(d / "m.new", "create")
            f.write(0, b"new" * 2000)
            if sync:
                f.sync()
            s.rename(d / "m.new", d / "m")

        return work

    good = {b"old" * 1000, b"new" * 2000}
    by_rule, without = set(), set()
    for seed in range(30):
        got = after_power_loss(tmp_path / f"s{seed}", seed, replace(True))
        by_rule.add(got["m"])
        assert set(got) <= {"m", "m.new"}
        without.add(after_power_loss(tmp_path / f"n{seed}", seed, replace(False))["m"])
    assert by_rule == good
    assert without > good


def test_a_sync_that_failed_keeps_nothing(tmp_path: Path):
    def work(s: Any, d: Path) -> None:
        f = s.open(d / "a", "create")
        s.sync_directory(d)
        f.write(0, b"x" * 100)
        s.add("sync", "fail")
        assert error_of(f.sync) == errno.EIO

    got = {after_power_loss(tmp_path / str(i), i, work)["a"] for i in range(30)}
    assert {b"", b"x" * 100} <= got


def test_one_seed_loses_the_same(tmp_path: Path):
    def work(s: Any, d: Path) -> None:
        f = s.open(d / "a", "create")
        s.sync_directory(d)
        for i in range(20):
            f.write(i * 1000, bytes([i]) * 1000)

    for seed in range(5):
        first = after_power_loss(tmp_path / f"a{seed}", seed, work)
        assert after_power_loss(tmp_path / f"b{seed}", seed, work) == first


@pytest.mark.parametrize("seed", range(30))
def test_random_work_loses_only_what_it_may(seed: int, tmp_path: Path):
    """Files that were at rest when the power went are as they were, whatever happened around them."""
    r = random.Random(seed)
    s = faulty(seed)
    s.keep_unsynced()
    files: dict[str, Any] = {}
    content: dict[str, bytearray] = {}
    dirty: set[str] = set()
    names_dirty = False
    for step in range(120):
        kind = r.choice(["create", "write", "write", "write", "truncate", "sync", "dir", "rename"])
        name = r.choice([*files, "x"]) if files else "x"
        if kind == "create" or name == "x":
            name = f"f{step}"
            files[name], content[name] = s.open(tmp_path / name, "create"), bytearray()
            dirty.add(name)
            names_dirty = True
        elif kind == "write":
            at, x = r.randrange(0, 20_000), r.randbytes(r.randrange(1, 9000))
            files[name].write(at, x)
            old = content[name]
            old.extend(bytes(max(0, at + len(x) - len(old))))
            old[at : at + len(x)] = x
            dirty.add(name)
        elif kind == "truncate":
            size = r.randrange(0, 20_000)
            files[name].truncate(size)
            old = content[name]
            old.extend(bytes(max(0, size - len(old))))
            del old[size:]
            dirty.add(name)
        elif kind == "sync":
            files[name].sync()
            dirty.discard(name)
        elif kind == "dir":
            s.sync_directory(str(tmp_path) + "/" * r.randrange(3))
            names_dirty = False
        else:
            new = f"r{step}"
            s.rename(tmp_path / name, tmp_path / new)
            files[new], content[new] = files.pop(name), content.pop(name)
            if name in dirty:
                dirty.remove(name)
                dirty.add(new)
            names_dirty = True
        for check in content:
            assert (tmp_path / check).read_bytes() == content[check]  # nothing is lost by itself
    if names_dirty:
        s.sync_directory(tmp_path)
    s.power_loss()
    assert {p.name for p in tmp_path.iterdir()} == set(content)
    for name in set(content) - dirty:
        assert (tmp_path / name).read_bytes() == content[name], name
