"""Real coding agents against `grebe serve`, from nothing: nothing is to be read twice.

    python benchmarks/agents/run.py [--dir DIR] [--clients claude,opencode,pi,codex] [--pin pi=0.87.1] [--kills 10]

Installs Node 24 (PyPI) and the current clients (npm) into DIR, starts the server with a KV store and scripted replies, and gives each
client the same conversation, headless, a process a turn: it reads files, runs commands, edits files, answers. The server is restarted
before the third turn, and killed (SIGKILL) while it streams the fourth. A client passes when it exits with 0, prints the answers,
leaves the right files, no request makes the model read more than its new tokens and 128, also after restart and kill, and each
assistant message comes back as the tokens that were sampled. Then a client of our own asks, and the server is killed at random moments
(kills.py). Prints a table in Markdown; the last line is one JSON document; the exit status is 1 if something failed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import kills
from clients import CLIENTS, Client, install
from server import Request, Server
from task import KILL_IN, MARK, RESTART_BEFORE, TURNS, key, prepare, project, script, wrong

MODEL = "deepseek-v4-flash"  # what the clients believe
SLACK = 128  # tokens: states are kept at multiples of so many
TURN_S = 180.0
SAID = 40  # tokens of an answer, then the server is killed


@dataclass
class Result:
    """Of one client.

    Attributes:
        lives: the conversation's requests, for each start of the server.
        side: requests beside the conversation, for titles and the like.
        replayed: assistant messages that came back as they were sampled, and all that came back.
    """

    version: str
    turns: int = 0
    lives: list[list[Request]] = field(default_factory=list)
    side: int = 0
    replayed: int = 0
    returned: int = 0
    codes: list[int] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    seconds: float = 0.0


def beyond(lives: Sequence[Sequence[Request]]) -> list[list[int]]:
    """For each request but the first: tokens read beyond those that are new.

    New are those after the request before and its answer.
    """
    known: int | None = None
    result: list[list[int]] = []
    for life in lives:
        result.append([])
        for r in life:
            if known is not None:
                result[-1].append(r.computed - (r.prompt - known))
            if r.end in ("stop", "tool_calls", "length"):
                known = r.prompt + r.completion
    return result


class Conversation:
    """One client's turns.

    Args:
        client: which.
        clients: where they are installed.
        root: of everything that is written.
        server: runs.
    """

    def __init__(self, client: Client, clients: Path, root: Path, server: Server) -> None:
        self._client, self._clients, self._root, self._server = client, clients, root, server
        self._result = Result(client.version(clients))
        self._known = 0  # assistant messages so far
        self._n_seen = len(server.requests())
        self._before = server.metrics()

    def run(self) -> Result:
        """All turns."""
        prepare(self._root, self._client)
        begin = time.monotonic()
        n_ctx = int(self._server.metrics()["grebe_context_tokens"])
        for i in range(len(TURNS)):
            if i == RESTART_BEFORE:
                self._count()
                self._server.stop()
                self._server.start()
                self._before = self._server.metrics()
            if i == KILL_IN:
                self._count()
            if not self._turn(i, n_ctx):
                break
        self._count()
        self._check()
        self._result.seconds = time.monotonic() - begin
        return self._result

    def _turn(self, i: int, n_ctx: int) -> bool:
        turn, folder = TURNS[i], project(self._root, self._client)
        log = self._root / self._client.name / f"turn{i}.out"
        process = self._client.start(
            self._clients,
            self._root / self._client.name / "home",
            folder,
            f"{turn.prompt} {MARK.format(key=key(self._client, i))}",
            url=self._server.url,
            model=MODEL,
            n_ctx=n_ctx,
            resume=i > 0,
            log=log,
        )
        end = time.monotonic() + TURN_S
        if i == KILL_IN:
            self._kill_server(process, end)
        try:
            code = process.wait(max(end - time.monotonic(), 1.0))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            code = process.wait()
            self._result.problems.append(f"turn {i + 1}: not done in {TURN_S:.0f} s")
        self._result.codes.append(code)
        printed = log.read_text(errors="replace")
        problems = wrong(folder, turn, printed)
        if code or problems:
            tail = printed[-200:] + log.with_suffix(".err").read_text(errors="replace")[-300:]
            problems.append(f"exit code {code}: {tail!r}")
        self._result.problems += [f"turn {i + 1}: {problem}" for problem in problems]
        self._result.turns += 1
        return not problems

    def _kill_server(self, process: subprocess.Popen[bytes], end: float) -> None:
        """In the middle of an answer; then a new one."""
        name = "grebe_completion_tokens_total"
        before = self._server.metrics()[name]
        while process.poll() is None and time.monotonic() < end:
            if self._server.metrics()[name] >= before + SAID:
                self._server.kill()
                self._server.start()
                self._before = self._server.metrics()
                return
            time.sleep(0.05)
        self._result.problems.append("the server was never killed")

    def _count(self) -> None:
        """What the server has logged since the last count."""
        result, client = self._result, self._client.name
        logged = self._server.requests()
        new, self._n_seen = logged[self._n_seen :], len(logged)
        life = [r for r in new if r.key.startswith(f"{client}.")]
        result.side += len(new) - len(life)
        result.lives.append(life)
        for r in life:
            result.returned += self._known
            self._known += r.end in ("stop", "tool_calls", "length")
        name, now = "grebe_messages_replayed_total", self._server.metrics()
        result.replayed += round(now.get(name, 0) - self._before.get(name, 0))
        self._before = now

    def _check(self) -> None:
        result = self._result
        for life in beyond(result.lives):
            if any(n > SLACK for n in life):
                result.problems.append(f"read more than what is new and {SLACK}: {life}")
        if result.replayed != result.returned:
            result.problems.append(
                f"{result.replayed} of {result.returned} messages came back as they were sampled"
            )


def table(results: Mapping[str, Result]) -> str:
    """In Markdown."""
    lines = [
        "| client | version | turns | requests (beside) | last prompt | sum of prompts | computed "
        "| most beyond what is new: first server, restarted, killed | replayed | exit codes | s | verdict |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, r in results.items():
        all_of = [request for life in r.lives for request in life]
        most = [str(max(life)) if life else "-" for life in beyond(r.lives)]
        cells: Sequence[Any] = [
            name,
            r.version,
            r.turns,
            f"{len(all_of)} ({r.side})",
            f"{all_of[-1].prompt:,}" if all_of else "-",
            f"{sum(request.prompt for request in all_of):,}",
            f"{sum(request.computed for request in all_of):,}",
            ", ".join(most),
            f"{r.replayed} of {r.returned}",
            " ".join(map(str, r.codes)),
            f"{r.seconds:.0f}",
            "FAIL" if r.problems else "pass",
        ]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def measure(a: argparse.Namespace, clients: Path, root: Path) -> dict[str, Result]:
    """All clients, one after another."""
    chosen = [CLIENTS[name] for name in a.clients]
    replies = root / "script.json"
    replies.write_text(json.dumps(script(chosen, root)))
    options = ["--name", MODEL, "--scripted-replies", str(replies)]
    results = {}
    with Server([*options, "--cache-dir", str(root / "kv")], root / "server.log") as server:
        for client in chosen:
            result = Conversation(client, clients, root, server).run()
            results[client.name] = result
            print(f"{client.name}: {'; '.join(result.problems) or 'pass'}", flush=True)
        server.stop()
    return results


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--dir", type=Path, help="keeps clients and results; else a temporary folder")
    p.add_argument("--clients", default=",".join(CLIENTS), type=lambda text: text.split(","))
    p.add_argument("--pin", action="append", default=[], metavar="CLIENT=VERSION")
    p.add_argument("--kills", type=int, default=10, help="of the server, under a raw client")
    a = p.parse_args()
    with tempfile.TemporaryDirectory(prefix="grebe-agents-") as temporary:
        top = (a.dir or Path(temporary)).resolve()
        clients, root = top / "clients", top / "run"
        shutil.rmtree(root, ignore_errors=True)
        for folder in (clients, root):
            folder.mkdir(parents=True, exist_ok=True)
        install(clients, a.clients, dict(pin.split("=", 1) for pin in a.pin))
        results = measure(a, clients, root)
        killed = kills.measure(a.kills, root / "kills")
    print(table(results))
    print()
    print(killed.table())
    document = {
        "benchmark": "agents",
        "clients": {
            name: {
                "version": r.version,
                "beyond": beyond(r.lives),
                "prompts": [[request.prompt for request in life] for life in r.lives],
                "replayed": [r.replayed, r.returned],
                "exit_codes": r.codes,
                "problems": r.problems,
            }
            for name, r in results.items()
        },
        "kills": killed.document(),
    }
    print(json.dumps(document))
    sys.exit(any(r.problems for r in results.values()) or bool(killed.problems))


if __name__ == "__main__":
    main()
