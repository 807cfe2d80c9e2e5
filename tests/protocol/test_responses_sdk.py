"""The official OpenAI SDK's Responses against a server on loopback."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from grebe.server.run import Server
from pydantic import BaseModel

from tests.helpers.live import asking, serving

ADD: Any = {
    "type": "function",
    "name": "add",
    "description": "Adds.",
    "strict": False,
    "parameters": {
        "type": "object",
        "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
        "required": ["a", "b"],
    },
}
SPACE: Any = {"type": "namespace", "name": "math", "description": "d", "tools": [ADD]}
PATCH: Any = {"type": "custom", "name": "apply_patch", "description": "Edits."}
CALLS = [
    {"name": "add", "arguments": {"a": 2, "b": 3}},
    {"name": "add", "arguments": {"a": 4, "b": 5}},
]
REPLIES: dict[str, Any] = {
    "plain": {"steps": [{"reasoning": "Hm – so.", "content": "It is 212. 🧵"}]},
    "tool": {
        "steps": [
            {"reasoning": "I add.", "content": "One moment.", "tool_calls": CALLS},
            {"reasoning": "Done.", "content": "5 and 9."},
        ]
    },
    "space": {"steps": [{"tool_calls": [{"name": "math__add", "arguments": {"a": 1, "b": 1}}]}]},
    "patch": {
        "steps": [{"tool_calls": [{"name": "apply_patch", "arguments": {"input": "*** A\n+ä\n"}}]}]
    },
    "long": {"steps": [{"content": "word " * 200, "token_delay_s": 0.05}]},
    "json": {"steps": [{"reasoning": "?", "content": '{"name": "Ada", "n": 3}'}]},
}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving(REPLIES) as running:
        yield running


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as made:
        yield made


def outputs(response: Any) -> list[Any]:
    return [
        {"type": "function_call_output", "call_id": item.call_id, "output": f"r{i}"}
        for i, item in enumerate(response.output)
        if item.type == "function_call"
    ]


def reads_little(response: Any, before: Any) -> bool:
    """Whether what the earlier response had read and said was there already."""
    kept = before.usage.total_tokens - 128
    return bool(response.usage.input_tokens_details.cached_tokens >= kept)


def test_a_response(client: openai.OpenAI) -> None:
    response = client.responses.create(model="any", input=asking("plain"), instructions="Brief.")
    assert response.output_text == "It is 212. 🧵"
    reasoning, message = response.output
    assert reasoning.content[0].text == "Hm – so."
    assert (message.phase, response.status, response.model) == ("final_answer", "completed", "any")
    assert response.usage.total_tokens == response.usage.input_tokens + response.usage.output_tokens
    assert response.usage.output_tokens_details.reasoning_tokens > 0
    counted = client.responses.input_tokens.count(
        model="any", input=asking("plain"), instructions="Brief."
    )
    assert counted.input_tokens == response.usage.input_tokens


@pytest.mark.parametrize("carried", ["items", "handles", "previous"])
def test_tools_over_two_turns(client: openai.OpenAI, carried: str) -> None:
    """Whichever way the history comes back, the second prompt continues the first turn's tokens."""
    include: Any = ["reasoning.encrypted_content"] if carried == "handles" else []
    options: Any = {"model": "m", "tools": [ADD], "include": include}
    with client.responses.stream(input=asking("tool"), **options) as stream:
        kinds = [event.type for event in stream]
        first = stream.get_final_response()
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert kinds[-1] == "response.completed"
    assert [item.type for item in first.output] == [
        *("reasoning", "message", "function_call", "function_call")
    ]
    assert first.output[1].phase == "commentary"
    assert [json.loads(item.arguments) for item in first.output[2:]] == [
        call["arguments"] for call in CALLS
    ]
    history: Any = [{"role": "user", "content": asking("tool")}]
    for item in first.output:
        sent = item.model_dump(exclude_none=True)
        if carried == "handles" and sent["type"] == "reasoning":
            del sent["content"]
        history.append(sent)
    if carried == "previous":
        options["previous_response_id"] = first.id
        history = []
    second = client.responses.create(input=[*history, *outputs(first)], **options)
    assert second.output_text == "5 and 9."
    assert reads_little(second, first)


def test_namespaces_and_custom_tools(client: openai.OpenAI) -> None:
    options: Any = {"model": "m", "reasoning": {"effort": "none"}}
    spaced = client.responses.create(input=asking("space"), tools=[SPACE], **options)
    (item,) = spaced.output
    assert (item.type, item.name, item.namespace) == ("function_call", "add", "math")
    with client.responses.stream(input=asking("patch"), tools=[PATCH], **options) as stream:
        inputs = [e.input for e in stream if e.type == "response.custom_tool_call_input.done"]
        (item,) = stream.get_final_response().output
    assert (item.type, item.name, item.input) == ("custom_tool_call", "apply_patch", "*** A\n+ä\n")
    assert inputs == ["*** A\n+ä\n"]


def test_an_answer_of_a_given_form(client: openai.OpenAI) -> None:
    class Person(BaseModel):
        name: str
        n: int

    parsed = client.responses.parse(model="m", input=asking("json"), text_format=Person)
    assert parsed.output_parsed == Person(name="Ada", n=3)


