"""Saved sessions read by their drawing in csrc/session/snapshot_format.h, for tests that check and change them."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

import grebe
import numpy as np
from grebe import _engine

BLOCK = 512
HEADER_BYTES = 256
NUMERICS = slice(144, 192)


@dataclass(frozen=True)
class Page:
    """A page: what it belongs to, its number therein, where its data lies."""

    name: bytes
    number: int
    start: int
    n: int


def crc(*parts: bytes) -> int:
    total = 0
    for part in parts:
        total = _engine.crc32c(np.frombuffer(part, np.uint8), total)
    return total


def numerics(data: bytes) -> str:
    return data[NUMERICS].rstrip(b"\0").decode()


def root(data: bytes) -> bytes:
    """Stands for a model and how it computes."""
    text = b"grebe kv 1\n" + data[16:80] + b"\n" + numerics(data).encode()
    return bytes(_engine.blake3(np.frombuffer(text, np.uint8)))


def pages(config: grebe.ModelConfig, data: bytes) -> Iterator[Page]:
    """Every page in order; the last one ends 4 bytes before the end."""
    row, index_row, window = struct.unpack_from("<III", data, 196)
    flags = struct.unpack_from("<I", data, 208)[0]
    n_tokens, *checkpoints = struct.unpack_from("<qqq", data, 224)
    if n_tokens == 0:
        return
    tokens = np.frombuffer(data, "<i4", n_tokens, HEADER_BYTES).tolist()
    fine = config.compress_ratios[: config.n_layers].count(4)
    coarse = config.compress_ratios[: config.n_layers].count(128)
    dims = config.head_dim + config.index_head_dim
    chain = [root(data)]
    for i in range(n_tokens // BLOCK):
        own = tokens[i * BLOCK : (i + 1) * BLOCK]
        chain.append(bytes(_engine.record_id("block", chain[-1], own)))

    def state(pos: int) -> bytes:
        own = tokens[pos // BLOCK * BLOCK : pos]
        return bytes(_engine.record_id("anchor", chain[pos // BLOCK], own))

    def rows(n: int, per_page: int) -> list[int]:
        keys = fine * [n // 4 * index_row] * (n >= 4) + coarse * [n // 128 * row] * (n >= 128)
        return keys + fine * (n // 4 // per_page) * [per_page * row] * (n >= 4)

    tail = n_tokens % BLOCK
    pools = 4 * 3 * (fine * 2 * dims + coarse * config.head_dim)
    parts = [(chain[0], [4 * n_tokens])]
    parts += [(name, rows(BLOCK, 8)) for name in chain[1:]]
    logits = [4 * config.vocab_size] if flags & 1 else []
    end = config.n_layers * [window * row] + [pools] * (pools > 0)
    end += rows(tail, max(1, tail // 4)) + logits
    parts.append((state(n_tokens), end))
    for pos in checkpoints:
        if pos:
            triples = [4 * 3 * fine * dims] * (fine > 0)
            parts.append((state(pos), config.n_layers * [window * row] + triples))
    at = HEADER_BYTES
    for name, lengths in parts:
        for number, n in enumerate(lengths):
            yield Page(name, number, at, n)
            at += n + 4


def page_sum(page: Page, data: bytes) -> int:
    body = data[page.start : page.start + page.n]
    return crc(page.name[:8], struct.pack("<I", page.number), body)


def sealed(config: grebe.ModelConfig, data: bytes) -> bytes:
    """The same with every checksum made right again."""
    changed = bytearray(data)
    changed[252:256] = struct.pack("<I", crc(bytes(changed[:252])))
    for page in pages(config, bytes(changed)):
        end = page.start + page.n
        changed[end : end + 4] = struct.pack("<I", page_sum(page, bytes(changed)))
    changed[-4:] = struct.pack("<I", crc(bytes(changed[:-4])))
    return bytes(changed)
