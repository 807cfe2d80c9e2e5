"""The file of replay records: kills, torn ends, flipped bits, full disks."""

from __future__ import annotations

import os
import random
import resource
import signal
import subprocess
import sys
import time
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from grebe.chat import replay_writer
from grebe.chat.encode import Encoded
from grebe.chat.markers import Markers
from grebe.chat.messages import Conversation, Message
from grebe.chat.records import Record
from grebe.chat.replay import ReplayTable
from grebe.chat.replay_store import RecordFile

from tests.helpers.chat import nano_tokenizer

MARK = bytes(range(16))


class Turn:
    reasoning = None
    calls = ()
    partial_call = None

    def __init__(self, content: str) -> None:
        self.content = content


def opened(path: Path, mark: bytes = MARK) -> tuple[RecordFile, list[bytes]]:
    found: list[bytes] = []
    file = RecordFile(path, mark)
    file.open(found.append)
    return file, found


def read(path: Path, mark: bytes = MARK) -> list[bytes]:
    file, found = opened(path, mark)
    file.close()
    return found


def written(path: Path, payloads: list[bytes]) -> list[int]:
    """Writes a file; where its records begin."""
    file, _ = opened(path)
    starts = []
    for payload in payloads:
        starts.append(file.n_bytes)
        assert file.append(payload)
    file.close()
    return starts


def table(directory: Path, **options: int) -> ReplayTable:
    tokenizer = nano_tokenizer()
    return ReplayTable(tokenizer, Markers.of(tokenizer), directory, **options)


def tell(replay: ReplayTable, i: int, n_tokens: int = 20) -> bool:
    talk = Conversation((Message("user", f"question {i}"),), thinking=False)
    sampled = [*([100] * n_tokens), 1]
    return replay.record("me", talk, Encoded([0], (), 0, 1), sampled, Turn(f"{i}"), "stop")


def known(replay: ReplayTable) -> int:
    return int(replay.stats()["records"])


@contextmanager
def largest_file(n_bytes: int) -> Iterator[None]:
    """The disk is full when a file has so many bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_records_come_back_in_order(tmp_path: Path):
    payloads = [b"", b"a", b"RPLY" * 9, bytes(100_000)]
    written(tmp_path / "f.log", payloads)
    file, found = opened(tmp_path / "f.log")
    assert found == payloads
    assert file.n_damaged == 0
    assert (tmp_path / "f.log").stat().st_mode & 0o777 == 0o600
    file.close()


def test_a_torn_end_costs_the_last_record(tmp_path: Path):
    path = tmp_path / "f.log"
    payloads = [os.urandom(30) for _ in range(4)]
    starts = written(path, payloads)
    whole = path.read_bytes()
    for n in range(len(whole)):
        path.write_bytes(whole[:n])
        file, found = opened(path)
        assert found == payloads[: sum(s + 42 <= n for s in starts)]
        assert file.append(b"after")
        file.close()
        assert read(path) == [*found, b"after"]


def test_a_flipped_bit_costs_one_record(tmp_path: Path):
    path = tmp_path / "f.log"
    payloads = [bytes([i]) * 20 for i in range(3)]
    starts = written(path, payloads)
    whole = path.read_bytes()
    for bit in range(0, len(whole) * 8, 3):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        file, found = opened(path)
        file.close()
        hit = [p for s, p in zip(starts, payloads, strict=True) if not s <= bit // 8 < s + 32]
        assert found == hit
        assert file.n_damaged == 1


def test_garbage_is_no_records(tmp_path: Path):
    source = random.Random(5)
    for n in (1, 27, 28, 29, 40, 500):
        path = tmp_path / f"{n}.log"
        path.write_bytes(source.randbytes(n))
        file, found = opened(path)
        assert found == []
        assert file.append(b"x")
        file.close()
        assert read(path) == [b"x"]


def test_another_vocabulary_begins_anew(tmp_path: Path):
    written(tmp_path / "f.log", [b"a"])
    file, found = opened(tmp_path / "f.log", bytes(16))
    assert found == []
    assert file.append(b"b")
    file.close()
    assert read(tmp_path / "f.log", bytes(16)) == [b"b"]


def test_a_second_process_reads_only(tmp_path: Path):
    first, _ = opened(tmp_path / "f.log")
    first.append(b"a")
    second, found = opened(tmp_path / "f.log")
    assert found == [b"a"]
    assert not second.writable
    assert not second.append(b"b")
    second.close()
    first.close()


def test_a_killed_process_loses_nothing(tmp_path: Path):
    script = """
