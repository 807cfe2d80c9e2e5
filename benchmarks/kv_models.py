"""Models and stores for benchmarks of the KV cache: Flash's shapes with random numbers in them.

    python benchmarks/kv_models.py kv OUT.gguf        # Flash's KV state, the least of everything else: 20 MB
    python benchmarks/kv_models.py decode OUT.gguf    # what a token reads on Flash, with 6 experts a layer: 8.8 GB

`fabricate` writes rows of any number of tokens into a store without computing them: valid packed rows, random ones.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grebe
import numpy as np
from grebe import _engine

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "helpers"))
from flash import FLASH, flash_model
from gguf_writer import GgufWriter, Tensor
from tiny_gguf import Shape, add_tokenizer, tiny_model

BLOCK_TOKENS = 512
ROWS_PER_PAGE = 8
KV_ROW = 584  # 448 E4M3 codes, 64 bf16, 7 scales, padded
INDEX_ROW = 68  # 128 E2M1 codes, 4 scales
CONTEXT = 1 << 20

KV_FLASH = dataclasses.replace(
    FLASH,
    hidden=64,
    vocab=512,
    heads=1,
    q_lora=32,
    o_groups=1,
    o_lora=32,
    index_heads=1,
    streams=2,
    experts=3,
    used=2,
    ff=32,
)
DECODE_FLASH = dataclasses.replace(FLASH, vocab=1024, experts=6)


def kv_flash(path: Path | str, top_k: int = KV_FLASH.top_k) -> Path:
    """A model whose KV state has exactly Flash's shapes; the rest is as small as it can be.

    A smaller top_k makes long prompts quicker and leaves the state's shapes as they are.
    """
    w = tiny_model(dataclasses.replace(KV_FLASH, top_k=top_k), seed=7)
    w.add("general.name", "Flash's KV state")
    w.add("deepseek4.context_length", CONTEXT, "u32")
    return w.write(path)


class _Weights:
    """Random payloads; the codes of large tensors come from one pool, from a place of their own."""

    CODES = 1 << 26

    def __init__(self, shape: Shape, seed: int) -> None:
        self.shape = shape
        self.rng = np.random.default_rng(seed)
        self.pool = np.frombuffer(self.rng.bytes(self.CODES), np.uint8)

    def _blocks(self, t: Tensor, n_bytes: int, fields: dict[int, float]) -> np.ndarray:
        """Random blocks of n_bytes with f16 numbers at some places."""
        n_blocks = int(np.prod(t.shape)) // {34: 32, 66: 256, 84: 256}[n_bytes]
        first = int(self.rng.integers(self.CODES))
        codes = np.resize(np.roll(self.pool, -first), n_blocks * n_bytes)
        out = codes.reshape(n_blocks, n_bytes).copy()
        for at, value in fields.items():
            out[:, at : at + 2] = np.frombuffer(np.float16(value).tobytes(), np.uint8)
        return out

    def payload(self, t: Tensor) -> np.ndarray:
        scale = t.shape[-1] ** -0.5
        if t.dtype == "I32":  # experts by token
            return np.argsort(self.rng.random((t.shape[0], self.shape.experts)), 1)[
                :, : t.shape[1]
            ].astype(np.int32)
        if t.dtype == "F32":
            if t.name.endswith("norm.weight"):
                return np.ones(t.shape, np.float32)
            return self.rng.standard_normal(t.shape, np.float32) * np.float32(0.1)
        if t.dtype == "F16":
            if t.name.endswith("ape.weight"):
                scale = 0.1
            return (self.rng.standard_normal(t.shape, np.float32) * scale).astype(np.float16)
        if t.dtype == "Q8_0":
            return self._blocks(t, 34, {0: scale / 74})
        if t.dtype == "IQ2_XXS":
            return self._blocks(t, 66, {0: scale / 40})
        if t.dtype == "Q2_K":
            return self._blocks(t, 84, {80: scale / 15, 82: 1.5 * scale / 15})
        raise ValueError(f"no random payload for {t.dtype}")


def decode_flash(path: Path | str, shape: Shape = DECODE_FLASH) -> Path:
    """A model of which a token reads as much as of Flash. Written tensor by tensor."""
    w = flash_model(shape)
    w.add("general.name", "Flash's shapes with 6 experts")
    add_tokenizer(w, shape.vocab)
    w.write(path)
    _fill(w, Path(path), _Weights(shape, 3))
    return Path(path)


def _fill(w: GgufWriter, path: Path, weights: _Weights) -> None:
    tensors = list(w.tensors.values())
    head, places, _ = w._layout(w.keys, tensors)
    with path.open("r+b") as out:
        for t, (offset, _) in zip(tensors, places, strict=True):
            out.seek(len(head) + offset)
            data = weights.payload(t)
            assert data.nbytes == t.hole, t.name
            out.write(memoryview(np.ascontiguousarray(data)).cast("B"))


# ---------------------------------------------------------------- rows


def kv_rows(rng: np.random.Generator, n: int) -> np.ndarray:
    """u8[n, 584]: E4M3 codes without NaN, bf16 rotary channels, scales near 1."""
    rows = np.zeros((n, KV_ROW), np.uint8)
    codes = rng.integers(0, 127, (n, 448), np.uint8)  # 0x7f is NaN
    rows[:, :448] = codes | rng.integers(0, 2, (n, 448), np.uint8) << 7
    rotary = rng.standard_normal((n, 64), np.float32)
    rows[:, 448:576] = (rotary.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
    rows[:, 576:583] = rng.integers(117, 120, (n, 7), np.uint8)  # codes reach 448
    return rows


def index_rows(rng: np.random.Generator, n: int) -> np.ndarray:
    """u8[n, 68]: E2M1 codes, scales near 1."""
    rows = np.empty((n, INDEX_ROW), np.uint8)
    rows[:, :64] = rng.integers(0, 256, (n, 64), np.uint8)
    rows[:, 64:] = rng.integers(125, 128, (n, 4), np.uint8)
    return rows


class _Pages:
    """A pool of random pages for each of the kinds that records have."""

    def __init__(self, shape: Shape, rng: np.random.Generator) -> None:
        self.rng = rng
        self.n_4 = sum(r == 4 for r in shape.ratios)
        self.n_128 = sum(r == 128 for r in shape.ratios)
        self.n_layers = len(shape.ratios)
        self.keys = [index_rows(rng, BLOCK_TOKENS // 4).tobytes() for _ in range(512)]
        self.far = [kv_rows(rng, BLOCK_TOKENS // 128).tobytes() for _ in range(256)]
        self.rows = [kv_rows(rng, ROWS_PER_PAGE).tobytes() for _ in range(2048)]
        self.windows = [kv_rows(rng, shape.window).tobytes() for _ in range(64)]
        dims = shape.head_dim + shape.index_head_dim
        triples = np.zeros((self.n_4, 3 * dims), np.float32)
        for begin, dim in ((0, shape.head_dim), (3 * shape.head_dim, shape.index_head_dim)):
            triples[:, begin + dim : begin + 2 * dim] = 1
            triples[:, begin + 2 * dim : begin + 3 * dim] = rng.standard_normal((self.n_4, dim))
        self.triples = triples.tobytes()

    def _some(self, pool: list[bytes], n: int) -> list[bytes]:
        return [pool[i] for i in self.rng.integers(len(pool), size=n).tolist()]

    def block(self) -> list[bytes]:
        return [
            *self._some(self.keys, self.n_4),
            *self._some(self.far, self.n_128),
            *self._some(self.rows, self.n_4 * BLOCK_TOKENS // 4 // ROWS_PER_PAGE),
        ]

    def anchor(self) -> list[bytes]:
        return [*self._some(self.windows, self.n_layers), self.triples]


def root_of(model: grebe.Model) -> tuple[bytes, str]:
    """Id and numerics of the root that the model's records stand under."""
    o = model._live.options()
    numerics = f"{o['backend']} {o['kernels']} {o['kv_rounding']} 1"
    return _engine.blake3(f"grebe kv 1\n{model.fingerprint}\n{numerics}".encode()), numerics


