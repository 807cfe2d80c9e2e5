"""A session: one sequence of tokens and the state that the model keeps of it."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Callable, Sequence
from html import escape
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from . import _engine
from .checks import callback, file_path, integer, shown
from .config import Sampling
from .errors import InvalidArgumentError
from .events import Event
from .generate import Generation, run_async

if TYPE_CHECKING:
    from types import TracebackType

    from numpy.typing import NDArray

    from .cache import Cache
    from .model import Model

    #: Token ids: a list, a tuple, or a one-dimensional integer array.
    Tokens = Sequence[int] | NDArray[np.integer[Any]]

__all__ = ["Session"]


class Session:
    """One sequence of tokens and its state.

    Made by :meth:`Model.session`, :meth:`fork` or :meth:`Model.restore`.

    A session belongs to one caller at a time: two threads that use one at once get an
    :class:`InvalidArgumentError`, never a corrupted state. Different sessions may be used from
    different threads; their steps are serialised inside the model.

    Every computing call releases the GIL. Ctrl-C is seen between chunks of a prompt and between
    tokens.

    Example:
        >>> import grebe
        >>> model = grebe.Model.load()
        >>> s = model.session(n_ctx=256)
        >>> s.prefill([0, 2383, 692])
        3
        >>> s.prefill([0, 2383, 692, 262])  # the common prefix is kept
        1
        >>> s.logits.shape
        (8192,)
    """

    def __init__(self, model: Model, engine: _engine.Session) -> None:
        self._model = model
        self._impl: _engine.Session | None = engine
        self._cache: Cache | None = None

    @property
    def _live(self) -> _engine.Session:
        if self._impl is None:
            raise InvalidArgumentError("the session is closed")
        return self._impl

    @property
    def model(self) -> Model:
        """The model that the session belongs to."""
        return self._model

    @property
    def cache(self) -> Cache | None:
        """The cache that it was made with."""
        return self._cache

    def prefill(
        self,
        tokens: Tokens,
        on_progress: Callable[[int, int], object] | None = None,
        *,
        marks: Sequence[int] = (),
    ) -> int:
        """Make the session's state cover exactly ``tokens`` and leave next-token logits ready.

        Reuses the longest common prefix with the current state, or with what its cache knows, and
        computes the rest in chunks.

        Args:
            tokens: token ids, 1 <= len(tokens) <= n_ctx.
            on_progress: called with (tokens done, tokens to do) after each chunk; what it raises
                cancels the call.
            marks: with a cache, positions 0..len(tokens) that other prompts may share or come back
                to: the end of the system part, ends of messages. Each counts as the multiple of
                128 before it; those in what is not computed now have no effect. The end of the
                prompt is one by itself.

        Returns:
            Number of tokens actually computed, for usage accounting.

        Raises:
            ContextOverflowError: more tokens than n_ctx; the session is unchanged.
            InvalidArgumentError: no tokens, or something that is not a token id; the session is
                unchanged.
            KeyboardInterrupt: Ctrl-C; the state covers the chunks that were done, a prefix of
                ``tokens``.
        """
        callback("on_progress", on_progress)
        return self._live.prefill(tokens, on_progress, marks=_positions(marks))

    def resume(self, tokens: Tokens, *, marks: Sequence[int] = ()) -> int:
        """Go to the longest prefix of ``tokens`` that is known, and compute nothing.

        What the session covers itself counts, and what its cache knows; the last token never does,
        since its logits have to be computed. The rest is appended by :meth:`Model.step`, in which
        other sessions can take part: that is how a server keeps many going while one reads a long
        prompt. :meth:`end_turn` then does what :meth:`prefill` does at its end.

        Args:
            tokens: token ids, 1 <= len(tokens) <= n_ctx.
            marks: as in :meth:`prefill`; they count until the next call of either.

        Returns:
            How many of the tokens the state covers now. If that moved it, it has no logits.

        Raises:
            ContextOverflowError: more tokens than n_ctx; the session is unchanged.
            InvalidArgumentError: no tokens, or something that is not a token id; the session is
                unchanged.

        Example:
            >>> import grebe
            >>> model = grebe.Model.load()
            >>> s = model.session(n_ctx=256)
            >>> s.resume([0, 2383, 692])
            0
            >>> model.step([(s, [0, 2383, 692])]).shape == (1, model.config.vocab_size)
            True
        """
        return self._live.resume(tokens, _positions(marks))

    def end_turn(self) -> None:
        """Tell the cache that a turn is complete: the session may rest here, or be dropped.

        A generation does so at its end, and :meth:`close`. Without a cache it does nothing.
        """
        self._live.end_turn()

    def decode(self, token: int) -> None:
        """Append one token; :attr:`logits` are then for the next. On error nothing changes."""
        self._live.decode(token)

    def evaluate(
        self, tokens: Tokens, on_progress: Callable[[int, int], object] | None = None
    ) -> NDArray[np.float32]:
        """Append tokens and return the logits of every position.

        Returns:
            f32[n, vocab_size]; row i is for the position after ``tokens[i]``.
        """
        callback("on_progress", on_progress)
        return self._live.evaluate(tokens, on_progress)

    @property
    def logits(self) -> NDArray[np.float32]:
        """f32[vocab_size] for the next token, a copy.

        Raises:
            InvalidArgumentError: there are none, since the session is empty or the call that was
                to compute them was cancelled.
        """
        return self._live.logits

    @property
    def tokens(self) -> list[int]:
        """The tokens that the state covers."""
        return self._live.tokens

    @property
    def pos(self) -> int:
        """How many tokens the state covers."""
        return self._live.pos

    @property
    def n_ctx(self) -> int:
        """How many tokens the state may cover."""
        return self._live.n_ctx

    @property
    def nbytes(self) -> int:
        """Bytes of the KV state. Blocks that forks share count in each of them."""
        return self._live.n_bytes

    @property
    def checkpoint_nbytes(self) -> int:
        """Bytes that rewind checkpoints hold beside :attr:`nbytes`."""
        return self._live.checkpoint_bytes

    def fork(self) -> Session:
        """A second session with the same past, shared: the cost does not depend on its length."""
        copy = self._model._adopt(self._live.fork())
        copy._cache = self._cache
        return copy

    def rewind(self, pos: int, on_progress: Callable[[int, int], object] | None = None) -> int:
        """Go back to ``pos`` tokens, with the logits of that position.

        Args:
            pos: 0 <= pos <= self.pos.
            on_progress: as in :meth:`prefill`, for the tokens that are replayed.

        Returns:
            How many tokens were computed again.
        """
        callback("on_progress", on_progress)
        return self._live.rewind(integer("pos", pos, 0, self.pos), on_progress)

    def snapshot(self) -> bytes:
        """Everything needed to go on in another process; see :meth:`Model.restore`."""
        return self._live.snapshot()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write what :meth:`snapshot` gives to a file; see :meth:`Model.restore`.

        The file takes the place of an earlier one whole or not at all, also when the process is
        killed meanwhile. Its mode is 0600: it holds the text.

        Raises:
            StorageError: the disk is full, or the file cannot be written.

        Example:
            >>> import grebe, tempfile
            >>> from pathlib import Path
            >>> model = grebe.Model.load()
            >>> session = model.session(n_ctx=256)
            >>> session.prefill([0, 2383, 692])
            3
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     session.save(Path(folder) / "story.grebe")
            ...     again = model.restore(Path(folder) / "story.grebe")
            >>> again.tokens
            [0, 2383, 692]
        """
        self._live.save(file_path(path))

    def generate(
        self,
        prompt: Tokens | str | None = None,
        *,
        max_tokens: int | None = 256,
        stop: str | Sequence[str] | None = None,
        sampling: Sampling | None = None,
        on_progress: Callable[[int, int], object] | None = None,
    ) -> Generation:
        """Continue a prompt, one event per token.

        Args:
            prompt: token ids that the session is to cover first, exactly as :meth:`prefill` does.
                Or text, which is encoded without special tokens and appended to what the session
                covers; an empty session gets the model's BOS token in front. None continues from
                the current state.
            max_tokens: at most so many new tokens; None: until the model ends or the context is
                full.
            stop: strings that end the text; they are not part of it. May cross token boundaries.
            sampling: how tokens are chosen; greedy by default.
            on_progress: called with (tokens done, tokens to do) during the prompt.

        Returns:
            An iterator of :class:`Event`. See :class:`Generation` for what the session covers after
            it.

        Raises:
            ContextOverflowError: the prompt leaves no room for a token.
            InvalidArgumentError: an option out of range, or nothing to continue.

        Example:
            >>> import grebe
            >>> s = grebe.Model.load().session(n_ctx=256)
            >>> tokens = [e.token for e in s.generate("Once upon a time", max_tokens=3)]
            >>> s.tokens[-3:] == tokens
            True
        """
        return Generation(
            self,
            self._prompt_tokens(prompt),
            max_tokens=max_tokens,
            stop=stop,
            sampling=sampling,
            on_progress=on_progress,
        )

    def agenerate(
        self,
        prompt: Tokens | str | None = None,
        *,
        max_tokens: int | None = 256,
        stop: str | Sequence[str] | None = None,
        sampling: Sampling | None = None,
        on_progress: Callable[[int, int], object] | None = None,
    ) -> AsyncGenerator[Event, None]:
        """As :meth:`generate`, for ``async for``. The generator can be closed early: ``aclosing``.

        Tokens are computed in a worker thread, where on_progress runs too.
        When the awaiting task is cancelled, the computation stops at the next chunk or token and
        the session is as after a ``break``.
        """
        return run_async(
            self.generate(
                prompt,
                max_tokens=max_tokens,
                stop=stop,
                sampling=sampling,
                on_progress=on_progress,
            )
        )

    def _prompt_tokens(self, prompt: Tokens | str | None) -> list[int]:
        if prompt is None:
            if self.pos == 0:
                raise InvalidArgumentError("the session is empty: there is nothing to continue")
            return self.tokens
        if isinstance(prompt, str):
            past = self.tokens or [self._model.config.bos_token]
            return past + self._model.tokenizer.encode(prompt)
        return _engine.to_tokens(prompt, self._model.config.vocab_size)

    def close(self) -> None:
        """Let go of the state. Twice is fine.

        Does not wait: a call under way in another thread goes on, and the state is freed after it.
        """
        self._impl = None

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError("a grebe.Session cannot be copied or pickled; see fork() and save()")

    def __repr__(self) -> str:
        if self._impl is None:
            return "<grebe.Session closed>"
        try:
            return f"<grebe.Session {self.pos} of {self.n_ctx} tokens, {self.nbytes / 1e6:.1f} MB>"
        except InvalidArgumentError:  # another thread computes with it
            return "<grebe.Session busy>"

    def _repr_html_(self) -> str:
        return f"<code>{escape(repr(self))}</code>"


def _positions(marks: Sequence[int]) -> list[int]:
    if not isinstance(marks, Sequence | np.ndarray):
        raise InvalidArgumentError(f"marks is {shown(marks)}; positions are expected")
    return [integer("marks", mark, 0, 2**62) for mark in marks]
