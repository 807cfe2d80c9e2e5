"""What the parser of a model's output yields, piece by piece."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

__all__ = [
    "CallArguments",
    "CallEnd",
    "CallStart",
    "ContentDelta",
    "Delta",
    "EndReason",
    "ReasoningDelta",
    "Sunk",
]


@dataclass(frozen=True, slots=True)
class ReasoningDelta:
    """More of the reasoning."""

    text: str


@dataclass(frozen=True, slots=True)
class ContentDelta:
    """More of the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class CallStart:
    """A call has a name; its arguments follow.

    Attributes:
        index: 0 for the first call of the turn.
        id: new, unguessable, matches the result that the client will send.
    """

    index: int
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class CallArguments:
    """More of a call's arguments, JSON text. What came before is never taken back."""

    index: int
    text: str


@dataclass(frozen=True, slots=True)
class CallEnd:
    """The call is complete; ``arguments`` is the whole JSON text."""

    index: int
    name: str
    arguments: str


Delta = ReasoningDelta | ContentDelta | CallStart | CallArguments | CallEnd

#: Why an output is over.
EndReason = Literal["stop", "stop_string", "tool_calls", "length", "context", "cancelled"]


@dataclass(frozen=True, slots=True)
class Sunk:
    """What the parser made of a token.

    Attributes:
        deltas: became certain with it.
        end: set when the output is over, with this reason; the token is part of the output.
        stop_sequence: the stop string that ended it.
    """

    deltas: Sequence[Delta] = ()
    end: EndReason | None = None
    stop_sequence: str | None = None
