"""What /v1/responses takes, as far as it is understood. Everything else is let pass."""

from __future__ import annotations

from typing import Any

import msgspec

__all__ = ["ResponsesBody"]


class ResponsesBody(msgspec.Struct, kw_only=True):
    """The request. Items, tools and parts stay dictionaries: their types grow with the clients."""

    input: str | list[dict[str, Any]] | None = None
    model: str | None = None
    instructions: str | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    reasoning: dict[str, Any] | None = None
    text: dict[str, Any] | None = None
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_logprobs: int | None = None
    include: list[str] | None = None
    stream: bool | None = None
    store: bool | None = None
    background: bool | None = None
    previous_response_id: str | None = None
    prompt_cache_key: str | None = None
    metadata: dict[str, Any] | None = None
    # Refused: what they name is not here.
    conversation: Any = None
    prompt: Any = None
    # Given back and without effect on the answer:
    max_tool_calls: int | None = None
    safety_identifier: str | None = None
    service_tier: str | None = None
    truncation: str | None = None
    user: str | None = None
