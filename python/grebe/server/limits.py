"""Bodies of requests, read before anybody looks at them: size, time, depth of the JSON."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable

import numpy as np
from starlette.types import Message, Receive, Scope

from .errors import ApiError

__all__ = ["BodyReader", "json_depth"]

#: Schemas of tools nest, agents' requests about 20 deep; interpreters fail at 1,000.
MAX_JSON_DEPTH = 100
#: A client that sends nothing for so long, or needs so long for all of it, is cut off.
IDLE_S, TOTAL_S = 30.0, 300.0
#: Of all bodies that are being read.
MAX_BUFFERED = 512 << 20

_CHUNK = 1 << 16
# Larger bodies are looked at in a thread of their own.
_QUICK_BYTES = 1 << 20
_STEPS = np.zeros(256, np.int8)
_STEPS[list(b"[{")], _STEPS[list(b"]}")] = 1, -1


class BodyReader:
    """Reads bodies, within limits of one server."""

    def __init__(self, max_bytes: int, *, idle_s: float = IDLE_S, total_s: float = TOTAL_S) -> None:
        self._max_bytes = max_bytes
        self._idle_s, self._total_s = idle_s, total_s
        self._buffered = 0

    async def read(self, scope: Scope, receive: Receive) -> Receive:
        """A ``receive`` that gives the whole body at once, then what the old one gives.

        Raises:
            ApiError: 400 too deep, 408 too slow, 413 too large, 415 no JSON, 503 too much of all
                clients.
            ConnectionError: the client has gone.
        """
        _check_kind(scope["headers"])
        length = next((v for k, v in scope["headers"] if k == b"content-length"), b"")
        if length.isdigit() and int(length[:20]) > self._max_bytes:
            raise self._too_large(f"{int(length[:20])} bytes")
        body = await self._collect(receive)
        quick = len(body) <= _QUICK_BYTES
        depth = json_depth(body) if quick else await asyncio.to_thread(json_depth, body)
        if depth > MAX_JSON_DEPTH:
            raise ApiError(
                400,
                f"the JSON is nested more than {MAX_JSON_DEPTH} deep",
                kind="invalid_request_error",
            )
        given = False

        async def replay() -> Message:
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        return replay

    async def _collect(self, receive: Receive) -> bytes:
        parts: list[bytes] = []
        size = 0
        end = time.monotonic() + self._total_s
        try:
            while True:
                wait = min(self._idle_s, end - time.monotonic())
                try:
                    message = await asyncio.wait_for(receive(), wait)
                except asyncio.TimeoutError:
                    raise ApiError(
                        408, "the body of the request did not arrive", kind="timeout_error"
                    ) from None
                if message["type"] == "http.disconnect":
                    raise ConnectionResetError("the client has gone")
                part: bytes = message.get("body", b"")
                size += len(part)
                self._buffered += len(part)
                if size > self._max_bytes:
                    raise self._too_large("more")
                if self._buffered > MAX_BUFFERED:
                    raise ApiError(
                        503,
                        "too many large requests at once",
                        kind="overloaded_error",
                        retry_after=5,
                    )
                parts.append(part)
                if not message.get("more_body", False):
                    return b"".join(parts)
        finally:
            self._buffered -= size

    def _too_large(self, found: str) -> ApiError:
        return ApiError(
            413,
            f"the body has {found}; this server takes up to {self._max_bytes} bytes",
            kind="request_too_large",
        )


def _check_kind(headers: Iterable[tuple[bytes, bytes]]) -> None:
    """A page can send forms and plain text to other servers unasked; nobody else does.

    Raises:
        ApiError: 415.
    """
    for name, value in headers:
        if name == b"content-type":
            kind = value.partition(b";")[0].strip().lower()
            if kind and kind != b"application/json" and not kind.endswith(b"+json"):
                raise _unsupported("Content-Type", value, "application/json")
        elif name == b"content-encoding" and value.strip().lower() not in (b"", b"identity"):
            raise _unsupported("Content-Encoding", value, "none")


def _unsupported(name: str, value: bytes, expected: str) -> ApiError:
    found = value.decode("latin-1")[:80]
    return ApiError(415, f"{name} is {found!r}; {expected} is expected")


def json_depth(body: bytes) -> int:
    """How deep arrays and objects nest, counted until it exceeds what is allowed.

    Example:
        >>> json_depth(b'{"a": [1, "[[[", {}]}')
        3
    """
    # Without escaped backslashes and quotes, a byte is in a string after an odd number of quotes.
    plain = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    depth = deepest = n_quotes = 0
    for start in range(0, len(plain), _CHUNK):
        part = np.frombuffer(plain[start : start + _CHUNK], np.uint8)
        quotes = np.cumsum(part == ord('"'), dtype=np.int32) + n_quotes
        steps = np.where(quotes % 2, np.int8(0), _STEPS[part])
        depths = np.cumsum(steps, dtype=np.int32) + depth
        deepest = max(deepest, int(depths.max()))
        if deepest > MAX_JSON_DEPTH:
            return MAX_JSON_DEPTH + 1
        depth, n_quotes = int(depths[-1]), int(quotes[-1]) % 2
    return deepest
