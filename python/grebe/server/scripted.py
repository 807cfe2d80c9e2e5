"""Scripted replies, for tests of real clients with a model that cannot drive them.

The file is JSON: ``{KEY: {"tools_required": bool, "steps": [STEP, ..]}, "*": {"steps": [STEP]}}``
with STEP ``{"reasoning", "content", "tool_calls": [{"name", "arguments"}], "finish": "length",
"prefill_delay_s", "token_delay_s"}``, all optional. Which step answers a request is a function of
its conversation alone. Its tokens then take the place of those that the model would sample; all
else is as ever.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..chat.calls import write_calls
from ..chat.constants import BLOCK_OPEN
from ..chat.encode import Encoder, encode
from ..chat.markers import Markers
from ..chat.messages import Conversation, ToolCall
from ..chat.prompt import Prompt, Segment, Start, Text, Writer
from ..chat.render import render
from ..checks import shown
from ..errors import InvalidArgumentError, StorageError
from .jobs import Script

if TYPE_CHECKING:
    from .. import Tokenizer
    from .requests import ChatRequest

__all__ = ["Choice", "ScriptWriter", "ScriptedReplies", "Step"]

ANY = "*"
_KEY = re.compile(r"\[\[script:([A-Za-z0-9_.-]+)\]\]")


@dataclass(frozen=True, slots=True)
class Step:
    """One reply."""

    reasoning: str = ""
    content: str = ""
    calls: tuple[ToolCall, ...] = ()
    finish: Literal["stop", "length"] = "stop"
    prefill_delay_s: float = 0.0
    token_delay_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Choice:
    """The step that answers a conversation."""

    key: str
    number: int
    step: Step

    @property
    def label(self) -> str:
        """For the header x-scripted."""
        return f"{self.key}#{self.number}"


@dataclass(frozen=True, slots=True)
class _Track:
    steps: tuple[Step, ...]
    tools_required: bool


class ScriptedReplies:
    """The replies of a file.

    Args:
        replies: what the file holds, parsed.

    Raises:
        InvalidArgumentError: names the place and what is expected there.

    Example:
        >>> from grebe.chat.messages import Message
        >>> replies = ScriptedReplies({"a.0": {"steps": [{"content": "Hello"}]}})
        >>> choice = replies.choose(Conversation((Message("user", "Hi [[script:a.0]]"),)))
        >>> choice.label, choice.step.content
        ('a.0#0', 'Hello')
    """

    def __init__(self, replies: Mapping[str, Any]) -> None:
        if not isinstance(replies, Mapping):
            raise InvalidArgumentError(f"scripted replies: {shown(replies)}; an object is expected")
        self._tracks = {key: _track(key, value) for key, value in replies.items()}
        self._tracks.setdefault(ANY, _Track((Step(content="Title of the session"),), False))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ScriptedReplies:
        """Reads a file.

        Raises:
            StorageError: it cannot be read.
            InvalidArgumentError: it is not JSON, or not of this form.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except OSError as error:
            raise StorageError(f"{path}: {error.strerror}", str(path), error.errno) from None
        try:
            return cls(json.loads(text))
        except ValueError as error:
            raise InvalidArgumentError(f"{path}: {error}") from None

    def choose(self, conversation: Conversation) -> Choice:
        """Which step answers.

        The key is that of the newest user message that names one. Each assistant turn with calls
        after it is a step done. Conversations without a key, and those that only quote one, get
        the first step of "*": without tools where the key wants some, or with an answer without
        calls and newer user text after it.
        """
        key, number = _position(conversation)
        track = self._tracks.get(key)
        if track is None or (track.tools_required and not conversation.tools):
            key, number, track = ANY, 0, self._tracks[ANY]
        if number < len(track.steps):
            return Choice(key, number, track.steps[number])
        exhausted = Step(content=f"SCRIPT EXHAUSTED step {number} of {key}")
        return Choice(key, number, exhausted)

    def script(
        self, conversation: Conversation, start: Start, tokenizer: Encoder, markers: Markers
    ) -> Script:
        """What the model is to "sample" for a prompt that leaves it in the state ``start``."""
        choice = self.choose(conversation)
        step = choice.step
        segments = _reply(step, start)
        ids = encode(Prompt(tuple(segments), start), tokenizer, markers).ids
        if step.finish == "stop":
            ids.append(markers.eos)
        elif not ids:
            raise InvalidArgumentError(f"script {choice.label}: finish length, but no output")
        return Script(
            tuple(ids), step.finish, step.prefill_delay_s, step.token_delay_s, choice.label
        )


