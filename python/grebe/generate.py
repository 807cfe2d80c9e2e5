"""The token loop: sample, decode, cut at stop strings, deliver text as it becomes certain."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from . import _engine
from .config import Sampling
from .errors import CancelledError, ContextOverflowError, InvalidArgumentError

if TYPE_CHECKING:
    import asyncio

    from numpy.typing import NDArray

    from .session import Session, Tokens

__all__ = ["Completion", "Event", "FinishReason", "Generation", "TokenLogprob", "Usage"]

#: "stop": the end token or a stop string. "length": max_tokens or the context is used up. "cancelled": cancel() was called.
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
        text: may be empty: half a character, or what may yet turn out to be a stop string, waits for the next event.
        token: its id.
        logprob: of the token under the model's distribution after penalties, before temperature and truncation.
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
    """Tokens of one generation. ``cached_tokens`` of the prompt were in the session's state already."""

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


class StopFilter:
    """Cuts text at the first stop string and holds back only what may be the beginning of one.

    The result does not depend on how the text is cut into pieces: the stop string that is complete first wins, and of
    several that end at the same place the longest.

    Example:
        >>> stop = StopFilter(["END"])
        >>> stop.feed("the E"), stop.feed("ND of it")
        (('the ', False), ('', True))
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""

    def feed(self, text: str) -> tuple[str, bool]:
        """The text that is now certain, and whether a stop string was found (nothing after it is ever returned)."""
        text = self._held + text
        ends = [(i + len(stop), i) for stop in self._stops if (i := text.find(stop)) >= 0]
        if ends:
            self._held = ""
            return text[: min(ends)[1]], True
        n_held = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - n_held :]
        return text[: len(text) - n_held], False

    def flush(self) -> str:
        """What was held back, when no more text will come."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of text that is a proper beginning of stop."""
    for n in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:n]):
            return n
    return 0


class Generation(Iterator[Event]):
    """A running generation: an iterator of events. Made by :meth:`Session.generate`.

    Each ``next`` computes one token. A token enters the session's state when the one after it is asked for, so that
    text is delivered as early as possible; a loop that runs to its end leaves the session covering the prompt and the
    whole answer. After ``break``, an error or Ctrl-C, the session covers the prompt (or as much of it as was
    computed) and every token but the newest: ``session.tokens`` tells, and a later prefill reuses all of it.

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
        self._stop = StopFilter(_stop_strings(stop))
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
                    f"the session was moved to position {self._session.pos} during a generation that is at {expected}"
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


def pack_mask(allowed: NDArray[np.bool_] | NDArray[np.uint32], vocab_size: int) -> NDArray[np.uint32]:
    """The bit set u32[(vocab_size + 31) // 32] of a mask given as booleans or as a bit set already.

    Raises:
        InvalidArgumentError: another dtype or length.
    """
    array = np.asarray(allowed)
    n_words = (vocab_size + 31) // 32
    if array.dtype == np.bool_ and array.shape == (vocab_size,):
        packed = np.zeros(4 * n_words, np.uint8)
        packed[: (vocab_size + 7) // 8] = np.packbits(array, bitorder="little")
        return packed.view("<u4").astype(np.uint32, copy=False)
    if array.dtype == np.uint32 and array.ndim == 1 and array.size >= n_words:
        return np.ascontiguousarray(array)
    raise InvalidArgumentError(
        f"mask is {array.dtype}{list(array.shape)}; bool[{vocab_size}] or uint32[{n_words}] is expected"
    )


def _stop_strings(stop: str | Sequence[str] | None) -> tuple[str, ...]:
    stops = () if stop is None else (stop,) if isinstance(stop, str) else tuple(stop)
    for i, text in enumerate(stops):
        if not isinstance(text, str) or not text:
            raise InvalidArgumentError(f"stop[{i}] is {text!r}; a string that is not empty is expected")
    return stops


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
    """Runs a generation to its end. The last token is not decoded: the session is of no further use."""
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
    """The events of a generation, each computed in a worker thread so that the event loop stays free.

    Cancelling the awaiting task cancels the generation and waits for the token or chunk under way, so that the
    session is free again when the cancellation arrives.
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
