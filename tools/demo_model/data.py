"""Token streams and the windows drawn from them.

Books and Python modules are tokenized once. Generated text comes in shards, made by other processes while training
runs: shard k takes part from step `first_step(k)` on, so what a step sees depends on the seed and its number alone.
"""

from __future__ import annotations

import json
import lzma
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

import numpy as np
import torch
from corpus.recall import Filler
from corpus.tasks import task_doc
from tokenizers import Tokenizer

BOS_ID = 0
DOCS_PER_SHARD = 12000
# A question whose facts lie before the window teaches nothing.
ALIGNED = {"tasks": 1.0}


def read_documents(path: Path) -> Iterator[str]:
    """The texts of a `.jsonl` or `.jsonl.xz` file."""
    with (lzma.open if path.suffix == ".xz" else open)(path, "rt", encoding="utf-8") as f:
        for line in f:
            yield json.loads(line)["t"]


def find_part(folder: Path, name: str) -> Path:
    path = folder / f"{name}.jsonl"
    return path if path.exists() else folder / f"{name}.jsonl.xz"


def encode(tokenizer: Tokenizer, documents: Iterator[str], batch: int = 1000) -> np.ndarray:
    """All documents in a row, u16."""
    parts, texts = [], []

    def flush() -> None:
        for e in tokenizer.encode_batch(texts, add_special_tokens=False):
            parts.append(np.array(e.ids, dtype=np.uint16))
        texts.clear()

    for text in documents:
        texts.append(text)
        if len(texts) == batch:
            flush()
    flush()
    return np.concatenate(parts)


def tokenize_part(folder: Path, name: str, tokenizer_file: Path, cache: Path) -> np.ndarray:
    """Tokens of one part of the corpus, kept in `cache`."""
    file = cache / f"{name}.npy"
    if not file.exists():
        tokenizer = Tokenizer.from_file(str(tokenizer_file))
        tokens = encode(tokenizer, read_documents(find_part(folder, name)))
        save(file, tokens)
    return np.load(file)


def save(file: Path, tokens: np.ndarray) -> None:
    """Written beside and renamed: whoever waits for the file never sees half of it."""
    beside = file.with_suffix(".part.npy")
    np.save(beside, tokens)
    beside.rename(file)


def book_filler(folder: Path) -> Filler:
    """What generated text quotes from: paragraphs of both parts of the books."""
    return Filler(
        [
            p
            for part in ("books", "books2")
            for text in read_documents(find_part(folder, part))
            for p in text.split("\n\n")
            if 120 < len(p) < 1200
        ]
    )


def make_shard(folder: Path, tokenizer_file: Path, cache: Path, seed: int, k: int) -> None:
    """Shard k of the generated text."""
    file = cache / f"tasks-{k:03d}.npy"
    if file.exists():
        return
    filler, r = book_filler(folder), Random(f"{seed} {k}")
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    save(file, encode(tokenizer, (task_doc(r, filler)[1] for _ in range(DOCS_PER_SHARD))))


class TokenPool:
    """All tokens on the device, and for every part the segments and document starts to draw from."""

    def __init__(self, weights: dict[str, float], device: torch.device) -> None:
        self.weights, self.device = weights, device
        self._pool = torch.zeros(0, dtype=torch.int16, device=device)
        self._segments: dict[str, list[tuple[int, int, np.ndarray]]] = {}

    def add(self, part: str, tokens: np.ndarray) -> None:
        segment = (len(self._pool), len(tokens), np.flatnonzero(tokens == BOS_ID))
        self._segments.setdefault(part, []).append(segment)
        more = torch.from_numpy(tokens.astype(np.int16)).to(self.device)  # ids are below 2^15
        self._pool = torch.cat([self._pool, more])

    def n_segments(self, part: str) -> int:
        return len(self._segments.get(part, []))

    def windows(self, rng: np.random.Generator, n_windows: int, length: int) -> torch.Tensor:
        """i64[n_windows, length]; those of generated text, and some others, begin where a document begins."""
        parts = sorted(self._segments)
        p = np.array([self.weights[x] for x in parts])
        starts = []
        for part in rng.choice(len(parts), n_windows, p=p / p.sum()):
            segments = self._segments[parts[part]]
            base, n, documents = segments[rng.integers(len(segments))]
            start = rng.integers(0, n - length)
            if rng.random() < ALIGNED.get(parts[part], 0.3):
                near = documents[min(np.searchsorted(documents, start), len(documents) - 1)]
                start = near if near < n - length else start
            starts.append(base + start)
        at = torch.tensor(starts, device=self.device)[:, None]
        return self._pool[at + torch.arange(length, device=self.device)].long()


class Shards:
    """Adds the shards of generated text to a pool when their step comes."""

    def __init__(self, cache: Path, n_shards: int, n_first: int, steps_per_shard: int) -> None:
        self.cache, self.n_shards = cache, n_shards
        self.n_first, self.steps_per_shard = n_first, steps_per_shard

    def add_until(self, step: int, pool: TokenPool) -> None:
        """Wait, if need be, for every shard that takes part at `step`."""
        wanted = min(self.n_shards, self.n_first + step // self.steps_per_shard)
        while pool.n_segments("tasks") < wanted:
            file = self.cache / f"tasks-{pool.n_segments('tasks'):03d}.npy"
            while not file.exists():
                time.sleep(0.2)
            pool.add("tasks", np.load(file))
