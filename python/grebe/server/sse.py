"""Server-sent events: a turn's events as a response that a client may leave at any moment.

This file knows when bytes go out and when the connection is kept alive, ended or broken. What the
bytes are is the business of an API's :class:`StreamEncoder`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Mapping
from typing import Any, Protocol, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from .jobs import EngineFailed, JobEvent

__all__ = ["ClientGone", "EventSource", "StreamEncoder", "sse_event", "streaming", "unless_gone"]

T = TypeVar("T")

# Every client tolerates 15 s of silence; the event loop may be late.
KEEPALIVE_S = 10.0
# A client that takes nothing for so long has gone without closing its connection.
STALL_S = 300.0


class ClientGone(Exception):
    """The client closed its connection before the answer was ready."""


class EventSource(Protocol):
    """A turn. Closing the iterator cancels the job."""

    def events(self) -> AsyncIterator[JobEvent]:
        """The job's events, up to Finished."""


class StreamEncoder(Protocol):
    """Writes one API's events. Each method may give b"", which sends nothing."""

    def start(self) -> bytes:
        """Sent at once, with the headers, before the turn has begun."""

    def event(self, event: JobEvent) -> bytes:
        """What an event of the job looks like; for Finished everything up to the end."""

    def keepalive(self) -> bytes:
        """A real event that changes nothing, for a client that would give up otherwise."""

    def failed(self, error: EngineFailed) -> bytes:
        """The API's error event. b"": the connection is broken instead, so that clients retry."""


def sse_event(data: bytes, event: str | None = None) -> bytes:
    """One event; ``data`` must hold no line ends, as JSON holds none."""
    if event is None:
        return b"data: " + data + b"\n\n"
    return b"event: " + event.encode() + b"\ndata: " + data + b"\n\n"


def streaming(
    turn: EventSource,
    encoder: StreamEncoder,
    *,
    keepalive_s: float = KEEPALIVE_S,
    stall_s: float = STALL_S,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """A response that sends a turn's events as they happen.

    Headers go out at once. The job is cancelled when the client closes the connection, and when it
    takes nothing for ``stall_s``.

    Args:
        turn: its ``events()`` is iterated once.
        encoder: makes the bytes.
        keepalive_s: after so much silence the encoder's keep-alive is sent.
        stall_s: how long a write may wait for the client.
        headers: beside those of an event stream.
    """
    return _EventStream(turn, encoder, keepalive_s, stall_s, headers)


async def unless_gone(request: Request, work: Awaitable[T]) -> T:
    """What ``work`` gives; it is cancelled when the client goes away. The body was read already.

    Raises:
        ClientGone: the client closed its connection.
    """
    task = asyncio.ensure_future(work)
    watch = asyncio.ensure_future(_disconnect(request.receive))
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientGone
    finally:
        await _end(task, watch)


class _EventStream(Response):
    """The tasks of one stream: events, keep-alives, and an eye on the connection."""

    media_type = "text/event-stream"

    def __init__(
        self,
        turn: EventSource,
        encoder: StreamEncoder,
        keepalive_s: float,
        stall_s: float,
        headers: Mapping[str, str] | None,
    ) -> None:
        self._turn, self._encoder = turn, encoder
        self._keepalive_s, self._stall_s = keepalive_s, stall_s
        self._turn_of = asyncio.Lock()  # events and keep-alives keep their order
        self._last = time.monotonic()
        self.background = None
        self.status_code = 200
        self.init_headers({"cache-control": "no-cache", "x-accel-buffering": "no"})
        self.headers.update(headers or {})
        del self.headers["content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        tasks: list[asyncio.Task[Any]] = []
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            tasks = [
                asyncio.create_task(work)
                for work in (self._events(send), _disconnect(receive), self._keepalives(send))
            ]
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            await _end(*tasks)

    async def _events(self, send: Send) -> None:
        events = self._turn.events()
        try:
            await self._send(send, self._encoder.start())
            async for event in events:
                data = self._encoder.event(event)
                if data:
                    await self._send(send, data)
        except EngineFailed as error:
            data = self._encoder.failed(error)
            if not data:
                return  # without a last chunk: the client sees that something is missing
            await self._send(send, data)
        finally:
            close = getattr(events, "aclose", None)
            if close is not None:
                await close()
        async with self._turn_of:
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _keepalives(self, send: Send) -> None:
        """Returns when the client has taken nothing for too long."""
        while True:
            silence = time.monotonic() - self._last
            if self._turn_of.locked():
                if silence >= self._stall_s:
                    return
                await asyncio.sleep(min(1.0, self._stall_s))
            elif silence >= self._keepalive_s:
                await self._send(send, self._encoder.keepalive())
            else:
                await asyncio.sleep(self._keepalive_s - silence)

    async def _send(self, send: Send, data: bytes) -> None:
        async with self._turn_of:
            self._last = time.monotonic()
            if data:
                await send({"type": "http.response.body", "body": data, "more_body": True})


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _end(*tasks: asyncio.Future[Any]) -> None:
    """Cancels what still runs and waits until it has cleaned up."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
