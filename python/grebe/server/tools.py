"""What the APIs declare about tools and effort, in the form that the prompt shows it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from ..chat.messages import Effort, Tool
from .errors import invalid

__all__ = ["EFFORTS", "check_names", "effort", "make_tool"]

_NAME = re.compile(r"[a-zA-Z0-9_-]+", re.ASCII)

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
) -> Tool:
    """A tool as the prompt shows it, the same from all APIs: name, description, parameters.

    Args:
        name: letters, digits, "_" and "-".
        description: of the function.
        parameters: JSON schema; the order of its keys is kept.
        strict: its objects then allow no further properties and require all, unless they say more.
        deferred: declared, but not shown.
        param: path of the tool's name in the request.

    Raises:
        ApiError: a name that cannot be told from its surroundings.
    """
    if not _NAME.fullmatch(name):
        raise invalid(
            f"Invalid '{param}': string does not match pattern. Expected a string that matches "
            "the pattern '^[a-zA-Z0-9_-]+$'.",
            param,
        )
    shown: Mapping[str, Any] = parameters or {}
    if strict:
        shown = _strict(shown or {"type": "object"})
    schema = {"name": name, "description": description or "", "parameters": shown}
    return Tool(schema, strict=strict, deferred=deferred)


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
