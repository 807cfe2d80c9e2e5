"""/v1/messages: bodies to conversations, and turns to messages and events."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from grebe.chat.deltas import CallArguments, CallStart, ContentDelta, ReasoningDelta
from grebe.chat.messages import Message
from grebe.server.anthropic_events import MessagesEncoder, message_body
from grebe.server.errors import ApiError, ContextExceeded, anthropic_error_body
from grebe.server.jobs import EngineFailed, JobEvent
from grebe.server.requests import ChatRequest
from grebe.server.turns import collect

from tests.helpers.api import ask
from tests.helpers.fake_turns import call, ended, fake_turn, lines, said

USER = {"role": "user", "content": "Hi"}
TOOL = {"name": "read", "description": "d", "input_schema": {"type": "object"}}
ON, OFF = {"type": "enabled", "budget_tokens": 1024}, {"type": "disabled"}


def asked(*messages: Any, **fields: Any) -> ChatRequest:
    return ask("messages", {"max_tokens": 64, "messages": list(messages) or [USER], **fields})


def talk(*messages: Any, **fields: Any) -> tuple[Message, ...]:
    return asked(*messages, **fields).conversation.messages


def use(call_id: str = "t1", **given: Any) -> dict[str, Any]:
    return {"type": "tool_use", "id": call_id, "name": "read", "input": given}


def result(call_id: str = "t1", content: Any = "r") -> dict[str, Any]:
    return {"type": "tool_result", "tool_use_id": call_id, "content": content}


def assistant(*blocks: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": list(blocks)}


def user(*blocks: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(blocks)}


def text(value: str, **fields: Any) -> dict[str, Any]:
    return {"type": "text", "text": value, **fields}


# ---------------------------------------------------------------- bodies


def test_a_later_system_message_without_text_is_none() -> None:
    assert talk(USER, {"role": "system", "content": ""}, USER) == talk(USER, USER)
    with pytest.raises(ApiError, match="at least one message"):
        asked({"role": "system", "content": []})


def test_a_string_and_its_block_are_the_same() -> None:
    cached = {"cache_control": {"type": "ephemeral"}}
    for role in ("user", "assistant", "system"):
        plain = talk(USER, {"role": role, "content": "x"}, USER)
        assert plain == talk(USER, {"role": role, "content": [text("x", **cached)]}, USER)
    assert talk(system="S") == talk(system=[text("S", **cached)])


def test_the_billing_block_is_left_out_and_other_text_is_not() -> None:
    line = "x-anthropic-billing-header: cc_version=2.1.330.37e"
    assert talk(system=[text(line), text("S")])[0] == Message("system", "S")
    assert talk(system=[text(line)]) == (Message("user", "Hi"),)
    for kept in ([text("S"), text(line)], line, [text(" " + line)]):
        assert line in talk(system=kept)[0].content
    assert line in talk(user(text(line)))[0].content


def test_system_messages_stay_where_they_are() -> None:
    reminder = Message("user", "<system-reminder>\nA\n\nB\n</system-reminder>")
    system = {"role": "system", "content": [text("A"), text("B")]}
    assert talk(system, USER) == (reminder, Message("user", "Hi"))
    assert talk(USER, system) == (Message("user", "Hi"), reminder)
    assert talk(USER, assistant(text("x")), system, USER)[2] == reminder


def test_blocks_of_an_assistant() -> None:
    said = talk(
        USER,
        assistant(
            {"type": "thinking", "thinking": "One.", "signature": "s"},
            {"type": "redacted_thinking", "data": "?"},
            {"type": "thinking", "thinking": "Two."},
            text("A"),
            use("t1", path="ä", n=2.0),
            {"type": "server_tool_use", "id": "x", "name": "web_search", "input": {}},
            text("B"),
        ),
        user(result()),
        tools=[TOOL],
    )[1]
    assert (said.reasoning, said.content) == ("One.\n\nTwo.", "A\n\nB")
    assert [(c.id, c.name, c.arguments) for c in said.tool_calls] == [
        ("t1", "read", '{"path": "ä", "n": 2.0}')
    ]


def test_arguments_that_the_client_could_not_parse_are_their_text() -> None:
    said = talk(USER, assistant(use(__unparsedToolInput='{"a": ')), user(result()), tools=[TOOL])
    assert said[1].tool_calls[0].arguments == '{"a": '


def test_results_come_in_any_order_and_before_texts() -> None:
    messages = talk(
        USER,
        assistant(use("a"), use("b")),
        {"role": "system", "content": "S"},
        user(text("then"), result("b", [text("1"), text("2")]), result("a", None)),
        tools=[TOOL],
    )
    assert [(m.role, m.content) for m in messages[2:]] == [
        ("user", "<system-reminder>\nS\n</system-reminder>"),
        ("tool", "1\n\n2"),
        ("tool", ""),
        ("user", "then"),
    ]
    apart = asked(USER, assistant(use("a"), use("b")), user(result("b")), user(result("a")))
    assert not apart.unmatched


def test_results_of_odd_content_are_what_is_text_in_them() -> None:
    odd = [None, 5, ["x"], {}, {"type": "text"}, "a", text("b")]
    messages = talk(USER, assistant(use()), user(result("t1", odd)), tools=[TOOL])
    assert messages[-1].content == "\n\na\n\nb"
    assert talk(USER, assistant(use()), user(result("t1", 5)), tools=[TOOL])[-1].content == ""


def test_a_call_is_no_prefill() -> None:
    (*_, last) = talk(USER, assistant(text("x"), use()), tools=[TOOL])
    assert not last.prefix
    assert len(last.tool_calls) == 1


def test_ids_are_compared_by_letters_and_digits() -> None:
    assert not asked(USER, assistant(use("call_00_aB")), user(result("call00aB"))).unmatched


@pytest.mark.parametrize(
    ("messages", "ids", "message"),
    [
        ([USER, assistant(use("a")), USER], ["a"], "messages.2: `tool_use` ids were found"),
        ([USER, assistant(use("a"), use("b"))], ["a", "b"], "messages.1:`tool_use` ids were found"),
        (
            [USER, assistant(use("a"), use("b")), user(result("b"))],
            ["a"],
            "messages.1:`tool_use` ids were found without `tool_result` blocks immediately after: "
            "a. Each",
        ),
        ([user(result("z"))], ["z"], "unexpected `messages.0.content.0: tool_use_id` found"),
    ],
)
def test_what_has_no_partner_is_named(messages: Any, ids: list[str], message: str) -> None:
    unmatched = asked(*messages, tools=[TOOL]).unmatched
    assert [one.call_id for one in unmatched] == ids
    assert all(one.error.message.startswith(message) for one in unmatched)


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([USER, assistant(use("a"), use("a"))], "`tool_use` ids must be unique"),
        ([USER, assistant(use("a")), user(result("a"), result("a"))], "a single result"),
        ([user()], "messages.0: all messages must have non-empty content"),
        ([{"role": "user", "content": 5}], "'messages[0].content'"),
        ([{"content": "x"}], "'messages[0].role'"),
    ],
)
def test_bodies_that_cannot_be_read(messages: Any, message: str) -> None:
    with pytest.raises(ApiError, match=r".") as caught:
        asked(*messages)
    assert caught.value.status == 400
    assert message in caught.value.message


def test_what_is_not_understood_is_let_pass_and_named() -> None:
    request = asked(
        user({"type": "hologram"}, text("x"), {"type": "image", "source": {}}),
        {"role": "oracle", "content": "y"},
        tools=[TOOL, {"type": "web_search_20250305", "name": "web_search"}, {"type": "new"}],
        safeguards=[{"type": "dangerous_tool_use"}],
        context_management={"edits": []},
    )
    assert [m.content for m in request.conversation.messages] == ["x\n\n[Unsupported Image]", "y"]
    assert [t.name for t in request.conversation.tools] == ["read"]
    assert set(request.ignored) == {
        "safeguards",
        "context_management",
        "messages.0.content.0: hologram",
        "tools.1: web_search_20250305",
        "tools.2: new",
    }


def test_documents_and_search_results_are_their_text() -> None:
    plain = {"type": "text", "media_type": "text/plain", "data": "D"}
    found = {"type": "search_result", "title": "T", "source": "U", "content": [text("C")]}
    (message,) = talk(
        user(
            {"type": "document", "source": plain, "title": "N"},
            {"type": "document", "source": {"type": "base64", "media_type": "application/pdf"}},
            found,
        )
    )
    assert message.content == ("N\nD\n\n[Unsupported document type: application/pdf]\n\nT\nU\n\nC")


def test_deferred_tools_become_known_where_they_are_found() -> None:
    late = {**TOOL, "name": "late", "defer_loading": True}
    search = {"type": "tool_search_tool_regex_20251119", "name": "tool_search_tool_regex"}
    found = [{"type": "tool_reference", "tool_name": name} for name in ("late", "gone")]
    request = asked(USER, assistant(use()), user(result("t1", found)), tools=[TOOL, late])
    assert [t.deferred for t in request.conversation.tools] == [False, True]
    assert request.conversation.messages[-1].content == (
        '{"name": "late", "description": "d", "parameters": {"type": "object"}}\n\ngone'
    )
    # The search of Anthropic's servers is not here: nothing else would show the tool.
    assert not any(t.deferred for t in asked(tools=[late, search]).conversation.tools)


@pytest.mark.parametrize(
    ("fields", "thinking", "effort"),
    [
        ({}, False, "high"),
        ({"thinking": ON}, True, "high"),
        ({"thinking": {"type": "adaptive"}}, True, "high"),
        ({"thinking": {"type": "adaptive"}, "output_config": {"effort": "low"}}, True, "low"),
        ({"thinking": ON, "output_config": {"effort": "max"}}, True, "max"),
        ({"thinking": OFF, "output_config": {"effort": "max"}}, False, "max"),
        ({"output_config": {"effort": "medium"}}, True, "high"),
        ({"output_config": {"effort": "none"}}, False, "high"),
        ({"output_config": {"effort": "brand-new"}}, True, "high"),
    ],
)
def test_thinking_and_effort(fields: Any, thinking: bool, effort: str) -> None:
    conversation = asked(**fields).conversation
    assert (conversation.thinking, conversation.effort) == (thinking, effort)


def test_a_last_assistant_message_is_a_prefill_unless_thinking() -> None:
    start = assistant(text("Sure"))
    assert talk(USER, start)[-1] == Message("assistant", "Sure", prefix=True)
    assert not talk(USER, start, thinking=ON)[-1].prefix


@pytest.mark.parametrize(
    ("choice", "thinking", "in_prompt", "by_mask", "n_tools"),
    [
        ({"type": "any"}, OFF, None, "any", 2),
        ({"type": "any"}, ON, None, "any", 2),
        ({"type": "tool", "name": "read"}, OFF, "read", None, 1),
        ({"type": "tool", "name": "read"}, ON, None, "read", 2),
        ({"type": "auto"}, ON, None, None, 2),
    ],
)
def test_tool_choice(
    choice: Any, thinking: Any, in_prompt: Any, by_mask: Any, n_tools: int
) -> None:
    request = asked(tools=[TOOL, {**TOOL, "name": "b"}], tool_choice=choice, thinking=thinking)
    assert (request.conversation.forced, request.forced_by_mask) == (in_prompt, by_mask)
    assert len(request.conversation.tools) == n_tools
    assert request.tools_allowed
    assert request.parallel_tool_calls


def test_tool_choice_none_and_single_calls() -> None:
    assert not asked(tools=[TOOL], tool_choice={"type": "none"}).tools_allowed
    single = {"type": "auto", "disable_parallel_tool_use": True}
    assert not asked(tools=[TOOL], tool_choice=single).parallel_tool_calls
    with pytest.raises(ApiError, match="no function named 'z'"):
        asked(tools=[TOOL], tool_choice={"type": "tool", "name": "z"})


def test_options_are_taken_or_refused_by_name() -> None:
    request = asked(temperature=0.5, top_p=0.9, top_k=4, stop_sequences=["a"], max_tokens=10**7)
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.5, 0.9, 4)
    assert (request.stop, request.max_tokens) == (("a",), 10**7)
    for field, value in (
        ("temperature", 3),
        ("top_p", 0),
        ("max_tokens", 0),
        ("stop_sequences", [""]),
        ("stop_sequences", ["a"] * 17),
        ("temperature", "warm"),
        ("output_config", {"format": {"type": "json_schema"}}),
    ):
        with pytest.raises(ApiError) as caught:
            asked(**{field: value})
        assert field.split("_")[0] in anthropic_error_body(caught.value)["error"]["message"].lower()


def test_the_schema_of_the_answer_is_no_part_of_the_prompt() -> None:
    form = {"type": "json_schema", "schema": {"type": "object"}}
    for fields in ({"output_config": {"format": form}}, {"output_format": form}):
        request = asked(**fields)
        assert request.masked_schema == {"type": "object"}
        assert request.conversation.response_schema is None


def test_threads_are_refused_as_the_sdk_wants_it() -> None:
    with pytest.raises(ApiError) as caught:
        asked(thread={"type": "create"})
    body = anthropic_error_body(caught.value)
    assert body["error"]["details"] == {
        "error_code": "thread_unsupported_request",
        "unsupported": ["thread"],
    }


def test_an_overflow_is_said_in_the_words_that_clients_know() -> None:
    body = anthropic_error_body(ContextExceeded(70001, 65536))
    assert body["error"]["message"] == "prompt is too long: 70001 tokens > 65536 maximum"
    assert body["error"]["type"] == "invalid_request_error"


# ---------------------------------------------------------------- events

START = (
    '{"type":"message_start","message":{"id":"msg_T","type":"message","role":"assistant",'
    '"model":"m","content":[],"stop_reason":null,"stop_sequence":null,"usage":{"input_tokens":60,'
    '"cache_creation_input_tokens":0,"cache_read_input_tokens":40,"output_tokens":0}}}'
)
PING = '{"type":"ping"}'
STOP = '{"type":"message_stop"}'


def opened(index: int, block: str) -> str:
    return f'{{"type":"content_block_start","index":{index},"content_block":{block}}}'


def piece(index: int, kind: str, field: str, value: str) -> str:
    return (
        f'{{"type":"content_block_delta","index":{index},'
        f'"delta":{{"type":"{kind}","{field}":{json.dumps(value)}}}}}'
    )


def closed(index: int) -> str:
    return f'{{"type":"content_block_stop","index":{index}}}'


def over(reason: str, stop: str = "null", n: int = 9) -> list[str]:
    return [
        f'{{"type":"message_delta","delta":{{"stop_reason":"{reason}","stop_sequence":{stop}}},'
        '"usage":{"input_tokens":60,"cache_creation_input_tokens":0,"cache_read_input_tokens":40,'
        f'"output_tokens":{n}}}}}',
        STOP,
    ]


def streamed(events: list[JobEvent], **fields: Any) -> list[str]:
    encoder = MessagesEncoder(fake_turn(asked(model="m", stream=True, **fields)))
    data = encoder.start() + b"".join(encoder.event(event) for event in events)
    return lines(data)


SIGNATURE = "Z3JlYmU6VA=="
THINKING = '{"type":"thinking","thinking":"","signature":""}'
TEXT = '{"type":"text","text":""}'


def test_the_events_of_a_turn_with_everything() -> None:
    deltas = [ReasoningDelta("Hm"), ReasoningDelta("…"), ContentDelta("I "), ContentDelta("look.")]
    calls = [*call("read", '{"a": "', 'x"}'), *call("list", "{}", index=1)]
    events = [*said(*deltas, *calls), ended("tool_calls")]
    assert streamed(events, thinking=ON) == [
        START,
        opened(0, THINKING),
        PING,
        piece(0, "thinking_delta", "thinking", "Hm"),
        piece(0, "thinking_delta", "thinking", "…").replace("\\u2026", "…"),
        piece(0, "signature_delta", "signature", SIGNATURE),
        closed(0),
        opened(1, TEXT),
        piece(1, "text_delta", "text", "I "),
        piece(1, "text_delta", "text", "look."),
        closed(1),
        opened(2, '{"type":"tool_use","id":"call_0","name":"read","input":{}}'),
        piece(2, "input_json_delta", "partial_json", '{"a": "'),
        piece(2, "input_json_delta", "partial_json", 'x"}'),
        closed(2),
        opened(3, '{"type":"tool_use","id":"call_1","name":"list","input":{}}'),
        piece(3, "input_json_delta", "partial_json", "{}"),
        closed(3),
        *over("tool_use"),
    ]


def test_the_events_of_bare_text_and_of_bare_calls() -> None:
    assert streamed([*said(ContentDelta("a")), ended("stop", ContentDelta("b"))]) == [
        START,
        PING,
        opened(0, TEXT),
        piece(0, "text_delta", "text", "a"),
        piece(0, "text_delta", "text", "b"),
        closed(0),
        *over("end_turn"),
    ]
    only = streamed([*said(*call("read", "{}")), ended("stop")])
    assert only[2].startswith(opened(0, '{"type":"tool_use"')[:60])
    assert only[-2:] == over("tool_use")


@pytest.mark.parametrize(
    ("reason", "stop_sequence", "stop_reason"),
    [
        ("length", None, "max_tokens"),
        ("context", None, "max_tokens"),
        ("stop_string", "END", "stop_sequence"),
    ],
)
def test_stop_reasons(reason: Any, stop_sequence: Any, stop_reason: str) -> None:
    events = [*said(ContentDelta("a")), ended(reason, stop_sequence=stop_sequence)]
    assert streamed(events)[-2:] == over(stop_reason, json.dumps(stop_sequence))


def test_a_call_that_was_cut_stays_open_json() -> None:
    cut = [CallStart(0, "call_0", "read"), CallArguments(0, '{"a": "x')]
    assert streamed([*said(*cut), ended("length")])[-4:] == [
        piece(0, "input_json_delta", "partial_json", '{"a": "x'),
        closed(0),
        *over("max_tokens"),
    ]


def test_keepalives_are_empty_deltas_of_the_open_block() -> None:
    thinking = MessagesEncoder(fake_turn(asked(model="m", thinking=ON)))
    first = lines(thinking.keepalive())
    assert first[0].startswith('{"type":"message_start"')
    assert first[1:] == [opened(0, THINKING), PING, piece(0, "thinking_delta", "thinking", "")]
    assert lines(thinking.keepalive()) == [piece(0, "thinking_delta", "thinking", "")]
    writing = MessagesEncoder(fake_turn(asked(model="m")))
    assert lines(writing.keepalive())[2:] == [opened(0, TEXT), piece(0, "text_delta", "text", "")]
    for event in said(ContentDelta("a")):
        assert b"content_block_start" not in writing.event(event)
    calling = MessagesEncoder(fake_turn(asked(model="m")))
    for event in said(CallStart(0, "c", "read")):
        calling.event(event)
    assert lines(calling.keepalive()) == [piece(0, "input_json_delta", "partial_json", "")]
    forced = asked(tools=[TOOL], tool_choice={"type": "any"}, model="m")
    assert lines(MessagesEncoder(fake_turn(forced)).keepalive())[-1] == PING


def test_a_failure_never_looks_like_an_end() -> None:
    error = '{"type":"error","error":{"type":"api_error","message":"the engine is gone"}}'
    encoder = MessagesEncoder(fake_turn(asked()))
    assert lines(encoder.failed(EngineFailed("the engine is gone"))) == [error]
    events = streamed([*said(ContentDelta("a")), ended("cancelled")])
    assert events[-1].startswith('{"type":"error"')
    assert STOP not in events


async def _body(events: list[JobEvent], **fields: Any) -> dict[str, Any]:
    turn = fake_turn(asked(model="m", **fields), events)
    return message_body(turn, await collect(turn))


def test_the_whole_message_says_what_the_events_say() -> None:
    events = [
        *said(ReasoningDelta("Hm"), ContentDelta("Look"), *call("read", '{"a": 1}')),
        ended("tool_calls"),
    ]
    assert asyncio.run(_body(events, thinking=ON)) == {
        "id": "msg_T",
        "type": "message",
        "role": "assistant",
        "model": "m",
        "content": [
            {"type": "thinking", "thinking": "Hm", "signature": SIGNATURE},
            {"type": "text", "text": "Look"},
            {"type": "tool_use", "id": "call_0", "name": "read", "input": {"a": 1}},
        ],
        "stop_reason": "tool_use",
        "stop_sequence": None,
        "usage": {
            "input_tokens": 60,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 40,
            "output_tokens": 9,
        },
    }
