"""A conversation as the protocol sees it, whatever API it came through."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["Conversation", "Effort", "Generation", "Message", "Role", "Tool", "ToolCall"]

Role = Literal["system", "user", "assistant", "tool", "latest_reminder", "developer"]

#: What a prompt says about the length of the reasoning. Without thinking it says nothing.
Effort = Literal["low", "high", "max"]

#: Which checkpoint the prompt is for: they were trained with different effort texts.
Generation = Literal["0731", "may"]


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that the model made.

    Attributes:
        name: of the tool.
        arguments: JSON text as it came; need not be valid.
        id: matches results to calls, and finds the tokens that the model sampled for it.
    """

    name: str
    arguments: str
    id: str | None = None


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool that the model may call.

    Attributes:
        schema: the function object as the prompt shows it, keys in that order: name, description,
            parameters.
        strict: whether arguments must follow ``parameters`` exactly.
        deferred: not shown in the tools section; known to the parser all the same.
    """

    schema: Mapping[str, Any]
    strict: bool = False
    deferred: bool = False

    @property
    def name(self) -> str:
        """Of the function."""
        return str(self.schema["name"])

    @property
    def parameters(self) -> Mapping[str, Any]:
        """JSON schema of the arguments."""
        parameters = self.schema.get("parameters")
        return parameters if isinstance(parameters, Mapping) else {}


@dataclass(frozen=True, slots=True)
class Message:
    """One message.

    Attributes:
        role: "tool" carries the result of the call ``tool_call_id``.
        content: text; parts are joined already, as the API that it came through wants it.
        reasoning: of an assistant; None when it had none.
        tool_calls: of an assistant, in the order of its output.
        tool_call_id: of a result.
        prefix: a last assistant message that the model goes on with.
        task: a quick instruction of section 2.3 of the protocol ("title", "query", ..).
        tools: of a system or developer message, beside those of the conversation.
        response_schema: of a system or developer message, as that of the conversation.
    """

    role: Role
    content: str = ""
    reasoning: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    prefix: bool = False
    task: str | None = None
    tools: tuple[Tool, ...] = ()
    response_schema: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Conversation:
    """Everything that a prompt depends on.

    Attributes:
        messages: as they came, in order.
        tools: all that are declared, deferred ones included.
        thinking: whether the model reasons before it answers.
        effort: how much; only read when thinking.
        drop_thinking: leave out the reasoning of earlier turns, as the protocol does when no tools
            are declared.
        response_schema: JSON schema that the answer must follow; it is shown in the prompt.
        json_object: whether the answer must be any JSON object.
        forced: the answer must call a tool: "any", or the name of one.
    """

    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = ()
    thinking: bool = True
    effort: Effort = "high"
    drop_thinking: bool = True
    response_schema: Mapping[str, Any] | None = None
    json_object: bool = False
    forced: str | None = None
