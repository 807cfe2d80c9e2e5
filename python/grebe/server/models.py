"""``GET /v1/models``: the one model, in a form that both vendors' clients read."""

from __future__ import annotations

import time
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from .turns import TurnService

__all__ = ["model_body", "models_body", "routes"]


def model_body(name: str, created: int, n_ctx: int) -> dict[str, Any]:
    """One model: OpenAI's fields, Anthropic's, and the context that several clients look for."""
    return {
        "id": name,
        "object": "model",
        "created": created,
        "owned_by": "grebe",
        "type": "model",
        "display_name": name,
        "created_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(created)),
        "context_length": n_ctx,
        "max_model_len": n_ctx,
        "max_input_tokens": n_ctx,
        "max_tokens": n_ctx,
    }


def models_body(name: str, created: int, n_ctx: int) -> dict[str, Any]:
    """The list."""
    return {
        "object": "list",
        "data": [model_body(name, created, n_ctx)],
        "has_more": False,
        "first_id": name,
        "last_id": name,
    }


def routes(service: TurnService) -> list[Route]:
    """The routes. Any name is answered with the one model: clients probe names of their own."""
    config = service.config

    async def listed(request: Request) -> Response:
        return _json(models_body(config.model_id, service.created, config.n_ctx))

    async def one(request: Request) -> Response:
        return _json(model_body(request.path_params["name"], service.created, config.n_ctx))

    return [
        Route("/v1/models", listed, methods=["GET"]),
        Route("/v1/models/{name:path}", one, methods=["GET"]),
    ]


def _json(body: dict[str, Any]) -> Response:
    return Response(msgspec.json.encode(body), media_type="application/json")
