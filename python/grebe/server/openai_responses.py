"""OpenAI's Responses: ``/v1/responses``, and what clients come back to."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from .jobs import EngineFailed, Finished, JobEvent, JobUsage, TokenEvent
from .responses_events import ResponseEncoder
from .responses_request import Asked, responses_request
from .responses_schemas import ResponsesBody
from .responses_store import ResponseStore, Stored
from .schemas import decode
from .sse import streaming, unless_gone
from .turns import Turn, TurnService

__all__ = ["routes"]

# A stream whose client does not read ends later than its response.
_CANCEL_S = 5.0


def routes(service: TurnService, store: ResponseStore | None = None) -> list[Route]:
    """The routes of this API. ``store``: where responses are kept; None: in memory."""
    api = _Responses(service, ResponseStore() if store is None else store)
    one = "/v1/responses/{response_id}"
    return [
        Route("/v1/responses", api.create, methods=["POST"]),
        Route("/v1/responses/input_tokens", api.count, methods=["POST"]),
        Route(one, api.retrieve, methods=["GET"]),
        Route(one, api.delete, methods=["DELETE"]),
        Route(f"{one}/cancel", api.cancel, methods=["POST"]),
        Route(f"{one}/input_items", api.input_items, methods=["GET"]),
    ]


class _Responses:
    def __init__(self, service: TurnService, store: ResponseStore) -> None:
        self._service, self._store = service, store
        self._running: dict[tuple[str, str], _Running] = {}
        self._background: set[asyncio.Task[None]] = set()

    async def create(self, request: Request) -> Response:
        owner: str = request.state.owner
        asked, before = self._asked(await request.body(), request, owner)
        turn = await self._service.start(asked.chat, owner)
        running = _Running(turn)
        encoder = ResponseEncoder(
            turn,
            asked,
            self._service.tokenizer,
            keep=self._keep(owner, asked, before, running),
        )
        running.abandoned = encoder.abandoned
        if asked.chat.stream:
            return streaming(running, encoder, headers=turn.headers)
        if asked.background:
            task = asyncio.create_task(_in_background(running, encoder))
            self._background.add(task)
            task.add_done_callback(self._background.discard)
        else:
            await unless_gone(request, _drain(running, encoder))
        return _json(encoder.body, turn.headers)

    async def count(self, request: Request) -> Response:
        owner: str = request.state.owner
        asked, _ = self._asked(await request.body(), request, owner)
        n_tokens = await self._service.count_tokens(asked.chat, owner)
        return _json({"object": "response.input_tokens", "input_tokens": n_tokens})

    async def retrieve(self, request: Request) -> Response:
        return _json(self._stored(request).body)

    async def delete(self, request: Request) -> Response:
        response_id = request.path_params["response_id"]
        self._store.delete(request.state.owner, response_id)
        return _json({"id": response_id, "object": "response", "deleted": True})

    async def cancel(self, request: Request) -> Response:
        stored = self._stored(request)
        running = self._running.get((request.state.owner, request.path_params["response_id"]))
        if running is not None:
            running.cancel()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(running.over.wait(), _CANCEL_S)
            stored = self._stored(request)
        return _json(stored.body)

    async def input_items(self, request: Request) -> Response:
        items = [{"id": f"item_{i}", **item} for i, item in enumerate(self._stored(request).items)]
        return _json(
            {
                "object": "list",
                "data": items,
                "first_id": items[0]["id"] if items else None,
                "last_id": items[-1]["id"] if items else None,
                "has_more": False,
            }
        )

    def _asked(self, data: bytes, request: Request, owner: str) -> tuple[Asked, Stored | None]:
        body, ignored = decode(data, ResponsesBody)
        before = None
        if body.previous_response_id is not None:
            before = self._store.previous(owner, body.previous_response_id)
        asked = responses_request(
            body,
            headers=request.headers,
            ignored=ignored,
            thinking_default=self._service.config.thinking_default,
            default_model=self._service.config.model_id,
            history=before.conversation() if before is not None else (),
            find=lambda item_id: self._store.item(owner, item_id),
        )
        return asked, before

    def _stored(self, request: Request) -> Stored:
        return self._store.get(request.state.owner, request.path_params["response_id"])

    def _keep(
        self, owner: str, asked: Asked, before: Stored | None, running: _Running
    ) -> Callable[[dict[str, Any]], None]:
        """What is called with the response when it begins and when it is over."""
        if not asked.store:
            return lambda body: running.over.set()

        def keep(body: dict[str, Any]) -> None:
            key = (owner, str(body["id"]))
            over = body["status"] != "in_progress"
            self._store.put(owner, body, asked.items, before=before, running=not over)
            if over:
                self._running.pop(key, None)
                running.over.set()
            else:
                self._running[key] = running

        return keep


class _Running:
    """A turn that may be cancelled from outside, and whose end is always seen.

    Attributes:
        over: set when nothing more will happen.
    """

    def __init__(self, turn: Turn) -> None:
        self._turn = turn
        self._n_tokens = 0
        self._cancelled = False
        self._waiting: asyncio.Task[Any] | None = None
        self.over = asyncio.Event()
        self.abandoned: Callable[[], None] = lambda: None

    def cancel(self) -> None:
        """Ends the events, with one that says so."""
        self._cancelled = True
        if self._waiting is not None:
            self._waiting.cancel()

    async def events(self) -> AsyncIterator[JobEvent]:
        """The turn's, up to Finished."""
        stream = self._turn.events()
        try:
            while True:
                event = await self._next(stream)
                if isinstance(event, TokenEvent):
                    self._n_tokens += 1
                yield event
                if isinstance(event, Finished):
                    return
        finally:
            close = getattr(stream, "aclose", None)
            if close is not None:
                await close()
            self.abandoned()

    async def _next(self, stream: AsyncIterator[JobEvent]) -> JobEvent:
        if not self._cancelled:
            self._waiting = asyncio.current_task()
            try:
                return await stream.__anext__()
            except asyncio.CancelledError:
                if not self._cancelled:
                    raise
                if sys.version_info >= (3, 11) and self._waiting is not None:
                    self._waiting.uncancel()
            finally:
                self._waiting = None
        return Finished("cancelled", (), JobUsage(self._turn.prompt_tokens, 0, self._n_tokens))


async def _drain(running: _Running, encoder: ResponseEncoder) -> None:
    """Runs a turn whose events nobody reads.

    Raises:
        EngineFailed: the engine failed; the encoder knows.
    """
    events = running.events()
    try:
        async for event in events:
            encoder.event(event)
    except EngineFailed as error:
        encoder.failed(error)
        raise
    finally:
        await events.aclose()  # type: ignore[attr-defined]


async def _in_background(running: _Running, encoder: ResponseEncoder) -> None:
    with contextlib.suppress(EngineFailed):
        await _drain(running, encoder)


def _json(body: object, headers: dict[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(body), media_type="application/json", headers=headers)
