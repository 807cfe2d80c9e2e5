"""Prompts to token ids."""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Protocol

from .markers import Markers
from .prompt import Body, Marker, Prompt, Text

__all__ = ["Encoded", "Encoder", "Splices", "TextCache", "encode"]


class Encoder(Protocol):
    """What is asked of ``grebe.Tokenizer`` here."""

    def encode(self, text: str, /) -> Sequence[int]:
        """Ids of ordinary text."""


class Splices(Protocol):
    """Tokens that the model is known to have sampled."""

    def ids(self, body: Body) -> Sequence[int] | None:
        """All of a body, end marker included; None when it has to be encoded."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """A prompt in tokens.

    Attributes:
        ids: the prompt.
        marks: positions that later prompts may share, ascending.
        n_replayed: how many assistant messages are as they were sampled.
        turn: position where the model's turn begins, after its header.
    """

    ids: list[int]
    marks: tuple[int, ...]
    n_replayed: int
    turn: int


class TextCache:
    """Remembers the ids of long texts: a conversation comes back with every request.

    Thread-safe. What has not been asked for longest is forgotten first.
    """

    # Shorter ones are encoded faster than found.
    _WORTH = 256

    def __init__(self, tokenizer: Encoder, max_chars: int = 2 << 20) -> None:
        self._tokenizer, self._room = tokenizer, max_chars
        self._ids: OrderedDict[str, array[int]] = OrderedDict()
        self._lock = Lock()

    def encode(self, text: str, /) -> Sequence[int]:
        """Ids of ordinary text; not to be changed by the caller."""
        if len(text) < self._WORTH:
            return self._tokenizer.encode(text)
        with self._lock:
            ids = self._ids.get(text)
            if ids is not None:
                self._ids.move_to_end(text)
                return ids
        ids = array("I", self._tokenizer.encode(text))
        with self._lock:
            if text not in self._ids:
                self._ids[text] = ids
                self._room -= len(text)
            while self._room < 0:
                self._room += len(self._ids.popitem(last=False)[0])
        return ids


def encode(
    prompt: Prompt, tokenizer: Encoder, markers: Markers, replay: Splices | None = None
) -> Encoded:
    """The tokens of a prompt.

    Each text is encoded by itself and without special tokens.

    Args:
        prompt: what to encode.
        tokenizer: of ``markers``; a :class:`TextCache` of it saves time.
        markers: ids.
        replay: assistant messages whose tokens are remembered.

    Example:
        >>> import grebe
        >>> from grebe.chat.messages import Conversation, Message
        >>> from grebe.chat.render import render
        >>> tokenizer = grebe.Model.load().tokenizer
        >>> talk = Conversation((Message("user", "<think>"),), thinking=False)
        >>> encoded = encode(render(talk), tokenizer, Markers.of(tokenizer))
        >>> tokenizer.decode(encoded.ids).endswith("<think><｜Assistant｜></think>")
        True
        >>> tokenizer.find("<think>") in encoded.ids
        False
    """
    ids: list[int] = []
    n_replayed = 0
    # Position after so many segments.
    positions = [0]
    known = markers.ids

    def write(part: Marker | Text) -> None:
        if isinstance(part, Marker):
            ids.append(known[part.name])
        else:
            ids.extend(tokenizer.encode(part.text))

    for segment in prompt.segments:
        if isinstance(segment, Body):
            sampled = None if replay is None else replay.ids(segment)
            if sampled is not None:
                ids.extend(sampled)
                n_replayed += 1
            else:
                for part in segment.segments:
                    write(part)
        else:
            write(segment)
        positions.append(len(ids))
    marks = sorted({positions[end] for end in prompt.ends})
    return Encoded(ids, tuple(marks), n_replayed, positions[prompt.turn])
