"""A file of records that only grows, until it is written anew.

    0   u8[8]   "GRBRPLY1"        then records, each
    8   u8[16]  fingerprint       0  u8[4]  "RPLY"
    24  u32     CRC32C of 0..23   4  u32    bytes of the payload
                                  8  u32    CRC32C of the length and the payload
                                  12        payload

A record that was appended survives the death of the process at once and that of the machine after
the next :meth:`RecordFile.sync`. Damage costs the records that it hit: reading goes on at the next
"RPLY" whose checksum is right. Integers are little-endian.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import struct
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from .. import _engine

__all__ = ["RecordFile"]

_log = logging.getLogger("grebe.replay")

_MAGIC = b"GRBRPLY1"
_RECORD = b"RPLY"
_HEADER_BYTES = 28
_FRAME_BYTES = 12


class RecordFile:
    """The file. Not thread-safe but for :meth:`sync`.

    Only one process at a time may write; another one reads what is there and keeps its own records
    in memory. No method raises for what a disk may do: ``writable`` says whether records are kept.

    Attributes:
        n_bytes: size of the file.
        n_damaged: places that could not be read when it was opened.
        writable: whether this process may write to it at all.
    """

    def __init__(self, path: Path, fingerprint: bytes) -> None:
        self._path, self._fingerprint = path, fingerprint
        self._fd = self._lock = -1
        self.n_bytes = self.n_damaged = 0
        self.writable = False

    def open(self, on_record: Callable[[bytes], None]) -> None:
        """Reads all sound records, oldest first, and makes ready to append."""
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._take_lock()
            data = self._path.read_bytes() if self._path.exists() else b""
        except OSError as error:
            _log.warning("%s: %s; replay records stay in memory", self._path, error.strerror)
            return
        foreign = not self._read(data, on_record)
        if not self.writable:
            return
        try:
            self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
            os.fchmod(self._fd, 0o600)
            if foreign:
                os.ftruncate(self._fd, 0)
            self.n_bytes = os.fstat(self._fd).st_size
            if self.n_bytes == 0:
                self._write(self._fd, _header(self._fingerprint))
        except OSError as error:
            self._fail(error)

    def append(self, payload: bytes) -> bool:
        """Adds a record; False if that failed and the file is as before."""
        if self._fd < 0:
            return False
        try:
            self._write(self._fd, _frame(payload))
        except OSError as error:
            self._fail(error)
            return False
        return True

    def sync(self) -> None:
        """Makes what was appended survive a loss of power."""
        if self._fd >= 0:
            with contextlib.suppress(OSError):
                os.fsync(self._fd)

    def begin_rewrite(self, payloads: Iterable[bytes]) -> _Rewrite | None:
        """Writes a new file beside the old one; None if that failed. May take a while."""
        if not self.writable:
            return None
        path = self._path.with_suffix(".new")
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
        except OSError as error:
            _log.warning("%s: %s", path, error.strerror)
            return None
        rewrite = _Rewrite(path, fd, 0)
        try:
            rewrite.add(_header(self._fingerprint))
            for payload in payloads:
                rewrite.add(_frame(payload))
            os.fsync(fd)
        except OSError as error:
            _log.warning("%s: %s", path, error.strerror)
            rewrite.drop()
            return None
        return rewrite

    def end_rewrite(self, rewrite: _Rewrite, late: Iterable[bytes]) -> bool:
        """Adds what came since and puts the new file in the place of the old one."""
        try:
            for payload in late:
                rewrite.add(_frame(payload))
            os.fsync(rewrite.fd)
            rewrite.path.replace(self._path)
        except OSError as error:
            _log.warning("%s: %s", rewrite.path, error.strerror)
            rewrite.drop()
            return False
        if self._fd >= 0:
            os.close(self._fd)
        self._fd, self.n_bytes = rewrite.fd, rewrite.n_bytes
        with contextlib.suppress(OSError):
            folder = os.open(self._path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        return True

    def close(self) -> None:
        """Closes it; a second time does nothing."""
        self.sync()
        for fd in (self._fd, self._lock):
            if fd >= 0:
                os.close(fd)
        self._fd = self._lock = -1
        self.writable = False

    def _take_lock(self) -> None:
        self._lock = os.open(self._path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.writable = True
        except OSError:
            _log.warning("%s: in use by another process; not written to", self._path)

    def _write(self, fd: int, data: bytes) -> None:
        before = self.n_bytes
        try:
            _write_all(fd, data)
        except OSError:
            # Half a record would only cost time later; whole ones behind it are found all the same.
            with contextlib.suppress(OSError):
                os.ftruncate(fd, before)
            raise
        self.n_bytes += len(data)

    def _fail(self, error: OSError) -> None:
        _log.warning("%s: %s; replay records stay in memory", self._path, error.strerror)
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1

    def _read(self, data: bytes, on_record: Callable[[bytes], None]) -> bool:
        """Whether the file, if there is one, is of this fingerprint."""
        if not data:
            return True
        sound = data[:_HEADER_BYTES] == _header(data[8:24])
        if sound and data[8:24] != self._fingerprint:
            return False
        pos = _HEADER_BYTES if sound else -1
        while pos < len(data):
            payload = _payload(data, pos) if pos >= 0 else None
            if payload is not None:
                on_record(payload)
                pos += _FRAME_BYTES + len(payload)
                continue
            self.n_damaged += 1
            pos = _next(data, pos + 1)
        return True


class _Rewrite:
    """A new file in the making."""

    def __init__(self, path: Path, fd: int, n_bytes: int) -> None:
        self.path, self.fd, self.n_bytes = path, fd, n_bytes

    def add(self, data: bytes) -> None:
        _write_all(self.fd, data)
        self.n_bytes += len(data)

    def drop(self) -> None:
        os.close(self.fd)
        with contextlib.suppress(OSError):
            self.path.unlink()


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _header(fingerprint: bytes) -> bytes:
    head = _MAGIC + fingerprint
    return head + struct.pack("<I", _crc(head))


def _frame(payload: bytes) -> bytes:
    length = struct.pack("<I", len(payload))
    return _RECORD + length + struct.pack("<I", _crc(length + payload)) + payload


def _payload(data: bytes, pos: int) -> bytes | None:
    """The payload of the record at a position, None if there is no sound one."""
    if data[pos : pos + 4] != _RECORD or pos + _FRAME_BYTES > len(data):
        return None
    n, crc = struct.unpack_from("<II", data, pos + 4)
    start = pos + _FRAME_BYTES
    if n > len(data) - start:
        return None
    payload = data[start : start + n]
    return payload if _crc(data[pos + 4 : pos + 8] + payload) == crc else None


def _next(data: bytes, pos: int) -> int:
    """Where the first sound record from there on begins; the end of the data if there is none."""
    while (pos := data.find(_RECORD, pos)) >= 0:
        if _payload(data, pos) is not None:
            return pos
        pos += 1
    return len(data)


def _crc(data: bytes) -> int:
    return _engine.crc32c(np.frombuffer(data, np.uint8))
