"""A server under load: streaming clients over loopback, some of which vanish.

    python benchmarks/bench_server.py [--clients 16] [--minutes 10] [--vanish 0.25] [--model FILE]

Starts `grebe serve`, lets one client talk for --solo seconds, then all of them for the given minutes: conversations of several
turns behind a shared system prompt, tokens streamed. A share of the requests is left at a random moment, by a reset. Clients and server
share the machine. Growth of memory is the median of the last tenth of that time against that of the fourth: with 10 minutes, minute 10
against minute 4, when the 64 sessions and the texts that a server keeps are all there. The last line is one JSON document; the exit
status is 1 after an error or growth beyond 5 %.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agents.server import Server

WORDS = [
    *("the", "of", "and", "to", "in", "is", "that", "it", "for", "was", "on", "are", "with", "as"),
    *("his", "they", "be", "at", "one", "have", "this", "from", "or", "had", "by", "hot", "but"),
]
NO_END = {
    "1": -100
}  # the end token of the embedded model: answers have the length that was asked for


@dataclass
class Seen:
    """What the clients saw, in seconds."""

    first: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    n_done: int = 0
    n_left: int = 0
    n_busy: int = 0
    errors: list[str] = field(default_factory=list)


class Client:
    """One conversation after another."""

    def __init__(self, port: int, name: str, seen: Seen, rng: random.Random, vanish: float) -> None:
        self.port, self.name, self.seen, self.rng, self.vanish = port, name, seen, rng, vanish

    def text(self, n: int) -> str:
        """Words of no meaning."""
        return " ".join(self.rng.choice(WORDS) for _ in range(n))

    async def talk(self, until: float) -> None:
        """Until it is so late."""
        system = " ".join(WORDS * 12)
        while time.monotonic() < until:
            messages = [{"role": "system", "content": system}]
            for _ in range(self.rng.randrange(1, 7)):
                messages.append({"role": "user", "content": self.text(self.rng.randrange(10, 300))})
                answer = await self.ask(messages)
                if answer is None or time.monotonic() >= until:
                    break
                messages.append({"role": "assistant", "content": answer})

    async def ask(self, messages: Sequence[dict[str, str]]) -> str | None:
        """The answer; None when this client left, or something went wrong."""
        body = json.dumps(
            {
                "model": "any",
                "stream": True,
                "messages": messages,
                "max_tokens": self.rng.randrange(64, 192),
                "thinking": {"type": "disabled"},
                "logit_bias": NO_END,
                "prompt_cache_key": self.name,
            }
        ).encode()
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\nConnection: close\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        ).encode()
        leaves = self.rng.random() < self.vanish
        patience = self.rng.randrange(0, 60) if leaves else 1 << 30
        begin = time.perf_counter()
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        except OSError as error:
            self.seen.errors.append(repr(error))
            return None
        try:
            writer.write(head + body)
            data, last, n = bytearray(), 0.0, 0
            while n <= patience:
                if leaves and patience == 0:  # before anything came back
                    await asyncio.sleep(self.rng.random() * 0.5)
                    break
                piece = await asyncio.wait_for(reader.read(1 << 16), 120)
                now = time.perf_counter()
                if not piece:
                    break
                data += piece
                new = piece.count(b'"delta":{"content":"') - piece.count(b'"delta":{"content":""')
                if new > 0:
                    n += new
                    if last:
                        self.seen.gaps.append(now - last)
                    else:
                        self.seen.first.append(now - begin)
                    last = now
            if leaves:
                self.seen.n_left += 1
                return None
            if data.startswith(b"HTTP/1.1 429"):
                self.seen.n_busy += 1
                await asyncio.sleep(1)
                return None
            if b"[DONE]" not in data:
                self.seen.errors.append(f"no end: {bytes(data[:200])!r} .. {bytes(data[-200:])!r}")
                return None
            self.seen.n_done += 1
            return "".join(
                json.loads(f'"{m.decode()}"')
                for m in re.findall(rb'"delta":\{"content":"((?:[^"\\]|\\.)*)"', bytes(data))
            )
        except (OSError, TimeoutError, ValueError) as error:
            self.seen.errors.append(repr(error))
            return None
        finally:
            writer.transport.abort()


def rss_mb(pid: int) -> float:
    """Memory of a process."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", text).group(1)) / 1024  # type: ignore[union-attr]


def cpu_s(pid: int, *, loop_only: bool = False) -> float:
    """CPU time of a process, or of its main thread, which runs the event loop."""
    path = Path(f"/proc/{pid}/task/{pid}/stat" if loop_only else f"/proc/{pid}/stat")
    fields = path.read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def watch(server: Server, rss: list[float]) -> None:
    while True:
        await asyncio.sleep(1)
        rss.append(rss_mb(server.pid))


