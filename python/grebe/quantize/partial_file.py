"""OUT.partial while it grows, and the journal that says how much of it is safe."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from io import FileIO
from pathlib import Path
from typing import Any

from ..errors import StorageError

__all__ = ["PartialFile"]

JOURNAL_BYTES = 256 << 20  # between two notes in the journal; each waits for the disk
HASH_BYTES = 16 << 20


class PartialFile:
    """OUT.partial and its journal, with the hashes of what was written."""

    def __init__(self, path: Path, plan: str, total: int) -> None:
        self.path = path
        self.partial = path.with_name(path.name + ".partial")
        self.journal = path.with_name(path.name + ".journal")
        self.sha256 = hashlib.sha256()
        self.position = 0
        self._noted = 0
        try:
            self._file = FileIO(os.open(self.partial, os.O_RDWR | os.O_CREAT, 0o644), "r+")
        except OSError as error:
            raise self._failed(error) from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            safe = self._safe_bytes(plan)
            free = shutil.disk_usage(self.partial.parent).free
            on_disk = os.fstat(self._file.fileno()).st_blocks * 512
            if total > free + on_disk:
                message = f"{self.partial}: needs {total} bytes; {free + on_disk} are free"
                raise StorageError(message, str(self.partial), errno.ENOSPC)
            self._file.truncate(safe)
            self._log = self.journal.open("a" if safe else "w", encoding="utf-8")
            if safe == 0:
                self._log.write(json.dumps({"plan": plan}) + "\n")
                self._log.flush()
            self.safe = safe
        except BlockingIOError:
            self._file.close()
            message = f"{self.partial}: another grebe quantize is writing it"
            raise StorageError(message, str(self.partial), errno.EAGAIN) from None
        except OSError as error:
            self._file.close()
            raise self._failed(error) from None

    def _failed(self, error: OSError) -> StorageError:
        if isinstance(error, StorageError):
            return error
        message = f"{self.partial}: {error.strerror}"
        if error.errno == errno.ENOSPC:
            message += "; run the same command again when there is room"
        return StorageError(message, str(self.partial), error.errno)

    def _safe_bytes(self, plan: str) -> int:
        """What an earlier run of the same plan left."""
        try:
            lines = self.journal.read_text(encoding="utf-8").splitlines(keepends=True)
            entries = [json.loads(line) for line in lines if line.endswith("\n")]
            if not entries or entries[0].get("plan") != plan:
                return 0
            safe = max((int(e["bytes"]) for e in entries[1:]), default=0)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return 0
        return safe if safe <= os.fstat(self._file.fileno()).st_size else 0

    def read_back(self, n_bytes: int) -> Iterator[bytes]:
        """The next n_bytes of what an earlier run wrote, hashed; for the tensors' own hashes."""
        while n_bytes > 0:
            chunk = os.pread(self._file.fileno(), min(n_bytes, HASH_BYTES), self.position)
            if not chunk:
                raise StorageError(f"{self.partial}: was cut while in use", str(self.partial))
            self.sha256.update(chunk)
            self.position += len(chunk)
            n_bytes -= len(chunk)
            yield chunk

    def write(self, data: bytes) -> None:
        """Appends, and now and then makes sure that it is on disk and says so in the journal."""
        self.sha256.update(data)
        view = memoryview(data)
        try:
            while view:
                n = os.pwrite(self._file.fileno(), view, self.position)
                self.position += n
                view = view[n:]
            if self.position - self._noted >= JOURNAL_BYTES:
                self.note()
        except OSError as error:
            raise self._failed(error) from None

    def note(self) -> None:
        """What is written so far survives from here on."""
        os.fsync(self._file.fileno())
        self._log.write(json.dumps({"bytes": self.position}) + "\n")
        self._log.flush()
        os.fsync(self._log.fileno())
        self._noted = self.position

    def finish(self, manifest: dict[str, Any]) -> None:
        """Gives the file its name; the manifest first, so that no file is without."""
        beside = self.path.with_name(self.path.name + ".json")
        draft = self.path.with_name(self.path.name + ".json.partial")
        try:
            os.fsync(self._file.fileno())
            with draft.open("w", encoding="utf-8") as out:
                json.dump(manifest, out, indent=1)
                out.write("\n")
                out.flush()
                os.fsync(out.fileno())
            draft.replace(beside)
            self.partial.replace(self.path)
            folder = os.open(self.path.parent, os.O_RDONLY)
            os.fsync(folder)
            os.close(folder)
            self.journal.unlink()
        except OSError as error:
            raise self._failed(error) from None

    def close(self) -> None:
        """Leaves what is there for the next run."""
        self._log.close()
        self._file.close()
