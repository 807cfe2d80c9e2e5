"""Scripted replies: which one answers, and that their tokens say what the file says."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grebe
import pytest
from grebe.chat.deltas import CallEnd, ContentDelta, ReasoningDelta
from grebe.chat.markers import Markers
from grebe.chat.messages import Conversation, Message, Tool, ToolCall
from grebe.chat.parser import OutputParser
from grebe.chat.render import render
from grebe.server.scripted import ScriptedReplies, ScriptWriter

from tests.helpers import models

TOOLS = (Tool({"name": "write", "description": "", "parameters": {}}),)
CALL = ToolCall("write", "{}", "call_1")
REPLIES = {
    "trip.0": {
        "tools_required": True,
        "steps": [
            {"tool_calls": [{"name": "write", "arguments": {"path": "a"}}]},
            {"tool_calls": [{"name": "write", "arguments": "{}"}]},
            {"content": "done"},
        ],
    },
    "plain": {"steps": [{"content": "hello"}]},
    "*": {"steps": [{"content": "aside"}]},
}


def user(text: str) -> Message:
    return Message("user", text)


def said(text: str = "ok", *calls: ToolCall) -> Message:
    return Message("assistant", text, tool_calls=calls)


def result(text: str = "fine") -> Message:
    return Message("tool", text, tool_call_id="call_1")


START = user("Please. [[script:trip.0]]")


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([START], "trip.0#0"),
        ([Message("system", "[[script:plain]]"), START], "trip.0#0"),
        ([START, said("", CALL), result()], "trip.0#1"),
        ([START, said("", CALL), result(), user("a reminder")], "trip.0#1"),
        ([START, said("", CALL, CALL), result(), result()], "trip.0#1"),
        ([START, said("", CALL), said("", CALL), result(), result()], "trip.0#1"),
        ([START, said("", CALL), result(), said("", CALL), result()], "trip.0#2"),
        ([START, *[said("", CALL), result()] * 3], "trip.0#3"),
        ([START, said("the end")], "trip.0#0"),
        ([START, said("the end"), user("and now?")], "*#0"),
        ([START, said("the end"), result(), user("and now?")], "*#0"),
        ([START, said("the end"), user("[[script:plain]]")], "plain#0"),
        ([user("[[script:plain]]"), said("hello"), START], "trip.0#0"),
        ([user("[[script:plain]] [[script:trip.0]]")], "trip.0#0"),
        ([START, said("", CALL), result("[[script:plain]]")], "trip.0#1"),
        ([user("[[script:nothing]]")], "*#0"),
        ([user("hello")], "*#0"),
        ([], "*#0"),
    ],
)
def test_which_step_answers(messages: Sequence[Message], expected: str):
    replies = ScriptedReplies(REPLIES)
    assert replies.choose(Conversation(tuple(messages), tools=TOOLS)).label == expected


def test_without_tools_a_key_that_needs_them_is_only_quoted():
    replies = ScriptedReplies(REPLIES)
    assert replies.choose(Conversation((START,))).label == "*#0"
    assert replies.choose(Conversation((user("[[script:plain]]"),))).label == "plain#0"
    with_calls = {"a": {"steps": [{"tool_calls": [{"name": "write"}]}]}}
    aside = ScriptedReplies(with_calls).choose(Conversation((user("[[script:a]]"),)))
    assert (aside.label, aside.step.content) == ("*#0", "Title of the session")


def test_an_exhausted_script_says_so():
    messages = (START, *[said("", CALL), result()] * 3)
    choice = ScriptedReplies(REPLIES).choose(Conversation(messages, tools=TOOLS))
    assert choice.step.content == "SCRIPT EXHAUSTED step 3 of trip.0"


def parsed(step: dict[str, Any], **options: Any) -> tuple[str, str, list[tuple[str, str]], int]:
    """What the parser makes of a scripted reply: reasoning, content, calls; tokens left over."""
    tokenizer = models.load("embedded").tokenizer
    conversation = Conversation((user("[[script:k]]"),), tools=TOOLS, **options)
    writer = ScriptWriter(ScriptedReplies({"k": {"steps": [step]}}), tokenizer)
    script = writer.select(SimpleNamespace(conversation=conversation))  # type: ignore[arg-type]
    assert script.label == "k#0"
    assert script.finish == step.get("finish", "stop")
    start = render(conversation).start
    parser = OutputParser(
        Markers.of(tokenizer), tokenizer, TOOLS, thinking=conversation.thinking, start=start
    )
    deltas: list[object] = []
    left = len(script.tokens)
    for token in script.tokens:
        sunk = parser.feed(token)
        deltas += sunk.deltas
        left -= 1
        if sunk.end is not None:
            break
    deltas += parser.finish(sunk.end or "length")
    return (
        "".join(d.text for d in deltas if isinstance(d, ReasoningDelta)),
        "".join(d.text for d in deltas if isinstance(d, ContentDelta)),
        [(d.name, d.arguments) for d in deltas if isinstance(d, CallEnd)],
        left,
    )


TRICKY = (
    'a </think> <think> <｜DSML｜tool_calls>\n<｜DSML｜invoke name="write"> <｜end▁of▁sentence｜> '
    "</｜DSML｜parameter> é \U0001f600 \t \\n 'x' \"y\" &lt;"
)


@pytest.mark.parametrize("thinking", [True, False])
def test_the_tokens_say_what_the_file_says(thinking: bool):
    arguments = {"path": "a b.txt", "content": TRICKY, "n": 2.0, "deep": {"list": [1, None]}}
    step = {
        "reasoning": "Let me see.\n" + TRICKY,
        "content": TRICKY,
        "tool_calls": [
            {"name": "write", "arguments": arguments},
            {"name": "write", "arguments": json.dumps({"x": "ü"})},
        ],
    }
    reasoning, content, calls, left = parsed(step, thinking=thinking)
    assert reasoning == (step["reasoning"] if thinking else "")
    assert content == TRICKY
    assert [name for name, _ in calls] == ["write", "write"]
    assert json.loads(calls[0][1]) == arguments
    assert json.loads(calls[1][1]) == {"x": "ü"}
    assert left == 1  # the end token: the parser ends with the block


@pytest.mark.parametrize("thinking", [True, False])
def test_replies_without_calls(thinking: bool):
    assert parsed({"content": "Hi."}, thinking=thinking) == ("", "Hi.", [], 0)
    assert parsed({}, thinking=thinking) == ("", "", [], 0)
    cut = parsed({"content": "Hi", "finish": "length"}, thinking=thinking)
    assert cut == ("", "Hi", [], 0)


def test_a_forced_call_begins_inside_the_block():
    step = {"tool_calls": [{"name": "write", "arguments": {"path": "a"}}]}
    reasoning, content, calls, _ = parsed(step, thinking=False, forced="any")
    assert (reasoning, content, calls) == ("", "", [("write", '{"path": "a"}')])


def test_files(tmp_path: Path):
    path = tmp_path / "replies.json"
    path.write_text(json.dumps(REPLIES))
    assert ScriptedReplies.load(path).choose(Conversation((START,), tools=TOOLS)).number == 0
    with pytest.raises(grebe.StorageError):
        ScriptedReplies.load(tmp_path / "none")
    for text, message in [
        ("{", "replies.json"),
        ("[]", "an object is expected"),
        ('{"a": {}}', "'a': no 'steps'"),
        ('{"a": {"steps": []}}', "at least one"),
        ('{"a": {"steps": [{"content": 1}]}}', "step 0: content is 1"),
        ('{"a": {"steps": [{"finish": "error"}]}}', "finish is 'error'"),
        ('{"a": {"steps": [{"tool_calls": [{}]}]}}', "no 'name'"),
        ('{"a": {"steps": [{"tool_calls": ["x"]}]}}', "an object"),
    ]:
        path.write_text(text)
        with pytest.raises(grebe.InvalidArgumentError, match=message):
            ScriptedReplies.load(path)


def test_delays_are_passed_on():
    tokenizer = models.load("embedded").tokenizer
    step = {"content": "a", "prefill_delay_s": 2, "token_delay_s": 0.5}
    conversation = Conversation((user("[[script:k]]"),))
    writer = ScriptWriter(ScriptedReplies({"k": {"steps": [step]}}), tokenizer)
    script = writer.select(SimpleNamespace(conversation=conversation))  # type: ignore[arg-type]
    assert (script.prefill_delay_s, script.token_delay_s) == (2.0, 0.5)
