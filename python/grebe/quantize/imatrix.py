"""Importance matrices: squared activations of each input column, by the GGUF name of the weight.

Two formats, those of llama.cpp. The GGUF one holds sums of squares and the number of rows behind
them, for each expert; ``.dat`` holds means times a number of calls, in which experts that saw
nothing are ones. Files of either kind can be merged.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .. import _engine
from ..errors import FormatError, StorageError
from .gguf_file import ALIGNMENT, header, key
from .gguf_file import Entry as Tensor

__all__ = ["Imatrix", "Squares", "read_imatrix"]

MOST_NAME = 1 << 12
MOST_DATASETS = 1 << 16
DAT_CHUNK = 512  # rows that a call of a .dat file stands for, when it is merged with others
SUMS, COUNTS = ".in_sum2", ".counts"

Doubles = NDArray[np.float64]


@dataclass
class Squares:
    """What one weight was multiplied with.

    Attributes:
        sums: f64[n_matrices, n_in], sums of squares; one row for all experts of a .dat file.
        counts: f64[n_matrices], rows that were added.
    """

    sums: Doubles
    counts: Doubles

    def means(self) -> Doubles:
        """f64[n_matrices, n_in]; ones for a matrix that saw nothing."""
        n = self.counts[:, None]
        return np.where(n > 0, self.sums / np.maximum(n, 1e-30), 1.0)

    def add(self, other: Squares) -> bool:
        """Adds what another run saw; False when the shapes do not fit."""
        if self.sums.size != other.sums.size:
            return False
        n = max(len(self.counts), len(other.counts))
        if n % len(self.counts) or n % len(other.counts):
            return False
        a, b = self._split(n), other._split(n)
        self.sums, self.counts = a.sums + b.sums, a.counts + b.counts
        return True

    def _split(self, n: int) -> Squares:
        """The experts of a .dat file, which are one row, as rows of their own."""
        counts = np.repeat(self.counts, n // len(self.counts))
        return Squares(self.sums.reshape(n, -1), counts)


@dataclass
class Imatrix:
    """Sums by the name of the weight, and where they come from."""

    entries: dict[str, Squares] = field(default_factory=dict)
    datasets: list[str] = field(default_factory=list)
    chunk_size: int = DAT_CHUNK
    n_chunks: int = 0

    def merge(self, other: Imatrix) -> None:
        """Adds another one.

        Raises:
            FormatError: it is of another model.
        """
        if not self.entries:
            self.chunk_size = other.chunk_size
        for name, squares in other.entries.items():
            mine = self.entries.get(name)
            if mine is None:
                self.entries[name] = Squares(squares.sums.copy(), squares.counts.copy())
            elif not mine.add(squares):
                message = f"imatrix: {name} has {squares.sums.size} numbers and {mine.sums.size}"
                raise FormatError(f"{message} in another file: they are of different models")
        self.n_chunks += other.n_chunks
        self.datasets += [d for d in other.datasets if d not in self.datasets]

    @classmethod
    def read(cls, path: Path | str) -> Imatrix:
        """A file of either format, known by its first bytes."""
        try:
            raw = Path(path).read_bytes()
        except OSError as error:
            raise StorageError(f"{path}: {error.strerror}", str(path), error.errno) from None
        found = _read_gguf(raw, str(path)) if raw[:4] == b"GGUF" else _read_dat(raw, str(path))
        for name, squares in found.entries.items():
            for values in (squares.sums, squares.counts):
                if not np.isfinite(values).all() or (values < 0).any():
                    message = f"{path}: {name} has a sum that is negative or not finite"
                    raise FormatError(message, str(path))
        return found

    def write(self, path: Path | str) -> None:
        """Writes ``.dat`` by that ending, else GGUF; the file is whole or as it was."""
        path = Path(path)
        parts = self._dat() if path.suffix == ".dat" else self._gguf()
        partial = path.with_name(f"{path.name}.partial")
        try:
            with partial.open("wb") as file:
                file.writelines(parts)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise StorageError(f"{path}: {error.strerror}", str(path), error.errno) from None

    def _gguf(self) -> Iterator[bytes]:
        keys = [
            key("general.type", "string", "imatrix"),
            key("imatrix.datasets", "string", self.datasets),
            key("imatrix.chunk_count", "u32", self.n_chunks),
            key("imatrix.chunk_size", "u32", self.chunk_size),
        ]
        tensors: list[Tensor] = []
        data: list[bytes] = []
        for name, squares in sorted(self.entries.items()):
            for suffix, values in ((SUMS, squares.sums), (COUNTS, squares.counts[:, None])):
                raw = np.ascontiguousarray(values, "<f4").tobytes()
                tensors.append(Tensor(name + suffix, 0, values.shape, len(raw)))
                data.append(raw + bytes(-len(raw) % ALIGNMENT))
        yield header(keys, tensors)[0]
        yield from data

    def _dat(self) -> Iterator[bytes]:
        seen = {n: s for n, s in sorted(self.entries.items()) if (s.counts > 0).any()}
        yield struct.pack("<i", len(seen))
        for name, squares in seen.items():
            raw = name.encode()
            n_calls = -(-int(squares.counts.max()) // self.chunk_size)
            values = (squares.means() * n_calls).astype("<f4")
            yield struct.pack("<i", len(raw)) + raw + struct.pack("<ii", n_calls, values.size)
            yield values.tobytes()
        dataset = (self.datasets[-1] if self.datasets else "").encode()
        yield struct.pack("<ii", self.n_chunks, len(dataset)) + dataset


def _read_gguf(raw: bytes, path: str) -> Imatrix:
    info = _engine.inspect(path)
    keys, parts = info["metadata"], {}
    if keys.get("general.type") != "imatrix":
        raise FormatError(f"{path}: general.type is not imatrix", path)
    for name, dtype, _, ne, n_bytes, offset, _ in info["tensors"]:
        if dtype != "F32" or not name.endswith((SUMS, COUNTS)):
            raise FormatError(f"{path}: {name} is no part of an imatrix", path)
        parts[name] = np.frombuffer(raw, "<f4", n_bytes // 4, offset).reshape(ne[::-1])
    out = Imatrix(datasets=_datasets(raw))
    for k, attribute in (("chunk_count", "n_chunks"), ("chunk_size", "chunk_size")):
        value = keys.get(f"imatrix.{k}")
        if not isinstance(value, int) or not 0 <= value < 2**31:
            raise FormatError(f"{path}: imatrix.{k} is missing or no number", path)
        setattr(out, attribute, value)
    out.chunk_size = max(out.chunk_size, 1)
    for name, sums in parts.items():
        if not name.endswith(SUMS):
            continue
        stem = name.removesuffix(SUMS)
        counts = parts.get(stem + COUNTS)
        if counts is None or counts.size == 0 or sums.size % counts.size:
            raise FormatError(f"{path}: {stem} has no counts that fit its sums", path)
        wide = sums.astype(np.float64).reshape(counts.size, -1)
        out.entries[stem] = Squares(wide, counts.astype(np.float64).reshape(-1))
    return out


def _datasets(raw: bytes) -> list[str]:
    """The names of ``imatrix.datasets``; the engine's view of a file leaves arrays of text out."""
    name = b"imatrix.datasets"
    at = raw.find(struct.pack("<Q", len(name)) + name + struct.pack("<II", 9, 8))
    if at < 0:
        return []
    at += 8 + len(name) + 8
    out: list[str] = []
    try:
        (n,) = struct.unpack_from("<Q", raw, at)
        at += 8
        for _ in range(min(n, MOST_DATASETS)):
            (size,) = struct.unpack_from("<Q", raw, at)
            out.append(raw[at + 8 : at + 8 + size].decode("utf-8", "replace"))
            at += 8 + size
    except struct.error:  # the name stood in another key's text
        return []
    return out


