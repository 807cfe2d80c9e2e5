"""What a client changed is never hidden from the model; what it only wrote anew is not changed."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from typing import Any

from grebe.chat.encode import encode
from grebe.chat.equivalence import same_arguments
from grebe.chat.markers import Markers
from grebe.chat.messages import Conversation, Message, Tool, ToolCall
from grebe.chat.render import render
from grebe.chat.replay import ReplayTable
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.helpers.chat import nano_tokenizer

TOKENIZER = nano_tokenizer()
MARKERS = Markers.of(TOKENIZER)
TOOLS = (Tool({"name": "run", "description": "", "parameters": {}}),)

words = st.text(st.characters(exclude_categories=["Cs"], exclude_characters='"'), max_size=12)
values: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=6,
)
objects = st.dictionaries(words, values, max_size=4)


class Turn:
    partial_call = None

    def __init__(self, reasoning: str, content: str, calls: tuple[ToolCall, ...]) -> None:
        self.reasoning, self.content, self.calls = reasoning, content, calls


def strict(value: Any) -> Any:
    """With types, and numbers as they compare; texts without blanks at ends of lines."""
    if isinstance(value, bool) or value is None:
        return value, "constant"
    if isinstance(value, str):
        lines = [
            line[:-1].rstrip(" \t") + "\r" if line.endswith("\r") else line.rstrip(" \t")
            for line in value.split("\n")
        ]
        return "\n".join(lines)
    if isinstance(value, list):
        return list(map(strict, value))
    if isinstance(value, dict):
        return {key: strict(item) for key, item in value.items()}
    return value, "number"


def shuffled(value: Any) -> Any:
    """As another program might hold it."""
    if isinstance(value, dict):
        return {key: shuffled(value[key]) for key in reversed(value)}
    if isinstance(value, list):
        return list(map(shuffled, value))
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


@given(objects)
def test_writing_anew_is_no_change(value: dict[str, Any]):
    sampled = json.dumps(value, ensure_ascii=False)
    for text in (
        json.dumps(value, separators=(",", ":")),
        json.dumps(shuffled(value), indent=2),
        json.dumps(copy.deepcopy(value), ensure_ascii=True, sort_keys=True),
    ):
        assert same_arguments(sampled, text)


@given(objects, objects)
def test_any_other_value_is_a_change(ours: dict[str, Any], theirs: dict[str, Any]):
    same = same_arguments(json.dumps(ours), json.dumps(theirs))
    assert same is (strict(ours) == strict(theirs))


@given(st.text(), st.text())
def test_anything_can_come_back(ours: str, theirs: str):
    assert same_arguments(ours, theirs) in ((True,) if ours == theirs else (True, False))


@given(objects, words, words, st.data())
def test_an_edit_is_never_hidden(args: dict[str, Any], content: str, reasoning: str, data: Any):
    """Whatever is spliced says what the message says."""
    table = ReplayTable(TOKENIZER, MARKERS)
    talk = Conversation((Message("user", "Go."),), TOOLS)
    calls = (ToolCall("run", json.dumps(args), "call_7"),) if args else ()
    before = encode(render(talk), TOKENIZER, MARKERS)
    sampled = [*TOKENIZER.encode("sampled"), MARKERS.eos]
    turn = Turn(reasoning, content, calls)
    assert table.record("me", talk, before, sampled, turn, "tool_calls" if calls else "stop")

    said = Message("assistant", content, reasoning, calls)
    edit = replace(
        said,
        content=data.draw(st.just(content) | words),
        reasoning=data.draw(st.just(reasoning) | st.none() | words),
        tool_calls=data.draw(
            st.just(calls)
            | objects.map(lambda o: (ToolCall("run", json.dumps(o), "call_7"),))
            | st.just((*calls, *calls))
            | st.just(())
        ),
    )
    after = replace(talk, messages=(*talk.messages, edit, Message("user", "?")))
    again = encode(render(after), TOKENIZER, MARKERS, table.splices(after, "me"))
    unchanged = (
        edit.content.strip() == content.strip()
        and (edit.reasoning or "").strip() in ("", reasoning.strip())
        and len(edit.tool_calls) == len(calls)
        and all(
            strict(json.loads(a.arguments)) == strict(json.loads(b.arguments))
            for a, b in zip(edit.tool_calls, calls, strict=True)
        )
    )
    assert again.n_replayed == unchanged
    if not unchanged:
        assert again.ids == encode(render(after), TOKENIZER, MARKERS).ids
    assert encode(render(after), TOKENIZER, MARKERS, table.splices(after, "you")).n_replayed == 0


@given(st.lists(st.tuples(words, words), min_size=1, max_size=4, unique_by=lambda t: t[0].strip()))
def test_answers_belong_to_what_was_asked(pairs: list[tuple[str, str]]):
    table = ReplayTable(TOKENIZER, MARKERS)
    for question, answer in pairs:
        assume(answer)
        talk = Conversation((Message("user", question),), TOOLS, thinking=False)
        before = encode(render(talk), TOKENIZER, MARKERS)
        sampled = TOKENIZER.encode("to " + question)
        assert table.record("me", talk, before, sampled, Turn("", answer, ()), "stop")
    for question, answer in pairs:
        talk = Conversation(
            (Message("user", question), Message("assistant", answer), Message("user", "?")),
            TOOLS,
            thinking=False,
        )
        again = encode(render(talk), TOKENIZER, MARKERS, table.splices(talk, "me"))
        assert again.n_replayed == 1
        wanted = [*TOKENIZER.encode("to " + question), MARKERS.eos]
        assert any(again.ids[i : i + len(wanted)] == wanted for i in range(len(again.ids)))
