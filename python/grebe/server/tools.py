"""What the APIs declare about tools and effort, in the form that the prompt shows it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from ..chat.messages import Effort, Tool
from .errors import invalid

__all__ = ["EFFORTS", "MAX_NAME", "check_name", "check_names", "effort", "make_tool"]

_NAME = re.compile(r"[a-zA-Z0-9_-]+", re.ASCII)

#: Characters of a tool's name.
MAX_NAME = 128

#: The APIs' words for effort. The model knows three, and none.
EFFORTS: dict[str, Effort | Literal["none"]] = {
    "none": "none",
    "minimal": "low",
    "low": "low",
    "medium": "high",
    "high": "high",
    "xhigh": "high",
    "max": "max",
    "ultra": "max",
}


def effort(word: str | None, param: str) -> Effort | Literal["none"] | None:
    """What an effort of a request means; None if it says nothing.

    Raises:
        ApiError: no such word.
    """
    if word is None:
        return None
    if word not in EFFORTS:
        raise invalid(f"{param} is '{word[:40]}'; one of {', '.join(EFFORTS)} is expected", param)
    return EFFORTS[word]


def make_tool(
    name: str,
    description: str | None,
    parameters: Mapping[str, Any] | None,
    *,
    strict: bool = False,
    deferred: bool = False,
    param: str,
    longest: int = MAX_NAME,
) -> Tool:
    """A tool as the prompt shows it, the same from all APIs: name, description, parameters.

    Args:
        name: see :func:`check_name`.
        description: of the function.
        parameters: JSON schema; the order of its keys is kept.
        strict: its objects then allow no further properties and require all, unless they say more.
        deferred: declared, but not shown.
        param: path of the tool's name in the request.
        longest: that the name may be.

    Raises:
        ApiError: a name that cannot be told from its surroundings, or arguments that are to be
            something else than an object.
    """
    check_name(name, param, longest)
    shown: Mapping[str, Any] = parameters or {}
    kind = shown.get("type", "object")
    if isinstance(kind, str) and kind != "object":
        raise invalid(
            f"Invalid schema for function '{name}': schema must be a JSON Schema of "
            f"'type: \"object\"', got 'type: \"{kind[:40]}\"'.",
            param.rpartition(".")[0],
        )
    if strict:
        shown = _strict(shown or {"type": "object"})
    schema = {"name": name, "description": description or "", "parameters": shown}
    return Tool(schema, strict=strict, deferred=deferred)


def check_name(name: str, param: str, longest: int = MAX_NAME) -> None:
    """A name that the protocol can write: it has no escapes.

    Raises:
        ApiError: letters, digits, "_" and "-" are allowed, up to ``longest``.
    """
    if not name:
        what = (
            "empty string. Expected a string with minimum length 1, but got an empty string "
            "instead."
        )
    elif not _NAME.fullmatch(name):
        what = (
            "string does not match pattern. Expected a string that matches the pattern "
            "'^[a-zA-Z0-9_-]+$'."
        )
    elif len(name) > longest:
        what = (
            f"string too long. Expected a string with maximum length {longest}, but got a string "
            f"with length {len(name)} instead."
        )
    else:
        return
    raise invalid(f"Invalid '{param}': {what}", param)


def check_names(tools: Iterable[Tool]) -> None:
    """Two tools of one name cannot be told apart.

    Raises:
        ApiError: there are two.
    """
    seen: set[str] = set()
    for tool in tools:
        if tool.name in seen:
            raise invalid("Tool names must be unique.", "tools")
        seen.add(tool.name)


def _strict(schema: Any) -> Any:
    """A schema whose objects are closed; their keys come in the order that DeepSeek's API gives."""
    if isinstance(schema, list):
        return [_strict(item) for item in schema]
    if not isinstance(schema, Mapping):
        return schema
    if schema.get("type") != "object":
        return {
            key: value if key in ("enum", "const", "default", "examples") else _strict(value)
            for key, value in schema.items()
        }
    properties = schema.get("properties")
    if not isinstance(properties, Mapping):
        properties = {}
    required = schema.get("required")
    if not isinstance(required, list) or set(map(str, required)) == set(properties):
        required = list(properties)
    closed = {
        "type": "object",
        "properties": {key: _strict(value) for key, value in properties.items()},
        "additionalProperties": schema.get("additionalProperties", False),
        "required": required,
    }
    rest = {key: value for key, value in schema.items() if key not in closed}
    for key in ("$defs", "definitions"):
        if isinstance(rest.get(key), Mapping):
            rest[key] = {name: _strict(value) for name, value in rest[key].items()}
    return {**closed, **rest}
