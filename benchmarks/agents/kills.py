"""SIGKILL at a random moment of a streamed answer, a new server, the same request: what is read again?"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from server import Server

SLACK = 128  # tokens: states are kept at multiples of so many
WORDS = [
    "the",
    "of",
    "and",
    "to",
    "in",
    "is",
    "that",
    "it",
    "for",
    "was",
    "on",
    "are",
    "with",
    "as",
    "his",
    "they",
    "be",
    "at",
    "one",
    "have",
    "this",
]
LONGEST_S = 2.0  # until a kill
LONGEST_WORDS, ANSWER_TOKENS = 3000, 1500


@dataclass(frozen=True)
class Kill:
    """One round.

    Attributes:
        phase: what the server was at: "reading" the prompt, "answering", or "done".
        committed: tokens up to the last state in the files of the dead server.
        prompt: tokens of the request.
        computed: of these, by the next server.
        missing: records that were committed before the kill, and are not there any more.
    """

    phase: str
    committed: int
    prompt: int
    computed: int
    missing: int

    @property
    def beyond(self) -> int:
        """Tokens computed beyond those that no file held."""
        return self.computed - (self.prompt - self.committed)


@dataclass
class Kills:
    """All rounds."""

    rounds: list[Kill] = field(default_factory=list)

    @property
    def problems(self) -> list[str]:
        """What must not be."""
        return [
            f"after a kill: {kill}"
            for kill in self.rounds
            if kill.missing > 0 or kill.beyond > SLACK
        ]

    def table(self) -> str:
        """In Markdown."""
        lines = [
            "| killed while | times | prompt tokens | committed | computed again "
            "| most beyond what was not committed | committed records lost | verdict |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for phase in sorted({kill.phase for kill in self.rounds}):
            of = [kill for kill in self.rounds if kill.phase == phase]
            bad = any(kill.missing > 0 or kill.beyond > SLACK for kill in of)
            cells: Sequence[Any] = [
                phase,
                len(of),
                f"{sum(kill.prompt for kill in of):,}",
                f"{sum(kill.committed for kill in of):,}",
                f"{sum(kill.computed for kill in of):,}",
                max(kill.beyond for kill in of),
                sum(kill.missing for kill in of),
                "FAIL" if bad else "pass",
            ]
            lines.append("| " + " | ".join(map(str, cells)) + " |")
        return "\n".join(lines)

    def document(self) -> list[dict[str, Any]]:
        """For JSON."""
        return [asdict(kill) for kill in self.rounds]


def measure(n: int, root: Path, seed: int = 1) -> Kills:
    """One growing conversation; each of its turns is killed once and asked again."""
    root.mkdir(parents=True)
    rng, kills = random.Random(seed), Kills()
    messages: list[dict[str, str]] = []
    folder = root / "kv"
    with Server(["--cache-dir", str(folder)], root / "server.log") as server:
        for _ in range(n):
            text = " ".join(rng.choice(WORDS) for _ in range(rng.randrange(50, LONGEST_WORDS)))
            messages.append({"role": "user", "content": text})
            body = {
                "messages": messages,
                "max_tokens": ANSWER_TOKENS,
                "temperature": 0,
                "thinking": {"type": "disabled"},
                "logit_bias": {"1": -100},  # the end token of the embedded model
            }
            phase, before = _killed(server, body, rng.random() * LONGEST_S)
            states = _states(folder)
            server.start()
            answer = json.loads(_post(server, body))
            messages.append(
                {"role": "assistant", "content": answer["choices"][0]["message"]["content"]}
            )
            usage = answer["usage"]
            prompt = usage["prompt_tokens"]
            cached = usage["prompt_tokens_details"]["cached_tokens"]
            committed = max((n for n in states["tokens"] if n < prompt), default=0)
            missing = max(before[name] - states[name] for name in before)
            kills.rounds.append(Kill(phase, committed, prompt, prompt - cached, max(missing, 0)))
        server.stop()
    return kills


def _killed(server: Server, body: dict[str, Any], after_s: float) -> tuple[str, dict[str, int]]:
    """What it was at, and what was committed just before."""
    phase = "reading"

    def listen() -> None:
        nonlocal phase
        try:
            with _open(server, body | {"stream": True}) as answer:
                for line in answer:
                    if b'"content":"' in line and b'"content":""' not in line:
                        phase = "answering"
                    elif b"[DONE]" in line:
                        phase = "done"
        except OSError:
            pass

    listener = threading.Thread(target=listen)
    begin = time.monotonic()
    listener.start()
    before = _committed(server)
    while time.monotonic() < begin + after_s:
        time.sleep(0.01)
        before = _committed(server)
    was_at = phase
    server.kill()
    listener.join()
    return was_at, before


def _committed(server: Server) -> dict[str, int]:
    cache = json.loads(server.get("/status"))["cache"]
    return {"blocks": cache["blocks_on_disk"], "anchors": cache["anchors_on_disk"]}


def _states(folder: Path) -> dict[str, Any]:
    """What the files of a dead server hold."""
    command = [sys.executable, "-m", "grebe", "cache", "ls", "--json", str(folder)]
    found = subprocess.run(command, capture_output=True, text=True)
    roots = json.loads(found.stdout)["roots"] if found.returncode == 0 else []
    tokens = [anchor["tokens"] for root in roots for anchor in root["anchors"]]
    n_blocks = sum(root["n_blocks"] for root in roots)
    return {"tokens": tokens, "anchors": len(tokens), "blocks": n_blocks}


def _open(server: Server, body: dict[str, Any]) -> Any:
    headers = {"content-type": "application/json"}
    url = f"{server.url}/v1/chat/completions"
    return urllib.request.urlopen(
        urllib.request.Request(url, json.dumps(body).encode(), headers), timeout=120
    )


def _post(server: Server, body: dict[str, Any]) -> bytes:
    with _open(server, body) as answer:
        return bytes(answer.read())
