"""Prompts against the official encoder and DeepSeek's own request converter, byte by byte."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest
from grebe.chat import constants
from grebe.chat.encode import encode
from grebe.chat.messages import Conversation, Message, Tool, ToolCall
from grebe.chat.render import render

from tests.helpers.chat import (
    VECTORS,
    conversation,
    read_vectors,
    real_markers,
    real_tokenizer,
)

ROWS = read_vectors("chat/vectors.jsonl")
# Both references differ; we follow the official encoder in what a call and a user turn look like,
# and the converter in where headers and reminders stand.
AS_OFFICIAL = {"consecutive_empty_users", "empty_args", "empty_args_with_text", "number_forms"}
MID_SYSTEM = "mid_system"
# The official encoder glues what follows a dropped developer message to the system text, and ends
# a prompt after an answered task; neither can come through an API.
OFFICIAL_ONLY = {"developer_dropped_before_last_user", "task_title_answered"}


def named(rows: list[dict[str, Any]]) -> list[Any]:
    return [pytest.param(row, id=row["name"]) for row in rows]


@pytest.mark.parametrize("row", named(ROWS))
def test_official_prompt(row: dict[str, Any]):
    bos = row["options"].get("add_default_bos_token", True)
    prompt = render(conversation(row), official=True, bos=bos)
    assert prompt.text == row["text"]
    encoded = encode(prompt, real_tokenizer(), real_markers())
    assert encoded.ids == row["ids"]
    assert real_tokenizer().decode(encoded.ids) == row["text"]
    whole = real_tokenizer().encode(row["text"], allow_special=True)
    assert whole == row.get("ids_allow_special", row["ids"])


@pytest.mark.parametrize("row", named([r for r in ROWS if r["name"] not in OFFICIAL_ONLY]))
def test_default_prompt(row: dict[str, Any]):
    bos = row["options"].get("add_default_bos_token", True)
    prompt = render(conversation(row), bos=bos)
    expected = row["text"]
    if row["name"] == MID_SYSTEM:
        reminder = "<system-reminder>\nBe terse.\nNever apologise.\n</system-reminder>\n\n"
        expected = expected.replace(
            "Be terse.\nNever apologise.<｜User｜>", "<｜User｜>" + reminder
        )
    elif row["recipe"] == "differs" and row["name"] not in AS_OFFICIAL:
        expected = row["recipe_text"]
    assert prompt.text == expected
    encoded = encode(prompt, real_tokenizer(), real_markers())
    assert real_tokenizer().decode(encoded.ids) == expected
    if expected == row["text"]:
        assert encoded.ids == row["ids"]


def test_hoisted_system_is_the_converters():
    row = next(row for row in ROWS if row["name"] == MID_SYSTEM)
    talk = conversation(row)
    # The later message hoisted, the empty user turn it leaves behind is the converter's.
    assert render(talk, system_placement="hoist").text == row["recipe_text"]


def test_fixed_texts():
    known = json.loads((VECTORS / "chat/constants.json").read_text(encoding="utf-8"))["constants"]
    ours = {
        "effort_high": constants.effort_prefix("0731", "high"),
        "effort_max": constants.effort_prefix("0731", "max"),
        "tools_head": constants.TOOLS_HEAD,
        "tools_tail": constants.TOOLS_TAIL,
        "response_schema_head": constants.RESPONSE_HEAD,
        "json_object_system": constants.JSON_OBJECT,
    }
    for name, text in ours.items():
        assert hashlib.sha256(text.encode()).hexdigest() == known[name]["sha256"], name
    assert constants.effort_prefix("may", "max") == ours["effort_high"]
    assert constants.effort_prefix("may", "high") == ""


def user(text: str, **more: Any) -> Message:
    return Message("user", text, **more)


def test_official_gaps():
    """What the official encoder does where it has no vector; nobody else should."""
    both = (user("a"), user("b", task="query"))
    official = render(Conversation(both, thinking=False), official=True).text
    assert official.endswith("a\n\nb<｜Assistant｜></think>")
    assert render(Conversation(both, thinking=False)).text.endswith("a\n\nb<｜query｜>")
    tools = (Tool({"name": "x"}),)
    shown = render(Conversation((user("a", tools=tools, response_schema={}),)), official=True)
    assert "Tools" not in shown.text and "Format" not in shown.text
    call = ToolCall("x", '{"a": NaN, "b": 1E400}', "c")
    past = (
        user("a"),
        Message("assistant", tool_calls=(call,)),
        Message("tool", "", tool_call_id="c"),
    )
    text = render(Conversation(past, thinking=False), official=True).text
    assert 'name="a" string="false">NaN<' in text and 'name="b" string="false">Infinity<' in text
    assert 'name="arguments" string="true">{"a": NaN' in render(Conversation(past)).text


@pytest.mark.parametrize("official", [True, False])
def test_a_task_of_the_past(official: bool):
    past = (user("a", task="action"), Message("assistant", "Search"), user("b"))
    prompt = render(Conversation(past, effort="low"), official=official)
    head = "<｜User｜>a<｜Assistant｜><think><｜action｜>Search<｜end▁of▁sentence｜>"
    assert prompt.text.endswith(head + "<｜User｜>b<｜Assistant｜><think>")
