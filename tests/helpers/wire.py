"""Requests as bytes, and streams as they came."""

from __future__ import annotations

import http.client
import json
from typing import Any

from grebe.server.run import Server


def post(
    server: Server, path: str, body: Any, headers: dict[str, str] | None = None
) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and bytes of a response."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    try:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        kind = {"content-type": "application/json"}
        connection.request("POST", path, data, {**kind, **(headers or {})})
        response = connection.getresponse()
        names = {name.lower(): value for name, value in response.getheaders()}
        return response.status, names, response.read()
    finally:
        connection.close()


def sse_events(data: bytes) -> list[tuple[str | None, Any]]:
    """(event name, data) of a stream; the data as JSON unless it is ``[DONE]``."""
    assert data.endswith(b"\n\n")
    events: list[tuple[str | None, Any]] = []
    for block in data[:-2].decode().split("\n\n"):
        lines = block.split("\n")
        name = lines.pop(0)[7:] if lines[0].startswith("event: ") else None
        (line,) = lines
        assert line.startswith("data: ")
        text = line[6:]
        events.append((name, text if text == "[DONE]" else json.loads(text)))
    return events
