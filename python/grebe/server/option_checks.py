"""Options that several APIs share, checked; the messages are those of DeepSeek's server."""

from __future__ import annotations

from collections.abc import Sequence

from .errors import ApiError, invalid

__all__ = ["check_sampling", "empty_stop", "stop_strings", "token_limit", "unknown_function"]

_MAX_STOP = 16


def check_sampling(temperature: float | None, top_p: float | None) -> None:
    """Raises ApiError when one of them is out of range."""
    if temperature is not None and not 0 <= temperature <= 2:
        raise invalid(
            "Invalid temperature value, the valid range of temperature is [0, 2]",
            param="temperature",
        )
    if top_p is not None and not 0 < top_p <= 1:
        raise invalid("Invalid top_p value, the valid range of top_p is (0, 1.0]", param="top_p")


def token_limit(limit: int | None, param: str) -> int | None:
    """The limit; larger ones than the context has room for are no error.

    Raises:
        ApiError: it is less than 1.
    """
    if limit is not None and limit < 1:
        raise invalid(
            "Invalid max_tokens value, the valid range of max_tokens is [1, 393216]", param=param
        )
    return limit


def stop_strings(stop: Sequence[str] | None, param: str) -> tuple[str, ...]:
    """The stop strings.

    Raises:
        ApiError: there are too many, or one is empty.
    """
    stop = stop or ()
    for i, text in enumerate(stop):
        if not text:
            raise empty_stop(f"stop[{i}]", param)
    if len(stop) > _MAX_STOP:
        raise invalid(f"Stop string array too long: {len(stop)}", param=param)
    return tuple(stop)


def empty_stop(path: str, param: str) -> ApiError:
    """For a stop string without characters."""
    return invalid(
        f"Invalid '{path}': empty string. Expected a string with minimum length 1, but got an "
        "empty string instead.",
        param=param,
    )


def unknown_function(name: object) -> ApiError:
    """For a ``tool_choice`` that names no declared tool."""
    return invalid(
        f"Invalid value for 'tool_call': no function named '{name}' was specified in the 'tools' "
        "parameter.",
        param="tool_choice",
    )
