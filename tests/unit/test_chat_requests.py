"""Bodies of Chat Completions as neutral requests, and what is said back, without an engine."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from grebe.chat.deltas import CallArguments, CallEnd, CallStart, ContentDelta, Delta, ReasoningDelta
from grebe.chat.markers import Markers
from grebe.chat.messages import Tool
from grebe.chat.parser import OutputParser
from grebe.config import Sampling
from grebe.errors import (
    BackendError,
    ContextOverflowError,
    InvalidArgumentError,
    OutOfMemoryError,
    StorageError,
)
from grebe.server.chat_events import ChatEncoder, Logprobs, completion_body
from grebe.server.chat_request import chat_request
from grebe.server.errors import (
    ApiError,
    ContextExceeded,
    anthropic_error_body,
    api_error,
    error_headers,
    openai_error_body,
)
from grebe.server.jobs import (
    EndReason,
    EngineFailed,
    Finished,
    JobEvent,
    JobUsage,
    Loading,
    QueueFull,
    TokenEvent,
)
from grebe.server.prompting import ToolSections
from grebe.server.requests import ChatRequest
from grebe.server.schemas import ChatBody, decode
from grebe.server.single_call import FirstCall
from grebe.server.turns import Turn, collect

from tests.helpers.chat import nano_tokenizer

USAGE = JobUsage(prompt_tokens=10, cached_tokens=4, completion_tokens=3)


def request(**body: Any) -> ChatRequest:
    body.setdefault("messages", [{"role": "user", "content": "Hi"}])
    return chat_request(json.dumps(body).encode())


# ---------------------------------------------------------------- bodies


@pytest.mark.parametrize(
    ("body", "thinking", "effort"),
    [
        ({}, True, "high"),
        ({"reasoning_effort": "none"}, False, "high"),
        ({"reasoning_effort": "minimal"}, True, "low"),
        ({"reasoning_effort": "xhigh"}, True, "high"),
        ({"reasoning_effort": "ultra"}, True, "max"),
        ({"thinking": {"type": "enabled"}, "reasoning_effort": "none"}, True, "high"),
        ({"thinking": {"type": "disabled"}, "reasoning_effort": "max"}, False, "max"),
        ({"thinking": {"type": "adaptive"}}, True, "high"),
    ],
)
def test_thinking(body: dict[str, Any], thinking: bool, effort: str):
    talk = request(**body).conversation
    assert (talk.thinking, talk.effort) == (thinking, effort)


def test_nulls_mean_nothing():
    names = [n for n in ChatBody.__struct_fields__ if n != "messages"]
    assert request(**dict.fromkeys(names)) == request()


def test_max_tokens_wins_and_large_ones_are_kept():
    assert request(max_tokens=5, max_completion_tokens=9).max_tokens == 5
    assert request(max_completion_tokens=9).max_tokens == 9
    assert request(max_tokens=10**12).max_tokens == 10**12


def test_seeds_of_both_signs():
    assert request(seed=-1).sampling.seed == 2**64 - 1
    assert request(seed=7).sampling.seed == 7
    Sampling(seed=request(seed=-(2**63)).sampling.seed)


def test_a_named_tool_is_the_only_one_shown():
    tools = [{"type": "function", "function": {"name": n}} for n in ("f", "g")]
    choice = {"type": "function", "function": {"name": "g"}}
    asked = request(tools=tools, tool_choice=choice, reasoning_effort="none")
    assert [tool.name for tool in asked.conversation.tools] == ["g"]
    assert asked.conversation.forced == "g"
    thinking = request(tools=tools, tool_choice=choice)
    assert [tool.name for tool in thinking.conversation.tools] == ["f", "g"]
    assert thinking.conversation.forced is None
    assert thinking.constrained.forced == "g"


def test_results_without_ids_come_in_order():
    calls = [{"function": {"name": n, "arguments": {"a": 1}}} for n in ("f", "g")]
    asked = request(
        messages=[
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": None, "tool_calls": calls},
            {"role": "tool", "content": "1"},
            {"role": "function", "content": "2"},
        ]
    )
    assert asked.unmatched == ()
    _, said, *results = asked.conversation.messages
    assert [r.tool_call_id for r in results] == [call.id for call in said.tool_calls]
    assert said.tool_calls[0].arguments == '{"a": 1}'


def test_unread_fields_are_noted():
    body = {"messages": [{"role": "user", "content": "x", "weight": 1}], "best_guess": 3}
    _, ignored = decode(json.dumps(body).encode(), ChatBody)
    assert ignored == ("best_guess", "messages[].weight")


def test_a_hint_of_the_session():
    data = json.dumps({"messages": [{"role": "user", "content": "x"}]}).encode()
    assert chat_request(data, {"x-session-affinity": "abc"}).session_hint == "abc"
    assert request(prompt_cache_key="k").session_hint == "k"
    assert request().session_hint is None


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (QueueFull(64, 7), 429, "rate_limit_error"),
        (Loading("loading"), 503, "overloaded_error"),
        (InvalidArgumentError("x"), 400, "invalid_request_error"),
        (ContextOverflowError("x", 9, 8), 400, "invalid_request_error"),
        (OutOfMemoryError("x", 9), 503, "overloaded_error"),
        (BackendError("x", "op"), 500, "api_error"),
        (StorageError("x"), 500, "api_error"),
        (EngineFailed("x"), 500, "api_error"),
        (KeyError("secret"), 500, "api_error"),
    ],
)
def test_errors_over_http(error: Exception, status: int, kind: str):
    made = api_error(error)
    assert (made.status, made.kind) == (status, kind)
    assert "secret" not in made.message
    assert api_error(made) is made
    if status in (429, 503):
        assert int(error_headers(made)["retry-after"]) >= 1


def test_shapes_of_errors():
    error = ApiError(404, "gone", kind="not_found_error", param="id", details={"a": 1})
    assert openai_error_body(error) == {
        "error": {"message": "gone", "type": "invalid_request_error", "param": "id", "code": None}
    }
    assert anthropic_error_body(error, "req_1") == {
        "type": "error",
        "error": {"type": "not_found_error", "message": "id: gone", "details": {"a": 1}},
        "request_id": "req_1",
    }
    overflow = anthropic_error_body(ContextExceeded(9, 8))["error"]["message"]
    assert overflow == "prompt is too long: 9 tokens > 8 maximum"


# ---------------------------------------------------------------- what is said


class Sink:
    reasoning_tokens = 1

    def feed(self, token: int) -> Any:
        raise AssertionError

    def finish(self, reason: EndReason) -> Any:
        raise AssertionError


async def stream(*events: JobEvent) -> AsyncIterator[JobEvent]:
    for event in events:
        yield event


def turn(*events: JobEvent, **body: Any) -> Turn:
    return Turn(request(**body), [0] * 10, stream(*events), Sink())


def chunks(data: bytes) -> list[Any]:
    return [json.loads(line[6:]) for line in data.decode().split("\n\n") if line]


def test_a_call_that_was_cut_is_no_call():
    deltas = (
        ContentDelta("a"),
        CallStart(0, "call_1", "f"),
        CallArguments(0, "{}"),
        CallEnd(0, "f", "{}"),
        CallStart(1, "call_2", "g"),
        CallArguments(1, '{"x": '),
    )
    made = turn(TokenEvent(5, deltas), Finished("length", (), USAGE))
    body = completion_body(made, asyncio.run(collect(made)), nano_tokenizer())
    (choice,) = body["choices"]
    assert choice["finish_reason"] == "length"
    assert [call["id"] for call in choice["message"]["tool_calls"]] == ["call_1"]


def test_calls_without_the_end_of_their_block():
    call = (CallStart(0, "call_1", "f"), CallArguments(0, "{}"), CallEnd(0, "f", "{}"))
    made = turn(TokenEvent(5, call), Finished("stop", (), USAGE))
    answer = asyncio.run(collect(made))
    assert answer.reason == "tool_calls"
    body = completion_body(made, answer, nano_tokenizer())
    assert body["choices"][0]["message"]["content"] is None
    encoder = ChatEncoder(made, nano_tokenizer())
    encoder.event(TokenEvent(5, call))
    last = encoder.event(Finished("stop", (), USAGE)).removesuffix(b"data: [DONE]\n\n")
    assert chunks(last)[-1]["choices"][0]["finish_reason"] == "tool_calls"


def test_what_the_server_ends_is_an_error():
    made = turn(Finished("cancelled", (), USAGE))
    with pytest.raises(EngineFailed):
        asyncio.run(collect(made))
    data = ChatEncoder(made, nano_tokenizer()).event(Finished("cancelled", (), USAGE))
    assert b"[DONE]" not in data
    (error,) = chunks(data)
    assert error["error"]["type"] == "server_error"


def test_keepalives_are_chunks_that_change_nothing():
    encoder = ChatEncoder(turn(), nano_tokenizer())
    (chunk,) = chunks(encoder.keepalive())
    assert chunk["choices"][0]["delta"] == {"content": ""}
    assert chunk["choices"][0]["finish_reason"] is None


def test_why_the_cache_had_no_more():
    usage = JobUsage(10, 4, 3, miss="diverged", miss_at=4)
    made = turn(Finished("stop", (), usage))
    body = completion_body(made, asyncio.run(collect(made)), nano_tokenizer())["usage"]
    assert body["prompt_cache_miss_reason"] == "diverged"
    assert body["prompt_cache_miss_at"] == 4
    assert body["prompt_tokens_details"]["cached_tokens"] == 4


def sorted_tokens(steps: list[tuple[int, list[Delta]]]) -> dict[str, str]:
    tokenizer = nano_tokenizer()
    entries = Logprobs(tokenizer, thinking=True)
    for token, deltas in steps:
        entries.sampled(TokenEvent(token, deltas, -1.0))
        for delta in deltas:
            entries.became(delta)
    body = entries.body()
    return {
        name: b"".join(bytes(entry["bytes"]) for entry in body[name]).decode()
        for name in ("content", "reasoning_content")
    }


def test_tokens_go_where_their_text_went():
    tokenizer = nano_tokenizer()
    markers = Markers.of(tokenizer)
    parser = OutputParser(markers, tokenizer, [Tool({"name": "f"})], thinking=True)
    output = [
        *tokenizer.encode("So: 🧵.\n"),
        markers.think_end,
        *tokenizer.encode("Ü <b> 🧵\n\n<"),
        markers.dsml,
        *tokenizer.encode("tool_calls>\n<"),
        markers.dsml,
        *tokenizer.encode('invoke name="f">\n</'),
        markers.dsml,
        *tokenizer.encode("invoke>\n</"),
        markers.dsml,
        *tokenizer.encode("tool_calls>"),
    ]
    steps: list[tuple[int, list[Delta]]] = [(t, list(parser.feed(t).deltas)) for t in output]
    assert any(isinstance(d, CallEnd) for _, deltas in steps for d in deltas)
    assert sorted_tokens(steps) == {"reasoning_content": "So: 🧵.\n", "content": "Ü <b> 🧵"}


def test_tokens_of_a_stop_string_belong_nowhere():
    tokenizer = nano_tokenizer()
    parser = OutputParser(Markers.of(tokenizer), tokenizer, (), thinking=False, stop=["END"])
    steps: list[tuple[int, list[Delta]]] = []
    for token in tokenizer.encode("one two E N END three"):
        sunk = parser.feed(token)
        steps.append((token, list(sunk.deltas)))
        if sunk.end:
            break
    # " E" is half answer, half stop string.
    assert sorted_tokens(steps)["content"] == "one two E N E"


def test_one_call_and_what_completes_it():
    tokenizer = nano_tokenizer()
    markers = Markers.of(tokenizer)
    for end in (">", ">\n"):
        parser = OutputParser(markers, tokenizer, [Tool({"name": "f"})], thinking=False)
        first = FirstCall(parser, tokenizer, markers)
        output = [
            *tokenizer.encode("\n\n<"),
            markers.dsml,
            *tokenizer.encode("tool_calls>\n<"),
            markers.dsml,
            *tokenizer.encode('invoke name="f">\n</'),
            markers.dsml,
            *tokenizer.encode(f"invoke{end}"),
        ]
        sunk = [first.feed(token) for token in output]
        assert [s.end for s in sunk][-1] == "tool_calls"
        assert not any(s.end for s in sunk[:-1])
        assert first.finish("tool_calls") == ()
        whole = tokenizer.decode([*output, *first.rest()])
        assert whole.endswith("invoke>\n</｜DSML｜tool_calls><｜end▁of▁sentence｜>")
        assert len(first.turn.calls) == 1


def test_without_a_cut_nothing_is_added():
    tokenizer = nano_tokenizer()
    markers = Markers.of(tokenizer)
    parser = OutputParser(markers, tokenizer, (), thinking=False)
    first = FirstCall(parser, tokenizer, markers)
    assert first.feed(markers.eos).end == "stop"
    assert first.rest() == []


def test_reasoning_is_a_field_of_its_own():
    encoder = ChatEncoder(turn(), nano_tokenizer())
    (chunk,) = chunks(encoder.event(TokenEvent(5, (ReasoningDelta("r"),))))
    assert chunk["choices"][0]["delta"] == {"reasoning_content": "r"}


def test_tool_sections_are_bounded():
    sections = ToolSections(2)
    for key in (b"a", b"b", b"a", b"c"):
        sections.add(key)
    assert b"a" in sections
    assert b"b" not in sections
