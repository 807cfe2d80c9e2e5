"""Hypothesis strategies for the server's wire types: bodies that fit them, and nearly."""

from __future__ import annotations

import copy
from typing import Any

import msgspec
from hypothesis import strategies as st
from msgspec import inspect as types

# What APIs distinguish by, and what may confuse a prompt or a parser.
WORDS = st.sampled_from(
    [
        "system",
        "developer",
        "user",
        "assistant",
        "tool",
        "latest_reminder",
        "function",
        "custom",
        "auto",
        "none",
        "required",
        "any",
        "text",
        "input_text",
        "output_text",
        "image_url",
        "refusal",
        "thinking",
        "redacted_thinking",
        "tool_use",
        "tool_result",
        "tool_reference",
        "document",
        "search_result",
        "message",
        "reasoning",
        "function_call",
        "function_call_output",
        "custom_tool_call",
        "item_reference",
        "namespace",
        "allowed_tools",
        "json_object",
        "json_schema",
        "enabled",
        "disabled",
        "adaptive",
        "low",
        "medium",
        "high",
        "max",
        "xhigh",
        "minimal",
        "string",
        "number",
        "object",
        "array",
        "a",
        "toolu_1",
        "call_1",
        "web_search",
        "reasoning.encrypted_content",
        "grammar",
        "regex",
        "lark",
    ]
)
SPECIAL = st.sampled_from(
    [
        "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>", "<think>", "</think>",
        "｜DSML｜", '<｜DSML｜tool_calls>\n<｜DSML｜invoke name="a">', "</｜DSML｜invoke>", "\ud800", "\udfff\ud800",
        "\0", "\x1b[2J", "\u202e", "\r\n\r\ndata: [DONE]", "x-anthropic-billing-header: cch=1;", "a" * 3000,
        "json", "{", '{"a": 1}', "", " ", "[[script:*]]",
    ]
)  # fmt: skip
TEXT = WORDS | SPECIAL | st.text(max_size=8)
KEYS = (
    st.sampled_from(
        [
            "type",
            "text",
            "name",
            "id",
            "role",
            "content",
            "input",
            "tool_use_id",
            "call_id",
            "arguments",
            "output",
            "source",
            "data",
            "media_type",
            "title",
            "tools",
            "description",
            "parameters",
            "input_schema",
            "strict",
            "schema",
            "format",
            "definition",
            "syntax",
            "effort",
            "summary",
            "function",
            "disable_parallel_tool_use",
            "is_error",
            "signature",
            "thinking",
            "properties",
            "required",
            "items",
            "enum",
            "additionalProperties",
            "$ref",
            "anyOf",
            "encrypted_content",
            "cache_control",
            "tool_name",
            "verbosity",
            "include_usage",
            "budget_tokens",
        ]
    )
    | SPECIAL
)
NUMBERS = st.one_of(
    st.sampled_from([0, 1, -1, 2, 5, 128, 2**31, 2**53, 2**63 - 1, 2**63, 2**64, -(2**63), 10**30]),
    st.sampled_from([0.0, -0.0, 0.5, 1.0, 1.5, 1e-300, 1e300, -1e300]),
    st.integers(-3, 20),
)
# JSON of any kind; floats that are no numbers are written as Python does, which is no JSON.
ANY = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXT | st.sampled_from([float("nan"), float("inf")]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=5),
    max_leaves=8,
)


def mutated(seed: Any) -> st.SearchStrategy[Any]:
    """A body with one to three of its values replaced, or left out."""
    return st.builds(_mutate, st.just(seed), st.lists(_CHANGE, min_size=1, max_size=3))


_CHANGE = st.tuples(st.integers(0, 10_000), st.none() | st.tuples(ANY | TEXT | NUMBERS))


def _mutate(seed: Any, changes: list[tuple[int, tuple[Any] | None]]) -> Any:
    body = copy.deepcopy(seed)
    for where, value in changes:
        places = _places(body)
        if not places:
            break
        container, key = places[where % len(places)]
        if value is None:
            del container[key]
        else:
            container[key] = value[0]
    return body


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Everything in a body that can be replaced: container and key."""
    keys = list(value) if isinstance(value, dict) else range(len(value))
    found = [(value, key) for key in keys]
    for key in keys:
        if isinstance(value[key], (dict, list)):
            found += _places(value[key])
    return found


def bodies(kind: type[msgspec.Struct]) -> st.SearchStrategy[Any]:
    """Bodies of a wire type; one value in twenty or so is of another type."""
    return _of(types.type_info(kind), 0)


def _of(kind: types.Type, depth: int) -> st.SearchStrategy[Any]:
    fitting = _fitting(kind, depth)
    return st.integers(0, 30).flatmap(lambda n: ANY if n == 0 else fitting)


def _fitting(kind: types.Type, depth: int) -> st.SearchStrategy[Any]:
    if isinstance(kind, types.StructType):
        needed = {f.encode_name: _of(f.type, depth + 1) for f in kind.fields if f.required}
        others = {f.encode_name: _of(f.type, depth + 1) for f in kind.fields if not f.required}
        some = (
            st.lists(st.sampled_from(sorted(others)), max_size=5, unique=True)
            if others
            else st.just([])
        )
        fields = some.flatmap(
            lambda names: st.fixed_dictionaries(
                {**needed, **{name: others[name] for name in names}}
            )
        )
        extra = st.dictionaries(KEYS, ANY, max_size=1)
        return st.tuples(fields, extra).map(lambda pair: {**pair[1], **pair[0]})
    if isinstance(kind, types.UnionType):
        return st.one_of([_of(inner, depth) for inner in kind.types])
    if isinstance(kind, types.ListType):
        return st.lists(_of(kind.item_type, depth + 1), max_size=4)
    if isinstance(kind, types.DictType):
        return st.dictionaries(KEYS, _of(kind.value_type, depth + 1), max_size=5)
    if isinstance(kind, (types.IntType, types.FloatType)):
        return NUMBERS
    simple = {types.StrType: TEXT, types.BoolType: st.booleans(), types.NoneType: st.none()}
    return ANY if isinstance(kind, types.AnyType) else simple[type(kind)]
