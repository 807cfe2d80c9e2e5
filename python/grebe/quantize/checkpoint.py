"""DeepSeek's checkpoint folder: config.json and safetensors shards, read a piece at a time.

The files are not trusted: lengths are compared with the bytes that are there before anything is
read. Weights come as they are stored (``codes``) or as exact float32 (``f32``).
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import _engine
from ..errors import FormatError, StorageError

__all__ = ["Checkpoint", "Stored", "fp4_to_mxfp4"]

ITEM_BYTES = {
    "BF16": 2, "F16": 2, "F32": 4, "I64": 8, "I32": 4, "I8": 1, "U8": 1, "F8_E4M3": 1, "F8_E8M0": 1,
}  # fmt: skip
MOST_HEADER = 100 << 20  # as the reference implementation
TILE = 128  # rows and columns that share a scale in FP8
FP4_BLOCK = 32

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Stored:
    """One tensor of a shard, shape as stored."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    path: Path
    offset: int
    n_bytes: int


def fp4_to_mxfp4(codes: Bytes, scales: Bytes) -> Bytes:
    """Rows of packed E2M1 pairs and their E8M0 scales as MXFP4 blocks, without rounding.

    The checkpoint pairs neighbours 2j and 2j + 1 in a byte, MXFP4 pairs j and j + 16.
    """
    pairs = codes.reshape(-1, 16)
    low, high = pairs & 15, pairs >> 4
    out = np.empty((len(pairs), 17), np.uint8)
    out[:, 0] = scales.reshape(-1)
    out[:, 1::2] = low[:, :8] | low[:, 8:] << 4
    out[:, 2::2] = high[:, :8] | high[:, 8:] << 4
    return out.reshape(-1)


