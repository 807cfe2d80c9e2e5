"""What holds for every output of a model, sound or not."""

from __future__ import annotations

import doctest
import importlib
import json
import time
from collections.abc import Sequence
from itertools import groupby, pairwise
from types import SimpleNamespace
from typing import Any

import pytest
from grebe.chat.arguments import json_type
from grebe.chat.dsml import MAX_TAG
from grebe.chat.inband import DSML, THINK, THINK_END, InbandDecoder, spelled
from grebe.chat.messages import Conversation, Message, Tool, ToolCall
from grebe.chat.parser import OutputParser
from grebe.chat.prompt import Marker
from grebe.chat.render import render
from grebe.chat.turn_parser import ParsedTurn, TextParser
from hypothesis import example, given
from hypothesis import strategies as st

from tests.helpers.chat import read_vectors
from tests.helpers.parsing import Client

MARKERS = (DSML, THINK, THINK_END)
TOOLS = [
    Tool(
        {
            "name": "f",
            "parameters": {"properties": {"s": {"type": "string"}, "n": {"type": "integer"}}},
        }
    ),
    Tool({"name": "look_up", "parameters": {"properties": {"o": {"type": "object"}}}}),
]
PIECES = [
    *(
        "\n",
        "\n\n",
        "<",
        "</",
        ">",
        '"',
        "/",
        " ",
        "x",
        "潮🌊",
        "é",
        "\x00",
        "{",
        '{"s": 1}',
        "[",
        "NaN",
        "3",
    ),
    *(
        "tool_calls>",
        "tool>",
        "invoke",
        'invoke name="',
        'f"',
        'look_up">',
        "parameter",
        'parameter name="',
    ),
    *(
        's"',
        'n"',
        ' string="true">',
        ' string="false">',
        "parameter>",
        "invoke>",
        "END",
        "EN",
        "DSML｜",
    ),
    *(
        "\n\n<tool_calls>\n",
        '<invoke name="f">',
        '<parameter name="s" string="true">',
        "</parameter>",
    ),
    *(
        "</invoke>",
        "</tool_calls>",
        "\n<DSML｜tool_calls>",
        "<think>",
        "</think>",
        "｜DSML｜",
        "\u2028",
    ),
    *MARKERS,
    f"\n\n<{DSML}tool_calls>\n",
    f'<{DSML}invoke name="f">\n',
    f'<{DSML}invoke name="look_up"/>',
    f'<{DSML}parameter name="s" string="true">',
    f'<{DSML}parameter name="n" string="true">3',
    f'<{DSML}parameter name="o" string="false">{{"a": [1, 2.0]}}',
    f"</{DSML}parameter>\n",
    f"</{DSML}invoke>\n",
    f"</{DSML}tool_calls>",
]
HOSTILE = [
    pytest.param(
        "".join(p if isinstance(p, str) else MARKERS[p] for p in row["pieces"]), id=row["name"]
    )
    for row in read_vectors("parse/hostile.jsonl")
]
outputs = st.lists(st.sampled_from(PIECES), max_size=40).map("".join)


def parse(
    pieces: Sequence[str], reason: str = "stop", tools: Sequence[Tool] = TOOLS, **options: Any
) -> tuple[Client, ParsedTurn]:
    parser = TextParser(tools, new_id=str, **options)
    client = Client()
    for piece in pieces:
        client.take(parser.push(piece))
    client.take(parser.finish(reason))
    client.check(parser.turn())
    return client, parser.turn()


def cut(text: str, at: Sequence[int]) -> list[str]:
    edges = [0, *sorted(i % (len(text) + 1) for i in at), len(text)]
    return [text[a:b] for a, b in pairwise(edges)]


