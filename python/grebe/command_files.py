"""Files that a command reads and writes, checked before it starts to work for hours."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

from .errors import InvalidArgumentError, StorageError

__all__ = ["check_writable", "read_text"]


def read_text(name: str) -> str:
    """A text file, UTF-8; - is stdin. Line ends stay as they are.

    Raises:
        InvalidArgumentError: it is not UTF-8, or stdin is closed.
        StorageError: it cannot be read.
    """
    if name == "-" and sys.stdin is None:
        raise InvalidArgumentError("stdin is closed; give the name of a file")
    try:
        raw = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    except OSError as error:
        raise StorageError(f"{name}: {error.strerror}", name, error.errno) from None
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidArgumentError(f"{name}: not UTF-8 at byte {error.start}") from None


def check_writable(path: Path | None) -> None:
    """Finds out now what writing the file would say later; None: there is none.

    Raises:
        StorageError: it is a folder, or its own folder is missing or closed to us.
    """
    if path is None:
        return
    code = 0
    if path.is_dir():
        code = errno.EISDIR
    elif not path.parent.is_dir():
        code = errno.ENOENT
    elif not os.access(path.parent, os.W_OK):
        code = errno.EACCES
    if code:
        raise StorageError(f"{path}: {os.strerror(code)}", str(path), code)
