"""Saving and restoring long sessions: seconds, bytes, and memory beside what the session holds.

    python benchmarks/bench_snapshots.py FOLDER [TOKENS ...]      # default: 102400 1048064

The sessions have Flash's KV shapes and are fabricated (see kv_models.py). The first is resumed from a store with its
rows on disk only and saved from there; the others are restored from that file, without a cache and with the store.
Files stay in the page cache of the system: what is timed is our part, checksums and copies.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import grebe
from kv_models import CONTEXT, fabricate, kv_flash, rss_bytes

T = TypeVar("T")


def measured(work: Callable[[], T]) -> tuple[T, float, float]:
    """Its result, seconds, and the largest growth of memory in MB while it ran."""
    before = peak = rss_bytes()
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.002):
            peak = max(peak, rss_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    try:
        result = work()
    finally:
        elapsed = time.perf_counter() - start
        done.set()
        watcher.join()
    return result, elapsed, (peak - before) / 1e6


def row(name: str, n: int, seconds: float, grown: float, n_bytes: int) -> dict[str, object]:
    speed = n_bytes / seconds / 1e9
    print(f"{n:8d}  {name:28s} {seconds:7.2f} s  {speed:5.2f} GB/s  {grown:8.1f} MB more memory")
    return {
        "tokens": n,
        "what": name,
        "seconds": round(seconds, 3),
        "gb_per_s": round(speed, 3),
        "grown_mb": round(grown, 1),
    }


def bench(model: grebe.Model, folder: Path, n: int) -> list[dict[str, object]]:
    store, first, second = folder / "store", folder / "a.grebe", folder / "b.grebe"
    shutil.rmtree(store, ignore_errors=True)
    tokens = fabricate(store, model, n)
    rows = []
    with model.open_cache(store, budget_bytes=1 << 40, ram_bytes=64 << 20) as cache:
        with cache.session() as s:
            assert s.prefill([*tokens, 5]) == 1
            held = s.nbytes
            for name in ("save, rows on disk", "save again"):
                _, seconds, grown = measured(lambda: s.save(first))
                size = first.stat().st_size
                rows.append(row(name, n, seconds, grown, size))
        print(f"{n:8d}  {size / 1e9:.3f} GB; the session holds {held / 1e9:.3f} GB")
        s, seconds, grown = measured(lambda: model.restore(first, cache=cache))
        rows.append(row("restore with the cache", n, seconds, grown, size))
        s.close()
    s, seconds, grown = measured(lambda: model.restore(first))
    rows.append(row("restore", n, seconds, grown, size))
    print(f"{n:8d}  the session holds {s.nbytes / 1e9:.3f} GB")
    _, seconds, grown = measured(lambda: s.save(second))
    rows.append(row("save, rows in memory", n, seconds, grown, size))
    assert first.read_bytes() == second.read_bytes() if n < 200_000 else True
    s.close()
    for file in (first, second):
        file.unlink()
    return rows


if __name__ == "__main__":
    where = Path(sys.argv[1])
    where.mkdir(exist_ok=True)
    with grebe.Model.load(kv_flash(where / "kv.gguf")) as loaded:
        results = []
        for count in [int(a) for a in sys.argv[2:]] or [102400, CONTEXT - 512]:
            results += bench(loaded, where, count)
    print(json.dumps({"load": os.getloadavg()[0], "rows": results}))
