"""The KV cache on disk: bytes of a long session, opening a large store, resuming, and what saving costs.

    python benchmarks/bench_kv_store.py [bytes] [open] [resume] [cost] [stall] [--model DECODE.gguf] [--dir DIR]

bytes    an agent-like session of 100K tokens with Flash's KV shapes through the real path, then another one with the same system part
open     model.open_cache() on a store with 1,000 sessions and 10 GB, with the files in the page cache and without
resume   a session of 100K tokens until its state is ready: prefill that computes one token, less the time of one token
cost     prefill with and without a cache in turn, wall and CPU time: the embedded model, and DECODE.gguf of kv_models.py
stall    time of single tokens while blocks and anchors are written, with and without a cache in turn

Without names all of them. Medians; the last line is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grebe
import numpy as np
from grebe import _engine
from kv_models import Fabricator, drop_from_page_cache, fabricate, kv_flash

GB, GIB = 1e9, 2**30
DS4_100K = 7.6 * GB  # snapshots of the whole prefix, again and again
ROW_BYTES = 3514  # of a token on Flash, all layers


def seconds(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def ms_range(times: list[float]) -> str:
    return f"{1e3 * statistics.median(times):.1f} ms ({1e3 * min(times):.1f} .. {1e3 * max(times):.1f})"


def cpu_by_thread() -> dict[int, float]:
    """User and system seconds of each thread of this process."""
    ticks = os.sysconf("SC_CLK_TCK")
    out = {}
    for task in Path("/proc/self/task").iterdir():
        fields = (task / "stat").read_text().rpartition(")")[2].split()
        out[int(task.name)] = (int(fields[11]) + int(fields[12])) / ticks
    return out


def records_of(folder: Path) -> dict[str, list[int]]:
    """Payload bytes of the records in a store, by kind."""
    store = _engine.Store(folder, read_only=True)
    out: dict[str, list[int]] = {"block": [], "anchor": []}
    for r in store.records():
        out[r["kind"]].append(r["bytes"])
    store.close()
    return out


# ---------------------------------------------------------------- bytes


def agent_turns(system: list[int], n_tokens: int, seed: int) -> Iterator[tuple[list[int], int]]:
    """A prompt and the length of the answer to it, turn by turn, up to n_tokens; the caller appends the answer."""
    rng = random.Random(seed)
    text = list(system)
    while len(text) < n_tokens:
        message = rng.randint(300, 2500)
        text += [rng.randrange(3, 500) for _ in range(message)]
        del text[n_tokens:]
        answer = min(rng.randint(30, 200), n_tokens - len(text))
        yield text, answer
        text += [3] * answer


def bench_bytes(folder: Path, n_tokens: int = 102_400, n_system: int = 25_600) -> dict[str, Any]:
    model = grebe.Model.load(kv_flash(folder / "kv.gguf", top_k=16), n_threads=2)
    rng = random.Random(1)
    system = [rng.randrange(3, 500) for _ in range(n_system)]
    store = folder / "bytes"
    before = set(cpu_by_thread())
    cache = model.open_cache(store)

    started = time.perf_counter()
    session, n_turns = cache.session(), 0
    session.prefill(system, marks=[n_system])
    for text, answer in agent_turns(system, n_tokens, 2):
        session.prefill(text, marks=[n_system, len(text)])
        if answer:
            session.evaluate([3] * answer)
        session.end_turn()
        n_turns += 1
        if n_turns % 10 == 0:
            print(
                f"  {session.pos} tokens, {time.perf_counter() - started:.0f} s, {cache.stats().bytes_written / GB:.3f} GB",
                flush=True,
            )
    n = session.pos
    session.close()
    assert cache.flush(60)
    first = cache.stats()
    cpu = sum(t for tid, t in cpu_by_thread().items() if tid not in before)
    cache.close()
    kinds = records_of(store)

    cache = model.open_cache(store)
    other = [*system, *(rng.randrange(3, 500) for _ in range(6_000))]
    with cache.session() as session:
        computed = session.prefill(other, marks=[n_system, len(other)])
    assert cache.flush(60)
    second = cache.stats()
    cache.close()
    all_kinds = records_of(store)
    new_blocks = sum(all_kinds["block"]) - sum(kinds["block"])
    new_anchors = sum(all_kinds["anchor"]) - sum(kinds["anchor"])
    row = {
        "tokens": n,
        "turns": n_turns,
        "block_bytes": sum(kinds["block"]),
        "blocks": len(kinds["block"]),
        "anchor_bytes": sum(kinds["anchor"]),
        "anchors": len(kinds["anchor"]),
        "anchors_made": first.anchors_made,
        "bytes_written": first.bytes_written,
        "write_amplification": first.write_amplification,
        "disk_bytes": first.disk_bytes,
        "cpu_s_of_cache_threads": cpu,
        "second_computed": computed,
        "second_block_bytes": new_blocks,
        "second_anchor_bytes": new_anchors,
        "second_bytes_written": second.bytes_written,
    }
    full = n // 512 * 512
    print(f"bytes: {n:,} tokens in {n_turns} turns, {time.perf_counter() - started:.0f} s")
    for name, size, count in (
        ("blocks", row["block_bytes"], row["blocks"]),
        ("anchors", row["anchor_bytes"], row["anchors"]),
        ("given to the disk", row["bytes_written"], 0),
        ("ds4, same session", DS4_100K, 0),
    ):
        print(f"  {name:20} {size / GB:7.3f} GB  {size / GIB:7.3f} GiB  {count or '':>5}")
    print(
        f"  {row['block_bytes'] / full:.1f} bytes a token in blocks ({ROW_BYTES} of rows); write amplification "
        f"{first.write_amplification:.4f}; {first.anchors_made} anchors in RAM; cache threads {cpu:.1f} s CPU"
    )
    print(
        f"  second session, {n_system:,} tokens shared, {len(other) - n_system:,} of its own: computed {computed:,}, blocks "
        f"{new_blocks / 1e6:.1f} MB, anchors {new_anchors / 1e6:.1f} MB, given to the disk {second.bytes_written / 1e6:.1f} MB"
    )
    shutil.rmtree(store)
    return row


# ---------------------------------------------------------------- open, resume


def bench_open(folder: Path, n_sessions: int = 1000, rounds: int = 7) -> dict[str, Any]:
    model = grebe.Model.load(kv_flash(folder / "kv.gguf"))
    store = folder / "open"
    started = time.perf_counter()
    with Fabricator(store, model, 5) as f:
        for _ in range(n_sessions):
            f.session(4 * 512)
    size = sum(file.stat().st_size for file in store.iterdir())
    manifest = max(file.stat().st_size for file in store.iterdir() if "segment" not in file.name)
    print(f"open: made in {time.perf_counter() - started:.0f} s", flush=True)
    times: dict[str, list[float]] = {"warm": [], "cold": []}
    for _ in range(rounds):
        for name, taken in times.items():
            if name == "cold":
                drop_from_page_cache(store)
            started = time.perf_counter()
            cache = model.open_cache(store)
            taken.append(time.perf_counter() - started)
            stats = cache.stats()
            cache.close()
    print(
        f"open: {n_sessions} sessions, {stats.blocks_on_disk} blocks, {stats.anchors_on_disk} anchors, {size / GB:.2f} GB, "
        f"{len(list(store.glob('segment*')))} segments, manifest {manifest / 1e6:.2f} MB"
    )
    for name, taken in times.items():
        print(f"  {name}  {ms_range(taken)}")
    shutil.rmtree(store)
    return {"sessions": n_sessions, "bytes": size, "manifest_bytes": manifest, "s": times}


def bench_resume(folder: Path, n_tokens: int = 102_400, rounds: int = 9) -> dict[str, Any]:
    model = grebe.Model.load(kv_flash(folder / "kv.gguf"), n_threads=2)
    store = folder / "resume"
    prompt = [*fabricate(store, model, n_tokens), 7]
    times: dict[str, list[float]] = {"warm": [], "cold": []}
    tokens: list[float] = []
    for _ in range(rounds):
        for name, taken in times.items():
            with model.open_cache(store) as cache:
                if name == "cold":
                    drop_from_page_cache(store)
                session = cache.session()
                started = time.perf_counter()
                computed = session.prefill(prompt)
                total = time.perf_counter() - started
                assert computed == 1
                session.close()
                session = cache.session()  # all blocks lie in RAM now
                again = seconds(lambda s=session: s.prefill(prompt))  # all blocks in RAM
                token = seconds(lambda s=session: s.decode(7))
                tokens.append(token)
                taken.append(total - token)
                session.close()
    print(f"resume: {n_tokens:,} tokens, state ready (one token of {ms_range(tokens)} taken off)")
    for name, taken in times.items():
        print(f"  {name}  {ms_range(taken)}")
    print(f"  with all blocks in RAM, token included: {1e3 * again:.1f} ms")
    shutil.rmtree(store)
    return {"tokens": n_tokens, "s": times, "token_s": tokens}


# ---------------------------------------------------------------- cost, stall


def prefill_cost(
    model: grebe.Model, folder: Path, n_tokens: int, rounds: int, name: str
) -> dict[str, Any]:
    """The same number of new tokens with and without a cache, in turn."""
    rng = np.random.default_rng(3)
    wall: dict[str, list[float]] = {"without": [], "with": []}
    cpu: dict[str, list[float]] = {"without": [], "with": []}
    store = folder / "cost"
    cache = model.open_cache(store)
    for round_ in range(-1, rounds):
        order = list(wall)
        for how in order if round_ % 2 else order[::-1]:
            ids = rng.integers(300, model.config.vocab_size, n_tokens).tolist()
            session = cache.session() if how == "with" else model.session()
            cpu_before, started = time.process_time(), time.perf_counter()
            session.prefill(ids)
            taken = time.perf_counter() - started
            if how == "with":
                session.close()
                assert cache.flush(60)
            else:
                session.close()
            if round_ >= 0:  # the first round warms up
                wall[how].append(taken)
                cpu[how].append(time.process_time() - cpu_before)
    written = cache.stats().bytes_written
    cache.close()
    shutil.rmtree(store)
    more = [
        statistics.median(w / o for w, o in zip(t["with"], t["without"], strict=True)) - 1
        for t in (wall, cpu)
    ]
    best = [min(t["with"]) / min(t["without"]) - 1 for t in (wall, cpu)]
    print(
        f"cost, {name}, {n_tokens:,} tokens, {rounds} rounds: wall {ms_range(wall['without'])} without, {ms_range(wall['with'])} with: "
        f"{more[0]:+.1%} (best against best {best[0]:+.1%}); CPU with writing to the end {more[1]:+.1%} (best {best[1]:+.1%}); "
        f"{written / (rounds + 1) / n_tokens:,.0f} bytes a token written",
        flush=True,
    )
    return {
        "model": name,
        "tokens": n_tokens,
        "wall_more": more[0],
        "cpu_more": more[1],
        "wall_best": best[0],
        "cpu_best": best[1],
        "wall": wall,
        "cpu": cpu,
    }


def bench_cost(folder: Path, decode_model: str | None) -> list[dict[str, Any]]:
    rows = [prefill_cost(grebe.Model.load(n_threads=2), folder, 16_384, 15, "embedded")]
    if decode_model:
        model = grebe.Model.load(decode_model, n_threads=2)
        rows.append(prefill_cost(model, folder, 1024, 4, "decode"))
    return rows


def decode_stall(
    model: grebe.Model, folder: Path, n_tokens: int, n_start: int, name: str
) -> dict[str, Any]:
    """Single tokens of two sessions in turn, one with a cache; each first token of it follows a prompt that is being written."""
    store = folder / "stall"
    cache = model.open_cache(store)
    rng = np.random.default_rng(4)
    ids = rng.integers(300, model.config.vocab_size, n_start + n_tokens).tolist()
    sessions = {"without": model.session(), "with": cache.session()}
    for s in sessions.values():
        s.prefill(ids[:n_start])
    times: dict[str, list[float]] = {how: [] for how in sessions}
    for i, token in enumerate(ids[n_start:]):
        order = list(sessions)
        for how in order if i % 2 else order[::-1]:
            times[how].append(seconds(lambda how=how, token=token: sessions[how].decode(token)))
    assert np.array_equal(sessions["with"].logits, sessions["without"].logits)
    for s in sessions.values():
        s.close()
    written = cache.stats().bytes_written
    cache.close()
    shutil.rmtree(store)
    row: dict[str, Any] = {"model": name, "tokens": n_tokens, "written": written}
    print(f"stall, {name}, {n_tokens:,} tokens each, {written / 1e6:.1f} MB written")
    for how, taken in times.items():
        ordered = sorted(taken)
        at = {
            q: 1e3 * ordered[min(int(q * len(ordered)), len(ordered) - 1)]
            for q in (0.5, 0.99, 0.999)
        }
        boundaries = [t for i, t in enumerate(taken, n_start + 1) if i % 512 == 0]
        row[how] = {**{f"p{100 * q:g}": v for q, v in at.items()}, "max": 1e3 * ordered[-1]}
        row[how]["at_blocks"] = 1e3 * statistics.median(boundaries)
        print(
            f"  {how:8} median {at[0.5]:.2f}  p99 {at[0.99]:.2f}  p99.9 {at[0.999]:.2f}  max {1e3 * ordered[-1]:.2f} ms; "
            f"where a block becomes full {row[how]['at_blocks']:.2f} ms ({len(boundaries)})",
            flush=True,
        )
    return row


def bench_stall(folder: Path) -> list[dict[str, Any]]:
    kv = grebe.Model.load(kv_flash(folder / "kv.gguf"), n_threads=2)
    return [
        decode_stall(grebe.Model.load(n_threads=2), folder, 20_000, 8192, "embedded"),
        decode_stall(kv, folder, 2100, 4096, "Flash's KV shapes"),
    ]


def main() -> None:
    parts = ("bytes", "open", "resume", "cost", "stall")
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("parts", nargs="*", choices=[*parts, []], default=[])
    p.add_argument("--model", help="for cost: a file of kv_models.py decode")
    p.add_argument("--dir", help="where the stores go: the disk that is measured")
    a = p.parse_args()
    result: dict[str, Any] = {"benchmark": "bench_kv_store"}
    with tempfile.TemporaryDirectory(dir=a.dir) as name:
        folder = Path(name)
        for part in a.parts or parts:
            work = {
                "bytes": bench_bytes,
                "open": bench_open,
                "resume": bench_resume,
                "stall": bench_stall,
            }
            result[part] = bench_cost(folder, a.model) if part == "cost" else work[part](folder)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
