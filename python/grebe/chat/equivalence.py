"""Whether a call that a client sends back is the one that the model made.

Clients parse arguments and write them anew, and some tidy them up. What they are known to do counts
as no change; anything else is somebody's edit, and the model must see it.
"""

from __future__ import annotations

import re
from typing import Any

from .calls import parse_arguments

__all__ = ["same_arguments"]

# Of a directory, spelled out: what a shell would evaluate is more than a directory.
_CD = re.compile(r"""cd (?:[^\s"'\\;&|$`()<>]|\\.|"[^"\n$`\\]*"|'[^'\n]*')+ && """)


def same_arguments(sampled: str, returned: str) -> bool:
    """Whether two JSON texts say the same.

    Numbers are compared as numbers and keys in any order. Texts may lose blanks at the ends of
    lines, and the sampled one a leading ``cd DIR &&``; the other way round that is an edit.

    Example:
        >>> same_arguments('{"n": 5000.0, "s": "cd /a && ls"}', '{"s":"ls","n":5000}')
        True
        >>> same_arguments('{"s": "cd /a && ls"}', '{"s": "cd /b && ls"}')
        False
    """
    if sampled == returned:
        return True
    ours, theirs = parse_arguments(sampled), parse_arguments(returned)
    if ours is None or theirs is None:
        return False
    try:
        return _same(ours, theirs)
    except RecursionError:
        return False


def _same(ours: Any, theirs: Any) -> bool:
    if isinstance(ours, str):
        return isinstance(theirs, str) and _same_string(ours, theirs)
    if isinstance(ours, bool) or ours is None:
        return ours is theirs
    if isinstance(ours, int | float):
        # Python compares an int with a float exactly.
        return isinstance(theirs, int | float) and not isinstance(theirs, bool) and ours == theirs
    if isinstance(ours, list):
        return (
            isinstance(theirs, list) and len(ours) == len(theirs) and all(map(_same, ours, theirs))
        )
    return (
        isinstance(theirs, dict)
        and ours.keys() == theirs.keys()
        and all(_same(value, theirs[key]) for key, value in ours.items())
    )


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