class Checkpoint:
    """A folder in DeepSeek's layout.

    Attributes:
        config: config.json.
        tensors: what the shards hold, by name.
        shards: bytes of each shard file, by name.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self.config: dict[str, Any] = self._json(self.folder / "config.json")
        self.tensors: dict[str, Stored] = {}
        self.shards: dict[str, int] = {}
        self._files: dict[Path, int] = {}
        index = self.folder / "model.safetensors.index.json"
        if index.exists():
            wanted = self._json(index).get("weight_map")
            if not isinstance(wanted, dict) or not all(isinstance(v, str) for v in wanted.values()):
                raise FormatError(f"{index}: no weight_map of names and files", str(index))
            paths = [self.folder / Path(name).name for name in sorted(set(wanted.values()))]
        else:
            wanted, paths = {}, sorted(self.folder.glob("*.safetensors"))
            if not paths:
                raise StorageError(f"{self.folder}: no *.safetensors file", str(self.folder), 2)
        for path in paths:
            self._read_header(path)
        for name in wanted:
            if name not in self.tensors:
                raise FormatError(f"{index}: {name} is not in {wanted[name]}", str(index))

    def close(self) -> None:
        """Closes the files."""
        for fd in self._files.values():
            os.close(fd)
        self._files.clear()

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @staticmethod
    def _json(path: Path) -> dict[str, Any]:
        try:
            value = json.loads(path.read_bytes())
        except OSError as error:
            raise StorageError(f"{path}: {error.strerror}", str(path), error.errno) from None
        except ValueError as error:
            raise FormatError(f"{path}: not JSON: {error}", str(path)) from None
        if not isinstance(value, dict):
            raise FormatError(f"{path}: not a JSON object", str(path))
        return value

    def _pread(self, path: Path, n_bytes: int, offset: int) -> bytes:
        try:
            if path not in self._files:
                self._files[path] = os.open(path, os.O_RDONLY)
            parts: list[bytes] = []
            while n_bytes > 0:
                part = os.pread(self._files[path], min(n_bytes, 1 << 30), offset)
                if not part:
                    raise FormatError(f"{path}: ends at byte {offset}", str(path), offset)
                parts.append(part)
                offset += len(part)
                n_bytes -= len(part)
        except OSError as error:
            raise StorageError(f"{path}: {error.strerror}", str(path), error.errno) from None
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _read_header(self, path: Path) -> None:
        size = len_ = 0
        try:
            size = path.stat().st_size
        except OSError as error:
            message = f"{path}: {error.strerror}; the index names this shard"
            raise StorageError(message, str(path), error.errno) from None
        if size >= 8:
            len_ = int.from_bytes(self._pread(path, 8, 0), "little")
        if size < 8 or len_ > size - 8 or len_ > MOST_HEADER:
            raise FormatError(f"{path}: its header does not fit into {size} bytes", str(path))
        try:
            header = json.loads(self._pread(path, len_, 8))
        except (ValueError, RecursionError):
            raise FormatError(f"{path}: its header is not JSON", str(path), 8) from None
        if not isinstance(header, dict):
            raise FormatError(f"{path}: its header is not a JSON object", str(path), 8)
        self.shards[path.name] = size
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            stored = self._entry(path, name, entry, 8 + len_, size)
            if name in self.tensors:
                raise FormatError(f"{path}: {name} is also in {self.tensors[name].path}", str(path))
            self.tensors[name] = stored

    @staticmethod
    def _entry(path: Path, name: str, entry: object, start: int, size: int) -> Stored:
        def whole(values: object) -> list[int] | None:
            if isinstance(values, list) and all(type(v) is int and v >= 0 for v in values):
                return values
            return None

        fields = entry if isinstance(entry, dict) else {}
        dtype, shape = fields.get("dtype"), whole(fields.get("shape"))
        span = whole(fields.get("data_offsets"))
        if not isinstance(dtype, str) or shape is None or span is None or len(span) != 2:
            raise FormatError(f"{path}: {name} has no dtype, shape and data_offsets", str(path))
        if dtype not in ITEM_BYTES:
            raise FormatError(f"{path}: {name} is {dtype}, which is unknown", str(path))
        n_bytes = math.prod(shape) * ITEM_BYTES[dtype]
        if span[1] - span[0] != n_bytes:
            message = f"{path}: {name} {shape} of {dtype} has {span[1] - span[0]} bytes"
            raise FormatError(message, str(path))
        if start + span[1] > size:
            message = f"{path}: {name} ends at byte {start + span[1]} of {size}: the file is cut"
            raise FormatError(message, str(path), start + span[0])
        return Stored(name, dtype, tuple(shape), path, start + span[0], n_bytes)

    # ------------------------------------------------------------ what a weight is

    def scale_of(self, name: str) -> Stored | None:
        """The tensor of scales that belongs to a weight."""
        if not name.endswith(".weight"):
            return None
        return self.tensors.get(name.removesuffix("weight") + "scale")

    def kind(self, name: str) -> str:
        """How a weight is stored: fp8, fp4, or the name of its plain type in lower case."""
        dtype = self.tensors[name].dtype
        if dtype == "F8_E4M3":
            return "fp8"
        if dtype in ("I8", "U8") and self.scale_of(name) is not None:
            return "fp4"
        return dtype.lower()

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape in weights; checks that the scales fit."""
        stored, kind = self.tensors[name], self.kind(name)
        shape = stored.shape
        if kind not in ("fp8", "fp4"):
            return shape
        scale = self.scale_of(name)
        path = str(stored.path)
        if len(shape) != 2:
            raise FormatError(f"{path}: {name} is {list(shape)}, not a matrix", path)
        if kind == "fp4":
            shape = (shape[0], 2 * shape[1])
            expected = (shape[0], shape[1] // FP4_BLOCK)
            good = shape[1] % FP4_BLOCK == 0
        else:
            expected = (-(-shape[0] // TILE), -(-shape[1] // TILE))
            good = True
        kinds = ("F8_E8M0",) if kind == "fp4" else ("F8_E8M0", "F32")
        if scale is None or not good or scale.shape != expected or scale.dtype not in kinds:
            found = "none" if scale is None else f"{scale.dtype} {list(scale.shape)}"
            message = (
                f"{path}: {name} is {kind} {list(shape)} with scales {found}; expected "
                f"{' or '.join(kinds)} {list(expected)}"
            )
            raise FormatError(message, path, stored.offset)
        return shape

    # ------------------------------------------------------------ data

    def codes(self, name: str, begin: int = 0, end: int | None = None) -> Bytes:
        """Bytes of rows [begin, end) as they are stored."""
        t = self.tensors[name]
        n_rows = t.shape[0] if t.shape else 1
        end = n_rows if end is None else end
        row = t.n_bytes // max(n_rows, 1)
        raw = self._pread(t.path, (end - begin) * row, t.offset + begin * row)
        return np.frombuffer(raw, np.uint8)

    def scales(self, name: str, begin: int = 0, end: int | None = None) -> Bytes:
        """E8M0 bytes of rows [begin, end) of a weight; FP8 rows begin at a multiple of 128."""
        scale = self.scale_of(name)
        assert scale is not None
        end = self.tensors[name].shape[0] if end is None else end
        if self.kind(name) == "fp8":
            begin, end = begin // TILE, -(-end // TILE)
        raw = self.codes(scale.name, begin, end)
        if scale.dtype == "F32":
            raw = self._as_powers(scale, raw.view(np.float32))
        if (raw == 255).any():
            message = f"{scale.path}: {scale.name} has a scale that is not a number"
            raise FormatError(message, str(scale.path), scale.offset)
        return raw

    @staticmethod
    def _as_powers(scale: Stored, values: Floats) -> Bytes:
        bits = values.view(np.uint32)
        if ((bits & 0x807FFFFF) != 0).any():
            message = f"{scale.path}: {scale.name} has scales that are not powers of two"
            raise FormatError(message, str(scale.path), scale.offset)
        return (bits >> 23).astype(np.uint8)

    def f32(self, name: str, begin: int = 0, end: int | None = None) -> Floats:
        """Rows [begin, end) as float32, exactly. FP8 rows begin at a multiple of 128."""
        shape = self.shape(name)
        end = (shape[0] if shape else 1) if end is None else end
        kind, n_in = self.kind(name), shape[-1] if shape else 1
        codes = self.codes(name, begin, end)
        n_rows = end - begin
        scale = self.scale_of(name)
        if kind == "fp4":
            blocks = fp4_to_mxfp4(codes, self.scales(name, begin, end))
            return np.asarray(_engine.dequantize("MXFP4", blocks, n_rows, n_in))
        if kind == "fp8" and scale is not None and scale.dtype == "F32":
            raw = self.codes(scale.name, begin // TILE, -(-end // TILE)).view(np.float32)
            tiles = raw.reshape(-1, -(-n_in // TILE)).repeat(TILE, 0).repeat(TILE, 1)
            ones = np.full(-(-n_rows // TILE) * -(-n_in // TILE), 127, np.uint8)
            plain = _engine.dequantize("F8_E4M3", codes, n_rows, n_in, ones)
            return np.asarray(plain) * tiles[:n_rows, :n_in]
        if kind == "fp8":
            tiles8 = self.scales(name, begin, end)
            return np.asarray(_engine.dequantize("F8_E4M3", codes, n_rows, n_in, tiles8))
        if kind == "bf16":
            wide = codes.view("<u2").astype(np.uint32) << 16
            return wide.view(np.float32).reshape(n_rows, *shape[1:])
        if kind in ("f16", "f32"):
            plain = codes.view("<f2" if kind == "f16" else "<f4")
            return plain.astype(np.float32).reshape(n_rows, *shape[1:])
        path = str(self.tensors[name].path)
        raise FormatError(f"{path}: {name} is {self.tensors[name].dtype}, not weights", path)
