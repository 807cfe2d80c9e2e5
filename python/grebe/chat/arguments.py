"""Arguments of a call: from raw values in tags to the JSON text that a client receives.

Text values are streamed as they come. Everything else is held until its end, because only then is
it known whether it is JSON; held or not, what was emitted is never taken back.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from json.encoder import encode_basestring as quoted
from typing import Any, NoReturn

from .messages import Tool

__all__ = ["ArgumentsWriter", "admitted_types", "json_type", "typed"]

_SPACE = " \t\r\n"
_ALL = frozenset({"string", "integer", "number", "boolean", "null", "object", "array"})
# A schema may refer to itself; beyond so many parts it counts as one that admits everything.
_MAX_PARTS = 1000


class ArgumentsWriter:
    r"""Builds the JSON text of one call's arguments, in pieces that can be sent on at once.

    Example:
        >>> writer = ArgumentsWriter(None)
        >>> writer.begin("path", True), writer.add('a "b"'), writer.end(), writer.close()
        ('{"path": "', 'a \\"b\\"', '"', '}')
    """

    def __init__(self, tool: Tool | None, *, repair_types: bool = True) -> None:
        self._parameters: Mapping[str, Any] = tool.parameters if tool is not None else {}
        self._repair = repair_types
        self._pieces: list[str] = []
        self._keys: set[str] = set()
        self._flag: bool | None = None
        self._head = ""  # of a value that is held
        self._types = _ALL
        self._raw: list[str] | None = None  # of a value that is held
        self._dropped = False

    @property
    def text(self) -> str:
        """What was emitted so far."""
        return "".join(self._pieces)

    @property
    def empty(self) -> bool:
        """Whether no parameter has begun."""
        return not self._keys

    def begin(self, key: str, flag: bool | None) -> str:
        """A parameter begins; ``flag`` is its attribute "string", None when it has none."""
        self._flag = flag
        self._dropped = key in self._keys  # the first one is on its way already
        self._raw = None
        if self._dropped:
            return ""
        self._types = (
            admitted_types(self._parameters, key) if self._repair or flag is None else _ALL
        )
        streamed = flag is True and (not self._repair or "string" in self._types)
        head = ("{" if self.empty else ", ") + quoted(key) + ": "
        self._keys.add(key)
        if streamed:
            return self._emit(head + '"')
        self._raw = []
        self._head = head
        return ""

    def add(self, text: str) -> str:
        """More of the value."""
        if self._dropped or not text:
            return ""
        if self._raw is not None:
            self._raw.append(text)
            return ""
        return self._emit(quoted(text)[1:-1])

    def end(self) -> str:
        """The value is complete."""
        if self._dropped:
            return ""
        if self._raw is None:
            return self._emit('"')
        raw, self._raw = "".join(self._raw), None
        return self._emit(self._head + typed(raw, self._flag, self._types, repair=self._repair))

    def close(self, body: str = "") -> str:
        """The call is complete.

        Args:
            body: what stood in it outside of any parameter.
        """
        if not self.empty:
            return self._emit("}")
        body = body.strip(_SPACE)
        return self._emit(body if body.startswith("{") and json_type(body) == "object" else "{}")

    def _emit(self, text: str) -> str:
        self._pieces.append(text)
        return text


def typed(raw: str, flag: bool | None, types: frozenset[str] = _ALL, *, repair: bool = True) -> str:
    r"""The JSON text of a raw value.

    Args:
        raw: as it stood between the tags.
        flag: the attribute "string": whether the model meant it as text; None when it is missing.
        types: that the schema admits.
        repair: let the schema win over the flag where the flag must be wrong.

    Example:
        >>> typed("3", True, frozenset({"integer"})), typed(" 4\n", False), typed("v w", False)
        ('3', '4', '"v w"')
    """
    kind = json_type(raw)
    text_only = types == {"string"}
    if (flag is None or repair) and text_only and flag is not True:
        return raw.strip(_SPACE) if kind == "string" else quoted(raw)
    if flag is True and not (
        repair and "string" not in types and kind is not None and _matches(kind, types)
    ):
        return quoted(raw)
    return quoted(raw) if kind is None else raw.strip(_SPACE)


def json_type(text: str) -> str | None:
    """The type of a JSON text, by the names of JSON schema; None when it is not sound JSON.

    NaN, Infinity, numbers that no double holds and halves of surrogate pairs are unsound. An
    integral number is an "integer", however it is written.

    Example:
        >>> json_type(" [1]"), json_type("2.0"), json_type("1E400"), json_type("x")
        ('array', 'integer', None, None)
    """
    try:
        value = json.loads(text, parse_constant=_refuse, parse_float=_finite, parse_int=_integer)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError):  # Unicode errors are among them
        return None
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, float):
        return "integer" if value.is_integer() else "number"
    return _NAMES[type(value)]


_NAMES = {str: "string", int: "integer", type(None): "null", dict: "object", list: "array"}


def admitted_types(parameters: Mapping[str, Any], key: str) -> frozenset[str]:
    """The types that a schema of arguments admits for one property; all when it does not say.

    Example:
        >>> sorted(admitted_types({"properties": {"n": {"type": ["integer", "null"]}}}, "n"))
        ['integer', 'null']
    """
    properties = parameters.get("properties")
    schema = properties.get(key) if isinstance(properties, Mapping) else None
    if schema is None:
        schema = parameters.get("additionalProperties")
    # A schema that admits nothing is a mistake of its author and no ground for repairs.
    return _Types(parameters).of(schema) or _ALL


class _Types:
    """Finds the types that schemas of one document admit."""

    def __init__(self, root: Mapping[str, Any]) -> None:
        self._root = root
        self._n_parts = 0
        self._open: set[str] = set()  # references that are being followed

    def of(self, schema: Any) -> frozenset[str]:
        self._n_parts += 1
        if not isinstance(schema, Mapping) or self._n_parts > _MAX_PARTS:
            return _ALL
        types = _ALL
        declared = schema.get("type")
        names = [declared] if isinstance(declared, str) else declared
        if isinstance(names, list):
            known = _ALL.intersection(name for name in names if isinstance(name, str))
            types = (known | {"integer"} if "number" in known else known) or _ALL
        if isinstance(schema.get("enum"), list):
            types &= {_value_type(value) for value in schema["enum"]}
        if "const" in schema:
            types &= {_value_type(schema["const"])}
        for word in ("anyOf", "oneOf"):
            if isinstance(branches := schema.get(word), list) and branches:
                types &= frozenset().union(*map(self.of, branches))
        if isinstance(branches := schema.get("allOf"), list):
            for branch in branches:
                types &= self.of(branch)
        if isinstance(reference := schema.get("$ref"), str) and reference not in self._open:
            self._open.add(reference)
            types &= self.of(_resolved(reference, self._root))
            self._open.discard(reference)
        return types


def _resolved(reference: str, root: Mapping[str, Any]) -> Any:
    """The schema that a reference within the same document names, None for any other."""
    if not reference.startswith("#/"):
        return None
    found: Any = root
    for step in reference[2:].split("/"):
        name = step.replace("~1", "/").replace("~0", "~")
        found = found.get(name) if isinstance(found, Mapping) else None
    return found


def _value_type(value: Any) -> str:
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, float):
        return "integer" if value.is_integer() else "number"
    return _NAMES.get(type(value), "null")


def _matches(kind: str, types: frozenset[str]) -> bool:
    return kind in types or (kind == "integer" and "number" in types)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(constant)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value


def _integer(text: str) -> int:
    """Stands for any integer: its text goes on as it is, with more digits than int reads."""
    return len(text)
