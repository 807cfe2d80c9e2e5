"""The block of tool calls in a model's output, read incrementally.

Reads the in-band text of :mod:`inband`, where ``<`` and the DSML character begin every tag of a
proper block. Models also write tags without the marker; such a block is read with the prefix that
its first tag had. Whitespace between tags is free, and any other text there is dropped.

Nothing here waits without bound: a tag that is longer than ``MAX_TAG`` is no tag, and a block that
holds ``MAX_JUNK`` characters of something else is over.
"""

from __future__ import annotations

import re
import secrets
import string
from collections.abc import Callable, Mapping

from .arguments import ArgumentsWriter
from .deltas import CallArguments, CallEnd, CallStart, Delta
from .inband import DSML, spelled
from .messages import Tool, ToolCall

__all__ = ["MAX_JUNK", "MAX_TAG", "WRAPPERS", "Block", "new_call_id"]

MAX_TAG = 1024
MAX_JUNK = 4096

#: Names of the tag around the calls: the right one, and how models misspell it.
WRAPPERS = ("tool_calls", "toolcalls", "tool", "function_calls")

_INVOKE = re.compile(rf'invoke\s+name\s*=\s*"([^"<>\n{DSML}]{{1,300}})"')
_INVOKE_PART = re.compile(rf'invoke(?:\s+(?:n[a-z]*\s*(?:=\s*(?:"[^"<>\n{DSML}]{{0,300}})?)?)?)?')
_ATTRIBUTE = rf'[A-Za-z_]+\s*=\s*(?:"[^"{DSML}]*"|[A-Za-z]+)'
_PARAMETER = re.compile(rf"parameter((?:\s+{_ATTRIBUTE})+)\s*(/?)>")
_PARAMETER_PART = re.compile(
    rf'parameter(?:\s+{_ATTRIBUTE})*(?:\s+(?:[A-Za-z_]+\s*(?:=\s*(?:"[^"{DSML}]*)?)?)?|\s*/?)'
)
_ATTRIBUTES = re.compile(r'([A-Za-z_]+)\s*=\s*(?:"([^"]*)"|([A-Za-z]+))')
_TAIL = re.compile("[^<>]*[<>]")  # what is left of an opening tag
_CLOSING = re.compile(r"\s{0,8}([A-Za-z_]{0,24})")
_VALUE_END = re.compile(f"\n?<(/?){DSML}")
_FLAGS = {"true": True, "false": False}


def new_call_id(index: int) -> str:
    """An id that nobody can guess: it is what a client must know to have a call replayed.

    Example:
        >>> len(new_call_id(0)), new_call_id(7)[:8]
        (32, 'call_07_')
    """
    return f"call_{index:02d}_" + "".join(secrets.choice(_ALPHABET) for _ in range(24))


_ALPHABET = string.ascii_letters + string.digits