async def phase(server: Server, n: int, seconds: float, vanish: float, seed: int) -> dict[str, Any]:
    """So many clients for so long."""
    seen, rss = Seen(), list[float]()
    watcher = asyncio.create_task(watch(server, rss))
    before, cpu, loop = server.metrics(), cpu_s(server.pid), cpu_s(server.pid, loop_only=True)
    begin = time.monotonic()
    clients = [
        Client(server.port, f"{seed}-{i}", seen, random.Random(f"{seed} {i}"), vanish)
        for i in range(n)
    ]
    await asyncio.gather(*(client.talk(begin + seconds) for client in clients))
    took = time.monotonic() - begin
    watcher.cancel()
    for _ in range(100):  # those that were left end within a chunk
        after = server.metrics()
        if after["grebe_requests_running"] + after["grebe_requests_waiting"] == 0:
            break
        await asyncio.sleep(0.1)
    n_tokens = after["grebe_completion_tokens_total"] - before["grebe_completion_tokens_total"]
    n_read = after["grebe_prefilled_tokens_total"] - before["grebe_prefilled_tokens_total"]
    tenth = max(len(rss) // 10, 1)
    return {
        "clients": n,
        "seconds": round(took, 1),
        "done": seen.n_done,
        "left": seen.n_left,
        "busy": seen.n_busy,
        "errors": len(seen.errors),
        "first_errors": seen.errors[:3],
        "failed_jobs": after["grebe_jobs_failed_total"] - before["grebe_jobs_failed_total"],
        "still_running": after["grebe_requests_running"] + after["grebe_requests_waiting"],
        "tok_per_s": round(n_tokens / took, 1),
        "prefilled_per_s": round(n_read / took, 1),
        "ttft_p50_ms": percentile(seen.first, 50),
        "ttft_p95_ms": percentile(seen.first, 95),
        "ttft_p99_ms": percentile(seen.first, 99),
        "gap_p50_ms": percentile(seen.gaps, 50),
        "gap_p95_ms": percentile(seen.gaps, 95),
        "gap_p99_ms": percentile(seen.gaps, 99),
        "gap_max_ms": percentile(seen.gaps, 100),
        "loop_us_per_token": round(
            (cpu_s(server.pid, loop_only=True) - loop) / max(n_tokens, 1) * 1e6
        ),
        "cpu_us_per_token": round((cpu_s(server.pid) - cpu) / max(n_tokens, 1) * 1e6),
        "rss_mb_fourth_tenth": round(statistics.median(rss[3 * tenth : 4 * tenth] or rss), 1),
        "rss_mb_last_tenth": round(statistics.median(rss[-tenth:]), 1),
        "rss_mb_max": round(max(rss), 1),
        "rss_mb_tenths": [
            round(statistics.median(rss[i * tenth : (i + 1) * tenth]), 1)
            for i in range(min(10, len(rss)))
        ],
    }


def percentile(values: Sequence[float], p: int) -> float:
    if not values:
        return float("nan")
    ordered = sorted(values)
    return round(ordered[min(len(ordered) * p // 100, len(ordered) - 1)] * 1e3, 1)


def table(rows: Sequence[dict[str, Any]]) -> str:
    names = [name for name in rows[0] if not isinstance(rows[0][name], list)]
    width = max(map(len, names))
    return "\n".join(
        f"{name:{width}}" + "".join(f"{row[name]:>12}" for row in rows) for name in names
    )


async def measure(a: argparse.Namespace, server: Server) -> list[dict[str, Any]]:
    """One client, then all."""
    await phase(server, 1, a.warmup, 0.0, 0)
    rows = [await phase(server, 1, a.solo, 0.0, 1)]
    rows.append(await phase(server, a.clients, a.minutes * 60, a.vanish, 2))
    return rows


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--model", help="a GGUF file; else the embedded model")
    p.add_argument("--clients", type=int, default=16)
    p.add_argument("--minutes", type=float, default=10.0)
    p.add_argument("--vanish", type=float, default=0.25, help="share of requests that are left")
    p.add_argument("--solo", type=float, default=30.0, help="seconds with one client")
    p.add_argument("--warmup", type=float, default=5.0, help="seconds")
    a = p.parse_args()
    options = ["--quiet", "--n-ctx", "8192", *(["--model", a.model] if a.model else [])]
    with (
        tempfile.TemporaryDirectory() as folder,
        Server(options, Path(folder) / "server.log") as server,
    ):
        rows = asyncio.run(measure(a, server))
        server.stop()
    print(table(rows))
    for row in rows:
        for error in row["first_errors"]:
            print("error:", error)
    alone, many = rows
    growth = many["rss_mb_last_tenth"] / many["rss_mb_fourth_tenth"] - 1
    gain = many["tok_per_s"] / alone["tok_per_s"]
    print(f"tokens/s against one client: {gain:.2f}; growth of memory: {100 * growth:.1f} %")
    document = {"benchmark": "bench_server", "machine": platform.machine(), "cores": os.cpu_count()}
    document |= {"phases": rows, "growth": round(growth, 4), "gain": round(gain, 3)}
    print(json.dumps(document))
    bad = many["errors"] or many["failed_jobs"] or many["still_running"] or growth > 0.05
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
