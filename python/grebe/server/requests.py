"""A request as the service sees it, whatever API it came through."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from ..chat.messages import Conversation
from .errors import ApiError

__all__ = ["Api", "ChatRequest", "RawRequest", "SamplingOptions", "Unmatched"]

Api = Literal["chat", "messages", "responses", "completions"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingOptions:
    """What the client said about sampling; None is for "nothing", not for a default.

    Attributes:
        top_logprobs: how many alternatives to list per token; None: no log-probabilities at all.
    """

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    top_logprobs: int | None = None


@dataclass(frozen=True, slots=True)
class Unmatched:
    """A tool call without a result, or a result without a call.

    It is let pass when the id is one that this server gave out to the same owner; else ``error`` is
    the answer.
    """

    call_id: str
    error: ApiError


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatRequest:
    """One generation of an assistant's turn.

    Attributes:
        api: that it came through.
        conversation: what the prompt shows. ``forced`` with thinking off is part of the prompt.
        model: the name to give back; any name means the one model.
        sampling: as the client sent it.
        max_tokens: of reasoning and answer together; clamped to the context. None: the default of
            the mode.
        stop: stop strings; they act on the answer alone.
        stream: whether the answer goes out as it is made.
        include_usage: of Chat's ``stream_options``.
        tools_allowed: False for tool_choice "none".
        parallel_tool_calls: False: the turn ends after its first call.
        forced_by_mask: like ``conversation.forced``, without a trace in the prompt.
        masked_schema: like ``conversation.response_schema``, without a trace in the prompt.
        unmatched: see there; the first that does not pass is the answer.
        session_hint: what the client says of the session that it is in.
        ignored: fields that were not understood, for a debug log.
        extra: whatever the API module wants to find again in its encoder.
    """

    api: Api
    conversation: Conversation
    model: str = ""
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    stream: bool = False
    include_usage: bool = False
    tools_allowed: bool = True
    parallel_tool_calls: bool = True
    forced_by_mask: str | None = None
    masked_schema: Mapping[str, Any] | None = None
    unmatched: tuple[Unmatched, ...] = ()
    session_hint: str | None = None
    ignored: tuple[str, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def constrained(self) -> Conversation:
        """The conversation with everything that the answer must obey, for the mask."""
        conversation = self.conversation
        if self.forced_by_mask is not None:
            conversation = replace(conversation, forced=self.forced_by_mask)
        if self.masked_schema is not None:
            conversation = replace(conversation, response_schema=self.masked_schema)
        return conversation


@dataclass(frozen=True, slots=True, kw_only=True)
class RawRequest:
    """A continuation of bare text or tokens, without the chat protocol.

    Attributes:
        api: that it came through.
        prompt: token ids, or text in which marker spellings are markers and which gets a BOS.
        suffix: what comes after the gap that the model fills.
        echo: give the prompt back before the answer.
    """

    api: Api = "completions"
    prompt: str | tuple[int, ...]
    model: str = ""
    suffix: str | None = None
    echo: bool = False
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    stream: bool = False
    include_usage: bool = False
    session_hint: str | None = None
    ignored: tuple[str, ...] = ()
