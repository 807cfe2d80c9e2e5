"""Files under the KV store: what is appended, read, synchronised, locked and refused."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from grebe import _engine
from grebe.errors import StorageError

posix: Any = _engine.posix_storage()


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_what_is_written_is_read(tmp_path: Path):
    f = posix.open(tmp_path / "a", "create")
    f.write(0, b"hello")
    f.write(5, b" world")
    f.write(20, b"!")
    f.sync()
    posix.sync_directory(tmp_path)
    assert f.size == 21
    assert f.read(0, 11) == b"hello world"
    assert f.read(11, 10) == bytes(9) + b"!"
    assert posix.open(tmp_path / "a", "read").read(6, 5) == b"world"
    f.truncate(4)
    assert (tmp_path / "a").read_bytes() == b"hell"


def test_files_and_directories_are_their_owners_alone(tmp_path: Path):
    old = os.umask(0)
    try:
        posix.make_directory(tmp_path / "x" / "y" / "z")
        posix.open(tmp_path / "x" / "a", "create")
        lock = posix.try_lock(tmp_path / "x" / "lock")
    finally:
        os.umask(old)
    for part in ("x", "x/y", "x/y/z"):
        assert mode_of(tmp_path / part) == 0o700
    assert lock is not None
    assert mode_of(tmp_path / "x" / "a") == mode_of(tmp_path / "x" / "lock") == 0o600


def test_a_directory_that_exists_is_left_as_it_is(tmp_path: Path):
    (tmp_path / "d").mkdir(mode=0o755)
    posix.make_directory(tmp_path / "d")
    posix.make_directory(str(tmp_path / "d") + "//")
    assert mode_of(tmp_path / "d") == 0o755
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError) as e:
        posix.make_directory(tmp_path / "file")
    assert e.value.errno == errno.ENOTDIR


def test_relative_directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    posix.make_directory("a/b/")
    posix.make_directory(".")
    assert (tmp_path / "a" / "b").is_dir()


def test_modes(tmp_path: Path):
    path = tmp_path / "a"
    for mode in ("read", "read_write"):
        with pytest.raises(StorageError) as e:
            posix.open(path, mode)
        assert e.value.errno == errno.ENOENT
    assert not path.exists()
    posix.open(path, "create").write(0, b"abc")
    with pytest.raises(StorageError) as e:
        posix.open(path, "create")
    assert e.value.errno == errno.EEXIST
    with pytest.raises(StorageError) as e:
        posix.open(path, "read").write(0, b"x")
    assert e.value.errno == errno.EBADF
    posix.open(path, "read_write").write(1, b"x")
    assert path.read_bytes() == b"axc"


def test_errors_name_the_file_and_the_reason(tmp_path: Path):
    path = tmp_path / "missing"
    with pytest.raises(StorageError) as e:
        posix.open(path, "read")
    assert str(e.value) == f"{path}: cannot open: No such file or directory"
    assert (e.value.filename, e.value.path) == (str(path), str(path))
    with pytest.raises(StorageError, match="cannot remove: No such file"):
        posix.remove(path)
    with pytest.raises(StorageError, match=r"cannot rename to .*new: No such file"):
        posix.rename(path, tmp_path / "new")
    with pytest.raises(StorageError, match="cannot list: No such file"):
        posix.list(path)
    with pytest.raises(StorageError, match="cannot open the directory: No such file"):
        posix.sync_directory(path)


def test_the_end_of_the_file_is_an_error(tmp_path: Path):
    f = posix.open(tmp_path / "a", "create")
    f.write(0, b"12345")
    assert f.read(5, 0) == b""
    for offset, n in ((0, 6), (4, 2), (5, 1), (100, 1)):
        with pytest.raises(StorageError, match="the file ends before") as e:
            f.read(offset, n)
        assert e.value.errno == errno.EIO


def test_offsets_beyond_all_files_are_refused(tmp_path: Path):
    f = posix.open(tmp_path / "a", "create")
    for offset in (1 << 63, (1 << 64) - 1, (1 << 63) - 3):
        with pytest.raises(StorageError) as e:
            f.read(offset, 10)
        assert e.value.errno == errno.EINVAL
        with pytest.raises(StorageError):
            f.write(offset, b"0123456789")
    with pytest.raises(StorageError):
        f.truncate(1 << 63)
    assert f.size == 0


def test_what_is_no_regular_file_is_refused(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")  # opening it must not wait for a writer
    for mode in ("read", "read_write"):
        with pytest.raises(StorageError, match="no regular file"):
            posix.open(tmp_path / "pipe", mode)
        with pytest.raises(StorageError) as e:
            posix.open(tmp_path, mode)
        assert e.value.errno == errno.EISDIR


def test_names(tmp_path: Path):
    for name in ("b", "a", "c.10", "c.9", os.fsdecode(b"\xff\xfe")):
        posix.open(tmp_path / name, "create")
    (tmp_path / "d").mkdir()
    assert posix.list(tmp_path) == ["a", "b", "c.10", "c.9", "d", os.fsdecode(b"\xff\xfe")]
    posix.rename(tmp_path / "a", tmp_path / "b")
    posix.remove(tmp_path / "c.9")
    assert not posix.exists(tmp_path / "a")
    assert posix.exists(tmp_path / "b")
    assert not posix.exists(tmp_path / "b" / "below")
    assert posix.list(tmp_path)[:2] == ["b", "c.10"]


def test_a_write_that_is_cut_goes_on_and_then_says_why(tmp_path: Path):
    """The limit of a file's size cuts the first call short and refuses the second."""
    f = posix.open(tmp_path / "a", "create")
    x = os.urandom(300_000)
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, old[1]))
    try:
        with pytest.raises(StorageError, match=r"cannot write 200000 bytes at 100000") as e:
            f.write(0, x)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert e.value.errno == errno.EFBIG
    assert (tmp_path / "a").read_bytes() == x[:100_000]


