"""What does the server cost a token beside the engine: CPU time with a forward pass that costs nothing.

    python benchmarks/bench_http_path.py [--clients 1,16] [--tokens 300] [--rounds 5] [--step-ms 5]

A server in this process, whose model's steps are replaced by a pause and a table of logits, streams answers to clients in another process. Then
the same number of jobs is given to the same worker without HTTP: scheduling, sampling and events, and nobody parses or encodes.
Alternating rounds; CPU time of the whole process, all threads, per sampled token. The difference is the HTTP path: parsing the request,
prompt, incremental parser of the output, server-sent events, sockets. plain_us is what the least of programs pays for the same pauses
and writes of 260 bytes: waking a client that sleeps is dear on a machine that has nothing else to do. The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import multiprocessing
import os
import platform
import socket
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any

import grebe
import numpy as np
from grebe.server.jobs import Job, Sunk
from grebe.server.run import Server, serve
from grebe.server.worker import EngineWorker

MOST_US = 200.0
END = 1  # of the embedded model: the table forbids it, so that all answers have the same length
BODIES: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": (
        "/v1/chat/completions",
        {"messages": [{"role": "user", "content": "Go."}], "thinking": {"type": "disabled"}},
    ),
    "messages": ("/v1/messages", {"messages": [{"role": "user", "content": "Go."}]}),
    "responses": ("/v1/responses", {"input": "Go.", "reasoning": {"effort": "none"}}),
}


class Ignore:
    """A sink that makes nothing of tokens."""

    _nothing = Sunk()

    def feed(self, token: int) -> Sunk:
        """As :class:`grebe.server.jobs.Sink`."""
        return self._nothing

    def finish(self, reason: str) -> Sequence[Any]:
        """As :class:`grebe.server.jobs.Sink`."""
        return ()


def table_model(n: int, step_s: float) -> grebe.Model:
    """The embedded model, whose steps take so long, no CPU time, and give logits of a table."""
    model = grebe.Model.load()
    table = np.random.default_rng(1).normal(size=(n, model.config.vocab_size)).astype(np.float32)
    table[:, END] = -1e3

    def step(inputs: Sequence[Any], logits_: str = "last", **_: Any) -> Any:
        time.sleep(step_s)
        return table[: len(inputs)]

    model.step = step  # type: ignore
    return model


async def without(worker: EngineWorker, n: int, n_tokens: int) -> None:
    """So many jobs at a time."""

    async def one() -> None:
        sampling = grebe.Sampling(temperature=1.0)
        async for _ in worker.submit(Job([0, 300, 301], Ignore(), n_tokens, sampling=sampling)):
            pass

    await asyncio.gather(*(one() for _ in range(n)))


def plain(n: int, n_tokens: int, step_s: float, tasks: Any, done: Any) -> float:
    """CPU time of a write to a client that waits for it, beyond that of the pause."""
    begin = time.process_time()
    for _ in range(n_tokens):
        time.sleep(step_s)
    pauses = time.process_time() - begin
    with socket.create_server(("127.0.0.1", 0)) as listener, contextlib.ExitStack() as open_now:
        tasks.put((listener.getsockname()[1], "chat", n, n_tokens))
        peers = [open_now.enter_context(listener.accept()[0]) for _ in range(n)]
        for peer in peers:
            peer.recv(1 << 16)
        begin = time.process_time()
        for _ in range(n_tokens):
            time.sleep(step_s)
            for peer in peers:
                peer.send(b"x" * 260)
        took = time.process_time() - begin
    done.get(timeout=120)
    return (took - pauses) / (n * n_tokens) * 1e6


async def drain(port: int, api: str, n: int, n_tokens: int) -> int:
    """So many clients; bytes of their answers."""
    path, options = BODIES[api]
    limit = "max_output_tokens" if api == "responses" else "max_tokens"
    body = json.dumps({"model": "m", "stream": True, limit: n_tokens, **options}).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode()

    async def one() -> int:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head + body)
        n_bytes = 0
        while piece := await reader.read(1 << 16):
            n_bytes += len(piece)
        writer.close()
        return n_bytes

    return sum(await asyncio.gather(*(one() for _ in range(n))))


def clients(tasks: Any, done: Any) -> None:
    """A process of clients."""
    while (task := tasks.get()) is not None:
        done.put(asyncio.run(drain(*task)))


def measure(a: argparse.Namespace, tasks: Any, done: Any) -> list[dict[str, Any]]:
    """A row for each API and number of clients."""
    rows = []
    with (
        table_model(max(a.clients), a.step_ms / 1e3) as model,
        serve(model, n_ctx=4096, max_running=64) as server,
    ):
        for n in a.clients:
            for api in a.apis:
                rows.append(row(server, api, n, a, tasks, done))
                print(
                    *(f"{name} {value}" for name, value in rows[-1].items()), sep="  ", flush=True
                )
    return rows


def row(
    server: Server, api: str, n: int, a: argparse.Namespace, tasks: Any, done: Any
) -> dict[str, Any]:
    """Microseconds of CPU time a token, medians of rounds after a first one that warms up."""
    worker = server.app._stack.worker  # type: ignore[union-attr]
    bare, whole, least, n_bytes = list[float](), list[float](), list[float](), 0
    for _ in range(a.rounds + 1):
        begin = time.process_time()
        asyncio.run(without(worker, n, a.tokens))
        bare.append((time.process_time() - begin) / (n * a.tokens) * 1e6)
        before = worker.stats()["completion_tokens"]
        begin = time.process_time()
        tasks.put((server.port, api, n, a.tokens))
        n_bytes = done.get(timeout=120)
        took = time.process_time() - begin
        n_tokens = worker.stats()["completion_tokens"] - before
        if n_tokens != n * a.tokens:
            raise SystemExit(f"{api}: {n_tokens} tokens of {n * a.tokens}; {n_bytes} bytes")
        whole.append(took / n_tokens * 1e6)
        least.append(plain(n, a.tokens, a.step_ms / 1e3, tasks, done))
    path = [b - a for a, b in zip(bare[1:], whole[1:], strict=True)]
    return {
        "api": api,
        "clients": n,
        "worker_us": round(statistics.median(bare[1:]), 1),
        "with_http_us": round(statistics.median(whole[1:]), 1),
        "http_us": round(statistics.median(path), 1),
        "http_us_most": round(max(path), 1),
        "plain_us": round(statistics.median(least[1:]), 1),
        "bytes_per_token": round(n_bytes / (n * a.tokens)),
    }


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--clients", default=[1, 16], type=lambda text: [*map(int, text.split(","))])
    p.add_argument("--apis", default=list(BODIES), type=lambda text: text.split(","))
    p.add_argument("--tokens", type=int, default=300, help="of an answer")
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--step-ms", type=float, default=5.0, help="0: as fast as it goes")
    a = p.parse_args()
    context = multiprocessing.get_context("spawn")
    tasks, done = context.Queue(), context.Queue()
    process = context.Process(target=clients, args=(tasks, done), daemon=True)
    process.start()
    rows = measure(a, tasks, done)
    tasks.put(None)
    process.join(10)
    document = {"benchmark": "bench_http_path", "machine": platform.machine(), "step_ms": a.step_ms}
    print(json.dumps(document | {"cores": os.cpu_count(), "rows": rows}))
    sys.exit(any(row["http_us"] > MOST_US for row in rows))


if __name__ == "__main__":
    main()
