"""What comes before the data of a GGUF file: keys and the directory of tensors."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["ALIGNMENT", "Entry", "header", "key"]

ALIGNMENT = 32
_STRING, _ARRAY = 8, 9
_PACK = {"u32": (4, "<I"), "i32": (5, "<i"), "f32": (6, "<f"), "bool": (7, "<?")}

Value = str | int | float | bool


@dataclass(frozen=True)
class Entry:
    """A tensor of the directory; shape row-major, as everywhere but in the file."""

    name: str
    number: int
    shape: tuple[int, ...]
    n_bytes: int


def _text(s: str) -> bytes:
    raw = s.encode()
    return struct.pack("<Q", len(raw)) + raw


def key(name: str, kind: str, value: Value | Sequence[Value]) -> bytes:
    r"""One key; a list becomes an array of ``kind``.

    Example:
        >>> key("a", "u32", 7)[-8:]
        b'\x04\x00\x00\x00\x07\x00\x00\x00'
    """

    def one(v: Value) -> bytes:
        return _text(str(v)) if kind == "string" else struct.pack(_PACK[kind][1], v)

    code = _STRING if kind == "string" else _PACK[kind][0]
    if isinstance(value, (list, tuple)):
        head = struct.pack("<IIQ", _ARRAY, code, len(value))
        return _text(name) + head + b"".join(one(v) for v in value)
    assert isinstance(value, (str, int, float))
    return _text(name) + struct.pack("<I", code) + one(value)


def header(keys: Sequence[bytes], entries: Sequence[Entry]) -> tuple[bytes, list[int]]:
    """Everything up to the data, and where in the file each tensor begins."""
    directory, offset, offsets = [], 0, []
    for e in entries:
        ne = e.shape[::-1]
        directory.append(_text(e.name) + struct.pack(f"<I{len(ne)}Q", len(ne), *ne))
        directory.append(struct.pack("<IQ", e.number, offset))
        offsets.append(offset)
        offset += e.n_bytes + -e.n_bytes % ALIGNMENT
    head = struct.pack("<4sIQQ", b"GGUF", 3, len(entries), len(keys))
    head += b"".join(keys) + b"".join(directory)
    head += bytes(-len(head) % ALIGNMENT)
    return head, [len(head) + o for o in offsets]
