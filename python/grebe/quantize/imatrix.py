"""Importance matrices: mean squared activations of each input column, by GGUF tensor name."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import FormatError, StorageError

__all__ = ["read_imatrix"]

MOST_NAME = 1 << 12


def read_imatrix(path: Path | str) -> dict[str, NDArray[np.float32]]:
    """The legacy ``.dat`` format: sums of squares and how often they were added to.

    Stacked experts are one entry of n_experts x n_in numbers.
    """
    try:
        raw = Path(path).read_bytes()
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror}", str(path), error.errno) from None
    at = 0

    def number(what: str, most: int) -> int:
        nonlocal at
        if at + 4 > len(raw):
            raise FormatError(f"{path}: ends at byte {at}, within {what}", str(path), at)
        (value,) = struct.unpack_from("<i", raw, at)
        if not 0 <= value <= most:
            raise FormatError(f"{path}: {what} is {value} at byte {at}", str(path), at)
        at += 4
        return int(value)

    out: dict[str, NDArray[np.float32]] = {}
    for _ in range(number("the number of entries", len(raw))):
        n = number("the length of a name", min(MOST_NAME, len(raw) - at))
        name = raw[at : at + n].decode("utf-8", "replace")
        at += n
        calls = number("the number of calls", 2**31 - 1)
        n = number("the number of columns", (len(raw) - at - 4) // 4)
        sums = np.frombuffer(raw, "<f4", n, at)
        at += 4 * n
        if not np.isfinite(sums).all() or (sums < 0).any():
            raise FormatError(f"{path}: {name} has a sum that is negative or not finite", str(path))
        out[name] = sums / np.float32(max(calls, 1))
    return out
