"""Request bodies of the three APIs against DeepSeek's own request converter."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from grebe.server.errors import ApiError, anthropic_error_body, openai_error_body
from grebe.server.prompting import ToolSections, sampling
from grebe.server.requests import ChatRequest

from tests.helpers.api import ask, prepared
from tests.helpers.chat import read_vectors, real_tokenizer

ROWS = {row["name"]: row for row in read_vectors("api/vectors.jsonl")}
EXACT = [row for row in ROWS.values() if row["grebe"] == "exact"]
PROMPT_EXACT = [row for row in ROWS.values() if "prompt exact" in row["grebe"]]
STARTS = {
    "ReasoningStart": "reasoning",
    "ReasoningContinuation": "reasoning",
    "ContentContinuation": "content",
    "content": "content",
}


def named(rows: list[dict[str, Any]]) -> list[Any]:
    return [pytest.param(row, id=row["name"]) for row in rows]


def test_every_row_is_asserted():
    ours = {name[5:] for name in globals() if name.startswith("test_")}
    deviating = {name for name, row in ROWS.items() if row["grebe"].startswith("deviate")}
    assert deviating <= ours
    assert len(ROWS) == 67


def check_prompt(request: ChatRequest, expected: dict[str, Any]) -> None:
    ready = prepared(request)
    assert ready.prompt.text == expected["text"]
    assert ready.encoded.ids == expected["ids"]
    start = "block" if expected["starts_in_tool_block"] else STARTS[expected["start"]]
    assert ready.prompt.start == start
    assert request.max_tokens == expected["max_tokens"]
    assert list(request.stop) == expected["stop"]
    assert ready.calls == expected["parse_tools"]


def chosen(request: ChatRequest, official: bool = False) -> tuple[float, float]:
    ready = prepared(request)
    result = sampling(
        request.sampling,
        thinking=ready.conversation.thinking,
        calls=ready.calls,
        official=official,
        vocab_size=real_tokenizer().vocab_size,
    )
    return result.temperature, result.top_p


def constraint(request: ChatRequest) -> str | None:
    asked = request.constrained
    if asked.response_schema is not None or asked.json_object:
        return "json"
    if asked.forced is not None:
        return "tool_call_required"
    return "tool_call" if prepared(request).calls else None


@pytest.mark.parametrize("row", named([r for r in EXACT if "error" not in r["expected"]]))
def test_exact(row: dict[str, Any]):
    request, expected = ask(row["api"], row["body"]), row["expected"]
    check_prompt(request, expected)
    assert chosen(request) == (expected["temperature"], expected["top_p"])
    assert chosen(request, official=True) == (expected["temperature"], expected["top_p"])
    assert constraint(request) == expected["constraint"]


@pytest.mark.parametrize("row", named([r for r in EXACT if "error" in r["expected"]]))
def test_exact_errors(row: dict[str, Any]):
    expected = row["expected"]["error"]
    with pytest.raises(ApiError) as caught:
        prepared(ask(row["api"], row["body"]))
    error = caught.value
    assert error.status == expected["status"]
    if row["api"] == "messages":
        assert anthropic_error_body(error)["error"]["message"] == expected["message"]
    else:
        body = openai_error_body(error)["error"]
        assert body["message"] == expected["message"]
        assert body["type"] == "invalid_request_error"


MORE = read_vectors("api/more.jsonl")


@pytest.mark.parametrize("row", named([r for r in MORE if "error" not in r["expected"]]))
def test_more(row: dict[str, Any]):
    request, expected = ask(row["api"], row["body"]), row["expected"]
    ready = prepared(request)
    assert ready.prompt.text == expected["text"]
    assert ready.prompt.start == expected["start"]
    assert ready.calls == expected["parse_tools"]
    assert (request.max_tokens, list(request.stop)) == (expected["max_tokens"], expected["stop"])
    assert chosen(request, official=True) == (expected["temperature"], expected["top_p"])


@pytest.mark.parametrize("row", named([r for r in MORE if "error" in r["expected"]]))
def test_more_errors(row: dict[str, Any]):
    with pytest.raises(ApiError) as caught:
        prepared(ask(row["api"], row["body"]))
    write = anthropic_error_body if row["api"] == "messages" else openai_error_body
    found = {"status": caught.value.status, "message": write(caught.value)["error"]["message"]}
    assert found == row["expected"]["error"]


def test_the_call_without_a_result_is_named():
    api, body, _ = row_of("chat_tool_missing_result")
    given = {m["tool_call_id"] for m in body["messages"] if m["role"] == "tool"}
    (missing,) = {call["id"] for call in body["messages"][1]["tool_calls"]} - given
    with pytest.raises(ApiError) as caught:
        prepared(ask(api, body))
    assert str(caught.value.param).endswith(f"id={missing}")


@pytest.mark.parametrize("row", named(PROMPT_EXACT))
def test_exact_prompts(row: dict[str, Any]):
    check_prompt(ask(row["api"], row["body"]), row["expected"])


# ---------------------------------------------------------------- where we decide otherwise


def row_of(name: str) -> tuple[str, dict[str, Any], dict[str, Any]]:
    row = ROWS[name]
    return row["api"], row["body"], row["expected"]


def test_chat_thinking_enabled_sampling():
    api, body, _ = row_of("chat_thinking_enabled_sampling")
    request = ask(api, body)
    assert chosen(request) == (0.25, 0.5)
    assert chosen(request, official=True) == (1.0, 1.0)


def test_chat_system_after_turn():
    api, body, expected = row_of("chat_system_after_turn")
    later = "\n\nBe terse.\nNever apologise."
    reminder = f"<system-reminder>{later[1:]}\n</system-reminder>"
    text = expected["text"].replace(later, "", 1)
    last = "<｜User｜>Wann"
    assert prepared(ask(api, body)).prompt.text == text.replace(
        last, f"<｜User｜>{reminder}\n\nWann"
    )


def test_chat_tool_choice_none():
    check_choice_none("chat_tool_choice_none")


def test_messages_choice_none():
    check_choice_none("messages_choice_none")


def check_choice_none(name: str) -> None:
    api, body, expected = row_of(name)
    without = {key: value for key, value in body.items() if key != "tool_choice"}
    sections = ToolSections()
    fresh = prepared(ask(api, body), sections)
    assert fresh.prompt.text == expected["text"]
    assert not fresh.calls and not fresh.banned
    open_session = prepared(ask(api, without), sections)
    kept = prepared(ask(api, body), sections)
    assert kept.encoded.ids == open_session.encoded.ids
    assert not kept.calls and kept.banned


def test_chat_tool_choice_required_thinking():
    api, body, _ = row_of("chat_tool_choice_required_thinking")
    request = ask(api, body)
    auto = ask(api, {**body, "tool_choice": "auto"})
    assert prepared(request).encoded.ids == prepared(auto).encoded.ids
    assert request.constrained.forced == "any"


def test_chat_strict_tool():
    api, body, _ = row_of("chat_strict_tool")
    request = ask(api, body)
    (tool,) = request.conversation.tools
    assert tool.strict
    assert tool.parameters["additionalProperties"] is False
    given = body["tools"][0]["function"]["parameters"]
    assert tool.parameters["required"] == given["required"]
    assert prepared(request).calls


def test_messages_tool_result_after_text():
    api, body, _ = row_of("messages_tool_result_after_text")
    text = prepared(ask(api, body)).prompt.text
    turn = text.rpartition("<｜User｜>")[2]
    assert turn.startswith("<tool_result>")
    assert turn.index("</tool_result>\n\nWann") > 0


def test_messages_prefill():
    api, body, expected = row_of("messages_prefill")
    ready = prepared(ask(api, body))
    assert ready.prompt.text.endswith("<｜Assistant｜></think>There ")
    assert expected["text"].startswith(ready.prompt.text)
    assert ready.prompt.start == "content"


def test_messages_choice_any():
    api, body, _ = row_of("messages_choice_any")
    request = ask(api, body)
    assert request.conversation.forced is None
    assert request.constrained.forced == "any"


def test_messages_server_tool():
    api, body, _ = row_of("messages_server_tool")
    ready = prepared(ask(api, body))
    assert "## Tools" not in ready.prompt.text
    assert not ready.calls


def test_messages_json_schema():
    api, body, _ = row_of("messages_json_schema")
    request = ask(api, body)
    assert request.constrained.response_schema == body["output_config"]["format"]["schema"]
    assert replace(request, masked_schema=None).constrained.response_schema is None
