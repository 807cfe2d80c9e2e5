"""Chat Completions over loopback: the official SDK, and the bytes."""

from __future__ import annotations

import asyncio
import json
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from grebe.server.run import Server, serve

from tests.helpers import models
from tests.helpers.live import serving
from tests.helpers.wire import post, sse_events

ARGUMENTS = {"path": "src/näme.py", "mode": 420, "lines": ["a", {"b": None}], "wide": 1.5}
REPLIES = {
    "hello": {"steps": [{"content": "Hello, world. 🧵 Ünïcode."}]},
    "think": {"steps": [{"reasoning": "First this.\nThen that.", "content": "Answer."}]},
    "calls": {
        "tools_required": True,
        "steps": [
            {
                "reasoning": "Both at once.",
                "content": "I look.",
                "tool_calls": [
                    {"name": "write_file", "arguments": ARGUMENTS},
                    {"name": "ping", "arguments": {}},
                ],
            },
            {"reasoning": "Done.", "content": "All is well."},
        ],
    },
    "stops": {"steps": [{"content": "one two THREE four"}]},
    "cut": {"steps": [{"content": "this is cut here", "finish": "length"}]},
    "json": {"steps": [{"content": '{"name": "Ann", "n": 3}'}]},
    "slow": {"steps": [{"content": "word " * 200, "token_delay_s": 0.05}]},
}
TOOLS: list[Any] = [
    {
        "type": "function",
        "function": {
            "name": "write_file",
            "description": "Create a file",
            "parameters": {
                "type": "object",
                "properties": {
                    "path": {"type": "string"},
                    "mode": {"type": "integer"},
                    "lines": {"type": "array"},
                    "wide": {"type": "number"},
                },
                "required": ["path"],
            },
        },
    },
    {"type": "function", "function": {"name": "ping", "parameters": {"type": "object"}}},
]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving(REPLIES, n_ctx=4096) as running:
        yield running


@pytest.fixture(scope="module")
def model_server() -> Iterator[Server]:
    """Without scripts: what the embedded model says."""
    with serve(models.load("embedded"), n_ctx=4096) as running:
        yield running


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    with sdk(server) as made:
        yield made


def sdk(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)


def async_sdk(server: Server) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)


def say(key: str) -> list[Any]:
    return [{"role": "user", "content": f"[[script:{key}]] please"}]


# ---------------------------------------------------------------- whole answers


def test_answer(client: openai.OpenAI):
    answer = client.chat.completions.create(
        model="any-name", messages=say("hello"), reasoning_effort="none"
    )
    (choice,) = answer.choices
    assert answer.object == "chat.completion"
    assert answer.id.startswith("chatcmpl-")
    assert answer.model == "any-name"
    assert choice.message.role == "assistant"
    assert choice.message.content == "Hello, world. 🧵 Ünïcode."
    assert choice.message.tool_calls is None
    assert choice.message.refusal is None
    assert choice.finish_reason == "stop"
    assert choice.logprobs is None
    usage = answer.usage
    assert usage is not None
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert usage.completion_tokens_details is not None
    assert usage.completion_tokens_details.reasoning_tokens == 0
    extra = usage.model_extra or {}
    assert extra["prompt_cache_hit_tokens"] + extra["prompt_cache_miss_tokens"] == (
        usage.prompt_tokens
    )


def test_reasoning(client: openai.OpenAI):
    answer = client.chat.completions.create(model="m", messages=say("think"))
    message = answer.choices[0].message
    assert message.content == "Answer."
    assert (message.model_extra or {})["reasoning_content"] == "First this.\nThen that."
    assert answer.usage is not None
    assert answer.usage.completion_tokens_details is not None
    reasoning_tokens = answer.usage.completion_tokens_details.reasoning_tokens
    assert reasoning_tokens is not None
    assert 0 < reasoning_tokens < answer.usage.completion_tokens


def test_parallel_calls_and_their_results(client: openai.OpenAI):
    messages = say("calls")
    first = client.chat.completions.create(model="m", messages=messages, tools=TOOLS)
    (choice,) = first.choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == "I look."
    calls = choice.message.tool_calls
    assert calls is not None
    assert [call.function.name for call in calls] == ["write_file", "ping"]
    assert json.loads(calls[0].function.arguments) == ARGUMENTS
    assert calls[1].function.arguments == "{}"
    assert len({call.id for call in calls}) == 2
    back = choice.message.model_dump(exclude_none=True)
    for call in back["tool_calls"]:  # as JavaScript clients write it again
        arguments = json.loads(call["function"]["arguments"])
        call["function"]["arguments"] = json.dumps(arguments, separators=(",", ":"))
    messages += [
        back,
        {"role": "tool", "tool_call_id": calls[1].id, "content": "pong"},
        {"role": "tool", "tool_call_id": calls[0].id, "content": "written"},
    ]
    second = client.chat.completions.create(model="m", messages=messages, tools=TOOLS)
    assert second.choices[0].message.content == "All is well."
    assert second.usage is not None
    assert first.usage is not None
    assert second.usage.prompt_tokens_details is not None
    cached = second.usage.prompt_tokens_details.cached_tokens
    assert cached is not None
    # Everything but the end marker of the answer was read before.
    assert cached >= first.usage.prompt_tokens + first.usage.completion_tokens - 1


