"""What a client makes of the deltas of a parser, with the promises that they keep."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from grebe.chat.deltas import (
    CallArguments,
    CallEnd,
    CallStart,
    ContentDelta,
    Delta,
    ReasoningDelta,
)
from grebe.chat.messages import Tool
from grebe.chat.turn_parser import ParsedTurn


@dataclass
class Client:
    """Collects deltas in the order in which they must come."""

    reasoning: str = ""
    content: str = ""
    names: list[str] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    arguments: list[str] = field(default_factory=list)
    n_ended: int = 0

    def take(self, deltas: Iterable[Delta]) -> None:
        for delta in deltas:
            if isinstance(delta, ReasoningDelta):
                assert delta.text
                assert not self.names
                self.reasoning += delta.text
            elif isinstance(delta, ContentDelta):
                assert delta.text
                assert not self.names
                self.content += delta.text
            elif isinstance(delta, CallStart):
                assert delta.index == len(self.names) == self.n_ended
                self.names.append(delta.name)
                self.ids.append(delta.id)
                self.arguments.append("")
            elif isinstance(delta, CallArguments):
                assert delta.text
                assert delta.index == len(self.names) - 1 == self.n_ended
                self.arguments[-1] += delta.text
            else:
                assert isinstance(delta, CallEnd)
                assert delta.index == len(self.names) - 1 == self.n_ended
                assert (delta.name, delta.arguments) == (self.names[-1], self.arguments[-1])
                self.n_ended += 1

    def check(self, turn: ParsedTurn) -> None:
        """The deltas say what the turn says."""
        assert (self.reasoning, self.content) == (turn.reasoning, turn.content)
        calls = [*turn.calls, *([turn.partial_call] if turn.partial_call else [])]
        assert self.names == [call.name for call in calls]
        assert self.ids == [call.id for call in calls]
        assert self.arguments == [call.arguments for call in calls]
        assert self.n_ended == len(turn.calls)


def tools(row: list[dict[str, Any]]) -> list[Tool]:
    """Of a parser vector."""
    return [
        Tool(
            {
                "name": tool["name"],
                "parameters": {
                    "type": "object",
                    "properties": {k: {"type": t} for k, t in tool["properties"].items()},
                },
            }
        )
        for tool in row
    ]


def expected(turn: ParsedTurn) -> dict[str, Any]:
    """A turn as the vectors write it."""
    partial = turn.partial_call
    return {
        "reasoning": turn.reasoning,
        "content": turn.content,
        "tool_calls": [{"name": c.name, "arguments": c.arguments} for c in turn.calls],
        "partial_call": partial and {"name": partial.name, "arguments_prefix": partial.arguments},
        "finish": "stop" if turn.finish == "stop_string" else turn.finish,
    }
