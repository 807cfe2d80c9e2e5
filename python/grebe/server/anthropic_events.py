"""A turn as /v1/messages answers it: one message, or the events that make it."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable
from typing import Any

import msgspec

from ..chat.deltas import (
    CallArguments,
    CallEnd,
    CallStart,
    ContentDelta,
    Delta,
    ReasoningDelta,
)
from ..chat.messages import ToolCall
from .errors import anthropic_error_body, api_error
from .jobs import EndReason, EngineFailed, Finished, JobEvent, JobUsage, Progress, TokenEvent
from .requests import ChatRequest
from .sse import sse_event
from .turns import Answer, Turn

__all__ = ["MessagesEncoder", "message_body"]

_STOP_REASONS: dict[EndReason, str] = {
    "stop": "end_turn",
    "stop_string": "stop_sequence",
    "tool_calls": "tool_use",
    "length": "max_tokens",
    "context": "max_tokens",
    "cancelled": "end_turn",
}

_encode = msgspec.json.Encoder().encode


def message_body(turn: Turn, answer: Answer) -> dict[str, Any]:
    """The answer to a request without ``stream``."""
    content: list[dict[str, Any]] = []
    if answer.reasoning:
        content.append(
            {"type": "thinking", "thinking": answer.reasoning, "signature": _signature(turn)}
        )
    if answer.content:
        content.append({"type": "text", "text": answer.content})
    content += [_tool_use(call) for call in answer.calls]
    return {
        **_message(turn),
        "content": content,
        "stop_reason": _stop_reason(answer.reason, bool(answer.calls)),
        "stop_sequence": answer.stop_sequence,
        "usage": _usage(answer.usage),
    }


class MessagesEncoder:
    """The events of one message.

    ``message_start`` waits until the prompt's cached part is known, or until the first keep-alive.
    The block of a thinking turn is opened at once: keep-alives are empty deltas in it, because
    some clients do not take a ``ping`` for one. A text block is opened when there is text, or when
    a keep-alive needs it; a turn that only calls tools has none.
    """

    def __init__(self, turn: Turn) -> None:
        self._turn = turn
        request = turn.request
        chat = request if isinstance(request, ChatRequest) else None
        self._thinking = chat is not None and chat.conversation.thinking
        # Such a turn cannot begin with text.
        self._forced = chat is not None and (chat.constrained.forced is not None)
        self._cached = 0
        self._started = False
        self._index = -1
        self._open: str | None = None
        self._n_calls = 0

    def start(self) -> bytes:
        """Nothing yet: the headers are enough for the first seconds."""
        return b""

    def event(self, event: JobEvent) -> bytes:
        """Of the message."""
        if isinstance(event, Progress):
            self._cached = event.cached
            return self._start()
        out = self._start()
        if isinstance(event, TokenEvent):
            return out + self._deltas(event.deltas)
        out += self._deltas(event.deltas)
        if event.reason == "cancelled":
            # By the server; what went out must not look complete.
            return out + self.failed(EngineFailed("the request was cancelled by the server"))
        return out + self._end(event)

    def keepalive(self) -> bytes:
        """An empty delta in the open block."""
        out = self._start()
        if self._open is None and not self._forced and self._index < 0:
            out += self._begin("text", {"type": "text", "text": ""})
        if self._open == "thinking":
            return out + self._delta("thinking_delta", "thinking", "")
        if self._open == "text":
            return out + self._delta("text_delta", "text", "")
        if self._open == "tool_use":
            return out + self._delta("input_json_delta", "partial_json", "")
        return out + _event({"type": "ping"})

    def failed(self, error: EngineFailed) -> bytes:
        """The ``error`` event."""
        body = anthropic_error_body(api_error(error))
        return _event({"type": "error", "error": body["error"]})

    def _start(self) -> bytes:
        if self._started:
            return b""
        self._started = True
        usage = _usage(JobUsage(self._turn.prompt_tokens, self._cached, 0))
        message = {
            **_message(self._turn),
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": usage,
        }
        out = _event({"type": "message_start", "message": message})
        if self._thinking:
            block = {"type": "thinking", "thinking": "", "signature": ""}
            out += self._begin("thinking", block)
        return out + _event({"type": "ping"})

    def _deltas(self, deltas: Iterable[Delta]) -> bytes:
        return b"".join(map(self._one, deltas))

    def _one(self, delta: Delta) -> bytes:
        if isinstance(delta, ContentDelta):
            begun = self._begin("text", {"type": "text", "text": ""})
            return begun + self._delta("text_delta", "text", delta.text)
        if isinstance(delta, ReasoningDelta):
            block = {"type": "thinking", "thinking": "", "signature": ""}
            begun = self._begin("thinking", block)
            return begun + self._delta("thinking_delta", "thinking", delta.text)
        if isinstance(delta, CallStart):
            call: dict[str, Any] = {
                "type": "tool_use",
                "id": delta.id,
                "name": delta.name,
                "input": {},
            }
            return self._close() + self._begin("tool_use", call)
        if isinstance(delta, CallArguments):
            return self._delta("input_json_delta", "partial_json", delta.text)
        assert isinstance(delta, CallEnd)
        self._n_calls += 1
        return self._close()

    def _begin(self, kind: str, block: dict[str, Any]) -> bytes:
        """Opens a block of this kind unless it is open."""
        if self._open == kind:
            return b""
        closed = self._close()
        self._open = kind
        self._index += 1
        start = {"type": "content_block_start", "index": self._index, "content_block": block}
        return closed + _event(start)

    def _close(self) -> bytes:
        if self._open is None:
            return b""
        out = b""
        if self._open == "thinking":
            out = self._delta("signature_delta", "signature", _signature(self._turn))
        self._open = None
        return out + _event({"type": "content_block_stop", "index": self._index})

    def _delta(self, kind: str, field: str, text: str) -> bytes:
        return _event(
            {
                "type": "content_block_delta",
                "index": self._index,
                "delta": {"type": kind, field: text},
            }
        )

    def _end(self, event: Finished) -> bytes:
        delta = {
            "stop_reason": _stop_reason(event.reason, self._n_calls > 0),
            "stop_sequence": event.stop_sequence,
        }
        return (
            self._close()
            + _event({"type": "message_delta", "delta": delta, "usage": _usage(event.usage)})
            + _event({"type": "message_stop"})
        )


def _event(data: dict[str, Any]) -> bytes:
    return sse_event(_encode(data), str(data["type"]))


def _message(turn: Turn) -> dict[str, Any]:
    return {
        "id": f"msg_{turn.id}",
        "type": "message",
        "role": "assistant",
        "model": turn.request.model,
    }


def _usage(usage: JobUsage) -> dict[str, Any]:
    """Anthropic's ``input_tokens`` are those that were not in the cache."""
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
    }


def _stop_reason(reason: EndReason, called: bool) -> str:
    return "tool_use" if reason == "stop" and called else _STOP_REASONS[reason]


def _signature(turn: Turn) -> str:
    """Clients give it back with the thinking; nothing needs to be read from it."""
    return base64.b64encode(f"grebe:{turn.id}".encode()).decode()


def _tool_use(call: ToolCall) -> dict[str, Any]:
    return {
        "type": "tool_use",
        "id": call.id,
        "name": call.name,
        "input": json.loads(call.arguments),
    }
