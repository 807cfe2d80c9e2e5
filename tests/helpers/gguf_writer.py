"""A minimal GGUF writer: any key, any tensor type, FP8 by our convention, shards, shared bytes.

Kept apart from the ``gguf`` package on purpose: tests of a reader should not share code with the
reader of others, and that package refuses to write what we need (shared bytes, FP8 pairs).

Example:
    >>> w = GgufWriter()
    >>> w.add("general.architecture", "deepseek4")
    >>> w.add("deepseek4.block_count", 2)
    >>> w.add_tensor("output_norm.weight", np.ones(8, np.float32))
    >>> w.to_bytes()[:4]
    b'GGUF'
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

_NAMES = (
    "u8",
    "i8",
    "u16",
    "i16",
    "u32",
    "i32",
    "f32",
    "bool",
    "string",
    "array",
    "u64",
    "i64",
    "f64",
)
VALUE_TYPES = {name: i for i, name in enumerate(_NAMES)}
_FORMATS = {
    "u8": "B", "i8": "b", "u16": "H", "i16": "h", "u32": "I", "i32": "i", "f32": "f",
    "bool": "B", "u64": "Q", "i64": "q", "f64": "d",
}  # fmt: skip

# name -> (number, weights per block, bytes per block)
TENSOR_TYPES = {
    "F32": (0, 1, 4), "F16": (1, 1, 2), "Q4_0": (2, 32, 18), "Q8_0": (8, 32, 34),
    "Q2_K": (10, 256, 84), "Q3_K": (11, 256, 110), "Q4_K": (12, 256, 144),
    "Q5_K": (13, 256, 176), "Q6_K": (14, 256, 210), "IQ2_XXS": (16, 256, 66),
    "IQ3_XXS": (18, 256, 98), "IQ2_S": (22, 256, 82), "I8": (24, 1, 1), "I32": (26, 1, 4),
    "BF16": (30, 1, 2), "MXFP4": (39, 32, 17),
}  # fmt: skip


def f32_to_bf16(x: np.ndarray) -> np.ndarray:
    """Bits of ``x`` rounded to bfloat16, nearest even; no NaN in, no NaN out."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def quantize_q8_0(x: np.ndarray) -> bytes:
    """Blocks of 32: f16 scale = largest magnitude / 127, then int8."""
    blocks = np.ascontiguousarray(x, np.float32).reshape(-1, 32)
    scale = (np.abs(blocks).max(1, keepdims=True) / 127).astype(np.float16)
    inverse = np.divide(1, scale, out=np.zeros_like(scale, np.float32), where=scale != 0)
    codes = np.rint(blocks * inverse).clip(-127, 127).astype(np.int8)
    return np.concatenate([scale.view(np.int8).reshape(-1, 2), codes], 1).tobytes()


def encode(x: np.ndarray, dtype: str) -> bytes:
    """Payload of an array in one of the types that are simple to write."""
    if dtype == "F32":
        return np.ascontiguousarray(x, np.float32).tobytes()
    if dtype == "F16":
        return np.ascontiguousarray(x, np.float16).tobytes()
    if dtype == "BF16":
        return f32_to_bf16(x).tobytes()
    if dtype == "Q8_0":
        return quantize_q8_0(x)
    if dtype == "I32":
        return np.ascontiguousarray(x, np.int32).tobytes()
    if dtype == "I8":
        return np.ascontiguousarray(x).view(np.int8).tobytes()
    raise ValueError(f"no encoder for {dtype}; use add_raw")


def payload_bytes(dtype: str, shape: Sequence[int]) -> int:
    """Size of a tensor, shape row-major."""
    _, block, size = TENSOR_TYPES[dtype]
    return math.prod(shape) // block * size


@dataclass
class Tensor:
    """One directory entry; shape row-major (the file stores it reversed)."""

    name: str
    dtype: str | int
    shape: tuple[int, ...]
    data: bytes
    alias: str | None = None  # name of an earlier tensor whose bytes this one shares
    hole: int = 0  # zero bytes after data, which take no space in the file


def _string(text: str | bytes) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw


def _infer(value: Any) -> str:
    if isinstance(value, bool | np.bool_):
        return "bool"
    if isinstance(value, int | np.integer):
        if value < 0:
            return "i32" if value >= -(2**31) else "i64"
        return "u32" if value < 2**32 else "u64"
    if isinstance(value, float | np.floating):
        return "f32"
    if isinstance(value, str | bytes):
        return "string"
    return "array"


def _value(value: Any, kind: str) -> bytes:
    if kind == "string":
        return _string(value)
    if kind.startswith("array"):
        _, _, element = kind.partition(":")
        items = list(value)
        element = element or (_infer(items[0]) if items else "i32")
        head = struct.pack("<IQ", VALUE_TYPES[element.partition(":")[0]], len(items))
        return head + b"".join(_value(v, element) for v in items)
    return struct.pack("<" + _FORMATS[kind], value)