@given(
    outputs,
    st.lists(st.integers(0, 9999)),
    st.booleans(),
    st.sampled_from(["stop", "length"]),
    st.booleans(),
)
def test_cuts_do_not_matter(text: str, at: list[int], thinking: bool, reason: str, stop: bool):
    options: dict[str, Any] = {"thinking": thinking, "stop": ["END", "x\n"] if stop else []}
    whole = parse([text], reason, **options)
    assert parse(list(text), reason, **options) == whole
    assert parse(cut(text, at), reason, **options) == whole


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("start", ["reasoning", "content", "block"])
def test_hostile_outputs(text: str, start: Any):
    options: dict[str, Any] = {"thinking": start == "reasoning", "start": start, "stop": ["END"]}
    for reason in ("stop", "length"):
        whole = parse([text], reason, **options)
        assert parse(list(text), reason, **options) == whole
        for n in (2, 3, 5, 7):
            assert parse(cut(text, range(0, len(text), n)), reason, **options) == whole
        assert all(json_type(call.arguments) == "object" for call in whole[1].calls)
        for end in range(0, len(text), 1 + len(text) // 200):  # an output may be cut anywhere
            parse([text[:end]], reason, **options)


@given(st.lists(st.one_of(st.sampled_from(MARKERS), st.binary(max_size=6)), max_size=30), st.data())
def test_tokens_do_not_matter(parts: list[str | bytes], data: st.DataObject):
    """The same bytes in other tokens, as ids: markers are ids, everything else is cut anywhere."""
    turns = []
    for _ in range(3):
        tokens: list[str | bytes] = []
        for kind, run in groupby(parts, type):
            if kind is str:
                tokens += run
                continue
            glued = b"".join(part for part in run if isinstance(part, bytes))
            while glued:
                size = data.draw(st.integers(1, 8))
                tokens.append(glued[:size])
                glued = glued[size:]
        texts = [part for part in tokens if isinstance(part, bytes)]
        vocabulary = SimpleNamespace(token_bytes=lambda i, texts=texts: texts[i])
        ids = {marker: -1 - i for i, marker in enumerate(MARKERS)}
        markers: Any = SimpleNamespace(eos=-9, dsml=-1, think=-2, think_end=-3)
        parser = OutputParser(markers, vocabulary, TOOLS, thinking=True, new_id=str)
        client, n = Client(), 0
        for part in tokens:
            client.take(parser.feed(ids[part] if isinstance(part, str) else n).deltas)
            n += isinstance(part, bytes)
        client.take(parser.feed(-9).deltas)
        client.take(parser.finish("stop"))
        client.check(parser.turn)
        turns.append(
            (parser.turn.reasoning, parser.turn.content, parser.turn.calls, parser.turn.finish)
        )
    assert turns[0] == turns[1] == turns[2]


@given(outputs, st.booleans())
def test_little_is_held(text: str, thinking: bool):
    parser = TextParser(TOOLS, thinking=thinking)
    for i, character in enumerate(text):
        parser.push(character)
        limit = MAX_TAG + 4 if parser.state == "block" else 120 if "<" in text[: i + 1] else 2
        assert parser.n_held <= limit
    if not any(c in text for c in "<\n\ud801\ud802"):
        assert parser.turn().reasoning + parser.turn().content == spelled(text)


@given(outputs)
def test_without_tools_all_is_text(text: str):
    client, turn = parse([text], tools=(), thinking=False)
    assert turn.calls == () and turn.partial_call is None and client.names == []
    if THINK not in text:
        assert turn.content == spelled(text.replace(THINK_END, ""))


texts = st.text(
    st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from("<>/\n\"'& ")), max_size=40
)
names = st.text(st.sampled_from("abcXYZ019_-"), min_size=1, max_size=64)
keys = st.text(st.characters(exclude_categories=["Cs"], exclude_characters='"'), max_size=20)
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
calls = st.builds(
    ToolCall,
    names,
    st.dictionaries(keys, values, max_size=4).map(lambda v: json.dumps(v, ensure_ascii=False)),
)


@given(texts, texts, st.lists(calls, max_size=3), st.booleans())
@example("", "\n\n", [], True)
@example("a", "b\n", [ToolCall("f", "{}")], False)
def test_a_rendered_turn_is_parsed_back(
    reasoning: str, content: str, calls: list[ToolCall], thinking: bool
):
    conversation = Conversation(
        (
            Message("user", "q"),
            Message("assistant", content, reasoning if thinking else None, tuple(calls)),
            Message("user", "q"),
        ),
        (Tool({"name": "no_such_tool", "parameters": {}}),),
        thinking=thinking,
    )
    body = next(s for s in render(conversation).segments if hasattr(s, "segments"))
    marker = {"dsml": DSML, "think": THINK, "think_end": THINK_END, "eos": ""}
    text = "".join(marker[s.name] if isinstance(s, Marker) else s.text for s in body.segments)
    parser = TextParser(conversation.tools, thinking=thinking)
    parser.push(text)
    parser.finish("stop")
    turn = parser.turn()
    assert turn.reasoning == (reasoning if thinking else "")
    assert turn.content == content
    assert [(c.name, c.arguments) for c in turn.calls] == [(c.name, c.arguments) for c in calls]
    assert turn.finish == ("tool_calls" if calls else "stop")


