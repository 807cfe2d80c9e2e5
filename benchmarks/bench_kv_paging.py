"""Decode with rows paged from disk against decode with all rows in memory, alternating in one process.

    python benchmarks/kv_models.py decode MODEL.gguf
    python benchmarks/bench_kv_paging.py MODEL.gguf [--tokens 262144 ...] [--ram-mb 256] [--steps 24] [--dir DIR]

The history is fabricated: valid rows, random ones. The paged session resumes from a cache that was opened with `ram_bytes`; the
resident one is the same state, saved and restored without a cache. Both decode the same tokens, one each in turn, and their logits
must be equal bit for bit. `cold`: before each paged token the operating system is told to forget the store's files, so what is
missing comes from the disk; `warm`: it may keep them. Medians of pairs; the last line is one JSON document.

How much the rows of consecutive tokens have in common decides how many pages are missing. Random weights and random tokens have
little in common (`random`); the same token again and again has a lot (`steady`).
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import grebe
import numpy as np
from kv_models import drop_from_page_cache, fabricate, rss_bytes

WARM_UP = 3


def timed_decode(s: grebe.Session, token: int) -> float:
    started = time.perf_counter()
    s.decode(token)
    return time.perf_counter() - started


def resident_twin(model: grebe.Model, s: grebe.Session, path: Path) -> grebe.Session:
    """The same state with all rows in memory."""
    s.save(path)
    twin = model.restore(path)
    path.unlink()
    return twin


class Run:
    """One length of history."""

    def __init__(self, model: grebe.Model, folder: Path, n_tokens: int, ram_bytes: int) -> None:
        self.model, self.n_tokens, self.store = model, n_tokens, folder / f"store-{n_tokens}"
        started = time.perf_counter()
        tokens = fabricate(self.store, model, n_tokens)
        fabricated = time.perf_counter()
        self.rss_before = rss_bytes()
        self.cache = model.open_cache(self.store, ram_bytes=ram_bytes)
        self.paged = self.cache.session()
        self.paged.prefill([*tokens, 7])
        resumed = time.perf_counter()
        self.rng = np.random.default_rng(n_tokens)
        self.token = int(self.rng.integers(3, model.config.vocab_size))
        for _ in range(2 * WARM_UP):
            self.paged.decode(self.next_token("random"))
        self.memory = self._memory()
        self.resident = resident_twin(model, self.paged, folder / "resident.grebe")
        print(
            f"{n_tokens:,} tokens: fabricated in {fabricated - started:.1f} s, resumed and one token in "
            f"{resumed - fabricated:.2f} s; all resident {self.resident.nbytes / 1e6:.0f} MB\n"
            + ", ".join(f"{name} {n / 1e6:.0f} MB" for name, n in self.memory.items()),
            flush=True,
        )

    def next_token(self, stream: str) -> int:
        """Any token, or the last one again."""
        if stream == "random":
            self.token = int(self.rng.integers(3, self.model.config.vocab_size))
        return self.token

    def _memory(self) -> dict[str, int]:
        """After paged decode, before the resident twin exists."""
        return {
            "session": self.paged.nbytes,
            "checkpoints": self.paged.checkpoint_nbytes,
            "cache": self.cache.stats().ram_bytes,
            "anonymous": rss_bytes() - self.rss_before,
        }

    def measure(self, stream: str, cold: bool, steps: int) -> dict[str, Any]:
        """One row of the table."""
        paged, resident, pages = [], [], []
        for step in range(WARM_UP + steps):
            token = self.next_token(stream)
            if cold:
                drop_from_page_cache(self.store)
            before = self.cache.stats()
            order = [(self.paged, paged), (self.resident, resident)]
            for session, times in order if step % 2 else order[::-1]:
                times.append(timed_decode(session, token))
            after = self.cache.stats()
            pages.append(
                [
                    after.page_hits - before.page_hits,
                    after.page_misses - before.page_misses,
                    after.pages_prefetched - before.pages_prefetched,
                ]
            )
            if not np.array_equal(self.paged.logits, self.resident.logits):
                raise SystemExit("paged and resident logits differ")
        del paged[:WARM_UP], resident[:WARM_UP], pages[:WARM_UP]
        ms = [1e3 * statistics.median(times) for times in (paged, resident)]
        hits, misses, ahead = (statistics.mean(column) for column in zip(*pages, strict=True))
        row = {
            "tokens": self.n_tokens,
            "stream": stream,
            "cold": cold,
            "paged_ms": ms[0],
            "resident_ms": ms[1],
            "ratio": statistics.median(r / p for p, r in zip(paged, resident, strict=True)),
            "ratio_of_best": min(resident) / min(paged),
            "range_paged_ms": [1e3 * min(paged), 1e3 * max(paged)],
            "range_resident_ms": [1e3 * min(resident), 1e3 * max(resident)],
            "hits": hits,
            "misses": misses,
            "prefetched": ahead,
            "us_per_miss": 1e3 * (ms[0] - ms[1]) / misses if misses else 0.0,
        }
        print(
            f"{self.n_tokens:>9,} {stream:7} {'cold' if cold else 'warm'}  paged {ms[0]:7.1f} ms  resident {ms[1]:7.1f} ms  "
            f"ratio {row['ratio']:.3f} (best {row['ratio_of_best']:.3f})  hits {hits:6.0f} misses {misses:6.0f} ahead {ahead:5.0f}  "
            f"{row['us_per_miss']:5.1f} us a miss",
            flush=True,
        )
        return row

    def close(self) -> None:
        """Lets both sessions go."""
        """Leave nothing behind."""
        self.paged.close()
        self.resident.close()
        self.cache.close()
        shutil.rmtree(self.store)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("model")
    p.add_argument("--tokens", type=int, nargs="+", default=[1 << 18])
    p.add_argument("--ram-mb", type=int, default=256)
    p.add_argument("--steps", type=int, default=24)
    p.add_argument("--streams", nargs="+", default=["random", "steady"])
    p.add_argument("--threads", type=int)
    p.add_argument("--dir", help="where the stores go: the disk that is measured")
    a = p.parse_args()
    model = grebe.Model.load(a.model, n_threads=a.threads)
    rows, memory = [], {}
    with tempfile.TemporaryDirectory(dir=a.dir) as folder:
        for n_tokens in a.tokens:
            run = Run(model, Path(folder), n_tokens, a.ram_mb << 20)
            memory[n_tokens] = run.memory
            for stream in a.streams:
                rows += [run.measure(stream, cold, a.steps) for cold in (False, True)]
            run.close()
    print(
        json.dumps(
            {"benchmark": "bench_kv_paging", "ram_mb": a.ram_mb, "memory": memory, "rows": rows}
        )
    )


if __name__ == "__main__":
    main()
