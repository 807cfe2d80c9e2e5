"""Bodies that no client sends: they are understood or refused, nothing else."""

from __future__ import annotations

import copy
from typing import Any

from grebe.chat.render import render
from grebe.errors import InvalidArgumentError
from grebe.server.errors import ApiError
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.agent_requests import scenarios
from tests.helpers.api import ask

SEEDS = [
    (request.api, request.body)
    for name, requests in scenarios()
    if name in ("claude/toolsearch", "claude/trip", "codex/reasoning_text", "pi/trip_responses")
    for request in requests[-1:]
]
SEEDS += [
    (
        "messages",
        {
            "messages": [
                {"role": "user", "content": [{"type": "document", "source": {"type": "text"}}]},
                {"role": "assistant", "content": "x"},
            ],
            "max_tokens": 5,
            "tools": [{"name": "a", "input_schema": {}}],
            "tool_choice": {"type": "tool", "name": "a"},
            "output_config": {"effort": "low", "format": {"type": "json_schema", "schema": {}}},
            "metadata": {"user_id": '{"session_id": "s"}'},
        },
    ),
    (
        "responses",
        {
            "input": [
                {"type": "custom_tool_call", "call_id": "a", "name": "p", "input": "x"},
                {"type": "custom_tool_call_output", "call_id": "a", "output": []},
                {"type": "item_reference", "id": "x"},
            ],
            "tools": [
                {"type": "custom", "name": "p", "format": {"type": "grammar", "definition": "x"}},
                {"type": "namespace", "name": "n", "tools": [{"type": "function", "name": "f"}]},
            ],
            "tool_choice": {"type": "allowed_tools", "tools": [{"name": "p"}]},
            "text": {"format": {"type": "json_schema", "schema": {}}},
            "include": ["reasoning.encrypted_content"],
        },
    ),
]

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
    | st.sampled_from(["text", "tool_use", "message", "assistant", "system", "function", "none"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner),
    max_leaves=4,
)


def places(value: Any) -> list[tuple[Any, Any]]:
    """Everything in a body that can be replaced: container and key."""
    keys = value.keys() if isinstance(value, dict) else range(len(value))
    found = [(value, key) for key in keys]
    for key in keys:
        if isinstance(value[key], (dict, list)):
            found += places(value[key])
    return found


@settings(max_examples=400)
@given(st.data())
def test_changed_bodies_are_understood_or_refused(data: st.DataObject) -> None:
    api, seed = data.draw(st.sampled_from(SEEDS))
    body = copy.deepcopy(seed)
    for _ in range(data.draw(st.integers(1, 3))):
        container, key = data.draw(st.sampled_from(places(body)))
        if data.draw(st.booleans()):
            container[key] = data.draw(values)
        else:
            del container[key]
        if not places(body):
            break
    try:
        request = ask(api, body)
        render(request.conversation)
    except ApiError as error:
        if error.status != 400:
            raise
    except InvalidArgumentError:
        pass  # the service makes a 400 of it
