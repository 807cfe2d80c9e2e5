"""The official Anthropic SDK against a server on loopback."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from typing import Any

import anthropic
import pytest
from grebe.server.run import Server
from pydantic import BaseModel

from tests.helpers.live import asking, serving

ADD = {
    "name": "add",
    "description": "Adds.",
    "input_schema": {
        "type": "object",
        "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
        "required": ["a", "b"],
    },
}
THINKING: Any = {"type": "enabled", "budget_tokens": 1024}
TWO_CALLS = [
    {"name": "add", "arguments": {"a": 2, "b": 3}},
    {"name": "add", "arguments": {"a": -1, "b": 10**20}},
]
REPLIES: dict[str, Any] = {
    "plain": {"steps": [{"reasoning": "Hm – let me see.", "content": "It is 212. 🧵"}]},
    "tool": {
        "steps": [
            {"reasoning": "I add.", "content": "One moment.", "tool_calls": TWO_CALLS},
            {"reasoning": "Done.", "content": "The sum is 5."},
        ]
    },
    "one": {
        "steps": [
            {"tool_calls": [{"name": "add", "arguments": {"a": 2, "b": 3}}]},
            {"content": "5"},
        ]
    },
    "stop": {"steps": [{"content": "one two three"}]},
    "long": {"steps": [{"content": "word " * 200, "token_delay_s": 0.05}]},
    "json": {"steps": [{"content": '{"name": "Ada", "n": 3}'}]},
}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving(REPLIES) as running:
        yield running


@pytest.fixture
def client(server: Server) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0) as made:
        yield made


def user(key: str) -> list[Any]:
    return [{"role": "user", "content": asking(key)}]


def test_a_message(client: anthropic.Anthropic) -> None:
    message = client.messages.create(
        model="any-name", max_tokens=500, system="Be brief.", messages=user("plain")
    )
    assert message.content[0].text == "It is 212. 🧵"
    assert (message.model, message.role, message.stop_reason) == (
        "any-name",
        "assistant",
        "end_turn",
    )
    assert message.usage.input_tokens > 0
    assert message.usage.output_tokens > 0
    counted = client.messages.count_tokens(
        model="any-name", system="Be brief.", messages=user("plain")
    )
    read = message.usage.input_tokens + (message.usage.cache_read_input_tokens or 0)
    assert counted.input_tokens == read


def test_thinking_comes_back_and_the_next_turn_reads_only_what_is_new(
    client: anthropic.Anthropic,
) -> None:
    options: Any = {"model": "m", "max_tokens": 900, "thinking": THINKING, "tools": [ADD]}
    messages = user("tool")
    with client.messages.stream(messages=messages, **options) as stream:
        names = [event.type for event in stream]
        first = stream.get_final_message()
    assert [block.type for block in first.content] == ["thinking", "text", "tool_use", "tool_use"]
    thought, text, *uses = first.content
    assert (thought.thinking, text.text) == ("I add.", "One moment.")
    assert thought.signature
    assert [use.input for use in uses] == [call["arguments"] for call in TWO_CALLS]
    assert len({use.id for use in uses}) == 2
    assert first.stop_reason == "tool_use"
    assert names[0] == "message_start"
    assert names[-1] == "message_stop"
    results = [
        {"type": "tool_result", "tool_use_id": use.id, "content": str(i)}
        for i, use in enumerate(reversed(uses))
    ]
    messages += [
        {"role": "assistant", "content": first.content},
        {"role": "user", "content": results},
    ]
    second = client.messages.create(messages=messages, **options)
    assert [block.type for block in second.content] == ["thinking", "text"]
    assert second.content[1].text == "The sum is 5."
    usage = second.usage
    before = first.usage.input_tokens + first.usage.cache_read_input_tokens
    assert usage.cache_read_input_tokens >= before + first.usage.output_tokens - 128
    assert usage.input_tokens < 128 + 60


def test_the_raw_events_of_a_stream(client: anthropic.Anthropic) -> None:
    with client.messages.create(
        model="m", max_tokens=900, messages=user("plain"), thinking=THINKING, stream=True
    ) as stream:
        events = list(stream)
    kinds = [event.type for event in events]
    deltas = [event.delta.type for event in events if event.type == "content_block_delta"]
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert kinds[-2:] == ["message_delta", "message_stop"]
    assert [d for i, d in enumerate(deltas) if i == 0 or deltas[i - 1] != d] == [
        "thinking_delta",
        "signature_delta",
        "text_delta",
    ]


def test_stop_sequences_and_limits(client: anthropic.Anthropic) -> None:
    stopped = client.messages.create(
        model="m", max_tokens=99, messages=user("stop"), stop_sequences=[" three"]
    )
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", " three")
    assert stopped.content[0].text == "one two"
    short = client.messages.create(model="m", max_tokens=2, messages=user("stop"))
    assert (short.stop_reason, short.usage.output_tokens) == ("max_tokens", 2)
    huge = client.messages.create(model="m", max_tokens=393216, messages=user("stop"), timeout=60)
    assert huge.stop_reason == "end_turn"


def test_the_tool_runner_goes_on_without_threads(server: Server) -> None:
    """It first asks for a thread; the refusal makes it send its whole history."""
    seen: list[tuple[int, int]] = []

    @anthropic.beta_tool
    def add(a: int, b: int) -> str:
        """Adds.

        Args:
            a: one
            b: another
        """
        seen.append((a, b))
        return str(a + b)

    with anthropic.Anthropic(base_url=server.url, api_key="none") as client:
        runner = client.beta.messages.tool_runner(
            model="m", max_tokens=500, tools=[add], messages=user("one")
        )
        last = runner.until_done()
    assert seen == [(2, 3)]
    assert last.content[-1].text == "5"


def test_an_answer_of_a_given_form(client: anthropic.Anthropic) -> None:
    class Person(BaseModel):
        name: str
        n: int

    parsed = client.messages.parse(
        model="m", max_tokens=200, messages=user("json"), output_format=Person
    )
    assert parsed.parsed_output == Person(name="Ada", n=3)


def test_errors_have_their_types(server: Server, client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.BadRequestError, match="at least one message"):
        client.messages.create(model="m", max_tokens=5, messages=[])
    orphan: Any = [
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "z", "content": "r"}]}
    ]
    with pytest.raises(anthropic.BadRequestError, match="tool_use_id` found in") as caught:
        client.messages.create(model="m", max_tokens=5, messages=orphan)
    assert caught.value.body["error"]["type"] == "invalid_request_error"
    n_ctx = server.app.options.n_ctx or 1 << 30
    long: Any = [{"role": "user", "content": "word " * 200_000}]
    with pytest.raises(anthropic.BadRequestError) as caught:
        client.messages.create(model="m", max_tokens=5, messages=long, stream=True)
    message = caught.value.body["error"]["message"]
    words = message.split()
    assert message.startswith("prompt is too long: ")
    assert words[5:7] == ["tokens", ">"]
    assert int(words[4]) > int(words[7]) <= n_ctx


def test_async_streams_side_by_side(server: Server) -> None:
    async def one(client: anthropic.AsyncAnthropic, key: str) -> str:
        async with client.messages.stream(model="m", max_tokens=300, messages=user(key)) as stream:
            return "".join([piece async for piece in stream.text_stream])

    async def all_of_them() -> list[str]:
        async with anthropic.AsyncAnthropic(base_url=server.url, api_key="none") as client:
            return await asyncio.gather(*(one(client, key) for key in ("plain", "stop", "plain")))

    assert asyncio.run(all_of_them()) == ["It is 212. 🧵", "one two three", "It is 212. 🧵"]


@pytest.mark.parametrize("streaming", [True, False])
def test_leaving_cancels(server: Server, streaming: bool) -> None:
    async def leave() -> None:
        async with anthropic.AsyncAnthropic(base_url=server.url, api_key="none") as client:
            if streaming:
                async with client.messages.stream(
                    model="m", max_tokens=900, messages=user("long")
                ) as stream:
                    async for _ in stream.text_stream:
                        break
                return
            asked = client.messages.create(model="m", max_tokens=900, messages=user("long"))
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(asked, 0.5)

    asyncio.run(leave())
    deadline = time.monotonic() + 5
    while server.app.counters.n_open and time.monotonic() < deadline:
        time.sleep(0.02)
    assert server.app.counters.n_open == 0


def test_the_wire_is_the_one_of_the_specification(server: Server) -> None:
    """Byte by byte, apart from ids and counts."""
    import httpx

    body = {"model": "m", "max_tokens": 50, "stream": True, "messages": user("stop")}
    answer = httpx.post(f"{server.url}/v1/messages?beta=true", json=body)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["x-scripted"] == "stop#0"
    events = answer.text.split("\n\n")
    assert events.pop() == ""
    parsed = [event.split("\n") for event in events]
    for name, data in parsed:
        assert name == "event: " + json.loads(data.removeprefix("data: "))["type"]
    kinds = [name.removeprefix("event: ") for name, _ in parsed]
    assert kinds[:3] == ["message_start", "ping", "content_block_start"]
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert set(kinds[3:-3]) == {"content_block_delta"}
