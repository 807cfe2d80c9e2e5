"""HTTP/1.1 on sockets: uvicorn, with a limit on how long a request's head may take."""

from __future__ import annotations

import asyncio
import http
import json
import logging
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable
from types import FrameType
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from ..errors import StorageError
from .errors import ApiError, openai_error_body

__all__ = ["HttpServer", "bind"]

#: For the head of a request, and for the first bytes of a connection.
HEAD_S = 20.0
#: Longer than the pools of clients keep connections: they never meet one that is being closed.
IDLE_S = 75
#: For the rest of a body after its answer, so that the client is still there to read this.
LINGER_S = 5.0
MAX_HEAD_BYTES = 64 << 10
# What the protocol complains about is the client's affair, or already reported.
QUIET = (
    "ASGI callable returned without",
    "Unsupported upgrade",
    "Invalid HTTP request",
    "No supported WebSocket",
)


class Connection(H11Protocol):
    """A connection that is closed when a request's head, or the rest of a refused body, is late.

    The application looks after bodies that it reads.
    """

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.conn.their_state is h11.SEND_BODY:
            self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel()
        super().connection_lost(exc)

    def _watch(self) -> None:
        theirs, ours = self.conn.their_state, self.conn.our_state
        refused = theirs is h11.SEND_BODY and ours in (h11.DONE, h11.MUST_CLOSE)
        if theirs is not h11.IDLE and not refused:
            self._cancel()
        elif self._timer is None:
            self._timer = self.loop.call_later(LINGER_S if refused else HEAD_S, self._late)

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _late(self) -> None:
        self._timer = None
        if self.conn.trailing_data[0] and self.conn.their_state is h11.IDLE:
            self._refuse(408, "the head of the request did not arrive")
        else:
            self.transport.close()

    def send_400_response(self, msg: str) -> None:
        """What is not HTTP, or too long."""
        error = sys.exc_info()[1]
        status = getattr(error, "error_status_hint", 400)
        self._refuse(status, f"this is not HTTP as the server understands it: {error or msg}")

    def _refuse(self, status: int, message: str) -> None:
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = json.dumps(openai_error_body(ApiError(status, message))).encode()
            head = [
                (b"content-type", b"application/json"),
                (b"content-length", str(len(body)).encode()),
                (b"connection", b"close"),
            ]
            reason = http.HTTPStatus(status).phrase.encode()
            for event in (
                h11.Response(status_code=status, headers=head, reason=reason),
                h11.Data(data=body),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


class HttpServer(uvicorn.Server):
    """Serves an application on a socket that is bound already.

    Args:
        app: ASGI.
        on_stop: awaited beside the last requests when the server stops.
        stop_s: how long these may take after it.
    """

    def __init__(self, app: Any, on_stop: Callable[[], Awaitable[None]], stop_s: float) -> None:
        logging.getLogger("uvicorn.error").addFilter(_is_news)
        super().__init__(
            uvicorn.Config(
                app,
                loop="asyncio",
                http=Connection,
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_keep_alive=IDLE_S,
                timeout_graceful_shutdown=round(stop_s),
                h11_max_incomplete_event_size=MAX_HEAD_BYTES,
                backlog=256,
            )
        )
        self._on_stop = on_stop

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Takes no more connections, and ends what runs."""
        stopping = asyncio.ensure_future(self._on_stop())
        await super().shutdown(sockets)
        await stopping

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal stops in good order, the second at once."""
        if self.should_exit:
            os._exit(128 + sig)
        self.should_exit = True
        name = signal.Signals(sig).name
        print(f"\n{name}: stopping; once more to stop at once", file=sys.stderr, flush=True)


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        StorageError: the port is taken, or the address is not of this machine.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(
            host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise StorageError(
            f"cannot listen on {host}: {error.strerror}", errno=error.errno
        ) from None
    sock = socket.socket(family, kind)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(256)
    except OSError as error:
        sock.close()
        hint = ""
        if port:
            hint = f"; --port {port + 1 if port < 65535 else 8000} may be free, --port 0 takes any"
        raise StorageError(
            f"cannot listen on {host}:{port}: {error.strerror}{hint}", errno=error.errno
        ) from None
    return sock


def _is_news(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith(QUIET)
