"""Bare continuations: prompts without the chat protocol, output without markers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..chat.deltas import ContentDelta, EndReason, Sunk
from ..chat.markers import SPELLINGS, Markers
from ..stopping import StopFilter
from .errors import invalid
from .jobs import Job
from .prompting import sampling
from .requests import RawRequest

if TYPE_CHECKING:
    from .. import Tokenizer

__all__ = ["RawSink", "raw_job", "raw_tokens"]

DEFAULT_MAX_TOKENS = 16  # OpenAI's


class RawSink:
    """Text as it comes, up to a stop string or the end token."""

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str]) -> None:
        self._eos = tokenizer.eos
        self._text = tokenizer.stream()
        self._stop = StopFilter(stop)
        self._ended = False

    def feed(self, token: int) -> Sunk:
        """One more token, the end token included."""
        if token == self._eos:
            return Sunk(self.finish("stop"), "stop")
        piece, found = self._stop.feed(self._text.push(token))
        deltas = (ContentDelta(piece),) if piece else ()
        if not found:
            return Sunk(deltas)
        self._ended = True
        return Sunk(deltas, "stop_string", self._stop.found)

    def finish(self, reason: EndReason) -> Sequence[ContentDelta]:
        """No more tokens will come: what was held back."""
        if self._ended:
            return ()
        self._ended = True
        piece, found = self._stop.feed(self._text.finish())
        if not found:
            piece += self._stop.flush()
        return (ContentDelta(piece),) if piece else ()


def raw_tokens(
    request: RawRequest, tokenizer: Tokenizer, markers: Markers
) -> tuple[list[int], int]:
    """The prompt, and how many of its first tokens are not the client's.

    Raises:
        ApiError: a token id that does not exist, or no prompt at all.
    """
    prompt, suffix = request.prompt, request.suffix
    if suffix is not None:
        if not isinstance(prompt, str):
            prompt = tokenizer.decode(_checked(prompt, tokenizer))
        begin = [markers.bos, markers.fim_begin]
        before, after = tokenizer.encode(prompt), tokenizer.encode(suffix)
        return [*begin, *before, markers.fim_hole, *after, markers.fim_end], len(begin)
    if not isinstance(prompt, str):
        return _checked(prompt, tokenizer), 0
    ids = tokenizer.encode(prompt, allow_special=True)
    if prompt.startswith(SPELLINGS["bos"]):
        return ids, 0
    return [markers.bos, *ids], 1


def _checked(prompt: Sequence[int], tokenizer: Tokenizer) -> list[int]:
    if not prompt:
        raise invalid("prompt has no tokens", "prompt")
    for token in prompt:
        if not 0 <= token < tokenizer.vocab_size:
            raise invalid(
                f"prompt: {token} is no token id; there are {tokenizer.vocab_size}", "prompt"
            )
    return list(prompt)


def raw_job(
    request: RawRequest, tokens: list[int], tokenizer: Tokenizer, deadline_s: float | None
) -> Job:
    """The job of a request.

    Raises:
        ApiError: a token id that does not exist.
    """
    limit = DEFAULT_MAX_TOKENS if request.max_tokens is None else request.max_tokens
    wanted = request.sampling.top_logprobs
    return Job(
        tokens,
        RawSink(tokenizer, request.stop),
        max_tokens=max(limit, 1),
        sampling=sampling(
            request.sampling, thinking=False, calls=False, vocab_size=tokenizer.vocab_size
        ),
        session_hint=request.session_hint,
        echo_logprobs=wanted if request.echo else None,
        deadline_s=deadline_s,
    )
