"""Checks of a caller's scalars: each error names the parameter, the value and what is right."""

from __future__ import annotations

import operator
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .errors import InvalidArgumentError

__all__ = ["callback", "file_path", "integer", "number", "shown", "text"]


def shown(value: object) -> str:
    """A value and its type, short enough for a message."""
    try:
        text = repr(value)
    except Exception:
        text = "a value"
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({type(value).__name__})"


def integer(name: str, value: Any, low: int, high: int = 2**63 - 1) -> int:
    """The value as an int within low..high. A bool is none, a NumPy integer is.

    Example:
        >>> integer("n_threads", 3, 1)
        3
    """
    bounded = f"an integer from {low} to {high}"
    expected = f"an integer of at least {low}" if high == 2**63 - 1 else bounded
    try:
        if isinstance(value, bool):
            raise TypeError
        result = operator.index(value)
    except TypeError:
        raise InvalidArgumentError(f"{name} is {shown(value)}; {expected} is expected") from None
    if result < low or result > high:
        # A number may have more digits than Python likes to print.
        found = result if result.bit_length() < 256 else f"{result.bit_length()} bits long"
        raise InvalidArgumentError(
            f"{name} is {found}; {bounded if result > high else expected} is expected"
        )
    return result


def number(name: str, value: Any) -> float:
    """The value as a float: any real number, no bool and no text."""
    kind = type(value)
    real = hasattr(kind, "__float__") or hasattr(kind, "__index__")
    try:
        if isinstance(value, bool) or not real:
            raise TypeError
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise InvalidArgumentError(f"{name} is {shown(value)}; a number is expected") from None


def text(name: str, value: Any) -> str:
    """The value, which is a str."""
    if not isinstance(value, str):
        raise InvalidArgumentError(f"{name} is {shown(value)}; a str is expected")
    return value


def callback(name: str, value: Callable[..., Any] | None) -> None:
    """The value is None or can be called."""
    if value is not None and not callable(value):
        raise InvalidArgumentError(f"{name} is {shown(value)}; a callable or None is expected")


def file_path(value: Any) -> Path:
    """A str, bytes or path-like object as the path of a file; whether it exists is seen later."""
    try:
        name = os.fsdecode(value)
        os.fsencode(name)
        if name and "\0" not in name:
            return Path(name)
    except (TypeError, UnicodeError):
        pass
    raise InvalidArgumentError(f"path is {shown(value)}; the name of a file is expected")
