"""The token loop: sample, decode, cut at stop strings, deliver text as it becomes certain."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import numpy as np

from . import _engine
from .checks import callback, integer, shown
from .config import Sampling
from .errors import ContextOverflowError, InvalidArgumentError
from .events import Completion, Event, FinishReason, TokenLogprob, Usage
from .stopping import StopFilter, stop_strings

if TYPE_CHECKING:
    from types import TracebackType

    from numpy.typing import NDArray

    from .session import Session

__all__ = ["Generation"]

T = TypeVar("T")


class _Cancelled(Exception):
    """cancel() was called; a CancelledError of a hook is another matter."""


class Generation(Iterator[Event]):
    """A running generation: an iterator of events. Made by :meth:`Session.generate`.

    Each ``next`` computes one token. A token enters the session's state when the one after it is
    asked for, so that text is delivered as early as possible; a loop that runs to its end leaves
    the session covering the prompt and the whole answer. After ``break`` or an error, the session
    covers the prompt (or as much of it as was computed) and every token but the newest. Ctrl-C
    during a token is seen when that step is done: then the session covers every delivered token.
    ``session.tokens`` tells, and a later prefill reuses all of it.

    Nothing else may change the session between two events: the next one is then an
    :class:`InvalidArgumentError`. So is a call while another thread is in one.

    Attributes:
        seed: the seed in use, for a repetition.
        finish_reason: set with the last event, and by a cancellation.
        prefill_s: seconds spent on the prompt.
        decode_s: seconds spent on the tokens after it.

    Example:
        >>> import grebe
        >>> session = grebe.Model.load().session(n_ctx=256)
        >>> with session.generate("Once upon a time", max_tokens=3) as generation:
        ...     pieces = [event.text for event in generation]
        >>> generation.text == "".join(pieces), generation.finish_reason
        (True, 'length')
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
        if sampling is not None and not isinstance(sampling, Sampling):
            raise InvalidArgumentError(
                f"sampling is {shown(sampling)}; a grebe.Sampling is expected"
            )
        callback("on_progress", on_progress)
        if max_tokens is not None:
            max_tokens = integer("max_tokens", max_tokens, 1)
        self._sampling = sampling if sampling is not None else Sampling()
        self._on_progress = on_progress
        config = session.model.config
        self._prompt = prompt
        room = session.n_ctx - len(prompt)
        if room < 1:
            raise ContextOverflowError(
                f"prompt of {len(prompt)} tokens leaves no room in a context of {session.n_ctx}",
                len(prompt),
                session.n_ctx,
            )
        self._limit = room if max_tokens is None else min(max_tokens, room)
        self._stop = StopFilter(stop_strings(stop))
        self._stream = session.model.tokenizer.stream()
        self._eos = config.eos_token
        self._vocab_size = config.vocab_size
        self.seed = self._sampling.resolved_seed()
        # A draw belongs to its position: a text that is continued later comes out the same.
        self._sampler = _sampler(self._sampling, self.seed, len(prompt), self._vocab_size)
        self._sampler.observe_prompt(prompt)
        self._lock = threading.Lock()  # held by the thread that computes an event
        self._changes = 0  # Session.changes after our newest step
        self._cancelled = False
        self._started = False
        self._ended = False
        self._pending: int | None = None  # sampled, not yet part of the state
        self._n_computed = len(prompt)
        self._pieces: list[str] = []
        self._tokens: list[int] = []
        self.finish_reason: FinishReason | None = None
        self.prefill_s = 0.0
        self.decode_s = 0.0

    @property
    def prompt(self) -> list[int]:
        """The token ids that the session is to cover before the first new token, a copy."""
        return self._prompt.copy()

    @property
    def tokens(self) -> list[int]:
        """The token ids generated so far, a copy."""
        return self._tokens.copy()

    @property
    def text(self) -> str:
        """Everything delivered so far."""
        return "".join(self._pieces)

    @property
    def usage(self) -> Usage:
        """Token counts so far."""
        n = len(self._prompt)
        return Usage(n, n - self._n_computed, len(self._tokens))

    def cancel(self) -> None:
        """Ends the generation at the next layer of its prompt, or token. Callable from any thread.

        The ``next`` that notices raises StopIteration: no further event comes. Then
        ``finish_reason`` is "cancelled", and text that waited for more is part of :attr:`text`.
        """
        self._cancelled = True

    def close(self) -> None:
        """Ends the generation now, as :meth:`cancel` and one ``next`` do, without computing.

        While another thread computes an event, it ends after that one. Twice is fine.
        """
        self._cancelled = True
        if self._lock.acquire(blocking=False):
            try:
                self._finish()
            finally:
                self._lock.release()

    def __enter__(self) -> Generation:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError("a grebe.Generation cannot be copied or pickled")

    def __repr__(self) -> str:
        state = self.finish_reason or ("ended" if self._ended else "running")
        return (
            f"<grebe.Generation {state}, {len(self._tokens)} of at most {self._limit} tokens "
            f"after a prompt of {len(self._prompt)}>"
        )

    def __next__(self) -> Event:
        if not self._lock.acquire(blocking=False):
            raise InvalidArgumentError("the generation is already executing")
        try:
            return self._next()
        finally:
            self._lock.release()

    def _next(self) -> Event:
        if self._ended:
            raise StopIteration
        try:
            self._advance()
            if not self._cancelled and self.finish_reason is None:
                return self._sample()
        except _Cancelled:
            pass
        except StopIteration as error:  # of a hook: it would pass for our own
            self._ended = True
            raise RuntimeError("a hook of the generation raised StopIteration") from error
        except BaseException:
            self._ended = True
            raise
        self._finish()
        raise StopIteration

    def _finish(self) -> None:
        """Ends; a generation that had no last event was cancelled, and delivers what it held."""
        if not self._ended and self.finish_reason is None:
            self.finish_reason = "cancelled"
            self._pieces.append(self._tail())
        if not self._ended and self._session.cache is not None:
            with contextlib.suppress(InvalidArgumentError):  # closed, or used by another call
                self._session.end_turn()
        self._ended = True

    def _tail(self) -> str:
        """The text held back, when no more will come."""
        tail, found = self._stop.feed(self._stream.finish())
        return tail if found else tail + self._stop.flush()

    def _advance(self) -> None:
        """Brings the state up to the newest token."""
        start = time.perf_counter()
        if not self._started:
            self._started = True
            self._changes = self._session._live.changes + 1
            self._n_computed = self._session._live.prefill(
                self._prompt, self._progress, self._stop_if_cancelled
            )
            self.prefill_s = time.perf_counter() - start
        elif self._pending is not None:
            if not self._cancelled:
                self._session._live.decode(self._pending, self._changes)
                self._changes += 1
            self._pending = None
            self.decode_s += time.perf_counter() - start

    def _stop_if_cancelled(self) -> None:
        if self._cancelled:
            raise _Cancelled

    def _progress(self, done: int, total: int) -> None:
        self._stop_if_cancelled()
        if self._on_progress is not None:
            self._on_progress(done, total)

    def _sample(self) -> Event:
        start = time.perf_counter()
        logits = self._session.logits
        if self._session._live.changes != self._changes:
            raise InvalidArgumentError("the session was moved by another call during a generation")
        token, logprob, top = self._sampler.sample(logits, self._mask())
        self._pending = token
        self._tokens.append(token)
        piece, stopped = "", token == self._eos
        if not stopped:
            piece, stopped = self._stop.feed(self._stream.push(token))
        if stopped:
            self.finish_reason = "stop"
        elif len(self._tokens) >= self._limit:
            self.finish_reason = "length"
        if self.finish_reason == "length" or token == self._eos:
            piece += self._tail()
        self._pieces.append(piece)
        self.decode_s += time.perf_counter() - start
        alternatives = tuple(TokenLogprob(i, p) for i, p in top)
        return Event(piece, token, logprob, alternatives, self.finish_reason)

    def _mask(self) -> NDArray[np.uint32] | None:
        if self._sampling.mask is None:
            return None
        allowed = self._sampling.mask(tuple(self._tokens))
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


