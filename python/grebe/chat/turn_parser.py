"""The model's output as text in which markers are characters: reasoning, answer, tool calls.

What is emitted is certain and never taken back. What is held is what may still become part of a
tag, of the blank line before a block, or of a stop string.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from ..stopping import StopFilter
from .deltas import CallArguments, ContentDelta, Delta, EndReason, ReasoningDelta
from .dsml import Block, new_call_id
from .inband import DSML, THINK, THINK_END, spelled
from .messages import Tool, ToolCall
from .openers import WAIT, Opener, opener
from .prompt import Start

__all__ = ["ParsedTurn", "TextParser"]

_SPECIAL = re.compile(f"[<{THINK}{THINK_END}]")
_MARKED = re.compile(f"[{THINK}{THINK_END}]")


@dataclass(frozen=True, slots=True)
class ParsedTurn:
    """A whole turn of the model.

    Attributes:
        reasoning: without its markers.
        content: the answer.
        calls: complete ones.
        partial_call: was announced and cut; no call. Its arguments are those that were emitted.
        finish: why it ended; "tool_calls" if it ended by itself and there are calls.
        stop_sequence: the stop string that ended it.
        reasoning_tokens: without ``</think>``.
    """

    reasoning: str
    content: str
    calls: tuple[ToolCall, ...]
    partial_call: ToolCall | None
    finish: EndReason
    stop_sequence: str | None = None
    reasoning_tokens: int = 0


class TextParser:
    """Parses in-band text (see :mod:`inband`), cut into pieces anywhere.

    Args:
        tools: that are declared; without any, all calls are text.
        thinking: whether the prompt asked for reasoning.
        start: where the output begins; None: in the reasoning if ``thinking``, else in the answer.
        stop: strings that end the answer. They are looked for in the answer only.
        repair_types: let a tool's schema correct the type that a value was marked with.
        new_id: makes the ids of calls.

    Attributes:
        end: set when the output is over, whatever follows.
    """

    def __init__(
        self,
        tools: Sequence[Tool] = (),
        *,
        thinking: bool,
        start: Start | None = None,
        stop: Sequence[str] = (),
        repair_types: bool = True,
        new_id: Callable[[int], str] = new_call_id,
    ) -> None:
        self.end: EndReason | None = None
        self._tools = {tool.name: tool for tool in tools}
        self._repair, self._new_id = repair_types, new_id
        self._chat = not thinking
        self._state: Start = start or ("reasoning" if thinking else "content")
        self._stop = StopFilter(stop) if stop else None
        self._held = ""
        self._fresh = True  # nothing has come yet
        self._line_start = True
        self._out: list[Delta] = []
        self._reasoning: list[str] = []
        self._content: list[str] = []
        self._block: Block | None = None
        if self._state == "block":
            self._open_block(DSML, wrapped=True)

    @property
    def n_held(self) -> int:
        """Characters that wait for what follows them; a value that is no text is not among them."""
        return len(self._held)

    @property
    def state(self) -> Start:
        """Where the output is now."""
        return self._state

    def push(self, text: str) -> list[Delta]:
        """More text; what became certain with it."""
        if self.end is not None or not text:
            return []
        if self._held:
            text = self._held + text
        self._held = ""
        at = 0
        while self._block is None and self.end is None:
            before = self._state
            at = self._read(text, at)
            if self._state == before:
                break
        if self._block is not None:
            at = self._block.read(text, at)
            if self._block.done:
                self._finish_by_itself()
        if self.end is None:
            self._held = text[at:]
        self._fresh = False
        return self._taken()

    def finish(self, reason: EndReason = "stop") -> list[Delta]:
        """No more text will come; what was held. ``reason`` only counts before the end."""
        if self.end is not None:
            return []
        held, self._held = self._held, ""
        if self._block is not None:
            self._block.flush(held, 0)
        elif self._state == "reasoning":
            self._reason(held)
        else:
            self._answer(held)
            self._flush_answer()
        if self.end is None:
            if reason in ("stop", "tool_calls"):
                self._finish_by_itself()
            else:
                self.end = reason
        return self._taken()

    def turn(self) -> ParsedTurn:
        """The turn, once it is over."""
        calls = tuple(self._block.calls) if self._block else ()
        return ParsedTurn(
            reasoning="".join(self._reasoning),
            content="".join(self._content),
            calls=calls,
            partial_call=self._block.partial if self._block else None,
            finish=self.end or "cancelled",
            stop_sequence=self.stop_sequence,
        )

    @property
    def stop_sequence(self) -> str | None:
        """The stop string that ended the answer."""
        return self._stop.found if self._stop else None

    def _read(self, text: str, at: int) -> int:
        """Reads reasoning or answer up to a change of state, or to what must wait."""
        special = _SPECIAL if self._tools else _MARKED
        scan = at
        while match := special.search(text, scan):
            i = match.start()
            if match[0] == THINK:
                if not (self._fresh and i == 0):
                    scan = i + 1
                    continue
                if self._chat:
                    self._state = "reasoning"
                    return 1
                at = scan = 1
            elif match[0] == THINK_END:
                self._say(text[at:i])
                if self._state == "reasoning":
                    self._state = "content"
                    return i + 1
                at = scan = i + 1
                if self.end is not None:
                    return at
            else:
                found = self._opener(text, at, i)
                if found is None:
                    scan = i + 1
                    continue
                begin = _before_newlines(text, at, i)
                self._say(text[at:begin])
                if found is WAIT or self.end is not None:
                    return begin
                if self._state == "content":
                    self._flush_answer()
                if self.end is None:
                    self._open_block(found.prefix, wrapped=found.wrapped)
                return found.end
        begin = _before_newlines(text, at, len(text)) if self._tools else len(text)
        self._say(text[at:begin])
        return begin

    def _opener(self, text: str, at: int, i: int) -> Opener | None:
        line_start = text[i - 1] == "\n" if i > at else self._line_start
        return opener(text, i, self._tools if self._state == "content" and line_start else None)

    def _open_block(self, prefix: str, *, wrapped: bool) -> None:
        self._state = "block"
        self._block = Block(
            self._tools,
            self._out.append,
            prefix=prefix,
            wrapped=wrapped,
            repair_types=self._repair,
            new_id=self._new_id,
        )

    def _say(self, text: str) -> None:
        if self._state == "reasoning":
            self._reason(text)
        else:
            self._answer(text)

    def _reason(self, text: str) -> None:
        if text:
            text = spelled(text)
            self._reasoning.append(text)
            self._out.append(ReasoningDelta(text))

    def _answer(self, text: str) -> None:
        if not text:
            return
        self._line_start = text[-1] == "\n"
        text = spelled(text)
        if self._stop is not None:
            text, found = self._stop.feed(text)
            if found:
                self.end = "stop_string"
        self._deliver(text)

    def _flush_answer(self) -> None:
        if self._stop is not None and self.end is None:
            self._deliver(self._stop.flush())

    def _deliver(self, text: str) -> None:
        if text:
            self._content.append(text)
            self._out.append(ContentDelta(text))

    def _finish_by_itself(self) -> None:
        self.end = "tool_calls" if self._block and self._block.calls else "stop"

    def _taken(self) -> list[Delta]:
        out = self._out.copy()
        self._out.clear()  # the block appends to this very list
        return out if len(out) < 2 else list(_merged(out))


def _before_newlines(text: str, low: int, end: int) -> int:
    """``end`` less the newlines before it, two at most: they may belong to a block."""
    for _ in range(2):
        if end > low and text[end - 1] == "\n":
            end -= 1
    return end


def _merged(deltas: Iterable[Delta]) -> Iterable[Delta]:
    """Neighbours of a kind as one."""
    for _, group in groupby(deltas, _kind):
        first, *more = group
        if more and isinstance(first, ReasoningDelta | ContentDelta | CallArguments):
            rest = (delta.text for delta in more if isinstance(delta, type(first)))
            yield replace(first, text=first.text + "".join(rest))
        else:
            yield first
            yield from more


def _kind(delta: Delta) -> object:
    return (type(delta), delta.index if isinstance(delta, CallArguments) else 0)
