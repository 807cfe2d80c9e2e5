"""OpenAI's Chat Completions: ``POST /v1/chat/completions``."""

from __future__ import annotations

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from .chat_events import ChatEncoder, completion_body
from .chat_request import chat_request
from .sse import streaming, unless_gone
from .turns import TurnService, collect

__all__ = ["routes"]


def routes(service: TurnService) -> list[Route]:
    """The routes of this API."""
    default = service.config.thinking_default

    async def create(request: Request) -> Response:
        asked = chat_request(
            await request.body(),
            request.headers,
            default_model=service.config.model_id,
            thinking_default=default is not False,
        )
        turn = await service.start(asked, request.state.owner)
        if asked.stream:
            return streaming(turn, ChatEncoder(turn, service.tokenizer), headers=turn.headers)
        answer = await unless_gone(request, collect(turn))
        body = msgspec.json.encode(completion_body(turn, answer, service.tokenizer))
        return Response(body, media_type="application/json", headers=turn.headers)

    return [Route("/v1/chat/completions", create, methods=["POST"])]
