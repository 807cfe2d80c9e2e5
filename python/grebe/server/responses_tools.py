"""Declared tools of /v1/responses, and the names that the model knows them by."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..chat.messages import Tool
from .apply_patch import APPLY_PATCH, APPLY_PATCH_INPUT
from .errors import invalid
from .tools import MAX_NAME, check_name, check_names, make_tool

__all__ = ["ToolNames", "declared_tools"]


@dataclass(slots=True)
class ToolNames:
    """Between the client's names and the model's: the model has no namespaces.

    Attributes:
        custom: tools that take bare text instead of JSON, by the model's name.
        dropped: declared tools that are not functions, for a debug log.
    """

    custom: set[str] = field(default_factory=set)
    dropped: list[str] = field(default_factory=list)
    _inner: dict[str, tuple[str, str]] = field(default_factory=dict)
    _shown: dict[tuple[str, str], str] = field(default_factory=dict)

    def add(self, namespace: str, name: str, shown: str) -> None:
        """Makes a tool of a namespace known."""
        self._inner[shown] = (namespace, name)
        self._shown[namespace, name] = shown

    def shown(self, namespace: object, name: str) -> str:
        """What the model calls it."""
        if not isinstance(namespace, str) or not namespace:
            return name
        return self._shown.get((namespace, name), f"{namespace}__{name}")

    def client(self, shown: str) -> dict[str, str]:
        """The fields of a call that name the tool."""
        if shown not in self._inner:
            return {"name": shown}
        namespace, name = self._inner[shown]
        return {"name": name, "namespace": namespace}


def declared_tools(declared: Sequence[Mapping[str, Any]]) -> tuple[tuple[Tool, ...], ToolNames]:
    """The functions among the declared tools. Those that OpenAI's servers would run are dropped.

    Raises:
        ApiError: a name that cannot be used.
    """
    names = ToolNames()
    tools: list[Tool] = []
    # A namespace's tool gives way to a function that has its name already.
    taken = {str(tool.get("name")) for tool in declared if tool.get("type") != "namespace"}
    for i, tool in enumerate(declared):
        kind = tool.get("type", "function")
        if kind in ("function", "custom"):
            name = _name(tool, f"tools[{i}].name")
            tools.append(_tool(tool, kind, name, f"tools[{i}].name", names))
        elif kind == "namespace":
            tools += _namespace(i, tool, names, taken)
        else:
            names.dropped.append(f"tools.{i}: {kind}")
    check_names(tools)
    return tuple(tools), names


def _namespace(
    i: int, space: Mapping[str, Any], names: ToolNames, taken: set[str]
) -> Iterator[Tool]:
    namespace = str(space.get("name", ""))
    check_name(namespace, f"tools[{i}].name")
    inner = space.get("tools")
    for k, tool in enumerate(inner if isinstance(inner, list) else ()):
        kind = tool.get("type", "function") if isinstance(tool, Mapping) else "unknown"
        if kind not in ("function", "custom"):
            names.dropped.append(f"tools.{i}.tools.{k}: {kind}")
            continue
        path = f"tools[{i}].tools[{k}].name"
        name = _name(tool, path)
        plain = f"{namespace}__{name}"
        shown, n = plain, 0
        while shown in taken:
            n += 1
            shown = f"{plain}_{n}"
        taken.add(shown)
        names.add(namespace, name, shown)
        yield _tool(tool, kind, shown, path, names)


def _name(tool: Mapping[str, Any], path: str) -> str:
    name = tool.get("name")
    if not isinstance(name, str):
        raise invalid(f"Missing required parameter: '{path}'.", path, "missing_required_parameter")
    check_name(name, path)
    return name


def _tool(tool: Mapping[str, Any], kind: str, shown: str, path: str, names: ToolNames) -> Tool:
    if kind == "custom":
        names.custom.add(shown)
        if tool.get("name") == "apply_patch":
            text, schema = APPLY_PATCH, _custom_parameters(APPLY_PATCH_INPUT)
        else:
            text, schema = _custom_description(tool), _custom_parameters(_WHOLE)
        return make_tool(shown, text, schema, param=path, longest=_LONGEST)
    description, parameters = tool.get("description"), tool.get("parameters")
    return make_tool(
        shown,
        description if isinstance(description, str) else None,
        parameters if isinstance(parameters, Mapping) else None,
        strict=tool.get("strict") is True,
        param=path,
        longest=_LONGEST,
    )


# Of a tool in a namespace; each of its two names has its own limit.
_LONGEST = 2 * MAX_NAME + 2
_WHOLE = "The whole input, as it is."


def _custom_parameters(description: str) -> dict[str, Any]:
    """A custom tool takes text; to the model it is a function with one string."""
    return {
        "type": "object",
        "additionalProperties": False,
        "properties": {"input": {"type": "string", "description": description}},
        "required": ["input"],
    }


def _custom_description(tool: Mapping[str, Any]) -> str:
    text = str(tool.get("description") or "")
    form = tool.get("format")
    if isinstance(form, Mapping) and isinstance(form.get("definition"), str):
        syntax = form.get("syntax", "unknown")
        text += f"\n\nGrammar of the input ({syntax}):\n{form['definition']}"
    return text.strip("\n")
