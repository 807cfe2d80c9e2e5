"""/v1/responses: items to conversations, and turns to responses and events."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest
from grebe.chat.deltas import CallArguments, CallStart, ContentDelta, ReasoningDelta
from grebe.chat.messages import Message
from grebe.server.errors import ApiError
from grebe.server.jobs import EngineFailed, Finished, JobEvent, JobUsage, TokenEvent
from grebe.server.requests import ChatRequest
from grebe.server.responses_events import ResponseEncoder
from grebe.server.responses_items import open_handle, seal_handle
from grebe.server.responses_request import Asked, responses_request
from grebe.server.responses_schemas import ResponsesBody
from grebe.server.responses_store import ResponseStore
from grebe.server.schemas import decode

from tests.helpers.chat import nano_tokenizer
from tests.helpers.fake_turns import call, ended, fake_turn, lines, said

READ = {"type": "function", "name": "read", "description": "d", "parameters": {"type": "object"}}
PATCH = {
    "type": "custom",
    "name": "apply_patch",
    "description": "Edits files.",
    "format": {"type": "grammar", "syntax": "lark", "definition": "start: LINE+"},
}
PATCH_TEXT = "2f3b70f01e3c655b3aa1a3c882aa68c6ab4496567ab0e146f170d60cd39c5b24"
SPACE = {"type": "namespace", "name": "agents", "description": "d", "tools": [READ]}


def understood(data: Any, **fields: Any) -> Asked:
    body, ignored = decode(json.dumps({"input": data, **fields}).encode(), ResponsesBody)
    return responses_request(body, headers={}, ignored=ignored)


def asked(data: Any = "Hi", **fields: Any) -> ChatRequest:
    return understood(data, **fields).chat


def talk(*items: Any, **fields: Any) -> tuple[Message, ...]:
    return asked(list(items), **fields).conversation.messages


def message(role: str, *texts: str) -> dict[str, Any]:
    kind = "output_text" if role == "assistant" else "input_text"
    content = [{"type": kind, "text": text} for text in texts]
    return {"type": "message", "role": role, "content": content}


def thought(*texts: str, **fields: Any) -> dict[str, Any]:
    content = [{"type": "reasoning_text", "text": text} for text in texts]
    return {"type": "reasoning", "id": "rs", "summary": [], "content": content or None, **fields}


def calls(call_id: str = "a", **fields: Any) -> dict[str, Any]:
    called = {"type": "function_call", "call_id": call_id, "name": "read", "arguments": "{}"}
    return {**called, **fields}


def output(call_id: str = "a", value: Any = "r") -> dict[str, Any]:
    return {"type": "function_call_output", "call_id": call_id, "output": value}


# ---------------------------------------------------------------- bodies


def test_items_of_one_turn_are_one_message() -> None:
    messages = talk(
        message("user", "1", "2"),
        thought("Hm", "so"),
        message("assistant", "A"),
        message("assistant", "B"),
        calls("a", arguments='{"x":1}'),
        calls("b"),
        output("b", [{"type": "input_text", "text": "p"}, {"type": "input_image"}]),
        output("a", {"ok": True}),
        calls("c"),
        output("c", None),
    )
    assert [m.role for m in messages] == [
        *("user", "assistant", "tool", "tool", "assistant", "tool")
    ]
    first = messages[1]
    assert (messages[0].content, first.reasoning, first.content) == ("1\n\n2", "Hm\nso", "A\n\nB")
    assert [(c.id, c.arguments) for c in first.tool_calls] == [("a", '{"x":1}'), ("b", "{}")]
    assert [m.content for m in messages if m.role == "tool"] == [
        "p\n\n[Unsupported Image]",
        '{"ok": true}',
        "",
    ]


def test_reasoning_after_an_answer_begins_another_turn() -> None:
    messages = talk(
        message("user", "u"), message("assistant", "A"), thought("2"), calls(), output()
    )
    assert [(m.role, m.reasoning, m.content) for m in messages[1:3]] == [
        ("assistant", None, "A"),
        ("assistant", "2", ""),
    ]


def test_instructions_system_and_developer() -> None:
    system, developer = message("system", "S"), message("developer", "D")
    user = message("user", "u")
    assert [(m.role, m.content) for m in talk(system, developer, user, instructions="I")] == [
        ("system", "I"),
        ("system", "S"),
        ("user", "D"),
        ("user", "u"),
    ]
    assert talk({"role": "user", "content": "u"}) == talk(user)
    assert asked("u").conversation.messages == talk(user)


def test_reasoning_is_found_in_the_handle_that_was_given_out() -> None:
    handle = seal_handle("Count them – all.")
    assert open_handle(handle) == "Count them – all."
    for item, expected in (
        (thought(encrypted_content=handle), "Count them – all."),
        (thought("plain", encrypted_content=handle), "plain"),
        (thought(encrypted_content="AAAA"), None),
        (thought(summary=[{"type": "summary_text", "text": "s"}]), None),
    ):
        assert talk(message("user", "u"), item, calls(), output())[1].reasoning == expected


@pytest.mark.parametrize("handle", [None, 5, "grebe1.", "grebe1.!!", "grebe1.AAAA", "other"])
def test_other_handles_mean_nothing(handle: Any) -> None:
    assert open_handle(handle) is None


def test_a_handle_cannot_grow_without_bound() -> None:
    assert open_handle(seal_handle("a" * (9 << 20))) is None


def test_tools_of_namespaces_have_names_of_their_own() -> None:
    known = understood("u", tools=[{**READ, "name": "agents__read"}, READ, SPACE])
    assert [t.name for t in known.chat.conversation.tools] == [
        "agents__read",
        "read",
        "agents__read_1",
    ]
    assert known.names.client("agents__read_1") == {"name": "read", "namespace": "agents"}
    assert known.names.client("read") == {"name": "read"}
    history = talk(message("user", "u"), calls(namespace="agents"), output(), tools=[SPACE])
    assert history[1].tool_calls[0].name == "agents__read"
    foreign = talk(message("user", "u"), calls(namespace="other"), output(), tools=[SPACE])
    assert foreign[1].tool_calls[0].name == "other__read"


def test_custom_tools_are_functions_of_one_text() -> None:
    item = {"type": "custom_tool_call", "call_id": "a", "name": "apply_patch", "input": "*** ä\n"}
    done = {"type": "custom_tool_call_output", "call_id": "a", "output": "ok"}
    request = asked([message("user", "u"), item, done], tools=[PATCH])
    (tool,) = request.conversation.tools
    assert tool.parameters["required"] == ["input"]
    # The one that DeepSeek's API knows is shown as there.
    text = tool.schema["description"].encode()
    assert hashlib.sha256(text).hexdigest() == PATCH_TEXT
    (other,) = asked(tools=[{**PATCH, "name": "edit"}]).conversation.tools
    assert "start: LINE+" in other.schema["description"]
    said = request.conversation.messages[1]
    assert said.tool_calls[0].arguments == '{"input": "*** ä\\n"}'


def test_hosted_tools_and_unknown_items_are_let_pass_and_named() -> None:
    request = asked(
        [message("user", "u"), {"type": "web_search_call", "id": "x"}, {"id": "odd"}],
        tools=[READ, {"type": "web_search"}, {"type": "local_shell"}],
        client_metadata={"a": "b"},
    )
    assert [t.name for t in request.conversation.tools] == ["read"]
    assert set(request.ignored) == {
        "client_metadata",
        "tools.1: web_search",
        "tools.2: local_shell",
        "input: web_search_call",
        "input: None",
    }


@pytest.mark.parametrize(
    ("choice", "effort", "in_prompt", "by_mask", "n_tools"),
    [
        ("auto", "none", None, None, 2),
        ("required", "none", "any", None, 2),
        ("required", "low", None, "any", 2),
        ({"type": "function", "name": "read"}, "none", "read", None, 1),
        ({"type": "function", "name": "read"}, "low", None, "read", 2),
        ({"type": "custom", "name": "apply_patch"}, "low", None, "apply_patch", 2),
        ({"type": "web_search"}, "low", None, None, 2),
        (
            {"type": "allowed_tools", "mode": "auto", "tools": [{"name": "read"}]},
            *("low", None, None, 1),
        ),
        (
            {"type": "allowed_tools", "mode": "required", "tools": [{"name": "read"}]},
            *("low", None, "any", 1),
        ),
    ],
)
def test_tool_choice(choice: Any, effort: str, in_prompt: Any, by_mask: Any, n_tools: int) -> None:
    request = asked(tools=[READ, PATCH], tool_choice=choice, reasoning={"effort": effort})
    assert (request.conversation.forced, request.forced_by_mask) == (in_prompt, by_mask)
    assert len(request.conversation.tools) == n_tools


def test_options() -> None:
    request = asked(
        max_output_tokens=10**6,
        temperature=0.5,
        top_p=0.9,
        parallel_tool_calls=False,
        prompt_cache_key="k",
        tools=[READ],
        tool_choice="none",
    )
    assert (request.sampling.temperature, request.sampling.top_p) == (0.5, 0.9)
    assert (request.max_tokens, request.session_hint) == (10**6, "k")
    assert not request.parallel_tool_calls
    assert not request.tools_allowed
    assert request.conversation.thinking
    assert not asked(reasoning={"effort": "none"}).conversation.thinking
    assert asked(top_logprobs=3).sampling.top_logprobs == 3
    assert asked(include=["message.output_text.logprobs"]).sampling.top_logprobs == 0


def test_the_form_of_the_answer() -> None:
    schema = {"type": "object"}
    shown = asked(text={"format": {"type": "json_schema", "name": "n", "schema": schema}})
    assert shown.conversation.response_schema == schema
    assert asked("as JSON", text={"format": {"type": "json_object"}}).conversation.json_object
    with pytest.raises(ApiError, match="must contain the word 'json'"):
        asked("u", text={"format": {"type": "json_object"}})


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"data": []}, "input"),
        ({"data": None}, "input"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"temperature": 2.5}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_logprobs": 21}, "top_logprobs"),
        ({"tool_choice": "maybe", "tools": [READ]}, "tool_choice"),
        ({"tool_choice": {"type": "function", "name": "z"}, "tools": [READ]}, "tool_choice"),
        ({"reasoning": {"effort": "loud"}}, "reasoning.effort"),
        ({"reasoning": {"effort": 5}}, "reasoning.effort"),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format.schema"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"tools": [{**READ, "name": "a b"}]}, "tools[0].name"),
        ({"tools": [READ, READ]}, "tools"),
        ({"stream": "yes"}, "stream"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(fields: Any, param: str) -> None:
    with pytest.raises(ApiError) as caught:
        asked(**fields)
    assert (caught.value.status, caught.value.param) == (400, param)


@pytest.mark.parametrize(
    ("items", "ids"),
    [
        ([message("user", "u"), calls("a"), message("user", "v")], ["a"]),
        ([message("user", "u"), calls("a"), calls("b"), output("b")], ["a"]),
        ([message("user", "u"), output("z")], ["z"]),
        ([message("user", "u"), calls("a"), message("user", "v"), output("a")], []),
        ([message("user", "u"), calls("call_a"), output("calla")], []),
        ([message("user", "u"), calls("a"), output("a"), calls("b"), output("b")], []),
    ],
)
def test_what_has_no_partner_is_named(items: Any, ids: list[str]) -> None:
    assert [one.call_id for one in asked(items).unmatched] == ids


# ---------------------------------------------------------------- events


def encoder(*, events: list[JobEvent] | None = None, **fields: Any) -> ResponseEncoder:
    request = understood("Hi", model="m", **fields)
    return ResponseEncoder(fake_turn(request.chat, events or ()), request, nano_tokenizer())


def streamed(events: list[JobEvent], **fields: Any) -> list[dict[str, Any]]:
    """The events after the first two, without their rising numbers, which are checked."""
    made = encoder(**fields)
    data = made.start() + b"".join(made.event(event) for event in events)
    parsed = [json.loads(line) for line in lines(data)]
    assert [event.pop("sequence_number") for event in parsed] == list(range(len(parsed)))
    assert [event["type"] for event in parsed[:2]] == ["response.created", "response.in_progress"]
    assert parsed[0]["response"]["status"] == "in_progress"
    assert parsed[-1].get("response") in (None, made.body)
    return parsed[2:]


def event(kind: str, **fields: Any) -> dict[str, Any]:
    return {"type": f"response.{kind}", **fields}


def text_part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def test_the_events_of_a_turn_with_everything() -> None:
    deltas = [ReasoningDelta("Hm"), ContentDelta("I "), ContentDelta("look.")]
    events = [*said(*deltas, *call("read", '{"a": ', "1}")), ended("tool_calls")]
    got = streamed(events, tools=[READ], include=["reasoning.encrypted_content"])
    at = {"item_id": "rs_T0", "output_index": 0, "content_index": 0}
    rs = {"id": "rs_T0", "type": "reasoning", "summary": []}
    thought = {"type": "reasoning_text", "text": "Hm"}
    rs_done = {
        **rs,
        "content": [thought],
        "status": "completed",
        "encrypted_content": seal_handle("Hm"),
    }
    there = {"item_id": "msg_T1", "output_index": 1, "content_index": 0}
    msg = {"id": "msg_T1", "type": "message", "role": "assistant"}
    msg_done = {
        **msg,
        "phase": "commentary",
        "content": [text_part("I look.")],
        "status": "completed",
    }
    fc = {"id": "fc_T2", "type": "function_call", "call_id": "call_0", "name": "read"}
    fc_done = {**fc, "arguments": '{"a": 1}', "status": "completed"}
    assert got[:-1] == [
        event(
            "output_item.added",
            output_index=0,
            item={**rs, "content": [], "status": "in_progress"},
        ),
        event("content_part.added", **at, part={"type": "reasoning_text", "text": ""}),
        event("reasoning_text.delta", **at, delta="Hm"),
        event("reasoning_text.done", **at, text="Hm"),
        event("content_part.done", **at, part=thought),
        event("output_item.done", output_index=0, item=rs_done),
        event(
            "output_item.added",
            output_index=1,
            item={**msg, "phase": "final_answer", "content": [], "status": "in_progress"},
        ),
        event("content_part.added", **there, part=text_part("")),
        event("output_text.delta", **there, delta="I ", logprobs=[]),
        event("output_text.delta", **there, delta="look.", logprobs=[]),
        event("output_text.done", **there, text="I look.", logprobs=[]),
        event("content_part.done", **there, part=text_part("I look.")),
        event("output_item.done", output_index=1, item=msg_done),
        event(
            "output_item.added",
            output_index=2,
            item={**fc, "arguments": "", "status": "in_progress"},
        ),
        event("function_call_arguments.delta", item_id="fc_T2", output_index=2, delta='{"a": '),
        event("function_call_arguments.delta", item_id="fc_T2", output_index=2, delta="1}"),
        event(
            "function_call_arguments.done",
            item_id="fc_T2",
            output_index=2,
            name="read",
            arguments='{"a": 1}',
        ),
        event("output_item.done", output_index=2, item=fc_done),
    ]
    last = got[-1]
    assert last["type"] == "response.completed"
    assert last["response"]["output"] == [rs_done, msg_done, fc_done]
    assert last["response"]["usage"] == {
        "input_tokens": 100,
        "input_tokens_details": {"cached_tokens": 40, "cache_write_tokens": 0},
        "output_tokens": 9,
        "output_tokens_details": {"reasoning_tokens": 3},
        "total_tokens": 109,
    }


def test_an_answer_alone_is_final() -> None:
    got = streamed([*said(ContentDelta("a")), ended("stop", ContentDelta("b"))])
    assert [item["phase"] for item in got[-1]["response"]["output"]] == ["final_answer"]
    assert got[-1]["response"]["output"][0]["content"] == [text_part("ab")]


def test_calls_are_named_as_the_client_names_them() -> None:
    pieces = call("agents__read", "{}") + call("apply_patch", '{"input": "*** ', 'x"}', index=1)
    got = streamed([*said(*pieces), ended("tool_calls")], tools=[SPACE, PATCH])
    spaced, custom = got[-1]["response"]["output"]
    assert (spaced["name"], spaced["namespace"]) == ("read", "agents")
    assert (custom["type"], custom["name"], custom["input"]) == (
        "custom_tool_call",
        "apply_patch",
        "*** x",
    )
    place = {"item_id": "ctc_T1", "output_index": 1}
    assert event("custom_tool_call_input.delta", **place, delta="*** x") in got
    assert event("custom_tool_call_input.done", **place, input="*** x") in got


@pytest.mark.parametrize("reason", ["length", "context"])
def test_what_was_cut_is_incomplete(reason: Any) -> None:
    got = streamed([*said(ReasoningDelta("Hm")), ended(reason)])
    assert got[-1]["type"] == "response.incomplete"
    assert got[-1]["response"]["incomplete_details"] == {"reason": "max_output_tokens"}
    assert [item["status"] for item in got[-1]["response"]["output"]] == ["incomplete"]
    cut = streamed(
        [*said(CallStart(0, "c", "read"), CallArguments(0, '{"a')), ended(reason)], tools=[READ]
    )
    assert cut[-1]["response"]["output"] == []  # an open call is none, nobody may run it
    assert "response.output_item.done" not in {one["type"] for one in cut}


def test_failures_and_cancellation_never_look_like_an_end() -> None:
    failing = encoder()
    failing.start()
    (line,) = lines(failing.failed(EngineFailed("gone")))
    failed = json.loads(line)
    assert failed["type"] == "response.failed"
    assert failed["response"]["error"] == {"code": "server_error", "message": "gone"}
    assert failed["sequence_number"] == 2
    got = streamed([*said(ContentDelta("a")), ended("cancelled")])
    assert got[-1]["type"] == "error"
    abandoned = encoder()
    abandoned.abandoned()
    assert abandoned.body["status"] == "cancelled"


def test_keepalives_repeat_the_state() -> None:
    made = encoder()
    made.start()
    numbers = []
    for _ in range(2):
        (line,) = lines(made.keepalive())
        parsed = json.loads(line)
        assert parsed["type"] == "response.in_progress"
        numbers.append(parsed["sequence_number"])
    assert numbers == [2, 3]


def test_log_probabilities_are_those_of_the_answer() -> None:
    token = nano_tokenizer().encode("Yes")[0]
    text = nano_tokenizer().decode([token])
    events: list[JobEvent] = [
        TokenEvent(token, (ReasoningDelta(text),), -0.5),
        TokenEvent(token, (ContentDelta(text),), -0.25),
        Finished("stop", (), JobUsage(5, 0, 2)),
    ]
    got = streamed(events, include=["message.output_text.logprobs"])
    (item,) = (i for i in got[-1]["response"]["output"] if i["type"] == "message")
    (entry,) = item["content"][0]["logprobs"]
    assert (entry["token"], entry["logprob"], entry["top_logprobs"]) == (text, -0.25, [])


def test_the_response_repeats_the_request() -> None:
    body = encoder(
        instructions="I", tools=[READ], metadata={"a": "b"}, temperature=0.5, max_output_tokens=9
    ).body
    for name, value in {
        "object": "response",
        "id": "resp_T",
        "model": "m",
        "instructions": "I",
        "tools": [READ],
        "metadata": {"a": "b"},
        "temperature": 0.5,
        "max_output_tokens": 9,
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "text": {"format": {"type": "text"}},
        "store": True,
        "previous_response_id": None,
    }.items():
        assert body[name] == value, name


# ---------------------------------------------------------------- the store


def kept(n: int, *output: Any, status: str = "completed") -> dict[str, Any]:
    return {"id": f"resp_{n}", "status": status, "output": list(output)}


def test_the_store_keeps_conversations_and_owners_apart() -> None:
    store = ResponseStore()
    store.put("me", kept(1, {"id": "msg_1"}), [{"role": "user"}])
    first = store.previous("me", "resp_1")
    store.put("me", kept(2, {"id": "msg_2"}), [{"role": "tool"}], before=first)
    second = store.get("me", "resp_2")
    expected = [{"role": "user"}, {"id": "msg_1"}, {"role": "tool"}, {"id": "msg_2"}]
    assert second.conversation() == expected
    assert store.item("me", "msg_1") == {"id": "msg_1"}
    assert store.item("you", "msg_1") is None
    for look in (store.get, store.previous, store.delete):
        with pytest.raises(ApiError):
            look("you", "resp_1")
    store.delete("me", "resp_1")
    assert store.item("me", "msg_1") is None
    assert store.get("me", "resp_2").conversation() == expected  # it keeps what it needs


def test_the_store_is_bounded() -> None:
    store = ResponseStore(max_responses=3, max_bytes=4000)
    for n in range(5):
        store.put("me", kept(n), [])
    store.get("me", "resp_2")
    store.put("me", kept(9), [{"text": "x" * 3900}])
    with pytest.raises(ApiError):
        store.get("me", "resp_3")
    assert store.get("me", "resp_9")


def test_a_running_response_is_no_previous_one() -> None:
    store = ResponseStore()
    store.put("me", kept(1, status="in_progress"), [], running=True)
    with pytest.raises(ApiError, match="still in progress"):
        store.previous("me", "resp_1")
    store.put("me", kept(1), [])
    assert store.previous("me", "resp_1")
