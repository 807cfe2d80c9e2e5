"""Messages to the parts of a prompt: attached tools, merged users, sorted results.

A part is what stands between two markers of roles: consecutive user and tool messages are one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from .messages import Conversation, Message, Tool, ToolCall

__all__ = ["Part", "Placement", "alphanumerics", "official_parts", "parts"]

#: What becomes of system messages behind the first others.
Placement = Literal["in_place", "hoist"]


@dataclass(slots=True)
class _Block:
    """A piece of a user's part; a result of a tool if it has a ``call_id``, which may be empty."""

    text: str
    call_id: str | None = None


@dataclass(slots=True)
class Part:
    """One part.

    Attributes:
        role: "user" for results too.
        message: index of its (first) message in the conversation.
        tools: declared with it, deferred ones included.
    """

    role: str
    message: int
    blocks: list[_Block] = field(default_factory=list)
    reasoning: str = ""
    calls: tuple[ToolCall, ...] = ()
    prefix: bool = False
    task: str | None = None
    tools: tuple[Tool, ...] = ()
    response_schema: Mapping[str, Any] | None = None
    json_object: bool = False

    @property
    def text(self) -> str:
        """What it says."""
        return "\n\n".join(block.text for block in self.blocks)

    @property
    def shown_tools(self) -> tuple[Tool, ...]:
        """Tools that the prompt lists; deferred ones are left out until they are found."""
        return tuple(tool for tool in self.tools if not tool.deferred)


def official_parts(conversation: Conversation) -> list[Part]:
    """As the official encoder has them: the request's tools at the first system message."""
    messages = _numbered(conversation)
    extra = conversation.tools or conversation.response_schema is not None
    if extra and all(message.role != "system" for _, message in messages):
        messages.insert(0, (-1, Message("system")))
    result = _merge(((i, _as_official(message)) for i, message in messages), exact=True)
    if extra or conversation.json_object:
        first = next((part for part in result if part.role == "system"), None)
        if first is not None:
            _declare(first, conversation)
    _sort(result, exact=True)
    return result


def parts(conversation: Conversation, placement: Placement) -> list[Part]:
    """As grebe has them: at most one system part, and that first."""
    messages = _numbered(conversation)
    n_leading = next(
        (i for i, (_, message) in enumerate(messages) if message.role != "system"), len(messages)
    )
    if placement == "hoist":
        leading = [entry for entry in messages if entry[1].role == "system"]
        rest = [entry for entry in messages if entry[1].role != "system"]
    else:
        leading, rest = messages[:n_leading], messages[n_leading:]
    front = Part("system", leading[0][0] if leading else -1)
    front.blocks = [_Block(m.content) for _, m in leading if m.content]
    for _, message in leading:
        front.tools += message.tools
        if message.response_schema is not None:
            front.response_schema = message.response_schema
    _declare(front, conversation)
    result = _merge([(i, _in_place(message)) for i, message in rest if not _is_empty(message)])
    for i, part in enumerate(result):
        # Only the last message can be gone on with.
        part.prefix = part.prefix and i == len(result) - 1
    _sort(result, exact=False)
    return [front, *result]


def alphanumerics(call_id: str) -> str:
    """What is left of a call's id in every client: some take out the rest."""
    return re.sub(r"[\W_]+", "", call_id)


def _numbered(conversation: Conversation) -> list[tuple[int, Message]]:
    return list(enumerate(conversation.messages))


def _declare(part: Part, conversation: Conversation) -> None:
    part.tools = conversation.tools + part.tools
    if conversation.response_schema is not None:
        part.response_schema = conversation.response_schema
    part.json_object = conversation.json_object


def _is_empty(message: Message) -> bool:
    """Whether it is a system message that says nothing."""
    return message.role == "system" and not (
        message.content or message.tools or message.response_schema is not None
    )


def _in_place(message: Message) -> Message:
    if message.role != "system":
        return message
    text = f"<system-reminder>\n{message.content}\n</system-reminder>"
    return Message("user", text, tools=message.tools, response_schema=message.response_schema)


def _as_official(message: Message) -> Message:
    """Without what the official encoder does not see."""
    if message.role == "user":
        return replace(message, tools=(), response_schema=None)
    return replace(message, response_schema=message.response_schema or None)


def _merge(messages: Iterable[tuple[int, Message]], *, exact: bool = False) -> list[Part]:
    result: list[Part] = []
    for i, message in messages:
        last = result[-1] if result else None
        is_user = last is not None and last.role == "user"
        if message.role == "tool":
            block = _Block(
                f"<tool_result>{message.content}</tool_result>", message.tool_call_id or ""
            )
        else:
            block = _Block(message.content)
        if last is not None and is_user and message.role == "tool":
            last.blocks.append(block)
        elif last is not None and is_user and message.role == "user" and last.task is None:
            last.blocks.append(block)
            if not exact:  # the official encoder forgets it
                last.task = message.task
            last.tools += message.tools
            last.response_schema = message.response_schema or last.response_schema
        else:
            role = "user" if message.role == "tool" else message.role
            result.append(
                Part(
                    role,
                    i,
                    [block],
                    message.reasoning or "",
                    message.tool_calls,
                    message.prefix,
                    message.task,
                    message.tools,
                    message.response_schema,
                )
            )
    return result


def _sort(result: Sequence[Part], *, exact: bool) -> None:
    """Puts results into the order of their calls; texts between them stay where they are."""
    order: dict[str, int] = {}
    for part in result:
        if part.role == "assistant" and part.calls:
            order = _order(part.calls, exact=exact)
        elif part.role == "user" and order:
            slots = [i for i, block in enumerate(part.blocks) if block.call_id is not None]
            results = [part.blocks[i] for i in slots]
            results.sort(key=lambda block: _rank(order, block.call_id or "", exact=exact))
            for i, block in zip(slots, results, strict=True):
                part.blocks[i] = block


def _order(calls: Sequence[ToolCall], *, exact: bool) -> dict[str, int]:
    order: dict[str, int] = {}
    for i, call in enumerate(calls):
        if call.id:
            order[call.id] = i
            if not exact:
                order.setdefault(alphanumerics(call.id), i)
    return order


def _rank(order: Mapping[str, int], call_id: str, *, exact: bool) -> int:
    """The place of a result; one that nobody asked for comes first."""
    if exact or call_id in order:
        return order.get(call_id, 0)
    return order.get(alphanumerics(call_id), 0)
