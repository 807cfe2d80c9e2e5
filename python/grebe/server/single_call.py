"""A turn that ends after its first call, for ``parallel_tool_calls: false``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from ..chat.deltas import CallEnd, Delta, EndReason, Sunk
from ..chat.markers import Markers
from ..chat.parser import OutputParser, ParsedTurn

__all__ = ["FirstCall"]


class _Tokenizer(Protocol):
    def encode(self, text: str, /) -> Sequence[int]: ...

    def token_bytes(self, id: int, /) -> bytes: ...


class FirstCall:
    """A parser that says that the output is over when one call is complete."""

    def __init__(self, parser: OutputParser, tokenizer: _Tokenizer, markers: Markers) -> None:
        self._parser, self._tokenizer, self._markers = parser, tokenizer, markers
        self._cut = False
        self._last = b""

    def feed(self, token: int) -> Sunk:
        """One more token, the end token included."""
        sunk = self._parser.feed(token)
        for i, delta in enumerate(sunk.deltas):
            if isinstance(delta, CallEnd) and sunk.end is None:
                self._cut = True
                self._last = self._tokenizer.token_bytes(token)
                return Sunk(sunk.deltas[: i + 1], "tool_calls")
        return sunk

    def finish(self, reason: EndReason) -> Sequence[Delta]:
        """No more tokens will come: what was held back."""
        deltas = self._parser.finish(reason)
        return () if self._cut else deltas

    def rest(self) -> list[int]:
        """Tokens that complete the turn as if the model had written no more than one call."""
        if not self._cut:
            return []
        before = "</" if self._last.endswith(b"\n") else "\n</"
        encode = self._tokenizer.encode
        return [*encode(before), self._markers.dsml, *encode("tool_calls>"), self._markers.eos]

    @property
    def turn(self) -> ParsedTurn:
        """The turn, once it is over."""
        return self._parser.turn

    @property
    def reasoning_tokens(self) -> int:
        """Without ``</think>``."""
        return self._parser.reasoning_tokens
