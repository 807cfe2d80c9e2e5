"""The ASGI application: who may come in, how much, which handler, and what errors look like.

Handlers find who asks in ``request.state.owner`` and the request's name in
``request.state.request_id``; the body has arrived when they are called.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import time
import traceback
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Router
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from . import metrics, page
from .cors import cors_headers, preflight_headers
from .errors import ApiError, anthropic_error_body, api_error, error_headers, openai_error_body
from .jobs import Loading
from .limits import BodyReader
from .notes import Note, current
from .options import ServeOptions
from .security import Guard
from .sse import ClientGone

if TYPE_CHECKING:
    import os

    from ..model import Model
    from .stack import Stack

__all__ = ["App", "error_response", "make_app"]

log = logging.getLogger("grebe.server")
trace = logging.getLogger("grebe.server.trace")

# Paths that need no key: they tell nothing of anybody's conversations.
OPEN_PATHS = frozenset({"/", "/health", "/api/hello"}) | page.PATHS
OWN_PATHS = frozenset({"/metrics", "/status"})
# What clients ask for when their base URL has /v1 too little or too much.
LOST = ("/chat/completions", "/completions", "/responses", "/messages", "/models")


class App:
    """The application. Answers 503 until :meth:`ready`.

    Args:
        options: of the server.
    """

    def __init__(self, options: ServeOptions) -> None:
        self.options = options
        self.counters = metrics.Counters()
        self._guard = Guard(
            options.api_keys,
            host=options.host,
            allowed_hosts=options.allowed_hosts,
            cors=options.cors,
        )
        self._bodies = BodyReader(options.max_body_bytes)
        self._stack: Stack | None = None
        self._stats: Callable[[], dict[str, Any]] = dict
        self._router: ASGIApp | None = None
        self._problem = "the model is being loaded"
        self._facts: dict[str, Any] = {}

    # ---------------------------------------------------------------- states

    def attach(self, model: Model, *, owned: bool = False) -> None:
        """Opens what stands behind the application, and serves from now on. From any thread."""
        from .stack import Stack

        stack = Stack(model, self.options, owned=owned)
        self._stack = stack
        self.ready(stack.routes, stack.stats, stack.facts)

    def ready(
        self,
        routes: Sequence[BaseRoute],
        stats: Callable[[], dict[str, Any]],
        facts: dict[str, Any],
    ) -> None:
        """Serves from now on; from any thread.

        Args:
            routes: of the API modules.
            stats: of the engine, for /metrics and the status page.
            facts: of the model, for the same.
        """
        self._facts, self._stats = facts, stats
        self._router = Router(list(routes), default=_not_found, redirect_slashes=False)

    def close(self) -> None:
        """Stops the engine within ``options.shutdown_s`` and saves what the cache wants."""
        self.refuse("the server is shutting down")
        stack, self._stack = self._stack, None
        if stack is not None:
            stack.close(self.options.shutdown_s)

    def refuse(self, problem: str) -> None:
        """Serves no more; ``problem`` is what clients are told."""
        self._problem, self._router = problem, None

    @property
    def state(self) -> str:
        """For /health: "ok", or why not."""
        return "ok" if self._router is not None else self._problem

    @property
    def facts(self) -> dict[str, Any]:
        """Of the model; empty before it is loaded."""
        return self._facts

    # ---------------------------------------------------------------- requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One connection of ASGI."""
        if scope["type"] == "http":
            await self._http(scope, receive, send)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008, "reason": "use HTTP"})
        elif scope["type"] == "lifespan":
            await self._lifespan(receive, send)

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await asyncio.get_running_loop().run_in_executor(None, self.close)
        await send({"type": "lifespan.shutdown.complete"})

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        request_id = "req_" + secrets.token_hex(12)
        begin = time.monotonic()
        status = 0
        headers = Headers(scope=scope)
        origin = headers.get("origin", "").encode("latin-1")
        common = [
            (b"x-request-id", request_id.encode()),
            (b"request-id", request_id.encode()),
            (b"x-content-type-options", b"nosniff"),
            *cors_headers(origin, self.options.cors),
        ]

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), *common]
            elif self.options.trace and message.get("body"):
                trace.info("%s < %s", request_id, message["body"].decode("utf-8", "replace"))
            await send(message)

        scope.setdefault("state", {})["request_id"] = request_id
        self.counters.n_open += 1
        note = Note()
        token = current.set(note)
        try:
            await self._serve(scope, receive, sending, headers)
        except (ClientGone, ConnectionError):
            status = status or 499
        except Exception as error:
            if status:
                # Without a last chunk: the client sees that the answer is not whole.
                _report(error, request_id)
            else:
                response = error_response(error, _path(scope), request_id)
                await response(scope, receive, sending)
        finally:
            current.reset(token)
            self.counters.n_open -= 1
            seconds = time.monotonic() - begin
            route = scope.get("route")
            known = getattr(route, "path", None) or (
                "page" if _path(scope) in OPEN_PATHS else "other"
            )
            self.counters.count(known, status, seconds)
            self.counters.turn(note)
            log.info(
                "%s %s %s %d %.3f s%s",
                request_id,
                scope["method"],
                _shown(scope["path"]),
                status,
                seconds,
                note,
            )

    async def _serve(self, scope: Scope, receive: Receive, send: Send, headers: Headers) -> None:
        path, method = _path(scope), scope["method"]
        raw = scope["headers"]
        self._guard.check_origin(raw)
        if method == "OPTIONS" and "access-control-request-method" in headers:
            asked = headers.get("access-control-request-headers", "").encode("latin-1")
            preflight = Response(status_code=204)
            preflight.raw_headers = preflight_headers(asked)
            await preflight(scope, receive, send)
            return
        if headers.get("upgrade", "").lower() == "websocket":
            raise ApiError(426, "this server speaks HTTP only", kind="invalid_request_error")
        if path in OPEN_PATHS:
            scope["state"]["owner"] = ""
        else:
            scope["state"]["owner"] = self._guard.owner(raw)
        own = self._own(path, method)
        if own is not None:
            await own(scope, receive, send)
            return
        if method in ("POST", "PUT", "PATCH"):
            receive = await self._bodies.read(scope, receive)
            if self.options.trace:
                receive = _traced(receive, scope["state"]["request_id"])
        router = self._router
        if router is None:
            raise Loading(self._problem)
        scope["app"] = self  # Starlette's routes then raise what is wrong instead of answering it
        await router(scope, receive, send)

    def _own(self, path: str, method: str) -> Response | None:
        """What the server says of itself."""
        if path not in OPEN_PATHS and path not in OWN_PATHS:
            return None
        if method not in ("GET", "HEAD"):
            raise HTTPException(405, headers={"Allow": "GET, HEAD"})
        if path == "/api/hello":
            return JSONResponse({"grebe": True})
        if path in page.PATHS:
            return page.response(path)
        stats = self._stats()
        if path == "/health":
            ok = self._router is not None
            body = {"status": "ok" if ok else self.state}
            return JSONResponse(body, 200 if ok else 503)
        if path == "/metrics":
            text = metrics.prometheus(self.counters, stats, self._facts, self._router is not None)
            return Response(text, media_type="text/plain; version=0.0.4")
        return JSONResponse({"status": self.state, "model": self._facts, **metrics.plain(stats)})