def test_one_call_at_a_time(client: openai.OpenAI):
    answer = client.chat.completions.create(
        model="m", messages=say("calls"), tools=TOOLS, parallel_tool_calls=False
    )
    (choice,) = answer.choices
    assert choice.finish_reason == "tool_calls"
    assert [c.function.name for c in choice.message.tool_calls or ()] == ["write_file"]


def test_no_content_beside_calls_is_null(client: openai.OpenAI):
    raw = client.chat.completions.with_raw_response.create(
        model="m", messages=say("hello"), reasoning_effort="none"
    )
    assert raw.headers["x-scripted"] == "hello#0"
    assert set(json.loads(raw.text)["choices"][0]["message"]) == {
        "role",
        "content",
        "refusal",
        "annotations",
    }


@pytest.mark.parametrize(
    ("key", "options", "content", "finish"),
    [
        ("stops", {"stop": "THREE"}, "one two ", "stop"),
        ("stops", {"stop": ["zzz", " four"]}, "one two THREE", "stop"),
        ("cut", {}, "this is cut here", "length"),
        ("hello", {"max_tokens": 2}, None, "length"),
        ("hello", {"max_completion_tokens": 2}, None, "length"),
        ("hello", {"max_tokens": 999_999_999}, "Hello, world. 🧵 Ünïcode.", "stop"),
    ],
)
def test_ends(
    client: openai.OpenAI, key: str, options: dict[str, Any], content: str | None, finish: str
):
    answer = client.chat.completions.create(
        model="m", messages=say(key), reasoning_effort="none", **options
    )
    (choice,) = answer.choices
    assert choice.finish_reason == finish
    if content is None:
        assert answer.usage is not None
        assert answer.usage.completion_tokens == 2
    else:
        assert choice.message.content == content


def test_logprobs(client: openai.OpenAI):
    answer = client.chat.completions.create(
        model="m", messages=say("think"), logprobs=True, top_logprobs=3
    )
    (choice,) = answer.choices
    assert choice.logprobs is not None
    content = choice.logprobs.content or []
    assert b"".join(bytes(entry.bytes or ()) for entry in content) == b"Answer."
    assert all(len(entry.top_logprobs) == 3 and entry.logprob <= 0 for entry in content)
    reasoning = (choice.logprobs.model_extra or {})["reasoning_content"]
    assert "".join(entry["token"] for entry in reasoning) == "First this.\nThen that."


def test_seed_repeats_and_temperature_zero_is_greedy(model_server: Server):
    messages: list[Any] = [{"role": "user", "content": "Tell me a story"}]

    def answer(**options: Any) -> str | None:
        with sdk(model_server) as client:
            made = client.chat.completions.create(
                model="m", messages=messages, reasoning_effort="none", max_tokens=24, **options
            )
            return made.choices[0].message.content

    assert answer(seed=7) == answer(seed=7)
    assert answer(seed=7) != answer(seed=8)
    assert answer(temperature=0) == answer(temperature=0, seed=5)
    first = answer(temperature=0) or ""
    with sdk(model_server) as client:
        made = client.chat.completions.create(
            model="m",
            messages=messages,
            reasoning_effort="none",
            max_tokens=1,
            temperature=0,
            logprobs=True,
        )
    assert made.choices[0].logprobs is not None
    (entry,) = made.choices[0].logprobs.content or ()
    assert first.startswith(entry.token)
    status, _, data = post(model_server, "/tokenize", {"content": entry.token})
    assert status == 200
    (token,) = json.loads(data)["tokens"]
    biased = answer(temperature=0, logit_bias={str(token): -100})
    assert not (biased or "").startswith(entry.token)


# ---------------------------------------------------------------- streams


def test_stream(client: openai.OpenAI):
    with client.chat.completions.create(
        model="m", messages=say("think"), stream=True, stream_options={"include_usage": True}
    ) as stream:
        chunks = list(stream)
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk.id for chunk in chunks}) == 1
    *head, last = chunks
    assert last.choices == []
    assert last.usage is not None
    assert all(chunk.usage is None for chunk in head)
    deltas = [chunk.choices[0].delta for chunk in head]
    assert deltas[0].role == "assistant"
    assert "".join(d.content or "" for d in deltas) == "Answer."
    reasoning = "".join((d.model_extra or {}).get("reasoning_content", "") for d in deltas)
    assert reasoning == "First this.\nThen that."
    assert [c.choices[0].finish_reason for c in head][-1] == "stop"
    assert not any(c.choices[0].finish_reason for c in head[:-1])