class Fabricator:
    """Writes sessions that nobody has computed into a store directory."""

    def __init__(self, store_dir: Path, model: grebe.Model, seed: int = 1) -> None:
        self.rng = np.random.default_rng(seed)
        self.vocab = model.config.vocab_size
        self.pages = _Pages(FLASH, self.rng)
        self.root, numerics = root_of(model)
        self.store = _engine.Store(store_dir, budget_bytes=1 << 40)
        self.store.add_root(self.root, model.fingerprint, "fabricated", numerics)

    def __enter__(self) -> Fabricator:
        return self

    def __exit__(self, *_: object) -> None:
        self.store.close()

    def session(self, n_tokens: int) -> list[int]:
        """Blocks of n_tokens (a multiple of 512) and an anchor at their end. Returns the tokens."""
        tokens = self.rng.integers(3, self.vocab, n_tokens).tolist()
        batch: list[dict[str, Any]] = []
        for record in self._records(tokens):
            batch.append(record)
            if len(batch) == 16 or record["kind"] == "anchor":
                results = self.store.commit(batch)
                assert set(results) == {"committed"}, results
                batch = []
        return tokens

    def _records(self, tokens: list[int]) -> Iterator[dict[str, Any]]:
        parent = self.root
        for begin in range(0, len(tokens), BLOCK_TOKENS):
            own = tokens[begin : begin + BLOCK_TOKENS]
            assert len(own) == BLOCK_TOKENS
            yield self._record("block", parent, begin + BLOCK_TOKENS, own, self.pages.block())
            parent = _engine.record_id("block", parent, own)
        yield self._record("anchor", parent, len(tokens), [], self.pages.anchor())

    def _record(
        self, kind: str, parent: bytes, pos: int, tokens: list[int], pages: list[bytes]
    ) -> dict[str, Any]:
        return {
            "kind": kind,
            "id": _engine.record_id(kind, parent, tokens),
            "parent": parent,
            "root": self.root,
            "pos": pos,
            "tokens": tokens,
            "pages": pages,
        }


def fabricate(store_dir: Path, model: grebe.Model, n_tokens: int, seed: int = 1) -> list[int]:
    """One session of n_tokens in a store; `cache.session().prefill(tokens + [x])` resumes it."""
    with Fabricator(store_dir, model, seed) as f:
        return f.session(n_tokens)


def drop_from_page_cache(folder: Path) -> None:
    """The operating system forgets what it holds of the files there: the next read is a disk's."""
    for file in sorted(folder.iterdir()):
        if not file.is_file():
            continue
        handle = os.open(file, os.O_RDONLY)
        os.fsync(handle)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def rss_bytes() -> int:
    """Anonymous memory of this process: mapped files do not count."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    return 0


if __name__ == "__main__":
    make = {"kv": kv_flash, "decode": decode_flash}[sys.argv[1]]
    made = make(sys.argv[2])
    print(made, f"{made.stat().st_size / 1e9:.2f} GB")
