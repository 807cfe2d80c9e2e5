"""A server as a process of its own, and raw sockets to it."""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
from pathlib import Path
from typing import Any

START_S = 60.0


class Process:
    """``grebe serve`` with options of one's own, on a free port."""

    def __init__(self, *options: str, log: Path | None = None) -> None:
        self.log = log
        self._log = open(log, "ab") if log else subprocess.DEVNULL  # noqa: PTH123, SIM115
        self.process = subprocess.Popen(
            [sys.executable, "-m", "grebe", "serve", "--port", "0", "--threads", "1", *options],
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        first = self.process.stdout.readline()
        found = re.search(r"http://\S+?:(\d+)", first)
        if found is None:
            self.kill()
            raise AssertionError(f"no address in {first!r}")
        self.port = int(found[1])
        self.url = found[0]

    def wait_ready(self) -> Process:
        end = time.monotonic() + START_S
        while time.monotonic() < end:
            try:
                if self.get("/health")["status"] == "ok":
                    return self
            except OSError:  # HTTPError is one
                pass
            time.sleep(0.05)
        raise AssertionError("the server did not become ready")

    def get(self, path: str) -> Any:
        return self._ask("GET", path, None, 30)

    def post(self, path: str, body: Any, timeout: float = 60) -> Any:
        return self._ask("POST", path, json.dumps(body).encode(), timeout)

    def _ask(self, method: str, path: str, body: bytes | None, timeout: float) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            kind = {"content-type": "application/json"} if body is not None else {}
            connection.request(method, path, body, kind)
            answer = connection.getresponse()
            data = answer.read()
        finally:
            connection.close()
        if answer.status >= 400:
            url, status, reason = self.url + path, answer.status, answer.reason
            raise urllib.error.HTTPError(url, status, reason, answer.headers, io.BytesIO(data))
        return json.loads(data)

    def stop(self, sig: int = signal.SIGTERM, timeout: float = 30) -> int:
        self.process.send_signal(sig)
        return self.end(timeout)

    def kill(self) -> None:
        self.process.kill()
        self.end()

    def end(self, timeout: float = 30) -> int:
        try:
            self.rest, _ = self.process.communicate(timeout=timeout)
        finally:
            if self.log:
                self._log.close()
        return self.process.returncode

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.kill()


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=30)


def request_bytes(path: str, body: bytes, *, method: str = "POST", headers: str = "") -> bytes:
    head = (
        f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        f"{headers}Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def raw(port: int, data: bytes) -> tuple[int, bytes]:
    """Status and body of the answer to these bytes; status 0 if the connection just ends."""
    with connect(port) as sock:
        with contextlib.suppress(OSError):  # it may answer, and close, before it has read all
            sock.sendall(data)
        return read_answer(sock)


def read_answer(sock: socket.socket) -> tuple[int, bytes]:
    answer = http.client.HTTPResponse(sock)
    try:
        answer.begin()
        return answer.status, answer.read()
    except (http.client.HTTPException, OSError):
        return 0, b""
    finally:
        answer.close()


def chat(text: str, **more: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": text}], "max_tokens": 8, **more}
