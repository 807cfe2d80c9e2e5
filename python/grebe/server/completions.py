"""Without the chat protocol: ``/v1/completions``, ``/tokenize``, ``/detokenize``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from .chat_request import chat_request
from .completion_events import CompletionEncoder, text_body
from .errors import invalid
from .openai_options import sampling_options, session_hint, stop_list
from .option_checks import token_limit
from .raw_text import raw_job, raw_tokens
from .requests import RawRequest
from .schemas import CompletionBody, DetokenizeBody, TokenizeBody, decode
from .sse import streaming, unless_gone
from .turns import TurnService, collect

__all__ = ["raw_request", "routes"]

MAX_LOGPROBS = 20


def raw_request(
    data: bytes, headers: Mapping[str, str] | None = None, *, default_model: str = ""
) -> RawRequest:
    """A request of ``POST /v1/completions``.

    Raises:
        ApiError: whatever is wrong with it.
    """
    body, ignored = decode(data, CompletionBody)
    if body.best_of not in (None, 1):
        raise invalid("Invalid best_of value (currently only best_of = 1 is supported)", "best_of")
    if body.logprobs is not None and not 0 <= body.logprobs <= MAX_LOGPROBS:
        raise invalid(
            f"Invalid logprobs value, the valid range of logprobs is [0, {MAX_LOGPROBS}]",
            "logprobs",
        )
    if body.stream and body.echo and body.logprobs is not None:
        raise invalid("logprobs of an echoed prompt cannot be streamed", "logprobs")
    limit = body.max_tokens
    if not (limit == 0 and body.echo):  # which asks for the prompt's log-probabilities alone
        limit = token_limit(limit, "max_tokens")
    return RawRequest(
        prompt=_prompt(body.prompt),
        model=body.model or default_model,
        suffix=body.suffix or None,
        echo=bool(body.echo),
        sampling=sampling_options(body, body.logprobs),
        max_tokens=limit,
        stop=stop_list(body.stop),
        stream=bool(body.stream),
        include_usage=bool(body.stream_options and body.stream_options.include_usage),
        session_hint=session_hint(headers or {}),
        ignored=ignored,
    )


def _prompt(prompt: str | list[Any] | None) -> str | tuple[int, ...]:
    """One prompt of text or tokens."""
    if prompt is None or isinstance(prompt, str):
        return prompt or ""
    if prompt and all(isinstance(entry, int) for entry in prompt):
        return tuple(prompt)
    if len(prompt) != 1 or isinstance(prompt[0], int):
        raise invalid(f"prompt is a list of {len(prompt)}; one prompt is expected", "prompt")
    entry = prompt[0]
    return entry if isinstance(entry, str) else tuple(entry)


def routes(service: TurnService) -> list[Route]:
    """The routes."""
    tokenizer, markers, config = service.tokenizer, service.markers, service.config

    async def create(request: Request) -> Response:
        asked = raw_request(await request.body(), request.headers, default_model=config.model_id)
        tokens, n_own = await service.beside(lambda: raw_tokens(asked, tokenizer, markers))
        turn = service.submit(asked, raw_job(asked, tokens, tokenizer, config.deadline_s))
        if asked.stream:
            return streaming(turn, CompletionEncoder(turn, tokenizer))
        answer = await unless_gone(request, collect(turn))
        return _json(text_body(turn, answer, tokenizer, n_own))

    async def tokenize(request: Request) -> Response:
        data = await request.body()
        body, _ = decode(data, TokenizeBody)
        if body.messages is not None:
            asked = chat_request(data, thinking_default=config.thinking_default is not False)
            prepared = await service.beside(lambda: service.prepare(asked, request.state.owner))
            tokens = prepared.encoded.ids
        else:
            tokens = await service.beside(lambda: _tokens(body))
        result: dict[str, Any] = {
            "tokens": tokens,
            "count": len(tokens),
            "max_model_len": config.n_ctx,
        }
        if body.with_pieces:
            result["tokens"] = [{"id": token, "piece": _piece(token)} for token in tokens]
        return _json(result)

    def _tokens(body: TokenizeBody) -> list[int]:
        text = next((t for t in (body.prompt, body.content, body.text) if t is not None), None)
        if text is None:
            raise invalid("Missing required parameter: 'content'.", "content")
        add = body.add_special if body.add_special is not None else body.add_special_tokens
        tokens = tokenizer.encode(text, allow_special=body.parse_special is not False)
        return [markers.bos, *tokens] if add else tokens

    def _piece(token: int) -> str | list[int]:
        data = tokenizer.token_bytes(token)
        try:
            return data.decode()
        except UnicodeDecodeError:
            return list(data)

    async def detokenize(request: Request) -> Response:
        body, _ = decode(await request.body(), DetokenizeBody)
        for token in body.tokens:
            if not 0 <= token < tokenizer.vocab_size:
                raise invalid(
                    f"tokens: {token} is no token id; there are {tokenizer.vocab_size}", "tokens"
                )
        text = await service.beside(lambda: tokenizer.decode(body.tokens))
        return _json({"content": text, "prompt": text})

    return [
        Route("/v1/completions", create, methods=["POST"]),
        Route("/tokenize", tokenize, methods=["POST"]),
        Route("/detokenize", detokenize, methods=["POST"]),
    ]


def _json(body: object) -> Response:
    return Response(msgspec.json.encode(body), media_type="application/json")
