"""Sampling parameters as Chat and Completions spell them: ranges, and what is refused."""

from __future__ import annotations

from collections.abc import Mapping

from .errors import ApiError, invalid
from .option_checks import check_sampling, empty_stop, stop_strings
from .requests import SamplingOptions
from .schemas import SampledBody

__all__ = ["sampling_options", "session_hint", "stop_list"]

# What is held back of the answer is bounded by the longest of them.
MAX_STOP_LENGTH = 1000

# Headers and fields by which clients tell which conversation a request belongs to.
_HINT_HEADERS = ("x-session-affinity", "session_id", "x-session-id")


def sampling_options(body: SampledBody, top_logprobs: int | None) -> SamplingOptions:
    """The parameters of a body within their ranges.

    Raises:
        ApiError: one is not, or asks for what this server does not do.
    """
    if body.n not in (None, 1):
        raise invalid("Invalid n value (currently only n = 1 is supported)", "n")
    check_sampling(body.temperature, body.top_p)
    _within("presence_penalty", body.presence_penalty, -2, 2)
    _within("frequency_penalty", body.frequency_penalty, -2, 2)
    if body.repetition_penalty is not None and not 0 < body.repetition_penalty <= 10:
        raise _out_of_range("repetition_penalty", "(0, 10]")
    if body.min_p is not None and not 0 <= body.min_p < 1:
        raise _out_of_range("min_p", "[0, 1)")
    top_k = body.top_k
    if top_k is not None and not -1 <= top_k < 2**31:
        raise _out_of_range("top_k", "[0, 2147483647], or -1 for all")
    seed = body.seed
    if seed is not None and not -(2**63) <= seed < 2**64:
        raise _out_of_range("seed", "a 64-bit integer")
    return SamplingOptions(
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=None if top_k is None else max(top_k, 0),
        min_p=body.min_p,
        repetition_penalty=body.repetition_penalty,
        presence_penalty=body.presence_penalty,
        frequency_penalty=body.frequency_penalty,
        logit_bias=_logit_bias(body.logit_bias or {}),
        seed=None if seed is None else seed % 2**64,
        top_logprobs=top_logprobs,
    )


def stop_list(stop: str | list[str] | None) -> tuple[str, ...]:
    """The stop strings.

    Raises:
        ApiError: too many, too long, or empty.
    """
    if stop == "":
        raise empty_stop("stop", "stop")
    strings = stop_strings((stop,) if isinstance(stop, str) else stop, "stop")
    for i, string in enumerate(strings):
        if len(string) > MAX_STOP_LENGTH:
            raise invalid(f"Invalid 'stop[{i}]': longer than {MAX_STOP_LENGTH} characters.", "stop")
    return strings


def session_hint(headers: Mapping[str, str], key: str | None = None) -> str | None:
    """What a client says of the conversation that it is in."""
    if key:
        return key[:256]
    return next((headers[name][:256] for name in _HINT_HEADERS if headers.get(name)), None)


def _within(name: str, value: float | None, low: int, high: int) -> None:
    if value is not None and not low <= value <= high:
        raise _out_of_range(name, f"[{low}, {high}]")


def _out_of_range(name: str, expected: str) -> ApiError:
    return invalid(f"Invalid {name} value, the valid range of {name} is {expected}", name)


def _logit_bias(bias: Mapping[str, float]) -> dict[int, float]:
    result: dict[int, float] = {}
    for key, value in bias.items():
        if not (key.isascii() and key.isdigit() and len(key) < 10):
            raise invalid(f"logit_bias: '{key[:40]}' is not a token id", "logit_bias")
        if not -100 <= value <= 100:
            raise _out_of_range("logit_bias", "[-100, 100] for each token")
        result[int(key)] = value
    return result
