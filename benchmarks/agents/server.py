"""`grebe serve` as a process of its own, and what it tells of each request."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

START_S, STOP_S = 60.0, 30.0
LINE = re.compile(
    r" POST \S+ 200 .* prompt=(\d+) cached=(\d+|-) completion=(\d+) miss=(\S+) end=(\w+)"
    r"(?: scripted=(\S*)#(\d+))?$",
    re.M,
)


@dataclass(frozen=True)
class Request:
    """A line of the server's log.

    Attributes:
        key: of the scripted reply, "" without one.
        step: of this reply.
    """

    prompt: int
    cached: int
    completion: int
    miss: str
    end: str
    key: str
    step: int

    @property
    def computed(self) -> int:
        """Tokens of the prompt that were prefilled."""
        return self.prompt - self.cached


class Server:
    """Started, stopped, killed and started again, always on the same port.

    Args:
        options: of `grebe serve`.
        log: a file; lines are added.
    """

    def __init__(self, options: Sequence[str], log: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.port = int(listener.getsockname()[1])
        self.url = f"http://127.0.0.1:{self.port}"
        self._options, self._log = list(options), log
        self._process: subprocess.Popen[bytes] | None = None
        log.touch()

    @property
    def pid(self) -> int:
        """Of the process that runs now."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Returns when the model is loaded."""
        command = [sys.executable, "-m", "grebe", "serve", "--port", str(self.port)]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*command, *self._options], stdout=log, stderr=log, env=os.environ | {"TZ": "UTC"}
            )
        end = time.monotonic() + START_S
        while time.monotonic() < end:
            self.check()
            try:
                if self.metrics().get("grebe_ready") == 1:
                    return
            except OSError:
                pass
            time.sleep(0.05)
        raise SystemExit("the server does not come up")

    def check(self) -> None:
        """Raises when the server is gone."""
        if self._process is not None and self._process.poll() is not None:
            end = self._log.read_text()[-3000:]
            raise SystemExit(f"{end}\nthe server ended with status {self._process.returncode}")

    def stop(self) -> None:
        """In good order."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """At once: SIGKILL."""
        self._end(signal.SIGKILL)

    def _end(self, sig: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(sig)
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                raise SystemExit("the server does not stop") from None

    def get(self, path: str) -> str:
        """The body of an answer."""
        with urllib.request.urlopen(self.url + path, timeout=10) as answer:
            return str(answer.read().decode())

    def metrics(self) -> dict[str, float]:
        """Numbers by name and labels."""
        lines = [line for line in self.get("/metrics").splitlines() if line.startswith("grebe_")]
        return {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in lines}

    def requests(self) -> list[Request]:
        """All that had a turn, in the order of their ends; over all starts."""
        return [_request(found) for found in LINE.finditer(self._log.read_text())]

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(self, *error: Any) -> None:
        if self._process is not None and self._process.poll() is None:
            self.kill()


def _request(line: re.Match[str]) -> Request:
    prompt, cached, completion, miss, end, key, step = line.groups()
    known = 0 if cached == "-" else int(cached)
    return Request(int(prompt), known, int(completion), miss, end, key or "", int(step or 0))
