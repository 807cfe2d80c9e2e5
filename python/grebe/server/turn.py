"""One turn on its way to a client, and the whole of it."""

from __future__ import annotations

import secrets
import string
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass

from ..chat.deltas import CallEnd, CallStart, ContentDelta, Delta, ReasoningDelta
from ..chat.messages import ToolCall
from .jobs import EndReason, EngineFailed, Finished, JobEvent, JobUsage, Sink, TokenEvent
from .requests import ChatRequest, RawRequest

__all__ = ["ENDED", "Answer", "Turn", "collect"]

#: For an answer that is neither whole nor cut by a limit.
ENDED = "the server ended the request before its answer was complete"

_ALPHANUMERICS = string.ascii_letters + string.digits


class Turn:
    """A generation that was accepted: nothing of it can be an HTTP error any more.

    Attributes:
        id: random, of letters and digits; APIs put their prefix before it.
        created: Unix time.
        request: what it answers.
        prompt_tokens: of its prompt.
        headers: for the response.
    """

    def __init__(
        self,
        request: ChatRequest | RawRequest,
        tokens: Sequence[int],
        stream: AsyncIterator[JobEvent],
        sink: Sink,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.id = "".join(secrets.choice(_ALPHANUMERICS) for _ in range(24))
        self.created = int(time.time())
        self.request = request
        self.tokens = tokens
        self.prompt_tokens = len(tokens)
        self.headers = dict(headers or {})
        self._stream, self._sink = stream, sink

    def events(self) -> AsyncIterator[JobEvent]:
        """The job's events, up to Finished. To be iterated once; closing it cancels the job."""
        return self._stream

    @property
    def reasoning_tokens(self) -> int:
        """Of the output so far; certain after Finished."""
        return int(getattr(self._sink, "reasoning_tokens", 0))


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole turn.

    Attributes:
        calls: complete ones only.
        reason: "tool_calls" if there are calls and nothing cut the output.
        tokens: all events, for log-probabilities.
        deltas: all of them, in order.
        finished: the last event.
    """

    reasoning: str
    content: str
    calls: tuple[ToolCall, ...]
    reason: EndReason
    stop_sequence: str | None
    usage: JobUsage
    reasoning_tokens: int
    tokens: Sequence[TokenEvent]
    deltas: Sequence[Delta]
    finished: Finished


async def collect(turn: Turn) -> Answer:
    """Runs a turn to its end, for answers that are not streamed.

    Raises:
        EngineFailed: the engine failed, or the server ended the request: its time was up, or the
            server stops.
    """
    tokens: list[TokenEvent] = []
    deltas: list[Delta] = []
    finished: Finished | None = None
    stream = turn.events()
    try:
        async for event in stream:
            if isinstance(event, TokenEvent):
                tokens.append(event)
                deltas += event.deltas
            elif isinstance(event, Finished):
                deltas += event.deltas
                finished = event
    finally:
        close = getattr(stream, "aclose", None)
        if close is not None:
            await close()
    if finished is None or finished.reason == "cancelled":
        raise EngineFailed(ENDED)
    ids = {delta.index: delta.id for delta in deltas if isinstance(delta, CallStart)}
    calls = tuple(
        ToolCall(delta.name, delta.arguments, ids[delta.index])
        for delta in deltas
        if isinstance(delta, CallEnd)
    )
    return Answer(
        "".join(delta.text for delta in deltas if isinstance(delta, ReasoningDelta)),
        "".join(delta.text for delta in deltas if isinstance(delta, ContentDelta)),
        calls,
        "tool_calls" if calls and finished.reason == "stop" else finished.reason,
        finished.stop_sequence,
        finished.usage,
        turn.reasoning_tokens,
        tokens,
        deltas,
        finished,
    )
