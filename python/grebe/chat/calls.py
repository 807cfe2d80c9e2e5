"""Tool schemas, tool calls and their arguments as a prompt shows them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from ..errors import InvalidArgumentError
from .constants import BLOCK_CLOSE, BLOCK_OPEN, TOOLS_HEAD, TOOLS_TAIL
from .messages import Tool, ToolCall
from .prompt import Writer

__all__ = ["check_tools", "dumps", "parse_arguments", "write_calls", "write_tools"]

_NAME = re.compile(r"[A-Za-z0-9_-]+")


def dumps(value: object) -> str:
    """JSON as the model was trained on it: blanks after commas and colons, no escapes of letters.

    Example:
        >>> dumps({"ä": [1, 2.0, None]})
        '{"ä": [1, 2.0, null]}'
    """
    return json.dumps(value, ensure_ascii=False)


def parse_arguments(text: str, *, lenient: bool = False) -> dict[str, Any] | None:
    """The arguments of a call, or None for anything but an object in sound JSON.

    NaN, Infinity, numbers beyond the range of a double and halves of surrogate pairs are unsound:
    none of them would come back from the model as it went in.

    Args:
        text: of the client.
        lenient: let NaN and numbers that are too large pass, as the official encoder does.

    Example:
        >>> parse_arguments('{"n": 1e5}'), parse_arguments("[1]"), parse_arguments('{"n": NaN}')
        ({'n': 100000.0}, None, None)
    """
    try:
        if lenient:
            value = json.loads(text)
        else:
            value = json.loads(text, parse_constant=_refuse, parse_float=_finite)
        if not isinstance(value, dict):
            return None
        if "\\u" in text or not text.isascii():
            dumps(value).encode()
    except (ValueError, RecursionError):  # Unicode errors are among them
        return None
    return value


def check_tools(tools: Sequence[Tool]) -> None:
    """Refuses what the protocol cannot write: it has no escapes.

    Raises:
        InvalidArgumentError: names the tool.
    """
    for tool in tools:
        name = tool.schema.get("name")
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise InvalidArgumentError(
                f"tool name {name!r}: only letters, digits, '_' and '-' are allowed, at least one"
            )
        properties = tool.parameters.get("properties")
        if isinstance(properties, Mapping):
            for key in properties:
                if '"' in key:
                    raise InvalidArgumentError(
                        f"tool {name!r}: a quotation mark in the name of its property {key!r}"
                    )


def write_tools(out: Writer, tools: Sequence[Tool]) -> None:
    """The tools section; the text before it must end in a blank line."""
    out.spelled(TOOLS_HEAD)
    out.text("\n".join(dumps(tool.schema) for tool in tools))
    out.text(TOOLS_TAIL)


def write_calls(out: Writer, calls: Sequence[ToolCall], *, official: bool = False) -> None:
    """The block of a turn's calls.

    Args:
        out: where to.
        calls: at least one.
        official: write names with quotation marks all the same, as the reference does.

    Raises:
        InvalidArgumentError: a name with a quotation mark.
    """
    out.spelled(BLOCK_OPEN)
    for i, call in enumerate(calls):
        if '"' in call.name and not official:
            raise InvalidArgumentError(f"tool call {call.name!r}: a quotation mark in its name")
        if i:
            out.text("\n")
        out.text("<").marker("dsml").text(f'invoke name="{call.name}">\n')
        _write_arguments(out, call.arguments, official)
        out.text("\n</").marker("dsml").text("invoke>")
    out.spelled(BLOCK_CLOSE)


def _write_arguments(out: Writer, arguments: str, official: bool) -> None:
    parsed = parse_arguments(arguments, lenient=official)
    # A key with a quotation mark cannot be written either. The model has seen stranger things than
    # one text argument, and a conversation must not end for what its history holds.
    if parsed is None or (not official and any('"' in key for key in parsed)):
        parsed = {"arguments": arguments}
    for i, (key, value) in enumerate(parsed.items()):
        if i:
            out.text("\n")
        is_text = isinstance(value, str)
        out.text("<").marker("dsml")
        out.text(f'parameter name="{key}" string="{"true" if is_text else "false"}">')
        out.text(value if is_text else dumps(value))
        out.text("</").marker("dsml").text("parameter>")


def _refuse(constant: str) -> NoReturn:
    raise ValueError(constant)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value
