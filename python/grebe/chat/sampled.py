"""From the tokens of a turn to those that can stand in a later prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from .deltas import EndReason
from .markers import Markers

__all__ = ["Tokenizer", "sampled_body"]


class Tokenizer(Protocol):
    """What is asked of ``grebe.Tokenizer`` here."""

    @property
    def vocab_size(self) -> int:
        """Number of tokens."""

    def decode(self, ids: Sequence[int], /) -> str:
        """Text, bytes that are not UTF-8 as U+FFFD."""

    def decode_bytes(self, ids: Sequence[int], /) -> bytes:
        """Bytes of the tokens."""


def sampled_body(
    ids: Sequence[int],
    tokenizer: Tokenizer,
    markers: Markers,
    *,
    reasoning: str | None,
    content: str,
    has_calls: bool,
    reason: EndReason,
) -> list[int] | None:
    """The tokens of a turn, without its end marker; None if they hold more than was sent.

    Args:
        ids: all tokens since the header.
        tokenizer: their tokenizer.
        markers: its markers.
        reasoning: that was sent; None when the turn does not begin in its reasoning.
        content: the answer that was sent.
        has_calls: whether complete calls were sent.
        reason: why the output ended.
    """
    body = list(ids)
    if body and body[-1] == markers.eos:
        body.pop()
    if reason in ("stop", "tool_calls"):
        return body
    if has_calls:
        return None
    return _cut(body, tokenizer, markers, reasoning, content)


def _cut(
    body: list[int], tokenizer: Tokenizer, markers: Markers, reasoning: str | None, content: str
) -> list[int] | None:
    """A turn that somebody else ended: as much of it as is known to have been sent."""
    start = 0
    if reasoning is not None:
        if markers.think_end not in body:
            closed = tokenizer.decode(body) == reasoning and not content
            return [*body, markers.think_end] if closed else None
        start = body.index(markers.think_end) + 1
        if tokenizer.decode(body[: start - 1]) != reasoning:
            return None
    # The parser drops the end of a reasoning from an answer, wherever it comes.
    if tokenizer.decode([id for id in body[start:] if id != markers.think_end]) == content:
        return body
    # A stop string was cut off; if that was in the middle of a token, there is nothing to keep.
    wanted = content.encode("utf-8", "surrogatepass")
    n_bytes, end = 0, start
    while end < len(body) and n_bytes < len(wanted):
        n_bytes += len(tokenizer.decode_bytes(body[end : end + 1]))
        end += 1
    return body[:end] if tokenizer.decode_bytes(body[start:end]) == wanted else None
