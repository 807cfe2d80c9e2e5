"""Masks: whatever the logits, the output has the form that was asked for."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import grebe
import numpy as np
import pytest
from grebe.chat.constraint import ConstraintUnavailable, make_mask, prepare
from grebe.chat.markers import Markers
from grebe.chat.messages import Conversation, Message, Tool
from grebe.chat.parser import OutputParser
from grebe.chat.prompt import Start
from grebe.chat.turn_parser import ParsedTurn
from grebe.generate import _sampler, pack_mask

from tests.helpers.chat import nano_tokenizer, real_markers, real_tokenizer

ASK = (Message("user", "q"),)
GAUGE = {
    "type": "object",
    "properties": {
        "path": {"type": "string"},
        "count": {"type": "integer", "minimum": 3, "maximum": 7},
        "unit": {"type": "string", "enum": ["bar", "a</b", "psi"]},
        "nested": {
            "type": "object",
            "properties": {"deep": {"type": "boolean"}},
            "required": ["deep"],
            "additionalProperties": False,
        },
        "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        "code": {"type": "string", "pattern": "^[a-c]{2,4}$"},
        "color": {"$ref": "#/$defs/Color"},
        "extra": {"type": "number"},
    },
    "required": ["path", "count", "unit", "nested", "note", "code", "color"],
    "additionalProperties": False,
    "$defs": {"Color": {"enum": ["red", "green"]}},
}
STRICT = Tool({"name": "read_gauge", "parameters": GAUGE}, strict=True)
PING = Tool({"name": "ping", "parameters": {"type": "object", "properties": {}}})
LOOSE = Tool(
    {
        "name": "loose",
        "parameters": {"properties": {"x": {"type": "string"}, "y": {"type": "array"}}},
    }
)
FREE = Tool({"name": "free", "parameters": {"type": "object"}})
ANSWER = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "properties": {
        "verdict": {"enum": ["yes", "no"]},
        "scores": {"type": "array", "items": {"type": "integer"}, "minItems": 1, "maxItems": 3},
    },
    "required": ["verdict", "scores"],
    "additionalProperties": False,
}


def write(
    conversation: Conversation,
    *,
    seed: int,
    tokenizer: grebe.Tokenizer | None = None,
    start: Start | None = None,
    likely: tuple[str, ...] = ("</", '"', "}", "]", ">"),
    watch: Callable[[int, Any], None] | None = None,
) -> tuple[ParsedTurn, list[int]]:
    """What comes of random logits under the mask. Ends are made likely, or texts would be long."""
    tokenizer = tokenizer or nano_tokenizer()
    markers = Markers.of(tokenizer)
    n = tokenizer.vocab_size
    mask = make_mask(tokenizer, markers, conversation, start=start)
    assert mask is not None
    parser = OutputParser(
        markers, tokenizer, conversation.tools, thinking=conversation.thinking, start=start
    )
    rng = np.random.default_rng(seed)
    bias = np.zeros(n, np.float32)
    for text in likely:
        bias[[i for i in [tokenizer.find(text)] if i is not None]] = 9
    bias[[markers.think_end, markers.dsml]] = 12
    sampler = _sampler(grebe.Sampling(temperature=1.0), seed, 0, n)
    tokens: list[int] = []
    while parser.turn.finish == "cancelled":
        assert len(tokens) < 3000
        allowed = mask(tuple(tokens))
        logits = rng.standard_normal(n, dtype=np.float32) + bias
        token, *_ = sampler.sample(logits, None if allowed is None else pack_mask(allowed, n))
        if watch is not None:
            watch(token, allowed)
        tokens.append(token)
        parser.feed(token)
    return parser.turn, tokens


def check_gauge(arguments: str) -> None:
    value = json.loads(arguments)
    assert isinstance(value["path"], str)
    assert value["count"] in range(3, 8)
    assert value["unit"] in ("bar", "a</b", "psi")
    assert list(value["nested"]) == ["deep"] and isinstance(value["nested"]["deep"], bool)
    assert value["note"] is None or isinstance(value["note"], str)
    assert 2 <= len(value["code"]) <= 4 and set(value["code"]) <= set("abc")
    assert value["color"] in ("red", "green")
    assert set(value) - {"extra"} == set(GAUGE["required"])
    assert isinstance(value.get("extra", 0), int | float)


def check_answer(text: str) -> None:
    value = json.loads(text)
    assert list(value) == ["verdict", "scores"]
    assert value["verdict"] in ("yes", "no")
    assert 1 <= len(value["scores"]) <= 3 and all(isinstance(n, int) for n in value["scores"])


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("thinking", [True, False])
def test_schema(seed: int, thinking: bool):
    turn, tokens = write(Conversation(ASK, thinking=thinking, response_schema=ANSWER), seed=seed)
    check_answer(turn.content)
    assert turn.finish == "stop"
    assert (Markers.of(nano_tokenizer()).think_end in tokens) == thinking


@pytest.mark.parametrize("seed", range(4))
def test_json_object(seed: int):
    turn, _ = write(Conversation(ASK, json_object=True), seed=seed)
    assert isinstance(json.loads(turn.content), dict)


@pytest.mark.parametrize("seed", range(8))
def test_schema_or_calls(seed: int):
    turn, _ = write(Conversation(ASK, (STRICT, PING), response_schema=ANSWER), seed=seed)
    if turn.calls:
        assert turn.content == ""
    else:
        check_answer(turn.content)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("start", ["reasoning", "content", "block"])
def test_some_call(seed: int, start: Start):
    conversation = Conversation(
        ASK, (STRICT, PING, LOOSE, FREE), thinking=start == "reasoning", forced="any"
    )
    turn, _ = write(conversation, seed=seed, start=start)
    assert turn.finish == "tool_calls" and turn.content == "" and turn.partial_call is None
    for call in turn.calls:
        value = json.loads(call.arguments)
        if call.name == "read_gauge":
            check_gauge(call.arguments)
        elif call.name == "ping":
            assert value == {}
        elif call.name == "loose":
            assert set(value) <= {"x", "y"}
            assert isinstance(value.get("x", ""), str) and isinstance(value.get("y", []), list)
        else:
            assert call.name == "free"


@pytest.mark.parametrize("seed", range(6))
def test_this_call(seed: int):
    turn, _ = write(Conversation(ASK, (PING, STRICT), forced="read_gauge"), seed=seed)
    assert [call.name for call in turn.calls] == ["read_gauge"]
    check_gauge(turn.calls[0].arguments)


@pytest.mark.parametrize("seed", range(6))
def test_real_vocabulary(seed: int):
    conversation = Conversation(ASK, (STRICT, LOOSE), forced="read_gauge")
    turn, _ = write(conversation, seed=seed, tokenizer=real_tokenizer())
    check_gauge(turn.calls[0].arguments)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("thinking", [True, False])
def test_strict_tools_when_they_are_called(seed: int, thinking: bool):
    """Text is free until a block opens; then names and values are those of the schemas."""
    tokenizer = nano_tokenizer()
    free = []
    turn, tokens = write(
        Conversation(ASK, (STRICT,), thinking=thinking),
        seed=seed,
        likely=("<", "</", '"', "}"),
        watch=lambda token, allowed: free.append(allowed is None),
    )
    assert turn.finish == "tool_calls"
    for call in turn.calls:
        check_gauge(call.arguments)
    opened = next(
        i
        for i, t in enumerate(tokens)
        if i
        and t == Markers.of(tokenizer).dsml
        and tokenizer.token_bytes(tokens[i - 1]).endswith(b"<")
    )
    assert all(free[: opened + 1]) and not any(free[opened + 1 :])


def test_every_tokenization_is_allowed():
    """The bytes are laid down, not the tokens: each cut of the fixed text passes."""
    tokenizer, markers = real_tokenizer(), real_markers()
    conversation = Conversation(ASK, (PING,), thinking=False, forced="ping")
    head, tag = b"\n\n<", b"tool_calls>\n<"
    bytes_of = {
        tokenizer.token_bytes(i): i
        for i in range(tokenizer.vocab_size)
        if not tokenizer.is_special(i)
    }

    def cuts(text: bytes) -> list[list[int]]:
        if not text:
            return [[]]
        return [
            [bytes_of[text[:n]], *rest]
            for n in range(1, len(text) + 1)
            if text[:n] in bytes_of
            for rest in cuts(text[n:])
        ]

    ways = cuts(head)
    assert len(ways) == 2
    for way in [*ways, *([*ways[0], markers.dsml, *rest] for rest in cuts(tag)[:200])]:
        mask = make_mask(tokenizer, markers, conversation)
        assert mask is not None
        for i, token in enumerate(way):
            allowed = mask(tuple(way[:i]))
            assert allowed is not None and allowed[token // 32] >> (token % 32) & 1, (way, i)


def test_special_tokens_are_not_text():
    tokenizer, markers = real_tokenizer(), real_markers()
    mask = make_mask(tokenizer, markers, Conversation(ASK, thinking=False, json_object=True))
    assert mask is not None
    allowed = mask(tuple(tokenizer.encode('{"a": "')))
    assert allowed is not None
    allowed_ids = np.flatnonzero(np.unpackbits(allowed.view(np.uint8), bitorder="little"))
    assert len(allowed_ids) > 100_000
    assert not any(tokenizer.is_special(int(i)) for i in allowed_ids)


def test_reasoning_must_end_by_its_marker():
    tokenizer, markers = real_tokenizer(), real_markers()
    mask = make_mask(tokenizer, markers, Conversation(ASK, json_object=True))
    assert mask is not None
    allowed = mask(())
    assert allowed is not None
    forbidden = np.flatnonzero(np.unpackbits(~allowed.view(np.uint8), bitorder="little"))
    assert sorted(forbidden) == sorted([markers.eos, markers.dsml])


def test_prefill_is_part_of_the_answer():
    messages = (*ASK, Message("assistant", '{"verdict": "y', prefix=True))
    conversation = Conversation(messages, thinking=False, response_schema=ANSWER)
    turn, _ = write(conversation, seed=1, start="content")
    check_answer('{"verdict": "y' + turn.content)
    wrong = (*ASK, Message("assistant", "Sure: {", prefix=True))
    with pytest.raises(grebe.InvalidArgumentError, match="cannot begin"):
        write(Conversation(wrong, thinking=False, response_schema=ANSWER), seed=1, start="content")


def test_tokens_of_somebody_else():
    """Forced output, as in tests of the server: the mask gives up instead of failing the answer."""
    tokenizer, markers = nano_tokenizer(), Markers.of(nano_tokenizer())
    mask = make_mask(tokenizer, markers, Conversation(ASK, thinking=False, json_object=True))
    assert mask is not None
    tokens = tuple(tokenizer.encode("No JSON here."))
    assert mask(()) is not None
    assert mask(tokens) is None
    assert mask((*tokens, markers.eos)) is None


def test_nothing_asked():
    tokenizer, markers = nano_tokenizer(), Markers.of(nano_tokenizer())
    assert make_mask(tokenizer, markers, Conversation(ASK, (PING,))) is None


@pytest.mark.parametrize(
    ("conversation", "message"),
    [
        (Conversation(ASK, response_schema={"type": "strin"}), "response schema: .*strin"),
        (
            Conversation(ASK, response_schema={"type": "array", "uniqueItems": True, "items": {}}),
            "uniqueItems",
        ),
        (Conversation(ASK, response_schema={"$ref": "#/$defs/none"}), "response schema: .*none"),
        (Conversation(ASK, response_schema={"type": "string", "pattern": "("}), "response schema"),
        (
            Conversation(
                ASK,
                (
                    Tool(
                        {"name": "t", "parameters": {"properties": {"x": {"type": "y"}}}},
                        strict=True,
                    ),
                ),
            ),
            "tool 't': parameters: ",
        ),
        (
            Conversation(
                ASK,
                (
                    Tool(
                        {"name": "t", "parameters": {"$ref": "#/$defs/A", "$defs": {"A": {}}}},
                        strict=True,
                    ),
                ),
            ),
            "tool 't': a strict tool must list the properties",
        ),
        # Numbers that llguidance negates for ever, and text that it cuts within a character.
        (Conversation(ASK, response_schema={"const": -(2**63)}), "number -9.22337e"),
        (Conversation(ASK, response_schema={"items": [{"enum": [1, [-1e300]]}]}), "number -1e"),
        (
            Conversation(ASK, response_schema={"exclusiveMinimum": "é" * 60}),
            "beyond what can be enforced",
        ),
        (Conversation(ASK, response_schema={"$ref": "#"}), "structured output: "),
        (Conversation(ASK, (PING,), forced="pong"), "tool_choice: no tool is named 'pong'"),
        (Conversation(ASK, forced="any"), "tool_choice: a call is required"),
    ],
)
def test_what_cannot_be_enforced(conversation: Conversation, message: str):
    tokenizer = nano_tokenizer()
    with pytest.raises(grebe.InvalidArgumentError, match=message) as caught:
        make_mask(tokenizer, Markers.of(tokenizer), conversation)
    assert not isinstance(caught.value, ConstraintUnavailable)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_loose_tools_may_have_any_schema():
    """What cannot be enforced for them was never promised."""
    tool = Tool(
        {"name": "t", "parameters": {"properties": {"x": {"type": "array", "uniqueItems": True}}}}
    )
    turn, _ = write(Conversation(ASK, (tool,), forced="t"), seed=3)
    assert turn.calls[0].name == "t"
    for schema in ({"const": -(2**63)}, {"enum": [-1e300, 2], "type": "integer"}):
        tool = Tool({"name": "t", "parameters": {"properties": {"x": schema}}})
        turn, _ = write(Conversation(ASK, (tool,), forced="t"), seed=3)
        assert turn.calls[0].name == "t"


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch):
    from grebe.chat import constraint

    monkeypatch.setitem(sys.modules, "llguidance", None)
    constraint._vocabulary.cache_clear()
    constraint._prototype.cache_clear()
    tokenizer = nano_tokenizer()
    for conversation in (
        Conversation(ASK, json_object=True),
        Conversation(ASK, response_schema=ANSWER),
        Conversation(ASK, (STRICT,)),
        Conversation(ASK, (PING,), forced="any"),
    ):
        with pytest.raises(ConstraintUnavailable, match=r"grebe\[structured\]"):
            make_mask(tokenizer, Markers.of(tokenizer), conversation)


def test_masks_are_quick():
    """A few hundredths of a millisecond in the middle; new states of a grammar a few milliseconds."""
    tokenizer, markers = real_tokenizer(), real_markers()
    prepare(tokenizer, markers)
    times = []
    start = time.perf_counter()

    def watch(token: int, allowed: object) -> None:
        nonlocal start
        times.append(time.perf_counter() - start)
        start = time.perf_counter()

    write(
        Conversation(ASK, (STRICT,), forced="read_gauge"), seed=5, tokenizer=tokenizer, watch=watch
    )
    assert float(np.median(times)) < 0.05  # with the random logits, on a busy machine
