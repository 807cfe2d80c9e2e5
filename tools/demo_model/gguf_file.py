"""A minimal GGUF version 3 writer and the three block formats that the demo file uses."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

ALIGNMENT = 32
_STRING, _ARRAY = 8, 9
_PACK = {"u32": (4, "<I"), "i32": (5, "<i"), "f32": (6, "<f"), "bool": (7, "<?")}
_TENSOR_TYPES = {"f32": 0, "f16": 1, "q8_0": 8, "i32": 26, "mxfp4": 39}


class Tensor(NamedTuple):
    name: str
    value: np.ndarray  # row-major, [out, in]
    kind: str


def _text(s: str) -> bytes:
    raw = s.encode()
    return struct.pack("<Q", len(raw)) + raw


def key(name: str, kind: str, value: object) -> bytes:
    """One key; a list or tuple becomes an array of `kind`."""

    def one(v: object) -> bytes:
        return _text(str(v)) if kind == "string" else struct.pack(_PACK[kind][1], v)

    code = _STRING if kind == "string" else _PACK[kind][0]
    if isinstance(value, (list, tuple)):
        head = struct.pack("<IIQ", _ARRAY, code, len(value))
        return _text(name) + head + b"".join(one(v) for v in value)
    return _text(name) + struct.pack("<I", code) + one(value)


def pack_q8_0(x: np.ndarray) -> bytes:
    """Blocks of 32: an f16 scale, then 32 signed bytes."""
    b = x.astype(np.float32).reshape(-1, 32)
    d = np.abs(b).max(1) / 127
    q = np.rint(b / np.where(d == 0, 1, d)[:, None]).astype(np.int8)
    out = np.empty((len(b), 34), np.uint8)
    out[:, :2] = d.astype("<f2").view(np.uint8).reshape(-1, 2)
    out[:, 2:] = q.view(np.uint8)
    return out.tobytes()


def pack_mxfp4(x: np.ndarray) -> bytes:
    """Blocks of 32: an E8M0 scale, then value i in the low and value i + 16 in the high half of byte i.

    Exact for weights that training rounded to FP4; refuses others.
    """
    b = x.astype(np.float32).reshape(-1, 32)
    amax = np.abs(b).max(1)
    exponent = np.ceil(np.log2(np.maximum(amax, 1e-20) / 6)).astype(np.int32)
    values = b / np.exp2(exponent)[:, None]
    grid = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
    codes = np.searchsorted(grid, np.abs(values)).astype(np.uint8)
    if not np.array_equal(grid[np.minimum(codes, 7)], np.abs(values)):
        raise ValueError("mxfp4: the weights are not on the FP4 grid")
    codes |= np.signbit(values).astype(np.uint8) << 3
    out = np.empty((len(b), 17), np.uint8)
    out[:, 0] = exponent + 127
    out[:, 1:] = codes[:, :16] | codes[:, 16:] << 4
    return out.tobytes()


def pack(x: np.ndarray, kind: str) -> bytes:
    if kind == "q8_0":
        return pack_q8_0(x)
    if kind == "mxfp4":
        return pack_mxfp4(x)
    return np.ascontiguousarray(x, {"f32": "<f4", "f16": "<f2", "i32": "<i4"}[kind]).tobytes()


def write(path: Path, keys: Sequence[bytes], tensors: Sequence[Tensor]) -> None:
    head, blobs, offset = b"", [], 0
    for t in tensors:
        raw = pack(t.value, t.kind)
        raw += bytes(-len(raw) % ALIGNMENT)
        shape = b"".join(struct.pack("<Q", n) for n in t.value.shape[::-1])
        head += _text(t.name) + struct.pack("<I", t.value.ndim) + shape
        head += struct.pack("<IQ", _TENSOR_TYPES[t.kind], offset)
        blobs.append(raw)
        offset += len(raw)
    start = struct.pack("<IIQQ", 0x46554747, 3, len(tensors), len(keys)) + b"".join(keys) + head
    path.write_bytes(start + bytes(-len(start) % ALIGNMENT) + b"".join(blobs))
