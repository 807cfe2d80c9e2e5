"""The token loop: sample, decode, cut at stop strings, deliver text as it becomes certain."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from . import _engine
from .config import Sampling
from .errors import CancelledError, ContextOverflowError, InvalidArgumentError
from .events import Completion, Event, FinishReason, TokenLogprob, Usage
from .stopping import StopFilter, stop_strings

if TYPE_CHECKING:
    import asyncio

    from numpy.typing import NDArray

    from .session import Session

__all__ = ["Generation"]


class Generation(Iterator[Event]):
    """A running generation: an iterator of events. Made by :meth:`Session.generate`.

    Each ``next`` computes one token. A token enters the session's state when the one after it is
    asked for, so that text is delivered as early as possible; a loop that runs to its end leaves
    the session covering the prompt and the whole answer. After ``break``, an error or Ctrl-C, the
    session covers the prompt (or as much of it as was computed) and every token but the newest:
    ``session.tokens`` tells, and a later prefill reuses all of it.

    Attributes:
        prompt: the token ids that the session is to cover before the first new token.
        seed: the seed in use, for a repetition.
        text: everything delivered so far.
        tokens: the token ids generated so far.
        finish_reason: set with the last event.
        prefill_s: seconds spent on the prompt.
        decode_s: seconds spent on the tokens after it.
    """

    def __init__(
        self,
        session: Session,
        prompt: list[int],
        *,
        max_tokens: int | None,
        stop: str | Sequence[str] | None,
        sampling: Sampling | None,
        on_progress: Callable[[int, int], object] | None = None,
    ) -> None:
        self._session = session
        self._sampling = sampling if sampling is not None else Sampling()
        self._on_progress = on_progress
        config = session.model.config
        self.prompt = prompt
        room = session.n_ctx - len(prompt)
        if room < 1:
            raise ContextOverflowError(
                f"prompt of {len(prompt)} tokens leaves no room in a context of {session.n_ctx}",
                len(prompt),
                session.n_ctx,
            )
        if max_tokens is not None and max_tokens < 1:
            raise InvalidArgumentError(f"max_tokens is {max_tokens}; at least 1 is expected")
        self._limit = room if max_tokens is None else min(max_tokens, room)
        self._stop = StopFilter(stop_strings(stop))
        self._stream = session.model.tokenizer.stream()
        self._eos = config.eos_token
        self._vocab_size = config.vocab_size
        self.seed = self._sampling.resolved_seed()
        self._sampler = _sampler(self._sampling, self.seed, self._vocab_size)
        self._sampler.observe_prompt(prompt)
        self._cancelled = False
        self._started = False
        self._ended = False
        self._pending: int | None = None  # sampled, not yet part of the state
        self._n_computed = len(prompt)
        self._pieces: list[str] = []
        self.tokens: list[int] = []
        self.finish_reason: FinishReason | None = None
        self.prefill_s = 0.0
        self.decode_s = 0.0

    @property
    def text(self) -> str:
        """Everything delivered so far."""
        return "".join(self._pieces)

    @property
    def usage(self) -> Usage:
        """Token counts so far."""
        return Usage(len(self.prompt), len(self.prompt) - self._n_computed, len(self.tokens))

    def cancel(self) -> None:
        """Ends the generation at the next chunk or token. Callable from any thread."""
        self._cancelled = True

    def __next__(self) -> Event:
        if self._ended:
            raise StopIteration
        try:
            self._advance()
            if self._cancelled or self.finish_reason is not None:
                raise CancelledError("the generation was cancelled")
            return self._sample()
        except CancelledError:
            self._ended = True
            if self.finish_reason is None:
                self.finish_reason = "cancelled"
            raise StopIteration from None
        except BaseException:
            self._ended = True
            raise

    def _advance(self) -> None:
        """Brings the state up to the newest token."""
        start = time.perf_counter()
        if not self._started:
            self._started = True
            self._n_computed = self._session.prefill(self.prompt, on_progress=self._progress)
            self.prefill_s = time.perf_counter() - start
        elif self._pending is not None:
            expected = len(self.prompt) + len(self.tokens) - 1
            if self._session.pos != expected:
                raise InvalidArgumentError(
                    f"the session was moved to position {self._session.pos} "
                    f"during a generation that is at {expected}"
                )
            if not self._cancelled:
                self._session.decode(self._pending)
            self._pending = None
            self.decode_s += time.perf_counter() - start

    def _progress(self, done: int, total: int) -> None:
        if self._cancelled:
            raise CancelledError("the generation was cancelled")
        if self._on_progress is not None:
            self._on_progress(done, total)

    def _sample(self) -> Event:
        start = time.perf_counter()
        token, logprob, top = self._sampler.sample(self._session.logits, self._mask())
        self._pending = token
        self.tokens.append(token)
        piece, stopped = "", token == self._eos
        if not stopped:
            piece, stopped = self._stop.feed(self._stream.push(token))
        if stopped:
            self.finish_reason = "stop"
        elif len(self.tokens) >= self._limit:
            self.finish_reason = "length"
        if self.finish_reason == "length" or token == self._eos:
            tail, found = self._stop.feed(self._stream.finish())
            piece += tail if found else tail + self._stop.flush()
        self._pieces.append(piece)
        self.decode_s += time.perf_counter() - start
        alternatives = tuple(TokenLogprob(i, p) for i, p in top)
        return Event(piece, token, logprob, alternatives, self.finish_reason)

    def _mask(self) -> NDArray[np.uint32] | None:
        if self._sampling.mask is None:
            return None
        allowed = self._sampling.mask(self.tokens)
        return None if allowed is None else pack_mask(allowed, self._vocab_size)


def pack_mask(
    allowed: NDArray[np.bool_] | NDArray[np.uint32], vocab_size: int
) -> NDArray[np.uint32]:
    """The bit set u32[(vocab_size + 31) // 32] of a mask given as booleans or as a bit set already.

    Raises:
        InvalidArgumentError: another dtype or length.
    """
    array: NDArray[Any] = np.asarray(allowed)
    n_words = (vocab_size + 31) // 32
    if array.dtype == np.bool_ and array.shape == (vocab_size,):
        packed = np.zeros(4 * n_words, np.uint8)
        packed[: (vocab_size + 7) // 8] = np.packbits(array, bitorder="little")
        return packed.view("<u4").astype(np.uint32, copy=False)
    if array.dtype == np.uint32 and array.ndim == 1 and array.size >= n_words:
        return np.ascontiguousarray(array)
    raise InvalidArgumentError(
        f"mask is {array.dtype}{list(array.shape)}; "
        f"bool[{vocab_size}] or uint32[{n_words}] is expected"
    )


def _sampler(sampling: Sampling, seed: int, vocab_size: int) -> _engine.Sampler:
    return _engine.Sampler(
        vocab_size=vocab_size,
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        min_p=sampling.min_p,
        repetition_penalty=sampling.repetition_penalty,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        logit_bias=dict(sampling.logit_bias),
        seed=seed,
        top_logprobs=sampling.top_logprobs,
    )


def complete(generation: Generation) -> Completion:
    """Runs a generation to its end, but for the last decode: the session is thrown away."""
    logprobs: list[float] = []
    top: list[tuple[TokenLogprob, ...]] = []
    for event in generation:
        logprobs.append(event.logprob)
        top.append(event.top_logprobs)
        if event.finish_reason is not None:
            break
    return Completion(
        generation.text,
        tuple(generation.tokens),
        tuple(logprobs),
        tuple(top),
        generation.finish_reason or "cancelled",
        generation.usage,
        generation.seed,
    )


async def run_async(generation: Generation) -> AsyncIterator[Event]:
    """The events of a generation, computed in a worker thread so that the event loop stays free.

    Cancelling the awaiting task cancels the generation and waits for the token or chunk under way,
    so that the session is free again when the cancellation arrives.
    """
    import asyncio

    pending: asyncio.Future[Event | None] | None = None
    try:
        while True:
            pending = asyncio.ensure_future(asyncio.to_thread(next, generation, None))
            event = await asyncio.shield(pending)
            if event is None:
                return
            yield event
    finally:
        if pending is not None and not pending.done():
            generation.cancel()
            await asyncio.wait({pending})
