"""Hours of agent-like traffic on a KV cache: branches, retries, tool turns, restarts, kills.

    python benchmarks/soak_cache.py [--minutes 120] [--model MODEL.gguf] [--seed 1] [--dir DIR]

A worker process serves random conversations from a cache with small budgets and is killed (SIGKILL) or restarted every few
seconds. After a random third of the turns the logits are compared, bit for bit, with those of a session that has no cache. Prints a
line a minute: turns, tokens found and computed, memory of the worker, files and bytes of the directory; the last line is one JSON
document. Exits with 1 when a number differed, a budget was exceeded or memory grew.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

import grebe
import numpy as np

BUDGET = 96 << 20
RAM = 16 << 20
N_CONVERSATIONS = 24


def rss_bytes(pid: int) -> int:
    """Anonymous memory: the model's file and shared pages do not count."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    return 0


class Traffic:
    """Random conversations over a few system prompts; each is a list of messages of token ids."""

    def __init__(self, rng: random.Random, vocab: int) -> None:
        self.rng, self.vocab = rng, vocab
        self.systems = [self.message(700, 1800) for _ in range(4)]
        self.conversations: list[list[list[int]]] = []

    def message(self, low: int, high: int) -> list[int]:
        """Random token ids."""
        return [self.rng.randrange(300, self.vocab) for _ in range(self.rng.randint(low, high))]

    def next(self) -> list[list[int]]:
        """The conversation that asks next, with a new message at its end."""
        rng = self.rng
        if len(self.conversations) < N_CONVERSATIONS or rng.random() < 0.04:
            if len(self.conversations) >= N_CONVERSATIONS:
                self.conversations.pop(rng.randrange(len(self.conversations)))
            self.conversations.append([rng.choice(self.systems)])
        c = rng.choice(self.conversations[-6:] if rng.random() < 0.7 else self.conversations)
        if len(c) > 3 and rng.random() < 0.15:  # goes back and takes another way
            del c[rng.randrange(1, len(c)) :]
        if sum(map(len, c)) > 12000:
            del c[1:]
        c.append(self.message(10, 60) if rng.random() < 0.7 else self.message(300, 1500))
        return c


def work(pipe: Connection, model_path: str | None, folder: str, seed: int) -> None:
    """Serves turns until it is killed; reports each."""
    rng = random.Random(seed)
    model = grebe.Model.load(model_path, n_threads=1)
    cache = model.open_cache(folder, budget_bytes=BUDGET, ram_bytes=RAM)
    live: dict[int, grebe.Session] = {}
    while True:
        key, messages, restart = pipe.recv()
        if restart:
            for s in live.values():
                s.close()
            cache.close()
            cache = model.open_cache(folder, budget_bytes=BUDGET, ram_bytes=RAM)
            live.clear()
        tokens = [t for m in messages for t in m]
        marks, at = [], 0
        for m in messages:
            at += len(m)
            marks.append(at)
        if key not in live:
            while len(live) >= 4:
                live.pop(rng.choice(list(live))).close()
            live[key] = cache.session()
        s = live[key]
        computed = s.prefill(tokens, marks=marks)
        wrong = False
        if rng.random() < 0.33:
            twin = model.session()
            twin.prefill(tokens)
            wrong = not np.array_equal(twin.logits, s.logits)
        reply = [int(np.argmax(s.logits))]
        for _ in range(rng.randint(1, 40)):
            s.decode(reply[-1])
            reply.append(int(np.argmax(s.logits)))
        s.end_turn()
        if rng.random() < 0.2:
            cache.trim(rng.choice([0, RAM // 2]))
        pipe.send((len(tokens), computed, wrong, reply[:-1]))


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--minutes", type=float, default=120)
    p.add_argument("--model")
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--dir")
    a = p.parse_args()
    rng = random.Random(a.seed)
    model = grebe.Model.load(a.model)
    traffic = Traffic(rng, model.config.vocab_size)
    model.close()
    folder = a.dir or tempfile.mkdtemp(prefix="soak")
    context = multiprocessing.get_context("spawn")
    pipe: Connection | None = None
    worker = None
    counts = {
        "turns": 0,
        "compared_wrong": 0,
        "kills": 0,
        "restarts": 0,
        "wanted": 0,
        "computed": 0,
    }
    samples: list[tuple[int, int, int]] = []
    started = last = time.monotonic()
    next_kill = 0.0
    while time.monotonic() - started < a.minutes * 60:
        if worker is None or not worker.is_alive():
            if worker is not None and worker.exitcode not in (0, -signal.SIGKILL):
                sys.exit(f"the worker ended with {worker.exitcode}")
            pipe, other = context.Pipe()
            seed = rng.randrange(2**31)
            worker = context.Process(target=work, args=(other, a.model, folder, seed), daemon=True)
            worker.start()
            other.close()  # the end of the worker is the end of the pipe
            next_kill = time.monotonic() + rng.uniform(3, 60)
        assert pipe is not None
        conversation = traffic.next()
        key = id(conversation)
        restart = rng.random() < 0.01
        counts["restarts"] += restart
        try:
            pipe.send((key, conversation, restart))
            while not pipe.poll(0.002):
                if time.monotonic() > next_kill:
                    os.kill(worker.pid, signal.SIGKILL)
                    counts["kills"] += 1
                    break
            n, computed, wrong, reply = pipe.recv()
        except (EOFError, OSError):
            worker.join()
            conversation.pop()  # the client asks again
            continue
        conversation.append(reply)
        counts["turns"] += 1
        counts["compared_wrong"] += wrong
        counts["wanted"] += n
        counts["computed"] += computed
        if time.monotonic() - last >= 60:
            last = time.monotonic()
            files = [f.stat().st_size for f in Path(folder).iterdir() if f.is_file()]
            samples.append((rss_bytes(worker.pid), len(files), sum(files)))
            print(
                f"{(last - started) / 60:5.0f} min {counts['turns']:7} turns, "
                f"{counts['computed'] / max(counts['wanted'], 1):6.1%} of tokens computed, "
                f"{counts['kills']} kills, {samples[-1][0] / 1e6:6.1f} MB, {len(files)} files, "
                f"{sum(files) / 1e6:6.1f} MB on disk, {counts['compared_wrong']} wrong",
                flush=True,
            )
    if worker is not None:
        worker.kill()
    half = len(samples) // 2
    growth = (
        statistics.median(s[0] for s in samples[half:])
        / statistics.median(s[0] for s in samples[:half])
        if half
        else 1.0
    )
    over = max((s[2] for s in samples), default=0) > BUDGET
    result = {
        "benchmark": "soak_cache",
        "minutes": a.minutes,
        **counts,
        "rss_max": max((s[0] for s in samples), default=0),
        "rss_growth": growth,
        "files_max": max((s[1] for s in samples), default=0),
        "disk_max": max((s[2] for s in samples), default=0),
        "budget": BUDGET,
    }
    print(json.dumps(result))
    sys.exit(bool(counts["compared_wrong"] or over or growth > 1.25))


if __name__ == "__main__":
    main()
