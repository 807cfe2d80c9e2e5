"""What the model itself says when it must obey: schemas, forced calls, strict tools."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pydantic
import pytest
from grebe.server.run import Server, serve

from tests.helpers import models
from tests.helpers.wire import post, sse_events

ASK: list[Any] = [{"role": "user", "content": "Say anything, as JSON."}]


class Entry(pydantic.BaseModel):
    name: str = pydantic.Field(max_length=12)
    kind: str = pydantic.Field(pattern="^(cat|dog)$")
    n: int = pydantic.Field(ge=0, le=99)


TOOLS: list[Any] = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": "",
            "strict": True,
            "parameters": {
                "type": "object",
                "properties": {
                    "kind": {"type": "string", "enum": ["cat", "dog"]},
                    "n": {"type": "integer", "minimum": 0, "maximum": 99},
                },
                "required": ["kind", "n"],
                "additionalProperties": False,
            },
        },
    }
    for name in ("count", "feed")
]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serve(models.load("embedded"), n_ctx=4096) as running:
        yield running


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0) as made:
        yield made


@pytest.mark.parametrize("seed", range(3))
def test_parsed_answers(client: openai.OpenAI, seed: int):
    answer = client.chat.completions.parse(
        model="m",
        messages=ASK,
        response_format=Entry,
        reasoning_effort="none",
        seed=seed,
        max_tokens=300,
    )
    entry = answer.choices[0].message.parsed
    assert entry is not None
    assert entry.kind in ("cat", "dog")


def test_any_object(client: openai.OpenAI):
    answer = client.chat.completions.create(
        model="m",
        messages=ASK,
        response_format={"type": "json_object"},
        reasoning_effort="none",
        temperature=0,
        max_tokens=200,
    )
    (choice,) = answer.choices
    assert (choice.message.content or "").lstrip().startswith("{")
    if choice.finish_reason == "stop":
        assert isinstance(json.loads(choice.message.content or ""), dict)


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "feed"}}])
@pytest.mark.parametrize("effort", ["none", "low"])
def test_forced_calls(client: openai.OpenAI, choice: Any, effort: Any):
    answer = client.chat.completions.create(
        model="m",
        messages=ASK,
        tools=TOOLS,
        tool_choice=choice,
        reasoning_effort=effort,
        parallel_tool_calls=False,
        seed=1,
        max_tokens=1500,
    )
    (made,) = answer.choices
    if effort == "low" and made.finish_reason == "length":
        pytest.fail("the reasoning did not end")
    assert made.finish_reason == "tool_calls"
    (call,) = made.message.tool_calls or ()
    assert call.function.name in (("count", "feed") if choice == "required" else ("feed",))
    arguments = json.loads(call.function.arguments)
    assert arguments["kind"] in ("cat", "dog")
    assert 0 <= arguments["n"] <= 99


def test_forced_call_in_a_stream(server: Server):
    body = {
        "messages": ASK,
        "tools": TOOLS[:1],
        "tool_choice": "required",
        "thinking": {"type": "disabled"},
        "parallel_tool_calls": False,
        "stream": True,
        "seed": 3,
    }
    _, _, data = post(server, "/v1/chat/completions", body)
    deltas = [e["choices"][0]["delta"] for _, e in sse_events(data) if e != "[DONE]"]
    assert not any(delta.get("content") for delta in deltas)
    calls = [call for delta in deltas for call in delta.get("tool_calls", ())]
    text = "".join(call["function"]["arguments"] for call in calls)
    assert set(json.loads(text)) == {"kind", "n"}


def test_no_calls_when_there_must_be_none(server: Server):
    """The section stays, as a session was built with it; a call cannot begin."""
    tools = [{**tool, "function": {**tool["function"], "strict": False}} for tool in TOOLS]
    body = {"messages": ASK, "tools": tools, "max_tokens": 1, "reasoning_effort": "none"}
    _, _, before = post(server, "/v1/chat/completions", body)
    none = {**body, "tool_choice": "none", "max_tokens": 40, "logprobs": True}
    status, _, after = post(server, "/v1/chat/completions", none)
    assert status == 200
    usage = json.loads(after)["usage"]
    assert usage["prompt_tokens"] == json.loads(before)["usage"]["prompt_tokens"]
    assert "tool_calls" not in json.loads(after)["choices"][0]["message"]


@pytest.mark.parametrize(
    ("change", "param"),
    [
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "no"}}}},
            "response_format",
        ),
        (
            {
                "tools": [
                    {
                        "type": "function",
                        "function": {
                            "name": "f",
                            "strict": True,
                            "parameters": {"type": "object", "properties": {"a": {"type": 5}}},
                        },
                    }
                ]
            },
            "tools",
        ),
    ],
)
def test_schemas_that_are_none(client: openai.OpenAI, change: dict[str, Any], param: str):
    with pytest.raises(openai.BadRequestError) as caught:
        client.post("/chat/completions", body={"messages": ASK, **change}, cast_to=object)
    assert caught.value.param == param


def test_without_the_package(client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch):
    import sys

    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.parse(model="m", messages=ASK, response_format=Entry)
    assert "grebe[structured]" in caught.value.message
    assert caught.value.param == "response_format"