class GgufWriter:
    """Collects keys and tensors, then writes one file or several shards."""

    def __init__(self, *, version: int = 3, alignment: int = 32) -> None:
        """Start an empty file; an alignment other than 32 also becomes a key."""
        self.version = version
        self.alignment = alignment
        self.keys: dict[str, tuple[str, Any]] = {}
        self.tensors: dict[str, Tensor] = {}
        if alignment != 32:
            self.add("general.alignment", alignment)

    def add(self, key: str, value: Any, kind: str = "") -> None:
        """Set a key. ``kind``: a GGUF type such as ``u64`` or ``array:i32``; inferred if empty."""
        self.keys[key] = (kind or _infer(value), value)

    def add_tensor(self, name: str, x: np.ndarray, dtype: str = "F32") -> None:
        """Add an array, row-major, converted to ``dtype``."""
        self.add_raw(name, dtype, x.shape, encode(x, dtype))

    def add_raw(self, name: str, dtype: str | int, shape: Sequence[int], data: bytes) -> None:
        """Add a payload as it is; ``dtype`` may be a number that nobody knows."""
        self.tensors[name] = Tensor(name, dtype, tuple(shape), data)

    def add_hole(self, name: str, dtype: str, shape: Sequence[int]) -> None:
        """Add a tensor of zeros that takes no space on disk: for sizes, not for sense."""
        n_bytes = payload_bytes(dtype, shape)
        self.tensors[name] = Tensor(name, dtype, tuple(shape), b"", hole=n_bytes)

    def add_alias(self, name: str, of: str) -> None:
        """Add a tensor that shares the bytes of an earlier one."""
        t = self.tensors[of]
        self.tensors[name] = Tensor(name, t.dtype, t.shape, b"", alias=of)

    def add_fp8(self, name: str, codes: np.ndarray, scales: np.ndarray) -> None:
        """Add an FP8 matrix: E4M3 codes u8[..., out, in] and E8M0 scales u8[..., out/128, in/128].

        GGUF has no FP8 type, so this is a pair of I8 tensors, ``X.weight`` and ``X.scale``.
        """
        tiles = tuple(-(-n // 128) for n in codes.shape[-2:])
        if scales.shape != codes.shape[:-2] + tiles:
            raise ValueError(f"{name}: scales {scales.shape} do not fit codes {codes.shape}")
        self.add_tensor(name, codes, "I8")
        self.add_tensor(name.removesuffix("weight") + "scale", scales, "I8")

    def to_bytes(self) -> bytes:
        """The file."""
        return self._file(self.keys, list(self.tensors.values()))

    def write(self, path: Path | str) -> Path:
        """Write one file."""
        head, payload, end = self._layout(self.keys, list(self.tensors.values()))
        with Path(path).open("wb") as out:
            out.write(head)
            for offset, data in payload:
                out.seek(len(head) + offset)
                out.write(data)
            out.truncate(len(head) + end)
        return Path(path)

    def write_shards(self, folder: Path | str, stem: str, n: int) -> list[Path]:
        """Write ``n`` shards named as llama.cpp names them; the keys go into the first."""
        tensors = list(self.tensors.values())
        paths = []
        for i in range(n):
            keys = dict(self.keys) if i == 0 else {}
            keys["split.no"] = ("u16", i)
            keys["split.count"] = ("u16", n)
            keys["split.tensors.count"] = ("i32", len(tensors))
            part = tensors[i * len(tensors) // n : (i + 1) * len(tensors) // n]
            path = Path(folder) / f"{stem}-{i + 1:05d}-of-{n:05d}.gguf"
            path.write_bytes(self._file(keys, part))
            paths.append(path)
        return paths

    def _file(self, keys: dict[str, tuple[str, Any]], tensors: list[Tensor]) -> bytes:
        head, payload, end = self._layout(keys, tensors)
        body = bytearray(end)
        for offset, data in payload:
            body[offset : offset + len(data)] = data
        return head + bytes(body)

    def _layout(
        self, keys: dict[str, tuple[str, Any]], tensors: list[Tensor]
    ) -> tuple[bytes, list[tuple[int, bytes]], int]:
        """What comes before the payload, its parts by their offsets, and its size."""
        out = [b"GGUF", struct.pack("<IQQ", self.version, len(tensors), len(keys))]
        for key, (kind, value) in keys.items():
            number = VALUE_TYPES[kind.partition(":")[0]]
            out += [_string(key), struct.pack("<I", number), _value(value, kind)]
        payload: list[tuple[int, bytes]] = []
        offsets: dict[str, int] = {}
        end = 0
        for t in tensors:
            if t.alias is None:
                offsets[t.name] = end
                payload.append((end, t.data))
                end += len(t.data) + t.hole
                end += -end % self.alignment
            else:
                offsets[t.name] = offsets[t.alias]
            number = t.dtype if isinstance(t.dtype, int) else TENSOR_TYPES[t.dtype][0]
            ne = tuple(reversed(t.shape))
            out += [_string(t.name), struct.pack(f"<I{len(ne)}Q", len(ne), *ne)]
            out.append(struct.pack("<IQ", number, offsets[t.name]))
        head = b"".join(out)
        return head.ljust(len(head) + -len(head) % self.alignment, b"\0"), payload, end
