"""The chats that the demo model is trained on, against what grebe shows a model and reads from it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import pytest
from grebe.chat.encode import encode
from grebe.chat.markers import Markers
from grebe.chat.messages import Conversation, Message, Tool, ToolCall
from grebe.chat.parser import OutputParser
from grebe.chat.render import render

from tests.helpers.chat import nano_tokenizer

TRAINING = Path(__file__).parents[2] / "tools" / "demo_model"
KINDS = ("chat", "story", "world", "tool", "code", "recall", "copy")


@pytest.fixture(scope="module")
def corpus() -> Iterator[Any]:
    sys.path.insert(0, str(TRAINING))
    try:
        from corpus import chat, recall, tasks

        filler = recall.Filler(["A door, a lamp and a letter lay on the old table of the inn."] * 9)
        yield chat, lambda seed: tasks.draw(Random(seed), filler)
    finally:
        sys.path.remove(str(TRAINING))


def conversation(chat: Any, n_turns: int) -> Conversation:
    """The first turns of a drawn chat, as an API's client would send them."""
    messages = [Message("system", chat.system)] if chat.system else []
    open_calls: list[str] = []
    for n, turn in enumerate(chat.turns[:n_turns]):
        if turn[0] == "assistant":
            _, thought, text, calls = turn
            made = [
                ToolCall(name, json.dumps(arguments), f"call_{n}_{i}")
                for i, (name, arguments) in enumerate(calls or ())
            ]
            open_calls += [call.id or "" for call in made]
            messages.append(
                Message(
                    "assistant",
                    text,
                    reasoning=thought if chat.thinking else None,
                    tool_calls=tuple(made),
                )
            )
        elif turn[0] == "tool":
            messages.append(Message("tool", turn[1], tool_call_id=open_calls.pop(0)))
        else:
            messages.append(Message("user", turn[1]))
    return Conversation(
        tuple(messages),
        tuple(Tool(schema) for schema in chat.tools or ()),
        thinking=chat.thinking,
        effort=chat.effort,
    )


def chats(draw: Any, kind: str, n: int) -> list[Any]:
    drawn = (draw(f"{kind} {seed}") for seed in range(2000))
    found = list(islice((x for k, x in drawn if k == kind and not isinstance(x, str)), n))
    assert len(found) == n
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_prompts_are_grebes(corpus: Any, kind: str):
    encoding, draw = corpus
    tokenizer = nano_tokenizer()
    markers = Markers.of(tokenizer)
    for chat in chats(draw, kind, 6 if kind == "recall" else 20):
        for n, turn in enumerate(chat.turns):
            if turn[0] != "assistant":
                continue
            trained = encoding.render(chat.turns[: n + 1], *chat[1:])
            prompt = render(conversation(chat, n))
            assert trained.startswith(prompt.text)
            ids = encode(prompt, tokenizer, markers).ids
            assert tokenizer.encode(trained, allow_special=True)[: len(ids)] == ids


def test_every_combination_is_drawn(corpus: Any):
    _, draw = corpus
    drawn = [x for kind in KINDS for x in chats(draw, kind, 20)]
    seen = {(bool(x.tools), x.thinking, bool(x.system)) for x in drawn}
    assert len(seen) == 8
    assert {x.effort for x in drawn if x.thinking} == {"low", "high", "max"}
    assert any(sum(t[0] == "assistant" for t in x.turns) > 3 for x in drawn)
    assert any(t[0] == "assistant" and len(t[3] or ()) > 1 for x in drawn for t in x.turns)


@pytest.mark.parametrize("kind", ["chat", "tool"])
def test_answers_are_read_back(corpus: Any, kind: str):
    encoding, draw = corpus
    tokenizer = nano_tokenizer()
    markers = Markers.of(tokenizer)
    for chat in chats(draw, kind, 20):
        tools = [Tool(schema) for schema in chat.tools or ()]
        for n, turn in enumerate(chat.turns):
            if turn[0] != "assistant":
                continue
            _, thought, text, calls = turn
            start = encode(render(conversation(chat, n)), tokenizer, markers).ids
            trained = encoding.render(chat.turns[: n + 1], *chat[1:])
            answer = tokenizer.encode(trained, allow_special=True)[len(start) :]
            parser = OutputParser(markers, tokenizer, tools, thinking=chat.thinking)
            left = list(answer)
            end = None
            while end is None:
                end = parser.feed(left.pop(0)).end
            assert end == ("tool_calls" if calls else "stop")
            # A block of calls ends the turn before its end marker comes.
            assert left == ([markers.eos] if calls else [])
            parser.finish(end)
            said = parser.turn
            assert said.content == text
            assert said.reasoning == (thought if chat.thinking else "")
            assert [(c.name, json.loads(c.arguments)) for c in said.calls] == list(calls or ())
