"""Whether a call that a client sends back is the one that the model made.

Clients parse arguments and write them anew, and some tidy them up. What they are known to do counts
as no change; anything else is somebody's edit, and the model must see it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from .calls import parse_arguments

__all__ = ["same_arguments"]

# Of a directory, spelled out: what a shell would evaluate is more than a directory.
_CD = re.compile(r"""cd (?:[^\s"'\\;&|$`()<>]|\\.|"[^"\n$`\\]*"|'[^'\n]*')+ && """)


def same_arguments(sampled: str, returned: str, schema: Mapping[str, Any] | None = None) -> bool:
    """Whether two JSON texts say the same.

    Numbers are compared as numbers and keys in any order. Texts may lose blanks at the ends of
    lines, and the sampled one a leading ``cd DIR &&``; the other way round that is an edit. What
    the schema has a default for may be added with it.

    Args:
        sampled: by the model.
        returned: by a client.
        schema: of the tool's parameters.

    Example:
        >>> same_arguments('{"n": 5000.0, "s": "cd /a && ls"}', '{"s":"ls","n":5000}')
        True
        >>> same_arguments('{"s": "cd /a && ls"}', '{"s": "cd /b && ls"}')
        False
        >>> schema = {"properties": {"all": {"type": "boolean", "default": False}}}
        >>> same_arguments('{"s": "x"}', '{"all": false, "s": "x"}', schema)
        True
    """
    if sampled == returned:
        return True
    ours, theirs = parse_arguments(sampled), parse_arguments(returned)
    if ours is None or theirs is None:
        return False
    try:
        return _same(ours, theirs, schema)
    except RecursionError:
        return False


def _same(ours: Any, theirs: Any, schema: Any = None) -> bool:
    if isinstance(ours, str):
        return isinstance(theirs, str) and _same_string(ours, theirs)
    if isinstance(ours, bool) or ours is None:
        return ours is theirs
    if isinstance(ours, int | float):
        # Python compares an int with a float exactly.
        return isinstance(theirs, int | float) and not isinstance(theirs, bool) and ours == theirs
    if isinstance(ours, list):
        items = _member(schema, "items")
        return (
            isinstance(theirs, list)
            and len(ours) == len(theirs)
            and all(_same(value, other, items) for value, other in zip(ours, theirs, strict=True))
        )
    if not isinstance(theirs, dict) or not ours.keys() <= theirs.keys():
        return False
    properties = _member(schema, "properties")
    return all(
        _same(ours[key], value, _member(properties, key))
        if key in ours
        else _is_default(_member(properties, key), value)
        for key, value in theirs.items()
    )


def _is_default(schema: Any, value: Any) -> bool:
    return isinstance(schema, Mapping) and "default" in schema and _same(schema["default"], value)


def _member(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, Mapping) else None


def _same_string(ours: str, theirs: str) -> bool:
    if ours == theirs:
        return True
    theirs = _tidy(theirs)
    if _tidy(ours) == theirs:
        return True
    cd = _CD.match(ours)
    return cd is not None and _tidy(ours[cd.end() :]) == theirs


def _tidy(text: str) -> str:
    """Without blanks at the ends of lines."""
    return "\n".join(map(_tidy_line, text.split("\n")))


def _tidy_line(line: str) -> str:
    return line[:-1].rstrip(" \t") + "\r" if line.endswith("\r") else line.rstrip(" \t")