HEAD = f'\n\n<{DSML}tool_calls>\n<{DSML}invoke name="f">\n'
STRING, OTHER = (
    f'<{DSML}parameter name="{k}" string="{v}">' for k, v in (("s", "true"), ("o", "false"))
)
LONG = {
    "angles": ("", "<"),
    "lines": ("", "\n<"),
    "half openers": ("", f"<{DSML}tool_call"),
    "unmarked openers": ("", '\n<tool_calls>\n<invoke name="'),
    "markers": ("", MARKERS[2] + MARKERS[1]),
    "text": (HEAD + STRING, 'x y "\n'),
    "text of angles": (HEAD + STRING, "</"),
    "text of tags": (HEAD + STRING, f"<{DSML}"),
    "nested JSON": (HEAD + OTHER, '[{"a":'),
    "values": (HEAD, STRING + f"a</{DSML}parameter>"),
    "calls": (HEAD, f'<{DSML}invoke name="f">'),
    "calls in values": (HEAD + STRING, HEAD + STRING),
    "JSON body": (HEAD, '{"a<b":'),
    "tag of spaces": (HEAD, f"<{DSML}invoke" + " " * 900),
    "tag of attributes": (HEAD, f"<{DSML}parameter" + ' a="b"' * 150),
    "key without end": (HEAD, f'<{DSML}parameter name="' + "a<>" * 300),
    "unmarked values": (
        '\n<tool_calls><invoke name="f"><parameter name="s" string="true">',
        "<</parameter",
    ),
}


@pytest.mark.parametrize("name", LONG)
def test_time_is_linear(name: str):
    """100,000 characters one by one; a quadratic step would take minutes."""
    head, unit = LONG[name]
    text = (head + unit * (100_000 // len(unit)))[:100_000]
    parser = TextParser(TOOLS, thinking=False, stop=["END"])
    start = time.process_time()
    for character in text:
        parser.push(character)
    parser.finish("length")
    parse([text], thinking=False)
    assert time.process_time() - start < 20


def test_cut_characters_are_no_text():
    vocabulary = SimpleNamespace(token_bytes=lambda i: bytes([i]))
    markers: Any = SimpleNamespace(eos=999, dsml=998, think=997, think_end=996)
    for n in range(1, 4):
        parser = OutputParser(markers, vocabulary, (), thinking=False)
        for byte in b"a" + "🌊".encode()[:n]:
            assert not any("\ufffd" in d.text for d in parser.feed(byte).deltas)
        parser.finish("length")
        assert parser.turn.content == "a"


def test_a_marker_ends_a_character():
    vocabulary = SimpleNamespace(token_bytes=lambda i: bytes([i]))
    markers: Any = SimpleNamespace(eos=999, dsml=998, think=997, think_end=996)
    decoder = InbandDecoder(markers, vocabulary)
    assert "".join(map(decoder.push, [0xF0, 0x9F, 996, 0x8C, 65])) == f"\ufffd{THINK_END}\ufffdA"


def test_no_text_forges_a_marker():
    vocabulary = SimpleNamespace(token_bytes=lambda i: bytes([i]))
    markers: Any = SimpleNamespace(eos=999, dsml=998, think=997, think_end=996)
    decoder = InbandDecoder(markers, vocabulary)
    assert DSML not in "".join(map(decoder.push, b"<\xed\xa0\x80tool_calls>"))


@pytest.mark.parametrize(
    "module", ["arguments", "dsml", "inband", "openers", "parser", "turn_parser"]
)
def test_examples(module: str):
    assert doctest.testmod(importlib.import_module(f"grebe.chat.{module}")).failed == 0
