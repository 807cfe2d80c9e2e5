"""What Chat Completions says: whole answers, chunks of a stream, usage, log-probabilities."""

from __future__ import annotations

import math
from collections import deque
from typing import Any, Protocol

import msgspec

from ..chat.deltas import (
    CallArguments,
    CallEnd,
    CallStart,
    ContentDelta,
    Delta,
    ReasoningDelta,
)
from .errors import api_error, openai_error_body
from .jobs import EngineFailed, Finished, JobEvent, JobUsage, TokenEvent
from .requests import ChatRequest
from .sse import sse_event
from .turns import ENDED, Answer, Turn

__all__ = ["ChatEncoder", "Logprobs", "completion_body", "token_entry", "usage_body"]

#: By the reason of the engine. "cancelled" is none: it is an error.
FINISH = {
    "stop": "stop",
    "stop_string": "stop",
    "tool_calls": "tool_calls",
    "length": "length",
    "context": "length",
}

_encode = msgspec.json.Encoder().encode


class TokenBytes(Protocol):
    """What is asked of the tokenizer here."""

    def token_bytes(self, id: int, /) -> bytes:
        """Bytes of one token."""

    def is_special(self, id: int, /) -> bool:
        """Whether it is a marker."""


def usage_body(usage: JobUsage, reasoning_tokens: int = 0) -> dict[str, Any]:
    """``usage``: OpenAI's, DeepSeek's two numbers of the cache, and why it did not have more."""
    prompt, cached = usage.prompt_tokens, usage.cached_tokens
    body: dict[str, Any] = {
        "prompt_tokens": prompt,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": prompt + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": cached, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": reasoning_tokens,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
        "prompt_cache_hit_tokens": cached,
        "prompt_cache_miss_tokens": prompt - cached,
    }
    if usage.miss != "none":
        body["prompt_cache_miss_reason"] = usage.miss
        if usage.miss_at is not None:
            body["prompt_cache_miss_at"] = usage.miss_at
    return body


def completion_body(turn: Turn, answer: Answer, tokenizer: TokenBytes) -> dict[str, Any]:
    """``chat.completion``."""
    request = turn.request
    assert isinstance(request, ChatRequest)
    message: dict[str, Any] = {
        "role": "assistant",
        "content": answer.content if answer.content or not answer.calls else None,
        "refusal": None,
        "annotations": [],
    }
    if request.conversation.thinking:
        message["reasoning_content"] = answer.reasoning
    if answer.calls:
        message["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in answer.calls
        ]
    logprobs = None
    if request.sampling.top_logprobs is not None:
        entries = Logprobs(tokenizer, thinking=request.conversation.thinking)
        for event in answer.tokens:
            entries.sampled(event)
            for delta in event.deltas:
                entries.became(delta)
        for delta in answer.finished.deltas:
            entries.became(delta)
        logprobs = entries.body()
    return {
        "id": f"chatcmpl-{turn.id}",
        "object": "chat.completion",
        "created": turn.created,
        "model": request.model,
        "choices": [
            {
                "index": 0,
                "message": message,
                "logprobs": logprobs,
                "finish_reason": FINISH[answer.reason],
            }
        ],
        "usage": usage_body(answer.usage, answer.reasoning_tokens),
        "service_tier": "default",
        "system_fingerprint": None,
    }


