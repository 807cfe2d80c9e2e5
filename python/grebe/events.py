"""What a generation yields and returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Completion", "Event", "FinishReason", "TokenLogprob", "Usage"]

#: "stop": the end token or a stop string. "length": max_tokens or the context is used up.
#: "cancelled": cancel() was called.
FinishReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """An alternative for one position and its log probability."""

    token: int
    logprob: float


@dataclass(frozen=True, slots=True)
class Event:
    """One generated token and the text that became certain with it.

    Attributes:
        text: may be empty: half a character, or what may yet turn out to be a stop string, waits
            for the next event.
        token: its id.
        logprob: of the token under the model's distribution after penalties, before temperature and
            truncation.
        top_logprobs: the most likely tokens, as many as ``Sampling.top_logprobs`` asks for.
        finish_reason: set on the last event.
    """

    text: str
    token: int
    logprob: float
    top_logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one generation; ``cached_tokens`` of the prompt were in the state already."""

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int

    @property
    def total_tokens(self) -> int:
        """Prompt and completion together."""
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True)
class Completion:
    """A finished generation. ``str(completion)`` is its text."""

    text: str
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    top_logprobs: tuple[tuple[TokenLogprob, ...], ...]
    finish_reason: FinishReason
    usage: Usage
    seed: int

    def __str__(self) -> str:
        return self.text
