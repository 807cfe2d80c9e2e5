"""Outputs of the model against DeepSeek's parsers and our own judgements."""

from __future__ import annotations

import random
from typing import Any

import pytest
from grebe.chat.inband import InbandDecoder
from grebe.chat.parser import OutputParser, parse_text
from grebe.chat.turn_parser import TextParser

from tests.helpers.chat import read_vectors, real_markers, real_tokenizer
from tests.helpers.parsing import Client, expected, tools

ROWS = read_vectors("parse/vectors.jsonl")
# Only their tokens tell markup from text that looks like it.
LOOKALIKES = {"lookalike_close_in_value", "lookalike_think_close"}


def named(rows: list[dict[str, Any]]) -> list[Any]:
    return [pytest.param(row, id=row["name"]) for row in rows]


@pytest.mark.parametrize("row", named(ROWS))
def test_token_by_token(row: dict[str, Any]):
    parser = OutputParser(
        real_markers(),
        real_tokenizer(),
        tools(row["tools"] or []),
        thinking=row["thinking"],
        stop=row["stop"],
    )
    client = Client()
    end = None
    for token in row["ids"] + [real_markers().eos] * (row["engine_finish"] == "stop"):
        sunk = parser.feed(token)
        client.take(sunk.deltas)
        assert "\ufffd" not in client.reasoning + client.content
        end = end or sunk.end
        if end:
            break
    client.take(parser.finish(end or row["engine_finish"]))
    client.check(parser.turn)
    assert expected(parser.turn) == row["expected"]
    assert parser.turn.finish == (end or "length")
    reasoning = real_tokenizer().encode(row["expected"]["reasoning"])
    if row["thinking"] and real_markers().dsml not in row["ids"]:
        # The tokens that were sampled; a blank line before a block may be part of the last one.
        assert parser.reasoning_tokens == pytest.approx(len(reasoning), abs=1)


@pytest.mark.parametrize("row", named(ROWS))
def test_groups(row: dict[str, Any]):
    rng = random.Random(row["name"])
    cuts = [[0], range(len(row["ids"])), *(rng.sample(range(99), 9) for _ in range(20))]
    for cut in cuts:
        decoder = InbandDecoder(real_markers(), real_tokenizer())
        parser = TextParser(tools(row["tools"] or []), thinking=row["thinking"], stop=row["stop"])
        client, group = Client(), ""
        for i, token in enumerate(row["ids"]):
            if i in cut:
                client.take(parser.push(group))
                group = ""
            group += decoder.push(token)
        client.take(parser.push(group))
        client.take(parser.finish(row["engine_finish"]))
        client.check(parser.turn())
        assert expected(parser.turn()) == row["expected"]


@pytest.mark.parametrize("row", named([r for r in ROWS if r["name"] not in LOOKALIKES]))
def test_text_alone(row: dict[str, Any]):
    turn = parse_text(
        row["text"],
        tools(row["tools"] or []),
        thinking=row["thinking"],
        stop=row["stop"],
        finish=row["engine_finish"],
    )
    assert expected(turn) == row["expected"]
