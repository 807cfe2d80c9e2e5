"""Tools put together at random, so that a call is read off the schema and not known by heart."""

from __future__ import annotations

import json
from collections.abc import Callable
from random import Random
from typing import Any

from corpus.words import ALLW, COLORS, FOODS, PLACES, any_name, with_article, words

VERBS = words(
    "get find create delete update check start stop open book order play add remove count send lookup show "
    "buy sell fetch save load move rename close print schedule cancel share"
)
NOUNS = words(
    "item ticket user song room price event report task order message table page stock score height weight "
    "distance note meeting flight hotel recipe movie account invoice product status size alarm playlist customer"
)
Value = str | int | float | bool
# Name, type, description, how a value is drawn.
Parameter = tuple[str, str, str, Callable[[Random], Value]]


def _word(r: Random) -> str:
    return r.choice(ALLW)


def _phrase(r: Random) -> str:
    return " ".join(r.choice(ALLW) for _ in range(r.randrange(2, 5)))


def _date(r: Random) -> str:
    return f"20{r.randrange(20, 30)}-{r.randrange(1, 13):02d}-{r.randrange(1, 29):02d}"


PARAMETERS: list[Parameter] = [
    ("item", "string", "Name of the item", _word),
    ("name", "string", "The name", any_name),
    ("person", "string", "Name of the person", any_name),
    ("title", "string", "The title", _phrase),
    ("query", "string", "What to look for", _phrase),
    ("text", "string", "The text", _phrase),
    ("place", "string", "The place", lambda r: r.choice(PLACES)),
    ("location", "string", "Where it is", lambda r: r.choice(PLACES)),
    ("color", "string", "The color", lambda r: r.choice(COLORS)),
    ("food", "string", "What to eat", lambda r: r.choice(FOODS)),
    ("date", "string", "Date as YYYY-MM-DD", _date),
    ("amount", "integer", "How many", lambda r: r.randrange(1, 100)),
    ("id", "integer", "The number", lambda r: r.randrange(1, 10000)),
    ("limit", "integer", "At most so many", lambda r: r.randrange(1, 50)),
    ("price", "number", "The price", lambda r: r.randrange(1, 2000) / 4),
    ("urgent", "boolean", "Whether it is urgent", lambda r: r.random() < 0.5),
    ("public", "boolean", "Whether all may see it", lambda r: r.random() < 0.5),
]


def _spoken(value: Value) -> str:
    return json.dumps(value) if isinstance(value, bool) else str(value)


def any_tool(
    r: Random,
) -> tuple[dict[str, Any], str, list[tuple[str, dict[str, Any]]], str, str, str]:
    """Schema, request, calls, the tool's result, the answer, the thought before the call."""
    verb, noun = r.choice(VERBS), r.choice(NOUNS)
    name = r.choice([f"{verb}_{noun}", f"{verb}_{noun}", f"{verb}{noun.title()}", f"{noun}_{verb}"])
    chosen = r.sample(PARAMETERS, r.choice([1, 1, 1, 2, 2, 3]))
    values = {key: draw(r) for key, _, _, draw in chosen}
    properties = {key: {"type": kind, "description": d} for key, kind, d, _ in chosen}
    if r.random() < 0.25:  # one that the call leaves out
        key, kind, d, _ = r.choice(PARAMETERS)
        properties.setdefault(key, {"type": kind, "description": d})
    schema = {
        "name": name,
        "description": f"{verb.title()} {with_article(noun)}",
        "parameters": {"type": "object", "properties": properties, "required": list(values)},
    }
    first = _spoken(next(iter(values.values())))
    pairs = " and ".join(f"{key} {_spoken(v)}" for key, v in values.items())
    asks = len(values) == 1 and verb in ("get", "find", "check", "lookup", "fetch", "show")
    if asks and r.random() < 0.7:
        request = r.choice(
            [
                f"What is the {noun} of {first}?",
                f"Tell me the {noun} of {first}.",
                f"How about the {noun} of {first}?",
                f"I need the {noun} for {first}.",
            ]
        )
    else:
        request = r.choice(
            [
                f"{verb.title()} {with_article(noun)} with {pairs}.",
                f"Please {verb} the {noun}: {pairs}.",
                f"Can you {verb} {with_article(noun)} with {pairs}?",
                f"Use {name} with {pairs}.",
                f"I want to {verb} the {noun} with {pairs}.",
            ]
        )
    if asks:
        found = r.choice([str(r.randrange(1, 1000)), r.choice(ALLW), any_name(r)])
        result = r.choice([found, json.dumps({noun: found})])
        answer = f"The {noun} of {first} is {found}."
    else:
        result = r.choice(["ok", "done", json.dumps({"success": True})])
        answer = f"Done: {verb} {noun} with {pairs}."
    return schema, request, [(name, values)], result, answer, f"I should call {name} with {pairs}."