def test_limits(client: openai.OpenAI) -> None:
    response = client.responses.create(model="m", input=asking("plain"), max_output_tokens=1)
    assert (response.status, response.incomplete_details.reason) == (
        "incomplete",
        "max_output_tokens",
    )
    assert response.usage.output_tokens == 1


def test_what_is_stored_can_be_read_continued_and_deleted(client: openai.OpenAI) -> None:
    response = client.responses.create(model="m", input=asking("plain"))
    again = client.responses.retrieve(response.id)
    assert again.output == response.output
    items = client.responses.input_items.list(response.id)
    assert items.data[0].content == asking("plain") or items.data[0].content[0].text
    client.responses.delete(response.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(response.id)
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(model="m", input="x", previous_response_id=response.id)
    assert caught.value.code == "previous_response_not_found"
    unstored = client.responses.create(model="m", input=asking("plain"), store=False)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(unstored.id)


def test_items_of_stored_responses_can_be_named(client: openai.OpenAI) -> None:
    first = client.responses.create(model="m", input=asking("tool"), tools=[ADD])
    named: Any = [{"type": "item_reference", "id": item.id} for item in first.output]
    history: Any = [{"role": "user", "content": asking("tool")}, *named, *outputs(first)]
    second = client.responses.create(model="m", input=history, tools=[ADD])
    assert second.output_text == "5 and 9."
    assert reads_little(second, first)


def test_background_and_cancel(client: openai.OpenAI) -> None:
    started = client.responses.create(model="m", input=asking("long"), background=True)
    assert started.status == "in_progress"
    cancelled = client.responses.cancel(started.id)
    assert cancelled.status == "cancelled"
    quick = client.responses.create(model="m", input=asking("plain"), background=True)
    deadline = time.monotonic() + 20
    while client.responses.retrieve(quick.id).status == "in_progress":
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert client.responses.retrieve(quick.id).output_text == "It is 212. 🧵"
    assert client.responses.cancel(quick.id).status == "completed"


def test_a_stream_can_be_cancelled_from_beside(client: openai.OpenAI) -> None:
    stream = client.responses.create(model="m", input=asking("long"), stream=True)
    response_id = next(iter(stream)).response.id
    kinds = []
    for event in stream:
        kinds.append(event.type)
        if event.type == "response.output_text.delta" and kinds.count(event.type) == 1:
            assert client.responses.cancel(response_id).status == "cancelled"
    assert kinds[-1] == "error"
    assert "response.completed" not in kinds


def test_leaving_a_stream_cancels_and_says_so(server: Server, client: openai.OpenAI) -> None:
    stream = client.responses.create(model="m", input=asking("long"), stream=True)
    response_id = next(iter(stream)).response.id
    stream.close()
    deadline = time.monotonic() + 5
    while server.app.counters.n_open and time.monotonic() < deadline:
        time.sleep(0.02)
    assert client.responses.retrieve(response_id).status == "cancelled"


def test_errors(server: Server, client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(model="m", input="word " * 200_000, stream=True)
    assert caught.value.code == "context_length_exceeded"
    assert caught.value.message.split(": ", 1)[1]
    missing: Any = [{"type": "function_call", "call_id": "k", "name": "add", "arguments": "{}"}]
    with pytest.raises(openai.BadRequestError, match="No tool output found for tool call k"):
        client.responses.create(model="m", input=missing, tools=[ADD])
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(model="m", input="x", temperature=9)
    assert caught.value.param == "temperature"
    answer = httpx.post(f"{server.url}/v1/responses", content=b"{")
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_async_streams_side_by_side(server: Server) -> None:
    async def one(client: openai.AsyncOpenAI) -> str:
        async with client.responses.stream(model="m", input=asking("plain")) as stream:
            async for _ in stream:
                pass
            return (await stream.get_final_response()).output_text

    async def all_of_them() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
            return await asyncio.gather(*(one(client) for _ in range(3)))

    assert asyncio.run(all_of_them()) == ["It is 212. 🧵"] * 3


def test_the_wire_is_the_one_of_the_specification(server: Server) -> None:
    body = {"model": "m", "stream": True, "input": asking("plain")}
    answer = httpx.post(f"{server.url}/v1/responses", json=body)
    events = [event.split("\n") for event in answer.text.split("\n\n")[:-1]]
    for i, (name, data) in enumerate(events):
        parsed = json.loads(data.removeprefix("data: "))
        assert name == f"event: {parsed['type']}"
        assert parsed["sequence_number"] == i
    kinds = [name.removeprefix("event: response.") for name, _ in events]
    runs = [kind for i, kind in enumerate(kinds) if i == 0 or kinds[i - 1] != kind]
    assert runs == [
        "created",
        "in_progress",
        *("output_item.added", "content_part.added", "reasoning_text.delta"),
        *("reasoning_text.done", "content_part.done", "output_item.done"),
        *("output_item.added", "content_part.added", "output_text.delta"),
        *("output_text.done", "content_part.done", "output_item.done"),
        "completed",
    ]