def make_app(model: Model | str | os.PathLike[str] | None = None, **options: Any) -> App:
    """The application around a model, to run in any ASGI server or to mount in another application.

    Call ``close()`` at the end; a server that runs it as its one application does so itself. The
    host and port among the options only say which names and keys are asked for.

    Args:
        model: a loaded one, a file, or None for the small model inside the package.
        options: those of :class:`grebe.server.options.ServeOptions`.

    Example:
        >>> import grebe
        >>> app = grebe.make_app()
        >>> app.state
        'ok'
        >>> app.close()
    """
    from .run import loader, server_options

    app = App(server_options(**options))
    loaded, owned = loader(model)()
    app.attach(loaded, owned=owned)
    return app


def error_response(error: Exception, path: str, request_id: str = "") -> Response:
    """An exception as a response, in the shape of the API that the path belongs to."""
    headers: dict[str, str] = {}
    if isinstance(error, HTTPException):
        headers.update(error.headers or {})
        error = ApiError(
            error.status_code,
            f"{error.detail}: {_shown(path)}",
            kind="not_found_error" if error.status_code == 404 else "invalid_request_error",
        )
    known = api_error(error)
    if known.status >= 500 and not isinstance(error, (ApiError, Loading)):
        _report(error, request_id)
    if path.startswith("/v1/messages"):
        body = anthropic_error_body(known, request_id)
    else:
        body = openai_error_body(known)
    headers.update(error_headers(known))
    if known.status == 408:
        headers["connection"] = "close"
    if known.status == 401:
        headers["www-authenticate"] = "Bearer"
    return JSONResponse(body, known.status, headers=headers)


async def _not_found(scope: Scope, receive: Receive, send: Send) -> None:
    path = _path(scope)
    tail = path.removeprefix("/v1").removeprefix("/v1")
    hint = f"; there is /v1{tail}" if tail in LOST and path != "/v1" + tail else ""
    raise ApiError(
        404,
        f"there is nothing at {scope['method']} {_shown(path)}{hint}",
        kind="not_found_error",
    )


def _path(scope: Scope) -> str:
    """The path without the prefix under which the application is mounted."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", "")) or "/"


def _shown(path: str) -> str:
    return json.dumps(path[:200])[1:-1]


def _traced(receive: Receive, request_id: str) -> Receive:
    async def reading() -> Message:
        message = await receive()
        if message.get("body"):
            trace.info("%s > %s", request_id, message["body"].decode("utf-8", "replace"))
        return message

    return reading


def _report(error: Exception, request_id: str) -> None:
    """Where it happened. Not its text, which may be somebody's prompt."""
    frames = traceback.extract_tb(error.__traceback__)[-8:]
    places = " < ".join(
        f"{frame.name} ({frame.filename}:{frame.lineno})" for frame in reversed(frames)
    )
    log.error("%s failed: %s at %s", request_id, type(error).__name__, places)