import os, signal, sys
from pathlib import Path
from tests.unit.test_replay_store import table, tell
replay = table(Path(sys.argv[1]))
for i in range(25):
    assert tell(replay, i)
os.kill(os.getpid(), signal.SIGKILL)
"""
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], cwd=root, check=False)
    assert done.returncode == -signal.SIGKILL
    replay = table(tmp_path)
    assert known(replay) == 25
    replay.close()


def test_a_full_disk_is_no_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(replay_writer, "_RETRY_S", 0.0)
    replay = table(tmp_path)
    with largest_file(4000):
        for i in range(40):
            assert tell(replay, i)
        replay.flush()
        assert known(replay) == 40
        assert replay.stats()["kept"] is False
        (file,) = tmp_path.glob("*.log")
        assert file.stat().st_size <= 4000
    # There is room again.
    assert tell(replay, 40)
    replay.flush()
    assert replay.stats()["kept"] is True
    replay.close()
    replay = table(tmp_path)
    assert known(replay) == 41
    replay.close()


def test_a_directory_that_cannot_be_made_is_no_end(tmp_path: Path):
    (tmp_path / "file").write_bytes(b"")
    replay = table(tmp_path / "file" / "below")
    assert tell(replay, 1)
    assert known(replay) == 1
    assert replay.stats()["kept"] is False
    replay.close()


def test_the_file_stays_within_its_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(replay_writer, "_SMALL_BYTES", 0)
    replay = table(tmp_path, budget_bytes=30_000)
    (file,) = tmp_path.glob("*.log")
    for i in range(400):
        assert tell(replay, i, 50)
        if i % 10 == 9:
            replay.flush()
            assert file.stat().st_size <= 60_000
    n = known(replay)
    replay.close()
    assert not list(tmp_path.glob("*.new"))
    replay = table(tmp_path, budget_bytes=30_000)
    assert known(replay) == n
    replay.close()


def test_damage_is_written_away(tmp_path: Path):
    replay = table(tmp_path)
    for i in range(10):
        tell(replay, i)
    replay.close()
    (file,) = tmp_path.glob("*.log")
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 16
    file.write_bytes(data)
    replay = table(tmp_path)
    assert known(replay) == 9
    assert replay.stats()["damaged"] == 1
    replay.flush()
    replay.close()
    replay = table(tmp_path)
    assert known(replay) == 9
    assert replay.stats()["damaged"] == 0
    replay.close()


def test_records_of_many_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import threading

    monkeypatch.setattr(replay_writer, "_SMALL_BYTES", 0)
    monkeypatch.setattr(replay_writer, "_SLACK", 0.5)
    replay = table(tmp_path)
    threads = [
        threading.Thread(target=lambda k=k: [tell(replay, 100 * k + i) for i in range(50)])
        for k in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    replay.close()
    replay = table(tmp_path)
    assert known(replay) == 200
    replay.close()


def test_recording_does_not_wait_for_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def slow(self: RecordFile) -> None:
        time.sleep(0.5)

    monkeypatch.setattr(RecordFile, "sync", slow)
    replay = table(tmp_path)
    start = time.monotonic()
    for i in range(20):
        tell(replay, i)
    assert time.monotonic() - start < 0.4
    replay.flush()
    replay.close()


@pytest.mark.parametrize(
    "data", [b"", b"\0\0\0", b"\xff\xff\xff\xff[]", b"\2\0\0\0[]", b"\4\0\0\0nullxy"]
)
def test_what_is_no_record(data: bytes):
    with pytest.raises(ValueError):  # noqa: PT011 - any of them means the same
        Record.unpack(data)


def test_a_record_packs():
    record = Record("o", "p", "c", "r", (), True, "m", array("I", [0, 1, 2**32 - 1]))
    assert Record.unpack(record.pack()) == record