def _read_dat(raw: bytes, path: str) -> Imatrix:
    at = 0

    def number(what: str, most: int) -> int:
        nonlocal at
        if at + 4 > len(raw):
            raise FormatError(f"{path}: ends at byte {at}, within {what}", path, at)
        (value,) = struct.unpack_from("<i", raw, at)
        if not 0 <= value <= most:
            message = f"{path}: no imatrix, or damaged: {what} is {value} at byte {at}"
            raise FormatError(message, path, at)
        at += 4
        return int(value)

    out = Imatrix()
    for _ in range(number("the number of entries", len(raw))):
        n = number("the length of a name", min(MOST_NAME, len(raw) - at))
        name = raw[at : at + n].decode("utf-8", "replace")
        at += n
        calls = number("the number of calls", 2**31 - 1) or 1
        n = number("the number of columns", (len(raw) - at - 4) // 4)
        sums = np.frombuffer(raw, "<f4", n, at).astype(np.float64)[None]
        at += 4 * n
        out.entries[name] = Squares(sums * DAT_CHUNK, np.array([float(calls * DAT_CHUNK)]))
    if at < len(raw):  # the rest is younger than the format
        out.n_chunks = number("the number of chunks", 2**31 - 1)
        n = number("the length of the dataset's name", len(raw) - at - 4)
        out.datasets = [raw[at : at + n].decode("utf-8", "replace")] if n else []
    return out


def read_imatrix(path: Path | str) -> dict[str, NDArray[np.float32]]:
    """Mean squares by name, flat: stacked experts are one entry of n_experts x n_in numbers."""
    entries = Imatrix.read(path).entries
    return {n: s.means().astype(np.float32).reshape(-1) for n, s in entries.items()}