class ScriptWriter:
    """The tokens of scripted replies, for a :class:`TurnService`.

    Args:
        replies: what to say.
        tokenizer: of the model.
    """

    def __init__(self, replies: ScriptedReplies, tokenizer: Tokenizer) -> None:
        self._replies, self._tokenizer = replies, tokenizer
        self._markers = Markers.of(tokenizer)

    def select(self, request: ChatRequest) -> Script:
        """What the model is to "sample" for a request."""
        conversation = request.conversation
        start = render(conversation).start
        return self._replies.script(conversation, start, self._tokenizer, self._markers)


def _position(conversation: Conversation) -> tuple[str, int]:
    key, number = ANY, 0
    answered = in_turn = False
    for message in conversation.messages:
        if message.role == "assistant":
            if message.tool_calls:
                number += not in_turn
                in_turn = True
            else:
                answered = answered or not in_turn
            continue
        in_turn = False
        if message.role != "user":
            continue
        found = _KEY.findall(message.content)
        if found:
            key, number, answered = found[-1], 0, False
        elif answered:
            key, number = ANY, 0
    return key, number


def _reply(step: Step, start: Start) -> Sequence[Segment]:
    out = Writer()
    if start == "reasoning":
        out.text(step.reasoning).marker("think_end")
    if start != "block":
        out.text(step.content)
    if not step.calls:
        return out.finish()
    write_calls(out, step.calls)
    segments = list(out.finish())
    if start == "block":  # the prompt has its opening already
        opening = Writer().spelled(BLOCK_OPEN).finish()
        last, first = opening[-1], segments[len(opening) - 1]
        assert isinstance(last, Text)
        assert isinstance(first, Text)
        segments[: len(opening)] = [Text(first.text.removeprefix(last.text))]
    return segments


def _track(key: str, value: Any) -> _Track:
    where = f"script {key!r}"
    steps = _expect(where, value, "steps", list, None)
    if not steps:
        raise InvalidArgumentError(f"{where}: no steps; at least one is expected")
    read = tuple(_step(f"{where} step {i}", step) for i, step in enumerate(steps))
    with_calls = any(step.calls for step in read)
    return _Track(read, _expect(where, value, "tools_required", bool, with_calls))


def _step(where: str, value: Any) -> Step:
    calls = []
    for call in _expect(where, value, "tool_calls", list, ()):
        name = _expect(where, call, "name", str, None)
        arguments = call.get("arguments", {})
        if not isinstance(arguments, str):
            arguments = json.dumps(arguments, ensure_ascii=False)
        calls.append(ToolCall(name, arguments))
    finish = value.get("finish") or "stop"
    if finish not in ("stop", "length"):
        raise InvalidArgumentError(f"{where}: finish is {shown(finish)}; 'length' is expected")
    return Step(
        reasoning=_expect(where, value, "reasoning", str, ""),
        content=_expect(where, value, "content", str, ""),
        calls=tuple(calls),
        finish="length" if finish == "length" else "stop",
        prefill_delay_s=float(_expect(where, value, "prefill_delay_s", (int, float), 0)),
        token_delay_s=float(_expect(where, value, "token_delay_s", (int, float), 0)),
    )


def _expect(where: str, value: Any, name: str, kind: Any, default: Any) -> Any:
    """A member of an object; null counts as not there."""
    if not isinstance(value, Mapping):
        raise InvalidArgumentError(f"{where}: {shown(value)}; an object is expected")
    member = value.get(name)
    if member is None:
        member = default
        if default is None:
            raise InvalidArgumentError(f"{where}: no {name!r}")
    elif not isinstance(member, kind):
        raise InvalidArgumentError(f"{where}: {name} is {shown(member)}")
    return member