def test_stream_helper_assembles_calls(client: openai.OpenAI):
    with client.chat.completions.stream(model="m", messages=say("calls"), tools=TOOLS) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_completion()
    assert "tool_calls.function.arguments.delta" in kinds
    calls = final.choices[0].message.tool_calls
    assert calls is not None
    assert [call.function.name for call in calls] == ["write_file", "ping"]
    assert json.loads(calls[0].function.arguments) == ARGUMENTS


def test_stream_equals_whole_answer(server: Server):
    for key in ("hello", "think", "calls", "stops", "cut"):
        body = {"messages": say(key), "tools": TOOLS, "stop": ["THREE"], "temperature": 0}
        _, _, whole = post(server, "/v1/chat/completions", body)
        _, _, parts = post(server, "/v1/chat/completions", {**body, "stream": True})
        message = json.loads(whole)["choices"][0]["message"]
        deltas = [
            event["choices"][0]["delta"] for _, event in sse_events(parts) if event != "[DONE]"
        ]
        assert "".join(d.get("content") or "" for d in deltas) == (message["content"] or "")
        reasoning = "".join(d.get("reasoning_content") or "" for d in deltas)
        assert reasoning == message["reasoning_content"]
        arguments: dict[int, str] = {}
        for delta in deltas:
            for call in delta.get("tool_calls", ()):
                arguments.setdefault(call["index"], "")
                arguments[call["index"]] += call["function"]["arguments"]
        whole_calls = message.get("tool_calls", [])
        assert list(arguments.values()) == [c["function"]["arguments"] for c in whole_calls]


def test_bytes_and_order_of_a_stream(server: Server):
    body = {
        "messages": say("calls"),
        "tools": TOOLS,
        "stream": True,
        "stream_options": {"include_usage": True},
        "model": "grebe",
    }
    status, headers, data = post(server, "/v1/chat/completions", body)
    assert status == 200
    assert headers["content-type"].startswith("text/event-stream")
    assert "content-encoding" not in headers
    events = sse_events(data)
    assert all(name is None for name, _ in events)
    chunks = [event for _, event in events]
    assert chunks.pop() == "[DONE]"
    usage = chunks.pop()
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens_details"]["reasoning_tokens"] > 0
    head = {k: v for k, v in usage.items() if k not in ("choices", "usage")}
    order = []
    for chunk in chunks:
        assert {k: v for k, v in chunk.items() if k not in ("choices", "usage")} == head
        assert chunk["usage"] is None
        (choice,) = chunk["choices"]
        assert list(choice) == ["index", "delta", "logprobs", "finish_reason"]
        delta = choice["delta"]
        kind = "end" if choice["finish_reason"] else "/".join(delta)
        if "tool_calls" in delta:
            (call,) = delta["tool_calls"]
            if "id" in call:
                assert list(call) == ["index", "id", "type", "function"]
                assert call["function"]["arguments"] == ""
                kind = f"open {call['index']}"
            else:
                assert list(call) == ["index", "function"]
                kind = f"more {call['index']}"
        if not order or order[-1] != kind:
            order.append(kind)
    assert order == [
        "role/content/refusal",
        "reasoning_content",
        "content",
        "open 0",
        "more 0",
        "open 1",
        "more 1",
        "end",
    ]
    assert chunks[-1]["choices"][0] == {
        "index": 0,
        "delta": {},
        "logprobs": None,
        "finish_reason": "tool_calls",
    }


def test_async_and_parallel_streams(server: Server):
    async def one(client: openai.AsyncOpenAI, key: str) -> str:
        stream = await client.chat.completions.create(model="m", messages=say(key), stream=True)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    async def all_of_them() -> list[str]:
        async with async_sdk(server) as client:
            return await asyncio.gather(*(one(client, key) for key in ("hello", "think") * 4))

    assert asyncio.run(all_of_them()) == ["Hello, world. 🧵 Ünïcode.", "Answer."] * 4


def test_async_answer(server: Server):
    async def ask() -> str | None:
        async with async_sdk(server) as client:
            answer = await client.chat.completions.create(model="m", messages=say("hello"))
            return answer.choices[0].message.content

    assert asyncio.run(ask()) == "Hello, world. 🧵 Ünïcode."


