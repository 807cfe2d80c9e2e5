"""JSON bodies of requests: decoded, checked against a type, and what was not understood."""

from __future__ import annotations

import json
import re
from typing import Any, NoReturn, TypeVar

import msgspec

from .errors import ApiError, invalid

__all__ = ["decode_body", "field_path"]

T = TypeVar("T", bound=msgspec.Struct)

_AT = re.compile(r"^(?P<what>.*) - at `\$\.?(?P<path>[^`]*)`$", re.S)


def decode_body(data: bytes, into: type[T]) -> tuple[T, tuple[str, ...]]:
    """Reads a body.

    Unknown fields are let pass: clients take features away from themselves when they are refused.

    Args:
        data: JSON, at most as deep as the interpreter's stack allows; the reader of bodies sees to
            that.
        into: a struct whose fields are those that are understood.

    Returns:
        The body, and the names of the fields that ``into`` does not have.

    Raises:
        ApiError: 400, naming the field.
    """
    value = _loads(data)
    if not isinstance(value, dict):
        raise invalid("the body must be a JSON object")
    try:
        body = msgspec.convert(value, into)
    except msgspec.ValidationError as error:
        raise _refusal(str(error)) from None
    known = {f.encode_name for f in msgspec.structs.fields(into)}
    return body, tuple(key for key in value if key not in known)


def field_path(*steps: str | int) -> str:
    """A place in a body, as both vendors write it.

    Example:
        >>> field_path("messages", 2, "content", 0)
        'messages.2.content.0'
    """
    return ".".join(str(step) for step in steps)


def _loads(data: bytes) -> Any:
    try:
        return msgspec.json.decode(data)
    except msgspec.MsgspecError:
        pass
    # Half a surrogate pair, which JavaScript makes when it cuts a string, and numbers beyond
    # float64 are JSON to everybody else.
    try:
        return _mended(json.loads(data, parse_constant=_no_constant))
    except (ValueError, RecursionError) as error:
        raise invalid(f"the body is not valid JSON: {error}") from None


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _mended(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    if isinstance(value, list):
        return [_mended(item) for item in value]
    if isinstance(value, dict):
        return {_mended(key): _mended(item) for key, item in value.items()}
    return value


def _refusal(text: str) -> ApiError:
    found = _AT.match(text)
    if found is None:
        return invalid(text)
    path = re.sub(r"\[(\d+|\.\.\.)\]", r".\1", found["path"])
    return invalid(f"{path}: {found['what']}", param=path)
