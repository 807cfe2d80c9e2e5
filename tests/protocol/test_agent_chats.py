"""Chat requests that agents and SDKs really sent: all are understood, and conversations grow."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.api import ask, prepared
from tests.helpers.chat import VECTORS

FOLDER = VECTORS / "agents" / "chat"

# Requests that continue none before: another system prompt, or a first user message of their own.
FRESH: dict[str, list[int]] = {
    "openclaw/trip": [2, 3, 4, 5],  # the last message of each request is gone in the next
    "opencode/fidelity": [2],  # the first asks for a title
    "opencode/overflow": [2, 3, 4],  # the conversation was refused and made shorter
    "opencode/trip": [2],
    "pi/overflow": [2, 3],
    "qwen/hello_memory": [2],  # the memory of the session has a system prompt of its own
    "qwen/trip": [4],  # a new process with a new git status
}


def read(path: Path) -> Iterator[tuple[str, list[tuple[int, dict[str, Any]]]]]:
    data = json.loads(path.read_text(encoding="utf-8"))
    parts = data["parts"]
    for scenario, requests in data["scenarios"].items():
        bodies = []
        for request in requests:
            body = dict(request["body"])
            for name in ("tools", "messages"):
                if isinstance(body.get(name), list):
                    body[name] = [parts[i] for i in body[name]]
            bodies.append((request["n"], body))
        yield f"{path.stem}/{scenario}", bodies


SCENARIOS = {name: bodies for path in sorted(FOLDER.glob("*.json")) for name, bodies in read(path)}


@pytest.mark.parametrize("name", SCENARIOS)
def test_understood_and_growing(name: str):
    seen: list[list[int]] = []
    fresh = []
    for n, body in SCENARIOS[name]:
        request = ask("chat", body)
        assert not request.unmatched
        assert request.ignored == ()
        assert len(request.conversation.messages) == len(body["messages"])
        assert len(request.conversation.tools) == len(body.get("tools") or ())
        ids = prepared(request).encoded.ids
        if seen and not any(ids[: len(before)] == before for before in seen):
            fresh.append(n)
        seen.append(ids)
    if not name.startswith("sdk/"):  # each of its requests stands alone
        assert fresh == FRESH.get(name, [])


def test_reasoning_left_of_an_answer_that_broke_off_is_no_turn():
    def tokens(*messages: dict[str, Any]) -> list[int]:
        tools = [{"type": "function", "function": {"name": "ls"}}]
        return prepared(ask("chat", {"messages": messages, "tools": tools})).encoded.ids

    user = {"role": "user", "content": "Go."}
    left = {"role": "assistant", "content": "", "reasoning_content": "Look."}
    call = {"id": "call_1", "type": "function", "function": {"name": "ls", "arguments": "{}"}}
    again = {**left, "content": "Now.", "tool_calls": [call]}
    result = {"role": "tool", "tool_call_id": "call_1", "content": "a"}
    assert tokens(user, left) == tokens(user)
    assert tokens(user, left, again, result) == tokens(user, again, result)
    assert tokens(user, {**left, "content": "Here"}) != tokens(user)
    assert tokens(user, {**left, "content": "Here"}, again, result) != tokens(user, again, result)


def test_reasoning_to_go_on_with_is_kept():
    def text(*messages: dict[str, Any]) -> str:
        return prepared(ask("chat", {"messages": messages})).prompt.text

    user = {"role": "user", "content": "Go."}
    begun = {"role": "assistant", "content": "", "reasoning_content": "Look.", "prefix": True}
    assert text(user, begun) == text(user) + "Look."
