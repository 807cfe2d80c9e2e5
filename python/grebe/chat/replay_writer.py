"""Keeps the file of replay records in step with the table, without making anybody wait."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .records import Record
from .replay_store import RecordFile

__all__ = ["Writer"]

#: The file may be so many times as large as what it is worth.
_SLACK = 2
_SMALL_BYTES = 1 << 20
_RETRY_S = 30.0


class Writer:
    """Appends at once, so that a killed process loses nothing; a thread does what takes time.

    That is bringing the file to the disk, and writing it anew when most of it is forgotten, when
    damage was found, or when a disk that was full has room again.

    Args:
        path: the file.
        fingerprint: of the vocabulary.
        lock: of the table; held when :meth:`append` is called.
        live: all records, those to be forgotten first in front.
    """

    def __init__(
        self,
        path: Path,
        fingerprint: bytes,
        lock: threading.RLock,
        live: Callable[[], Sequence[Record]],
    ) -> None:
        self._file = RecordFile(path, fingerprint)
        self._lock, self._live = lock, live
        self._wake = threading.Condition(lock)
        self._thread: threading.Thread | None = None
        self._dirty = self._stale = self._busy = self._closed = False
        self._behind_since: float | None = None
        # Appended while the file is being written anew.
        self._late: list[bytes] | None = None

    def open(self, on_record: Callable[[bytes], None]) -> None:
        """Reads what is there."""
        with self._lock:
            self._file.open(on_record)
            if self._file.n_damaged and self._file.writable:
                self._stale = True
                self._start()

    def append(self, payload: bytes, live_bytes: int) -> None:
        """Adds a record; the lock is held."""
        if self._closed or not self._file.writable:
            return
        if self._late is not None:
            self._late.append(payload)
        if self._file.append(payload):
            self._dirty = True
            self._stale |= self._file.n_bytes > max(_SMALL_BYTES, _SLACK * live_bytes)
        elif self._behind_since is None:
            self._behind_since = time.monotonic()
        elif time.monotonic() - self._behind_since > _RETRY_S:
            self._behind_since, self._stale = time.monotonic(), True
        self._start()
        self._wake.notify_all()

    def flush(self) -> None:
        """Waits until all that was appended is on the disk."""
        with self._lock:
            while self._thread is not None and (self._dirty or self._stale or self._busy):
                self._wake.wait(0.1)

    def close(self) -> None:
        """Ends the thread and closes the file."""
        with self._lock:
            self._closed = True
            self._wake.notify_all()
            thread = self._thread
        if thread is not None:
            thread.join()
        with self._lock:
            self._file.close()

    def stats(self) -> dict[str, Any]:
        """Size of the file, damage found in it, whether records get there."""
        kept = self._file.writable and self._behind_since is None
        return {"file_bytes": self._file.n_bytes, "damaged": self._file.n_damaged, "kept": kept}

    def _start(self) -> None:
        if self._thread is None and not self._closed:
            self._thread = threading.Thread(target=self._run, name="grebe-replay", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while True:
            with self._lock:
                while not (self._dirty or self._stale or self._closed):
                    self._wake.wait()
                if not (self._dirty or self._stale):
                    return
                rewrite = self._stale
                self._dirty, self._stale, self._busy = False, False, True
                # What comes from here on is in the one or in the other.
                self._late, live = ([], self._live()) if rewrite else (None, ())
            if rewrite:
                self._rewrite(live)
            else:
                self._file.sync()
            with self._lock:
                self._busy = False
                self._wake.notify_all()

    def _rewrite(self, live: Sequence[Record]) -> None:
        made = self._file.begin_rewrite(record.pack() for record in live)
        with self._lock:
            late, self._late = self._late or [], None
            if made is not None and self._file.end_rewrite(made, late):
                self._behind_since = None
