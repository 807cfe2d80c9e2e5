"""The model's output, token by token: reasoning, answer and tool calls.

Markers are recognised by id; their spellings in other tokens are data. This file turns tokens into
text and counts them; :mod:`turn_parser` reads the text, and :mod:`dsml` the calls in it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from .deltas import Delta, EndReason, ReasoningDelta, Sunk
from .dsml import new_call_id
from .inband import Bytes, InbandDecoder, inband
from .markers import SPELLINGS, Markers
from .messages import Tool
from .prompt import Start
from .turn_parser import ParsedTurn, TextParser

__all__ = ["OutputParser", "ParsedTurn", "parse_text"]


class OutputParser:
    """Parses sampled tokens. Implements ``server.jobs.Sink``.

    Args:
        markers: ids of the markers.
        tokenizer: for the bytes of all other tokens.
        tools: as for :class:`TextParser`, which has all further arguments.

    Example:
        >>> import grebe
        >>> tokenizer = grebe.Model.load().tokenizer
        >>> markers = Markers.of(tokenizer)
        >>> parser = OutputParser(markers, tokenizer, (), thinking=True)
        >>> tokens = [*tokenizer.encode("Hm."), markers.think_end, *tokenizer.encode("Yes")]
        >>> deltas = [delta for token in tokens for delta in parser.feed(token).deltas]
        >>> parser.feed(markers.eos).end, parser.turn.reasoning, parser.turn.content
        ('stop', 'Hm.', 'Yes')
    """

    def __init__(
        self,
        markers: Markers,
        tokenizer: Bytes,
        tools: Sequence[Tool],
        *,
        thinking: bool,
        start: Start | None = None,
        stop: Sequence[str] = (),
        repair_types: bool = True,
        new_id: Callable[[int], str] = new_call_id,
    ) -> None:
        self._text = TextParser(
            tools,
            thinking=thinking,
            start=start,
            stop=stop,
            repair_types=repair_types,
            new_id=new_id,
        )
        self._decoder = InbandDecoder(markers, tokenizer)
        self._eos, self._think_end = markers.eos, markers.think_end
        self._n_reasoning = 0  # tokens while in the reasoning
        self._n_emitted = 0  # of them, those up to the newest of which text was emitted

    def feed(self, token: int) -> Sunk:
        """One more token, the end token included."""
        parser = self._text
        if parser.end is not None:
            return Sunk(end=parser.end, stop_sequence=parser.stop_sequence)
        reasoning = parser.state == "reasoning"
        if token == self._eos:
            deltas = parser.push(self._decoder.finish()) + parser.finish("stop")
        else:
            deltas = parser.push(self._decoder.push(token))
            if reasoning:
                self._count(token, deltas)
        if parser.end is None:
            return Sunk(deltas) if deltas else _NOTHING
        return Sunk(deltas, parser.end, parser.stop_sequence)

    def finish(self, reason: EndReason = "stop") -> list[Delta]:
        """No more tokens will come: what was held. Bytes of a cut character are no text."""
        return self._text.finish(reason)

    @property
    def turn(self) -> ParsedTurn:
        """The turn, once it is over."""
        return replace(self._text.turn(), reasoning_tokens=self.reasoning_tokens)

    @property
    def reasoning_tokens(self) -> int:
        """So far, without ``</think>`` and without the tag that ended the reasoning."""
        return self._n_emitted if self._text.state == "block" else self._n_reasoning

    def _count(self, token: int, deltas: Sequence[Delta]) -> None:
        self._n_reasoning += token != self._think_end
        if any(isinstance(delta, ReasoningDelta) for delta in deltas):
            self._n_emitted = self._n_reasoning


_NOTHING = Sunk()


def parse_text(
    text: str,
    tools: Sequence[Tool] = (),
    *,
    thinking: bool,
    start: Start | None = None,
    stop: Sequence[str] = (),
    finish: EndReason = "stop",
    repair_types: bool = True,
    new_id: Callable[[int], str] = new_call_id,
) -> ParsedTurn:
    """Parses an output of which only the text is known: spellings count as markers.

    Example:
        >>> parse_text("Hm.</think>Yes", thinking=True).content
        'Yes'
    """
    parser = TextParser(
        tools,
        thinking=thinking,
        start=start,
        stop=stop,
        repair_types=repair_types,
        new_id=new_id,
    )
    text, eos, _ = text.partition(SPELLINGS["eos"])
    parser.push(inband(text))
    parser.finish("stop" if eos else finish)
    return parser.turn()
