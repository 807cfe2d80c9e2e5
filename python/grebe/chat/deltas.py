"""What the parser of a model's output yields, piece by piece."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = [
    "CallArguments",
    "CallEnd",
    "CallStart",
    "ContentDelta",
    "Delta",
    "ReasoningDelta",
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
