"""Conversations to prompts.

Two ways: the official encoder's, byte for byte and with its gaps, and the default, which differs
where the official way breaks the structure of a prompt or the prefix that it shares with the next:
leading system messages are joined by a blank line, later ones are user text in their place, every
assistant message has its own header, a reminder stands before the header, and a conversation that
ends in an assistant message goes on with a new one.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import InvalidArgumentError
from .calls import check_tools, dumps, write_calls, write_tools
from .constants import BLOCK_OPEN, JSON_OBJECT, RESPONSE_HEAD, effort_prefix
from .markers import TASKS
from .messages import Conversation, Generation
from .parts import Part, Placement, official_parts, parts
from .prompt import Prompt, Start, Writer

__all__ = ["render"]


def render(
    conversation: Conversation,
    *,
    generation: Generation = "0731",
    official: bool = False,
    bos: bool = True,
    system_placement: Placement = "in_place",
) -> Prompt:
    """The prompt of a conversation.

    With tools declared, and as long as only messages are added, prompts grow: each is a prefix of
    the next if what the model said is sent back unchanged.

    Args:
        conversation: what to render. ``forced`` opens a block of calls when the model does not
            think; while it thinks only a mask can force it.
        generation: of the checkpoint; decides on the effort's text.
        official: exactly the official encoder's text; no bodies, nothing checked.
        bos: begin with the start marker.
        system_placement: "hoist" puts later system messages to the first, as DeepSeek's API does
            for Chat; every one of them then changes the prompt from there on.

    Raises:
        InvalidArgumentError: a name that the protocol cannot write, a role or task that it does
            not have, an empty developer message.

    Example:
        >>> from grebe.chat.messages import Message
        >>> talk = Conversation((Message("user", "Hi"),), thinking=False)
        >>> render(talk).text.replace("\uff5c", "|").split("sentence")[1]
        '|><|User|>Hi<|Assistant|></think>'
    """
    _check(conversation)
    if official:
        return _Official(conversation, generation, bos).prompt()
    check_tools(conversation.tools)
    for message in conversation.messages:
        check_tools(message.tools)
    return _Default(conversation, generation, bos, system_placement).prompt()


def _check(conversation: Conversation) -> None:
    for i, message in enumerate(conversation.messages):
        if message.role not in _ROLES:
            raise InvalidArgumentError(
                f"messages[{i}]: role {message.role!r}; known are {', '.join(sorted(_ROLES))}"
            )
        if message.task is not None and message.task not in TASKS:
            raise InvalidArgumentError(
                f"messages[{i}]: task {message.task!r}; known are {', '.join(TASKS)}"
            )
        if message.role == "developer" and not message.content:
            raise InvalidArgumentError(f"messages[{i}]: a developer message without content")


_ROLES = {"system", "user", "assistant", "tool", "latest_reminder", "developer"}


class _Renderer:
    """What both ways have in common."""

    def __init__(self, conversation: Conversation, generation: Generation, bos: bool) -> None:
        self.conversation = conversation
        self.thinking = conversation.thinking
        self.out = Writer()
        if bos:
            self.out.marker("bos")
        if self.thinking:
            self.out.text(effort_prefix(generation, conversation.effort))

    def drops(self, turns: Sequence[Part]) -> bool:
        """Whether the reasoning of earlier turns is left out: never where tools are declared."""
        return self.conversation.drop_thinking and not any(part.tools for part in turns)

    def instructions(self, part: Part) -> None:
        """A text, the tools that come with it and the form of the answer."""
        self.out.text(part.text)
        if part.shown_tools:
            self.out.text("\n\n")
            write_tools(self.out, part.shown_tools)
        if part.response_schema is not None:
            self.out.text(f"\n\n{RESPONSE_HEAD}{dumps(part.response_schema)}")
        elif part.json_object:
            self.out.text(f"\n\n{JSON_OBJECT}")

    def head(self, part: Part) -> None:
        """Everything but an assistant message."""
        if part.role == "latest_reminder":
            self.out.marker("latest_reminder")
        elif part.role != "system":
            self.out.marker("user")
        self.instructions(part)

    def header(self, think: bool) -> None:
        self.out.marker("assistant").marker("think" if think else "think_end")

    def task(self, task: str) -> None:
        """The token of a quick instruction, where the header would be."""
        if task == "action":
            self.header(self.thinking)
        self.out.marker(task)

    def said(self, out: Writer, part: Part, *, reasoned: bool, official: bool = False) -> None:
        """Reasoning, answer and calls of an assistant message."""
        if reasoned:
            out.text(part.reasoning).marker("think_end")
        out.text(part.text)
        if part.calls:
            write_calls(out, part.calls, official=official)


class _Official(_Renderer):
    def prompt(self) -> Prompt:
        turns = official_parts(self.conversation)
        drop = self.drops(turns)
        last = _last_user(turns)
        if self.thinking and drop:
            turns = [p for i, p in enumerate(turns) if p.role != "developer" or i >= last]
            last = _last_user(turns)
        think = False
        for i, part in enumerate(turns):
            if part.role != "assistant":
                self.head(part)
            else:
                after_task = i > 0 and turns[i - 1].task is not None
                reasoned = self.thinking and not after_task and (not drop or i > last)
                self.said(self.out, part, reasoned=reasoned, official=True)
                if not part.prefix:
                    self.out.marker("eos")
            if i + 1 < len(turns) and turns[i + 1].role not in ("assistant", "latest_reminder"):
                continue
            think = self.thinking and (not drop or i >= last)
            if part.task is not None:
                self.task(part.task)
            elif part.role in ("user", "developer"):
                self.header(think)
        start: Start = "reasoning" if think else "content"
        segments = tuple(self.out.finish())
        return Prompt(segments, start, turn=len(segments))


class _Default(_Renderer):
    def __init__(
        self,
        conversation: Conversation,
        generation: Generation,
        bos: bool,
        placement: Placement,
    ) -> None:
        super().__init__(conversation, generation, bos)
        self.turns = parts(conversation, placement)
        self.drop = self.drops(self.turns)
        self.last = _last_user(self.turns)
        if self.thinking and self.drop:
            self.turns = [
                p for i, p in enumerate(self.turns) if p.role != "developer" or i >= self.last
            ]
            self.last = _last_user(self.turns)
        self.ends: list[int] = []

    def prompt(self) -> Prompt:
        before: Part | None = None
        for i, part in enumerate(self.turns):
            if part.role == "assistant":
                if part.prefix:
                    return self.continued(part)
                self.assistant(i, part, before)
            else:
                self.head(part)
                self.ends.append(self.out.position())
            if part.task is not None:
                self.task(part.task)
            before = part
        if before is not None and before.task is not None:
            # The token of the task is the header.
            return self.finish(self.out.position(), "content")
        turn = self.open()
        start: Start = "reasoning" if self.thinking else "content"
        if self.conversation.forced is not None and not self.thinking:
            self.out.spelled(BLOCK_OPEN)
            start = "block"
        return self.finish(turn, start)

    def assistant(self, i: int, part: Part, before: Part | None) -> None:
        """A message of the past, with its header."""
        after_task = before is not None and before.task is not None
        # Without tools the reasoning is gone as soon as another turn begins, which is now, unless
        # a quick instruction about this very message follows.
        kept = not self.drop or (part.task is not None and i > self.last)
        reasoned = self.thinking and kept and not after_task
        if not after_task:
            self.header(reasoned)
        body = Writer()
        self.said(body, part, reasoned=reasoned)
        body.marker("eos")
        self.out.body(part.message, body, reasoned=reasoned)
        self.ends.append(self.out.position())

    def continued(self, part: Part) -> Prompt:
        """The message that the model goes on with; the last one."""
        turn = self.open()
        if self.thinking and not part.text and not part.calls:
            self.out.text(part.reasoning)
            return self.finish(turn, "reasoning")
        self.said(self.out, part, reasoned=self.thinking)
        return self.finish(turn, "content")

    def open(self) -> int:
        """The header of the new turn; returns where that begins."""
        self.header(self.thinking)
        # Once the turn is history and its reasoning dropped, the prefix ends between the two.
        self.ends.append(self.out.position() - 1)
        return self.out.position()

    def finish(self, turn: int, start: Start) -> Prompt:
        return Prompt(tuple(self.out.finish()), start, tuple(dict.fromkeys(self.ends)), turn)


def _last_user(turns: Sequence[Part]) -> int:
    """Index of the last turn of a user, tool results included; -1 for none."""
    return max((i for i, p in enumerate(turns) if p.role in ("user", "developer")), default=-1)
