"""What /v1/messages takes, as far as it is understood. Everything else is let pass."""

from __future__ import annotations

from typing import Any, Union

import msgspec

__all__ = ["Blocks", "CountBody", "MessageParam", "MessagesBody"]

# Blocks stay dictionaries: a union of structs would refuse the types of tomorrow's clients.
# (Union: msgspec evaluates these on Python 3.10 too.)
Blocks = Union[str, list[Union[str, dict[str, Any]]], None]  # noqa: UP007


class MessageParam(msgspec.Struct):
    """One entry of ``messages``; ``role`` may be any, "system" included."""

    role: str
    content: Blocks = None


class CountBody(msgspec.Struct, kw_only=True):
    """What a prompt depends on: all that /v1/messages/count_tokens needs."""

    messages: list[MessageParam]
    model: str = ""
    system: Blocks = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: dict[str, Any] | str | None = None
    thinking: dict[str, Any] | None = None
    output_config: dict[str, Any] | None = None
    output_format: dict[str, Any] | None = None
    thread: Any = None


class MessagesBody(CountBody, kw_only=True):
    """The whole request."""

    max_tokens: int | None = None
    stop_sequences: list[str] | None = None
    stream: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    metadata: dict[str, Any] | None = None
