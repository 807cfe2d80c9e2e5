"""Turns without an engine: their events are given."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

from grebe.chat.deltas import CallArguments, CallEnd, CallStart, Delta
from grebe.server.jobs import EndReason, Finished, JobEvent, JobUsage, Progress, TokenEvent
from grebe.server.requests import ChatRequest
from grebe.server.turns import Turn


class Sink:
    """As much of a parser as a turn looks at."""

    reasoning_tokens = 3


async def _stream(events: Sequence[JobEvent]) -> AsyncIterator[JobEvent]:
    for event in events:
        yield event


def fake_turn(request: ChatRequest, events: Sequence[JobEvent] = (), n_prompt: int = 100) -> Turn:
    sink: Any = Sink()
    turn = Turn(request, range(n_prompt), _stream(events), sink)
    turn.id, turn.created = "T", 1
    return turn


def said(*deltas: Delta) -> list[JobEvent]:
    """Progress, then one token for each delta."""
    return [Progress(40, 100, 40), *(TokenEvent(7, (delta,)) for delta in deltas)]


def call(name: str, *pieces: str, index: int = 0) -> list[Delta]:
    """A whole call."""
    return [
        CallStart(index, f"call_{index}", name),
        *(CallArguments(index, piece) for piece in pieces),
        CallEnd(index, name, "".join(pieces)),
    ]


def ended(
    reason: EndReason, *deltas: Delta, n: int = 9, stop_sequence: str | None = None
) -> Finished:
    return Finished(reason, deltas, JobUsage(100, 40, n), stop_sequence)


def lines(data: bytes) -> list[str]:
    """The events of a stream, each as its two lines say."""
    assert data == b"" or data.endswith(b"\n\n")
    events = data.decode().split("\n\n")[:-1]
    shown = []
    for event in events:
        name, body = event.split("\n")
        assert body.startswith('data: {"type":"' + name.removeprefix("event: ") + '"')
        shown.append(body.removeprefix("data: "))
    return shown