def open_descriptors() -> set[int]:
    found = set()
    for fd in range(256):
        with contextlib.suppress(OSError):
            os.fstat(fd)
            found.add(fd)
    return found


def test_descriptors_close_and_are_not_inherited(tmp_path: Path):
    before = open_descriptors()
    f = posix.open(tmp_path / "a", "create")
    lock = posix.try_lock(tmp_path / "lock")
    new = open_descriptors() - before
    assert len(new) == 2
    assert not any(os.get_inheritable(fd) for fd in new)
    del f, lock
    for _ in range(10):
        posix.sync_directory(tmp_path)
        posix.list(tmp_path)
        with pytest.raises(StorageError):
            posix.open(tmp_path, "read")
    assert open_descriptors() == before


LOCK_HERE = """
import sys
from grebe import _engine
print(_engine.posix_storage().try_lock(sys.argv[1]) is not None)
"""


def locked_elsewhere(path: Path) -> bool:
    """Whether another process can lock it."""
    command = [sys.executable, "-c", LOCK_HERE, str(path)]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return out.strip() == "True"


def test_one_lock_at_a_time(tmp_path: Path):
    path = tmp_path / "lock"
    lock = posix.try_lock(path)
    assert lock is not None
    assert posix.try_lock(path) is None  # this process too
    assert not locked_elsewhere(path)
    del lock
    assert locked_elsewhere(path)
    again = posix.try_lock(path)  # given up with the process that had it
    assert again is not None
    path.read_bytes()  # closing another descriptor of the file gives nothing up
    assert posix.try_lock(path) is None


def in_child(work: Any) -> int:
    """Exit status of a fork that does the work."""
    pid = os.fork()
    if pid == 0:
        try:
            os._exit(work() or 0)
        finally:
            os._exit(99)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_child_neither_gives_the_lock_up_nor_keeps_it(tmp_path: Path):
    path = tmp_path / "lock"
    held = [posix.try_lock(path)]
    assert held[0] is not None

    def let_go() -> None:
        held.clear()

    assert in_child(let_go) == 0
    assert posix.try_lock(path) is None

    ready, done = os.pipe()
    pid = os.fork()
    if pid == 0:  # lives on with a copy of the descriptor
        os.close(done)
        os.read(ready, 1)
        os._exit(0)
    held.clear()
    assert posix.try_lock(path) is not None
    os.close(done)
    os.close(ready)
    os.waitpid(pid, 0)


def test_the_clock_is_the_systems():
    before = int(time.time())
    assert before <= posix.now() <= time.time()
