"""What holds for every prompt."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from typing import Any

from grebe.chat.calls import parse_arguments
from grebe.chat.encode import TextCache, encode
from grebe.chat.markers import BAR, Markers
from grebe.chat.messages import Conversation, Message, Tool, ToolCall
from grebe.chat.parser import OutputParser
from grebe.chat.prompt import Body, Marker, Prompt, Text
from grebe.chat.render import render
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.chat import nano_tokenizer, real_markers, real_tokenizer

REAL = real_tokenizer()
ADDED = [
    REAL.decode([id]) for id in range(REAL.vocab_size) if REAL.is_special(id) and REAL.decode([id])
]
TOOLS = (
    Tool({"name": "run", "description": "Runs.", "parameters": {"type": "object"}}),
    Tool({"name": "see", "description": "", "parameters": {}}),
)

pieces = st.one_of(
    st.text(max_size=8),
    st.sampled_from(ADDED),
    st.sampled_from(["\n", "\n\n", " ", "<", "</", f"{BAR}DSML{BAR}", "<tool_result>", "call"]),
)
texts = st.lists(pieces, max_size=5).map("".join)
values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)
arguments = st.one_of(
    st.dictionaries(texts, values, max_size=3).map(json.dumps),
    st.sampled_from(["", "[]", "{", "null"]),
    texts,
)


@st.composite
def turns(draw: st.DrawFn) -> list[Message]:
    """An assistant message, the results of its calls, what a user says then."""
    n = draw(st.integers(0, 2))
    ids = [f"call_{draw(st.integers(0, 10**9))}_{i}" for i in range(n)]
    calls = tuple(
        ToolCall(draw(st.sampled_from(["run", "see", "other"])), draw(arguments), id) for id in ids
    )
    said = Message("assistant", draw(texts), draw(st.none() | texts), calls)
    results = [Message("tool", draw(texts), tool_call_id=id) for id in draw(st.permutations(ids))]
    roles = st.sampled_from(["user", "system", "latest_reminder"])
    rest = [Message(draw(roles), draw(texts)) for _ in range(draw(st.integers(0, 2)))]
    return [said, *results, *(rest if rest or results else [Message("user", draw(texts))])]


@st.composite
def talks(draw: st.DrawFn) -> Conversation:
    messages = [Message("system", draw(texts)) for _ in range(draw(st.integers(0, 2)))]
    messages.append(Message("user", draw(texts)))
    for turn in draw(st.lists(turns(), max_size=3)):
        messages += turn
    return Conversation(
        tuple(messages),
        draw(st.sampled_from([(), TOOLS[:1], TOOLS])),
        draw(st.booleans()),
        draw(st.sampled_from(["low", "high", "max"])),
    )


@given(talks(), turns())
def test_prompts_grow(talk: Conversation, turn: list[Message]):
    talk = replace(talk, tools=talk.tools or TOOLS)
    longer = replace(talk, messages=(*talk.messages, *turn))
    short, long = render(talk), render(longer)
    assert long.text.startswith(short.text)
    markers = real_markers()
    ids, longer_ids = encode(short, REAL, markers).ids, encode(long, REAL, markers).ids
    assert longer_ids[: len(ids)] == ids


@given(talks())
def test_tokens_say_the_text(talk: Conversation):
    prompt = render(talk)
    encoded = encode(prompt, REAL, real_markers())
    assert REAL.decode(encoded.ids) == prompt.text
    assert encoded.marks == tuple(sorted(set(encoded.marks)))
    assert encoded.turn == len(encoded.ids)
    assert encode(prompt, TextCache(REAL, 300), real_markers()) == encoded


@given(talks())
def test_markers_are_only_ours(talk: Conversation):
    markers = real_markers()
    prompt = render(talk)
    marked = [markers.ids[s.name] for s in prompt.flat() if isinstance(s, Marker)]
    ids = encode(prompt, REAL, markers).ids
    assert [id for id in ids if REAL.is_special(id)] == marked
    flat = list(prompt.flat())
    assert not any(isinstance(a, Text) and isinstance(b, Text) for a, b in pairwise(flat))
    bodies = [s.message for s in prompt.segments if isinstance(s, Body)]
    assert bodies == [i for i, m in enumerate(talk.messages) if m.role == "assistant"]


@given(st.sampled_from(ADDED), texts, texts)
def test_no_spelling_is_a_marker(spelling: str, before: str, after: str):
    text = before + spelling + after
    said = Message("assistant", text, text, (ToolCall("run", json.dumps({"x": text}), "c"),))
    tool = Tool({"name": "run", "description": text, "parameters": {"description": text}})
    messages = (
        Message("system", text),
        Message("user", text),
        said,
        Message("tool", text, tool_call_id="c"),
        Message("latest_reminder", text),
    )
    talk = Conversation(messages, (tool,), response_schema={"title": text})
    plain = Conversation(
        tuple(replace(m, content="x", reasoning=m.reasoning and "x") for m in messages),
        (Tool({"name": "run", "description": "x", "parameters": {}}),),
        response_schema={},
    )

    def special(talk: Conversation) -> list[int]:
        return [i for i in encode(render(talk), REAL, real_markers()).ids if REAL.is_special(i)]

    assert special(talk) == special(plain)


def test_every_spelling_is_text():
    assert len(ADDED) == 1283
    for spelling in ADDED:
        assert not any(map(REAL.is_special, REAL.encode(spelling)))
    nano = nano_tokenizer()
    for spelling in ADDED:
        assert not any(map(nano.is_special, nano.encode(spelling)))
    assert Markers.of(nano).tasks.keys() == real_markers().tasks.keys()


@given(turns(), st.booleans())
def test_what_is_written_is_read_again(turn: list[Message], thinking: bool):
    said = turn[0]
    talk = Conversation((Message("user", "Go."), said), TOOLS, thinking)
    (body,) = (s for s in render(talk).segments if isinstance(s, Body))
    ids = encode(Prompt(body.segments, "content"), REAL, real_markers()).ids
    parser = OutputParser(real_markers(), REAL, TOOLS, thinking=thinking)
    for id in ids:
        if parser.feed(id).end is not None:
            break
    parser.finish("stop")
    read = parser.turn
    assert read.reasoning == ((said.reasoning or "") if thinking else "")
    assert read.content == said.content
    assert [call.name for call in read.calls] == [call.name for call in said.tool_calls]
    for call, written in zip(read.calls, said.tool_calls, strict=True):
        value = parse_arguments(written.arguments)
        if value is None or any('"' in key for key in value):
            value = {"arguments": written.arguments}
        assert json.loads(call.arguments) == value
