"""Anthropic's Messages: ``POST /v1/messages`` and ``/v1/messages/count_tokens``."""

from __future__ import annotations

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from .anthropic_events import MessagesEncoder, message_body
from .anthropic_request import messages_request
from .anthropic_schemas import CountBody, MessagesBody
from .errors import ApiError
from .schemas import decode
from .sse import streaming, unless_gone
from .turns import TurnService, collect

__all__ = ["routes"]


def routes(service: TurnService) -> list[Route]:
    """The routes of this API."""

    async def create(request: Request) -> Response:
        body, ignored = decode(await request.body(), MessagesBody)
        asked = messages_request(
            body,
            headers=request.headers,
            ignored=ignored,
            thinking_default=service.config.thinking_default,
            default_model=service.config.model_id,
        )
        turn = await service.start(asked, request.state.owner)
        if asked.stream:
            return streaming(turn, MessagesEncoder(turn), headers=turn.headers)
        answer = await unless_gone(request, collect(turn))
        if answer.reason == "cancelled":
            raise ApiError(
                503,
                "the server stopped this request",
                kind="overloaded_error",
                retry_after=1,
            )
        return _json(message_body(turn, answer), turn.headers)

    async def count(request: Request) -> Response:
        body, ignored = decode(await request.body(), CountBody)
        asked = messages_request(
            body,
            headers=request.headers,
            ignored=ignored,
            thinking_default=service.config.thinking_default,
            default_model=service.config.model_id,
        )
        n_tokens = await service.count_tokens(asked, request.state.owner)
        return _json({"input_tokens": n_tokens})

    return [
        Route("/v1/messages", create, methods=["POST"]),
        Route("/v1/messages/count_tokens", count, methods=["POST"]),
    ]


def _json(body: object, headers: dict[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(body), media_type="application/json", headers=headers)
