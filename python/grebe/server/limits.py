"""Bodies of requests, read before anybody looks at them: size, time, depth of the JSON."""

from __future__ import annotations

import asyncio
import time

from starlette.types import Message, Receive, Scope

from .errors import ApiError

__all__ = ["BodyReader", "json_depth"]

#: Schemas of tools nest, agents' requests about 20 deep; interpreters fail at 1,000.
MAX_JSON_DEPTH = 100
#: A client that sends nothing for so long, or needs so long for all of it, is cut off.
IDLE_S, TOTAL_S = 30.0, 300.0
#: Of all bodies that are being read.
MAX_BUFFERED = 512 << 20

_SYNTAX = b'"[]{}'
_NOT_SYNTAX = bytes(set(range(256)) - set(_SYNTAX))


class BodyReader:
    """Reads bodies, within limits of one server."""

    def __init__(self, max_bytes: int, *, idle_s: float = IDLE_S, total_s: float = TOTAL_S) -> None:
        self._max_bytes = max_bytes
        self._idle_s, self._total_s = idle_s, total_s
        self._buffered = 0

    async def read(self, scope: Scope, receive: Receive) -> Receive:
        """A ``receive`` that gives the whole body at once, then what the old one gives.

        Raises:
            ApiError: 400 too deep, 408 too slow, 413 too large, 503 too much of all clients.
            ConnectionError: the client has gone.
        """
        length = next((v for k, v in scope["headers"] if k == b"content-length"), b"")
        if length.isdigit() and int(length[:20]) > self._max_bytes:
            raise self._too_large(f"{int(length[:20])} bytes")
        body = await self._collect(receive)
        if b"{" in body and json_depth(body) > MAX_JSON_DEPTH:
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


def json_depth(body: bytes) -> int:
    """How deep arrays and objects nest, counted until it exceeds what is allowed.

    Example:
        >>> json_depth(b'{"a": [1, "[[[", {}]}')
        3
    """
    # Without escaped backslashes and quotes, every second piece between quotes is a string.
    plain = body.replace(b"\\\\", b"").replace(b'\\"', b"").translate(None, _NOT_SYNTAX)
    depth = deepest = 0
    for byte in b"".join(plain.split(b'"')[::2]):
        if byte in b"[{":
            depth += 1
            if depth > deepest:
                deepest = depth
                if deepest > MAX_JSON_DEPTH:
                    break
        else:
            depth -= 1
    return deepest