class Block:
    """Reads one block; the opening tag, if any, is read already.

    Args:
        tools: by name, for the types of their parameters.
        emit: takes the deltas.
        prefix: what follows ``<`` or ``</`` in the block's tags.
        wrapped: whether the calls are inside another tag, which ends the block.
        repair_types: see :class:`ArgumentsWriter`.
        new_id: makes the ids of calls.

    Attributes:
        done: the block is over, and with it the turn.
        calls: that are complete.
    """

    def __init__(
        self,
        tools: Mapping[str, Tool],
        emit: Callable[[Delta], None],
        *,
        prefix: str = DSML,
        wrapped: bool = True,
        repair_types: bool = True,
        new_id: Callable[[int], str] = new_call_id,
    ) -> None:
        self.done = False
        self.calls: list[ToolCall] = []
        self._tools, self._emit = tools, emit
        self._wrapped, self._repair, self._new_id = wrapped, repair_types, new_id
        self._strict = prefix == DSML
        self._tag_start = re.compile(f"<(/?)(?:{DSML}|{re.escape(prefix)})")
        self._tag_parts = _beginnings(f"<{DSML}", f"</{DSML}", f"<{prefix}", f"</{prefix}")
        self._value_end, self._value_parts = _VALUE_END, self._tag_parts
        if (
            not self._strict
        ):  # values may well hold tags of other languages: only the exact one ends
            closes = (f"</{prefix}parameter>", f"</{DSML}parameter>")
            self._value_end = re.compile("|".join(closes))
            self._value_parts = _beginnings(*closes)
        self._state = self._between
        self._junk = 0
        self._body: list[str] | None = None  # of a call without parameters, if it may be JSON
        self._bodiless = False
        self._writer: ArgumentsWriter | None = None
        self._name = self._id = ""

    @property
    def partial(self) -> ToolCall | None:
        """The call that is announced but not complete; its arguments as far as they were sent."""
        if self._writer is None:
            return None
        return ToolCall(self._name, self._writer.text, self._id)

    def read(self, text: str, at: int) -> int:
        """Reads on from ``text[at]``.

        Returns:
            Where to go on when there is more text: what is before has been dealt with.
        """
        go = True
        while go and not self.done:
            at, go = self._state(text, at)
        return at

    def flush(self, text: str, at: int) -> None:
        """No more text will come: what was held of a value is part of it."""
        if self._state == self._value and DSML not in text[at:]:
            self._add(text[at:])

    # Each state deals with some text and returns where it stopped, and whether to go on.

    def _between(self, text: str, at: int) -> tuple[int, bool]:
        i, tag = self._next_tag(text, at)
        if self._drop(text[at:i]) or tag is None:
            return i, False
        if tag[1]:
            name, after = _closing(text, tag.end())
            if name is None:
                return i, False
            if name in WRAPPERS:
                self.done = True
                return after, False
            return after, not self._drop(text[i:after])
        return self._invoke(text, i, tag.end())

    def _invoke(self, text: str, i: int, after: int) -> tuple[int, bool]:
        """At ``<`` of a tag that should begin a call; ``after`` is where its name begins."""
        match = _INVOKE.match(text, after, after + MAX_TAG)
        if match:
            if self._writer is not None:
                self._end_call()
            self._start_call(spelled(match[1]))
            return match.end(), True
        if _may_become(_INVOKE_PART, "invoke", text, after):
            return i, False
        return after, not self._drop(text[i:after])

    def _tail(self, text: str, at: int) -> tuple[int, bool]:
        """After the name of a call, up to the end of that tag."""
        match = _TAIL.match(text, at, at + MAX_TAG)
        if match is None:
            if len(text) - at < MAX_TAG:
                return at, False
            self._state = self._arguments
            return at, True
        end = match.end()
        if match[0].endswith("/>"):
            self._end_call()
            return end, True
        self._state = self._arguments
        return end if match[0].endswith(">") else end - 1, True

    def _arguments(self, text: str, at: int) -> tuple[int, bool]:
        i, tag = self._next_tag(text, at)
        if self._drop(text[at:i]) or tag is None:
            return i, False
        after = tag.end()
        if tag[1]:
            name, end = _closing(text, after)
            if name is None:
                return i, False
            if name == "invoke" or name in WRAPPERS:
                self._end_call()
                self.done = name in WRAPPERS
                return end, True
            return end, not self._drop(text[i:end])
        match = _PARAMETER.match(text, after, after + MAX_TAG)
        if match:
            self._start_value(match)
            return match.end(), True
        if _may_become(_PARAMETER_PART, "parameter", text, after):
            return i, False
        return self._invoke(text, i, after)

    def _value(self, text: str, at: int) -> tuple[int, bool]:
        match = self._value_end.search(text, at)
        if match is None:
            i = _held(text, at, self._value_parts)
            if self._strict and i > at and text[i - 1] == "\n":
                i -= 1
            self._add(text[at:i])
            return i, False
        i, after = match.span()
        self._add(text[at:i])
        if not self._strict:
            return after, self._end_value()
        newline = text[i] == "\n"  # belongs to the value only if its own tag closes it
        if match[1]:
            name, end = _closing(text, after)
            if name is None:
                return i, False
            implied = name == "invoke" or name in WRAPPERS
            if newline and not implied:
                self._add("\n")
            self._end_value()
            if implied:
                self._end_call()
                self.done = name in WRAPPERS
            return end, True
        for name in ("parameter", "invoke"):
            rest = text[after : after + len(name) + 1]
            if len(rest) <= len(name) and name.startswith(rest):
                return i, False
            if rest.startswith(name) and (rest[-1] in "/>" or rest[-1].isspace()):
                self._end_value()
                return i + newline, True
        self._add(text[i:after])
        return after, True

    def _start_call(self, name: str) -> None:
        index = len(self.calls)
        self._name, self._id = name, self._new_id(index)
        self._writer = ArgumentsWriter(self._tools.get(name), repair_types=self._repair)
        self._body, self._bodiless = None, False
        self._junk = 0
        self._emit(CallStart(index, self._id, name))
        self._state = self._tail

    def _end_call(self) -> None:
        assert self._writer is not None
        self._send(self._writer.close(spelled("".join(self._body or ()))))
        arguments = self._writer.text
        self._emit(CallEnd(len(self.calls), self._name, arguments))
        self.calls.append(ToolCall(self._name, arguments, self._id))
        self._writer = self._body = None
        self._junk = 0
        self._state = self._between

    def _start_value(self, match: re.Match[str]) -> None:
        attributes = {m[1]: m[2] if m[3] is None else m[3] for m in _ATTRIBUTES.finditer(match[1])}
        if "name" not in attributes or self._writer is None:
            return
        self._body, self._bodiless = None, True
        self._junk = 0
        flag = _FLAGS.get(attributes.get("string", "").strip().lower())
        self._send(self._writer.begin(spelled(attributes["name"]), flag))
        self._state = self._value
        if match[2]:
            self._end_value()

    def _end_value(self) -> bool:
        assert self._writer is not None
        self._send(self._writer.end())
        self._state = self._arguments
        return True

    def _add(self, text: str) -> None:
        assert self._writer is not None
        if text:
            self._send(self._writer.add(spelled(text)))

    def _send(self, text: str) -> None:
        if text:
            self._emit(CallArguments(len(self.calls), text))

    def _drop(self, text: str) -> bool:
        """Text outside of tags; whether it ends the block.

        The body of a call may be its arguments, all of them as one JSON object; then it is kept.
        """
        if self._writer is None:
            if not self._wrapped and text.strip():
                self.done = True  # nothing else would end a block without a wrapper
                return True
        elif self._body is not None:
            self._body.append(text)
            return False
        elif not self._bodiless and (body := text.lstrip()):
            if body[0] == "{":
                self._body = [body]
                text = text[: -len(body)]
            else:
                self._bodiless = True
        self._junk += len(text)
        if self._junk > MAX_JUNK:
            self.done = True
        return self.done

    def _next_tag(self, text: str, at: int) -> tuple[int, re.Match[str] | None]:
        """Where the next tag begins, or what may become the beginning of one."""
        match = self._tag_start.search(text, at)
        if match is None:
            return _held(text, at, self._tag_parts), None
        return match.start(), match


def _beginnings(*tags: str) -> frozenset[str]:
    """Proper beginnings, not empty."""
    return frozenset(tag[:n] for tag in tags for n in range(1, len(tag)))


def _held(text: str, at: int, beginnings: frozenset[str]) -> int:
    """Where the end of the text begins that may become a tag; the text's end if there is none."""
    i = text.rfind("<", at)
    return i if i >= 0 and text[i:] in beginnings else len(text)


def _may_become(part: re.Pattern[str], name: str, text: str, at: int) -> bool:
    """Whether more text could make a tag of what is there."""
    if len(text) - at >= MAX_TAG:
        return False
    rest = text[at:]
    return name.startswith(rest) or part.fullmatch(rest) is not None


def _closing(text: str, at: int) -> tuple[str | None, int]:
    """The name in a closing tag and where the tag ends; None while the name may go on."""
    match = _CLOSING.match(text, at)
    assert match is not None
    end = match.end()
    if end == len(text):
        return None, at
    return match[1], end + (text[end] == ">")
