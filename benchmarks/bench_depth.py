"""Decode speed at depth against decode speed at the start, alternating in one process.

    python benchmarks/bench_depth.py MODEL.gguf [--depth 8192] [--rounds 8] [--threads 2]

Two sessions of one model, one short and one `depth` tokens long, decode 8 tokens in turn, so that a drifting machine hits both
alike. Medians of all steps; the last line is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import grebe
import numpy as np


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("model")
    p.add_argument("--depth", type=int, default=8192)
    p.add_argument("--rounds", type=int, default=8)
    p.add_argument("--threads", type=int)
    a = p.parse_args()
    model = grebe.Model.load(a.model, n_threads=a.threads)
    ids = np.random.default_rng(5).integers(300, model.config.vocab_size, a.depth + 999).tolist()
    sessions = {0: model.session(), a.depth: model.session()}
    sessions[0].prefill(ids[:4])
    started = time.perf_counter()
    sessions[a.depth].prefill(ids[: a.depth])
    fill = a.depth / (time.perf_counter() - started)
    steps: dict[int, list[float]] = {depth: [] for depth in sessions}
    for _ in range(a.rounds):
        for depth, s in sessions.items():
            for i in range(8):
                started = time.perf_counter()
                s.decode(ids[i])
                steps[depth].append(time.perf_counter() - started)
    speed = {depth: 1 / statistics.median(times) for depth, times in steps.items()}
    print(f"prefill of {a.depth} tokens: {fill:.1f} t/s on average")
    for depth, s in sessions.items():
        print(f"decode at {depth:6}: {speed[depth]:.2f} t/s, {s.nbytes / 1e6:.2f} MB of KV state")
    ratio = speed[a.depth] / speed[0]
    print(f"ratio {ratio:.3f}")
    print(
        json.dumps(
            {
                "benchmark": "bench_depth",
                "depth": a.depth,
                "fill": fill,
                "decode": speed,
                "ratio": ratio,
            }
        )
    )


if __name__ == "__main__":
    main()
