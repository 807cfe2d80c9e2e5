"""A rendered prompt: markers and texts in turn.

A text is encoded by itself and without the special tokens, so it cannot spell a marker; two texts
never meet, since the tokens of the whole are not those of the parts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from .markers import SPELLINGS

__all__ = ["Body", "Marker", "Prompt", "Segment", "Start", "Text", "Writer"]

#: Where the model's output begins: in its reasoning, in its answer, or inside a block of calls.
Start = Literal["reasoning", "content", "block"]


@dataclass(frozen=True, slots=True)
class Marker:
    """One token, named as in ``markers.SPELLINGS``."""

    name: str


@dataclass(frozen=True, slots=True)
class Text:
    """Text that holds no marker, whatever it spells. Never empty."""

    text: str


@dataclass(frozen=True, slots=True)
class Body:
    """What the model put out as one assistant message, up to its end marker.

    Attributes:
        message: its index in the conversation.
        segments: as they are written when the tokens are not remembered.
        reasoned: whether it begins in the reasoning, after ``<think>``.
    """

    message: int
    segments: tuple[Marker | Text, ...]
    reasoned: bool


Segment = Marker | Text | Body


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt, not yet encoded.

    Attributes:
        segments: in order; a marker stands between any two texts.
        start: what the model goes on with.
        ends: how many segments there are up to places that other prompts may share: the end of
            the system part, ends of messages, the last header before its ``<think>``.
        turn: how many there are up to the end of that header. What follows, if anything, counts
            as said by the model.
    """

    segments: tuple[Segment, ...]
    start: Start
    ends: tuple[int, ...] = ()
    turn: int = 0

    @property
    def text(self) -> str:
        """The prompt as one text, markers spelled out."""
        return "".join(
            SPELLINGS[part.name] if isinstance(part, Marker) else part.text for part in self.flat()
        )

    def flat(self) -> Iterable[Marker | Text]:
        """All segments, those of bodies among them."""
        for segment in self.segments:
            if isinstance(segment, Body):
                yield from segment.segments
            else:
                yield segment


class Writer:
    """Puts segments together; texts that meet become one."""

    def __init__(self) -> None:
        self.segments: list[Segment] = []
        self._texts: list[str] = []

    def text(self, text: str) -> Writer:
        """Appends text."""
        if text:
            self._texts.append(text)
        return self

    def marker(self, name: str) -> Writer:
        """Appends a marker."""
        self._flush()
        self.segments.append(Marker(name))
        return self

    def spelled(self, text: str) -> Writer:
        """Appends text of our own, in which spellings are markers."""
        for i, part in enumerate(_SPELLED.split(text)):
            if i % 2:
                self.marker(_NAMES[part])
            else:
                self.text(part)
        return self

    def body(self, message: int, body: Writer, *, reasoned: bool) -> Writer:
        """Appends what another writer wrote as the output of the model."""
        self._flush()
        self.segments.append(Body(message, tuple(_plain(body.finish())), reasoned))
        return self

    def position(self) -> int:
        """How many segments there are; the next text begins a new one only after a marker."""
        self._flush()
        return len(self.segments)

    def finish(self) -> Sequence[Segment]:
        """The segments."""
        self._flush()
        return self.segments

    def _flush(self) -> None:
        if self._texts:
            self.segments.append(Text("".join(self._texts)))
            self._texts.clear()


def _plain(segments: Sequence[Segment]) -> Iterable[Marker | Text]:
    for segment in segments:
        assert not isinstance(segment, Body)
        yield segment


# Those that our own texts contain.
_NAMES = {SPELLINGS[name]: name for name in ("dsml", "think", "think_end")}
_SPELLED = re.compile("(" + "|".join(map(re.escape, _NAMES)) + ")")