class ChatEncoder:
    """Writes ``chat.completion.chunk`` events: role, reasoning, answer, calls, reason, usage."""

    def __init__(self, turn: Turn, tokenizer: TokenBytes) -> None:
        request = turn.request
        assert isinstance(request, ChatRequest)
        self._turn, self._request = turn, request
        self._calls = 0
        self._entries: Logprobs | None = None
        if request.sampling.top_logprobs is not None:
            self._entries = Logprobs(tokenizer, thinking=request.conversation.thinking)
        # What all chunks have in common is written once: a chunk is made for each token.
        head = {
            "id": f"chatcmpl-{turn.id}",
            "object": "chat.completion.chunk",
            "created": turn.created,
            "model": request.model,
            "service_tier": "default",
            "system_fingerprint": None,
        }
        self._head = _encode(head)[:-1] + b',"choices":'
        self._tail = b',"usage":null}' if request.include_usage else b"}"

    def start(self) -> bytes:
        """The role."""
        return self._chunk({"role": "assistant", "content": "", "refusal": None})

    def keepalive(self) -> bytes:
        """An answer that has not grown."""
        return self._chunk({"content": ""})

    def event(self, event: JobEvent) -> bytes:
        """Chunks of what became certain."""
        if isinstance(event, TokenEvent):
            if self._entries is not None:
                self._entries.sampled(event)
            return b"".join(map(self._delta, event.deltas)) if event.deltas else b""
        if isinstance(event, Finished):
            return self._finished(event)
        return b""

    def failed(self, error: EngineFailed) -> bytes:
        """The error, in the place of the next chunk."""
        return sse_event(_encode(openai_error_body(api_error(error))))

    def _delta(self, delta: Delta) -> bytes:
        if self._entries is not None:
            self._entries.became(delta)
        if isinstance(delta, ContentDelta):
            return self._chunk({"content": delta.text})
        if isinstance(delta, ReasoningDelta):
            return self._chunk({"reasoning_content": delta.text})
        if isinstance(delta, CallStart):
            function: dict[str, Any] = {"name": delta.name, "arguments": ""}
            call = {
                "index": delta.index,
                "id": delta.id,
                "type": "function",
                "function": function,
            }
            return self._chunk({"tool_calls": [call]})
        if isinstance(delta, CallArguments):
            call = {"index": delta.index, "function": {"arguments": delta.text}}
            return self._chunk({"tool_calls": [call]})
        if isinstance(delta, CallEnd):
            self._calls += 1
        return b""

    def _finished(self, event: Finished) -> bytes:
        out = [self._delta(delta) for delta in event.deltas]
        if event.reason == "cancelled":
            return b"".join(out) + self.failed(EngineFailed(ENDED))
        reason = "tool_calls" if self._calls and event.reason == "stop" else event.reason
        out.append(self._chunk({}, FINISH[reason]))
        if self._request.include_usage:
            usage = usage_body(event.usage, self._turn.reasoning_tokens)
            out.append(sse_event(self._head + b'[],"usage":' + _encode(usage) + b"}"))
        out.append(sse_event(b"[DONE]"))
        return b"".join(out)

    def _chunk(self, delta: dict[str, Any], reason: str | None = None) -> bytes:
        logprobs = None if self._entries is None else self._entries.take()
        choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        return sse_event(self._head + b"[" + _encode(choice) + b"]" + self._tail)


class Logprobs:
    """Sorts tokens into those of the answer, of the reasoning, and of neither.

    A token belongs where its text went, which may become certain later; those of markers, of calls
    and of stop strings belong nowhere.
    """

    def __init__(self, tokenizer: TokenBytes, *, thinking: bool) -> None:
        self._tokenizer, self._thinking = tokenizer, thinking
        self._pending: deque[TokenEvent] = deque()
        self._carry = b""  # of the newest token that was sorted: what its text still lacks
        self._content: list[dict[str, Any]] = []
        self._reasoning: list[dict[str, Any]] = []

    def sampled(self, event: TokenEvent) -> None:
        """One more token."""
        self._pending.append(event)

    def became(self, delta: Delta) -> None:
        """What some of them made."""
        if isinstance(delta, ContentDelta):
            self._sort(delta.text.encode(), self._content)
        elif isinstance(delta, ReasoningDelta):
            self._sort(delta.text.encode(), self._reasoning)
        else:
            self._pending.clear()
            self._carry = b""

    def take(self) -> dict[str, Any] | None:
        """``logprobs`` of a choice: everything since the last call."""
        if not self._content and not self._reasoning:
            return None
        return self.body()

    def body(self) -> dict[str, Any]:
        """As :meth:`take`, also when there is nothing."""
        body: dict[str, Any] = {"content": self._content, "refusal": None}
        if self._thinking:
            body["reasoning_content"] = self._reasoning
        self._content, self._reasoning = [], []
        return body

    def _sort(self, left: bytes, into: list[dict[str, Any]]) -> None:
        n = min(len(left), len(self._carry))
        carry, self._carry = self._carry, b""
        if left[:n] == carry[:n]:
            left, self._carry = left[n:], carry[n:]
        while left and self._pending:
            event = self._pending.popleft()
            data = self._tokenizer.token_bytes(event.token)
            n = min(len(left), len(data))
            if left[:n] != data[:n] and self._tokenizer.is_special(event.token):
                continue
            into.append(token_entry(event, self._tokenizer))
            left, self._carry = left[n:], data[n:]


def token_entry(event: TokenEvent, tokenizer: TokenBytes) -> dict[str, Any]:
    """A token with its log-probability and the alternatives."""
    return {
        **_entry(event.token, event.logprob, tokenizer),
        "top_logprobs": [_entry(top.token, top.logprob, tokenizer) for top in event.top_logprobs],
    }


def _entry(token: int, logprob: float, tokenizer: TokenBytes) -> dict[str, Any]:
    data = tokenizer.token_bytes(token)
    return {
        "token": data.decode("utf-8", "replace"),
        # JSON has no infinity; OpenAI says -9999 for "not at all".
        "logprob": logprob if math.isfinite(logprob) else -9999.0,
        "bytes": list(data),
    }