def _sampler(sampling: Sampling, seed: int, first_draw: int, vocab_size: int) -> _engine.Sampler:
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
        first_draw=first_draw,
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


async def run_async(generation: Generation) -> AsyncGenerator[Event, None]:
    """The events of a generation, computed in a worker thread so that the event loop stays free."""
    while (event := await in_thread(generation, _next_or_none)) is not None:
        yield event


def _next_or_none(generation: Generation) -> Event | None:
    return next(generation, None)


async def in_thread(generation: Generation, work: Callable[[Generation], T]) -> T:
    """What ``work(generation)`` gives in a worker thread.

    Cancelling the awaiting task, once or again, cancels the generation; the cancellation arrives
    when the token or chunk under way is done, so that the session is free by then.
    """
    import asyncio
    from contextvars import copy_context

    # No task: at the end of a loop all tasks are cancelled, and this one must outlive its caller's.
    running = asyncio.get_running_loop().run_in_executor(None, copy_context().run, work, generation)
    cancellation: asyncio.CancelledError | None = None
    while not running.done():
        try:
            await asyncio.wait({running})
        except asyncio.CancelledError as error:
            cancellation = error
            generation.cancel()
    if cancellation is not None:
        running.exception()  # or asyncio would report it as lost
        raise cancellation
    return running.result()