@pytest.mark.parametrize("stream", [True, False])
def test_leaving_ends_the_job(server: Server, stream: bool):
    async def leave() -> None:
        async with async_sdk(server) as client:
            if stream:
                answer = await client.chat.completions.create(
                    model="m", messages=say("slow"), stream=True
                )
                async for chunk in answer:
                    if chunk.choices[0].delta.content:
                        break
                await answer.close()
                return
            whole = client.chat.completions.create(model="m", messages=say("slow"))
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(whole, 0.5)

    def running() -> int:
        with urllib.request.urlopen(server.url + "/status") as status:
            return len(json.load(status)["running"])

    asyncio.run(leave())
    end = time.monotonic() + 3  # the reply would go on for ten seconds
    while running() and time.monotonic() < end:
        time.sleep(0.05)
    assert running() == 0


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "x"}, "messages"),
        ({"messages": [{"content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": 3}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"presence_penalty": -3}, "presence_penalty"),
        ({"frequency_penalty": 3}, "frequency_penalty"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"min_p": 1}, "min_p"),
        ({"top_k": -2}, "top_k"),
        ({"n": 2}, "n"),
        ({"seed": 2**70}, "seed"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"stop": [""]}, "stop"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_completion_tokens": -1}, "max_completion_tokens"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"5": 101}}, "logit_bias"),
        ({"logit_bias": {"8192": 1}}, "logit_bias"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"reasoning_effort": "enormous"}, "reasoning_effort"),
        ({"thinking": {"type": "sometimes"}}, "thinking.type"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": "perhaps"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "x"}}}, "tool_choice"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"tools": [TOOLS[1], TOOLS[1]]}, "tools"),
        ({"functions": [{"name": "x"}]}, "functions"),
        ({"function_call": {"name": "x"}}, "function_call"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"audio": {"voice": "x"}}, "audio"),
        ({"stream": "yes"}, "stream"),
    ],
)
def test_refused(client: openai.OpenAI, change: dict[str, Any], param: str):
    body: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], **change}
    with pytest.raises(openai.BadRequestError) as caught:
        client.post("/chat/completions", body=body, cast_to=object)
    assert caught.value.status_code == 400
    assert caught.value.param == param
    assert caught.value.type == "invalid_request_error"


def test_not_json(server: Server):
    for data in (b"", b"{", b"[]", b'{"messages": [}', b"\xff", b'{"messages": NaN}'):
        status, _, body = post(server, "/v1/chat/completions", data)
        assert status == 400
        assert json.loads(body)["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("stream", [True, False])
def test_overflow(client: openai.OpenAI, stream: bool):
    messages: list[Any] = [{"role": "user", "content": "many words " * 4000}]
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="m", messages=messages, stream=stream)
    error = caught.value
    assert error.code == "context_length_exceeded"
    assert "This model's maximum context length is 4096 tokens. However, your messages" in (
        error.message
    )
    assert "Please reduce the length of the messages." in error.message


def test_unknown_fields_roles_and_parts_are_no_error(client: openai.OpenAI):
    body = {
        "model": "m",
        "reasoning_effort": "none",
        "messages": [
            {"role": "developer", "content": "Be brief.", "zzz": 1},
            {"role": "observer", "name": "Ann", "content": [{"type": "hologram", "data": {}}]},
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "[[script:hello]]"},
                    {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
                ],
            },
        ],
        "brand_new": {"x": [1]},
        "store": False,
        "metadata": {"a": "b"},
        "service_tier": "auto",
        "prediction": None,
        "tools": [{"type": "web_search", "filters": {}}, *TOOLS],
    }
    answer: Any = client.post("/chat/completions", body=body, cast_to=object)
    assert answer["choices"][0]["message"]["content"] == "Hello, world. 🧵 Ünïcode."


def test_half_a_surrogate_pair(server: Server):
    data = json.dumps({"messages": say("hello")}).encode().replace(b"please", rb"\ud83d")
    status, _, _ = post(server, "/v1/chat/completions", data)
    assert status == 200


# ---------------------------------------------------------------- models


def test_models(client: openai.OpenAI, server: Server):
    (model,) = client.models.list().data
    assert model.object == "model"
    assert client.models.retrieve("whatever/name").id == "whatever/name"
    listed: Any = client.get("/models?limit=1000", cast_to=object)
    assert listed["object"] == "list"
    assert listed["first_id"] == listed["last_id"] == model.id
    assert listed["has_more"] is False
    entry = listed["data"][0]
    assert entry["type"] == "model"
    assert {"display_name", "created_at", "created", "owned_by"} <= set(entry)


def test_prefix_continues(model_server: Server):
    body = {
        "messages": [
            {"role": "user", "content": "Once"},
            {"role": "assistant", "content": "Once upon a", "prefix": True},
        ],
        "reasoning_effort": "none",
        "max_tokens": 4,
        "temperature": 0,
    }
    status, _, data = post(model_server, "/v1/chat/completions", body)
    assert status == 200
    assert json.loads(data)["choices"][0]["message"]["content"].startswith(" ")
