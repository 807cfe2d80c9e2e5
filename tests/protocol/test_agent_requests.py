"""Requests that coding agents really sent: all are understood, and conversations grow at their end."""

from __future__ import annotations

import pytest

from tests.helpers.agent_requests import Recorded, scenarios
from tests.helpers.api import ask, prepared

SCENARIOS = dict(scenarios())

# Requests that are no continuation of one before, because the client changed what comes first.
FRESH = {
    "claude/ladder400/4": "all tools are declared at once after four refusals",
    "claude/subagents/2": "a subagent has its own system prompt",
    "claude/subagents/3": "another subagent, with another task",
    "claude/thinking_only/2": "the last user message is edited",
    "claude/three_sessions/3": "another session, with another task",
    "codex/compact/2": "the compaction declares no tools",
    "codex/compact/3": "the first user message is edited",
    "codex/compact/4": "the compaction declares no tools, the first user message is edited",
    "codex/oss/4": "the first was a warm-up",
    "opencode/trip_anthropic/2": "the first asks for a title",
    "opencode/trip_responses/2": "the first asks for a title",
    "qwen/trip_anthropic/4": "a new process has a new git status in its system prompt",
    "qwen/trip_responses/4": "a new process has a new git status in its system prompt",
}


@pytest.mark.parametrize("name", SCENARIOS)
def test_prompts_are_prefixes_of_later_ones(name: str) -> None:
    """With the markers of headers at the end, so that tokens decide and not text."""
    seen: list[list[int]] = []
    fresh = set()
    for request in SCENARIOS[name]:
        asked = ask(request.api, request.body, request.headers)
        assert not asked.unmatched, request.name
        ids = prepared(asked).encoded.ids
        if "count_tokens" in request.path:
            continue
        if seen and not any(ids[: len(before)] == before for before in seen):
            fresh.add(request.name)
        seen.append(ids)
    assert fresh == {known for known in FRESH if known.rpartition("/")[0] == name}


def requests(name: str) -> list[Recorded]:
    return SCENARIOS[name]


def test_a_discovered_tool_does_not_change_what_comes_before() -> None:
    first, second = (ask(r.api, r.body) for r in requests("claude/toolsearch"))
    assert [t.name for t in second.conversation.tools if t.deferred] == ["NotebookEdit", "WebFetch"]
    assert all(t.name != "DeferredToolPlaceholder" for t in second.conversation.tools)
    before, after = prepared(first).prompt.text, prepared(second).prompt.text
    assert after.startswith(before)
    found = after[len(before) :]
    assert '<tool_result>{"name": "WebFetch", "description": ' in found
    assert '\n\n{"name": "NotebookEdit", ' in found


def test_sessions_of_one_client_share_tools_and_system() -> None:
    """The billing line differs between them and comes first; it is left out."""
    texts = [prepared(ask(r.api, r.body)).prompt.text for r in requests("claude/three_sessions")]
    assert all("billing" not in text for text in texts)
    heads = {text[: text.index("<｜User｜>")] for text in texts}
    assert len(heads) == 1


def test_sessions_are_named() -> None:
    hints = {
        name: {ask(r.api, r.body, r.headers).session_hint for r in requests(name)}
        for name in ("claude/trip", "claude/subagents", "codex/trip", "pi/trip_responses")
    }
    assert [len(found) for found in hints.values()] == [1, 3, 1, 1]
    assert None not in set().union(*hints.values())
