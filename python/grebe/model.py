"""A loaded model: the file, the threads and the sessions that belong to it."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import numpy as np

from . import _engine
from .cache import Cache
from .checks import file_path, integer, shown, text
from .config import ModelConfig, Sampling, model_config
from .errors import InvalidArgumentError
from .events import Completion
from .generate import complete, in_thread
from .session import Session

if TYPE_CHECKING:
    from types import TracebackType

    from numpy.typing import NDArray

    from .session import Tokens

__all__ = ["Model"]

#: The model that comes with the package; see data/README.md.
EMBEDDED_MODEL = Path(__file__).parent / "data" / "grebe-nano.gguf"


def _engine_cache(cache: Cache | None) -> _engine.KvCache | None:
    if cache is not None and not isinstance(cache, Cache):
        raise InvalidArgumentError(f"cache is {shown(cache)}; a grebe.Cache is expected")
    return None if cache is None else cache._live


class Model:
    """A model file, mapped, and the engine that runs it. Made by :meth:`load`.

    Thread-safe. Closing it, or leaving its ``with`` block, closes its sessions too. That does not
    wait: a call under way in another thread goes on to its end. Memory returns after the last of
    these calls, when the last reference is gone.

    Example:
        >>> import grebe
        >>> model = grebe.Model.load(n_threads=1)
        >>> model.tokenizer.decode(model.tokenizer.encode("Once upon a time"))
        'Once upon a time'
    """

    def __init__(self, engine: _engine.Model, path: Path) -> None:
        self._impl: _engine.Model | None = engine
        self._path = path
        self._config = model_config(engine.config())
        self._sessions: weakref.WeakSet[Session] = weakref.WeakSet()
        self._caches: weakref.WeakSet[Cache] = weakref.WeakSet()

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str] | None = None,
        *,
        backend: str = "auto",
        n_threads: int | None = None,
        kv_rounding: str = "official",
        kernels: str = "fast",
        isa: str | None = None,
        prefill_chunk: int = 512,
    ) -> Model:
        """Map a GGUF file and make it ready to run. Weights are not copied.

        Args:
            path: the file, or its first shard; None: the small model inside the package.
            backend: "cpu"; "metal", the GPU of a Mac with Apple silicon; "auto", metal where there
                is one, else cpu. Sessions and snapshots of one serve the other.
            n_threads: of the CPU backend; None: the physical cores that this process may use.
                Results do not depend on it.
            kv_rounding: "official" stores KV rows rounded as the model was trained; "off" stores
                plain f32.
            kernels: "fast" multiplies quantized weights with int8 activations; "exact" keeps
                activations f32. On metal, "fast" multiplies half-precision tiles in prefill.
            isa: of the CPU backend: "scalar", "avx2", "avx512", "neon", "neon_i8mm"; None: the best
                that this machine has. Results do not depend on it.
            prefill_chunk: tokens computed at once, 1 to 4096. Scratch memory grows with it; results
                do not change.

        Raises:
            StorageError: the file cannot be read.
            FormatError: it is damaged.
            UnsupportedModelError: it is another model, or a quantization that this build does not
                read.
            InvalidArgumentError: an option of a wrong type or out of range.
            BackendUnavailableError: no such backend or instruction set here.
            OutOfMemoryError: the weights do not fit the device's working set; the message has the
                numbers and what would raise the limit.
        """
        file = EMBEDDED_MODEL if path is None else file_path(path)
        engine = _engine.Model.load(
            file,
            backend=text("backend", backend),
            n_threads=0 if n_threads is None else integer("n_threads", n_threads, 1, 2**31 - 1),
            kv_rounding=text("kv_rounding", kv_rounding),
            kernels=text("kernels", kernels),
            isa="" if isa is None else text("isa", isa),
            prefill_chunk=integer("prefill_chunk", prefill_chunk, 1, 4096),
        )
        return cls(engine, file)

    @property
    def _live(self) -> _engine.Model:
        if self._impl is None:
            raise InvalidArgumentError("the model is closed")
        return self._impl

    def _adopt(self, engine: _engine.Session) -> Session:
        session = Session(self, engine)
        self._sessions.add(session)
        return session

    @property
    def path(self) -> Path:
        """The file."""
        return self._path

    @property
    def config(self) -> ModelConfig:
        """The model's numbers."""
        return self._config

    @property
    def fingerprint(self) -> str:
        """64 hex digits; equal for equal weights and graph."""
        return self._live.fingerprint

    @property
    def tokenizer(self) -> _engine.Tokenizer:
        """The file's tokenizer.

        Raises:
            InvalidArgumentError: the file has none.
        """
        tokenizer = self._live.tokenizer
        if tokenizer is None:
            raise InvalidArgumentError(f"{self._path}: the file has no tokenizer; use token ids")
        return tokenizer

    @property
    def options(self) -> dict[str, str | int]:
        """The load options as resolved: backend, device, n_threads, isa and the others."""
        return self._live.options()

    @property
    def bytes_per_token(self) -> int:
        """Bytes of weights that one decoded token reads."""
        return int(self._live.weights()["bytes_per_token"])

    @property
    def scratch_nbytes(self) -> int:
        """Bytes of scratch buffers held now, without weights and sessions."""
        return self._live.scratch_bytes

    def session(self, n_ctx: int | None = None, *, cache: Cache | None = None) -> Session:
        """A new, empty session.

        Args:
            n_ctx: how many tokens it may cover; None: as many as the model was made for. Memory is
                taken as it grows.
            cache: one of :meth:`open_cache`. The session continues from what is known of its
                tokens, and adds to it.
        """
        if n_ctx is not None:
            n_ctx = integer("n_ctx", n_ctx, 1, self._config.max_context)
        session = self._adopt(self._live.session(n_ctx or 0, _engine_cache(cache)))
        session._cache = cache
        return session

    def open_cache(
        self,
        path: str | os.PathLike[str],
        *,
        budget_bytes: int = 32 << 30,
        ram_bytes: int = 1 << 30,
        daily_write_bytes: int | None = None,
        read_only: bool = False,
    ) -> Cache:
        """Open or make a directory that keeps what sessions compute; see :class:`Cache`.

        One directory serves any number of models, and any number of processes: one of them
        writes, the others read what it has committed (:attr:`CacheStats.read_only`).

        Args:
            path: the directory; made with mode 0700 when it is not there.
            budget_bytes: of all its files, at least 16 MiB. What is worth least goes first.
            ram_bytes: of what could also be read back: states that no session uses, and rows of
                those in use beyond their index keys.
            daily_write_bytes: at most so much is written in a day (UTC); None: no limit.
            read_only: never write, even when nobody else does.

        Raises:
            StorageError: the directory cannot be made or read.
            FormatError: it holds something else, or a newer format.
            InvalidArgumentError: an option out of range.
        """
        folder = file_path(path)
        engine = self._live.open_cache(
            folder,
            budget_bytes=integer("budget_bytes", budget_bytes, 16 << 20, 2**62),
            ram_bytes=integer("ram_bytes", ram_bytes, 0, 2**62),
            daily_write_bytes=(
                0
                if daily_write_bytes is None
                else integer("daily_write_bytes", daily_write_bytes, 1, 2**62)
            ),
            read_only=bool(read_only),
        )
        cache = Cache(self, engine, folder)
        self._caches.add(cache)
        return cache

    def restore(
        self,
        snapshot: bytes | bytearray | memoryview | str | os.PathLike[str],
        *,
        n_ctx: int | None = None,
        cache: Cache | None = None,
    ) -> Session:
        """A saved session, bit-identical to the one that was.

        Backends read each other's; it then goes on as this model computes.

        Args:
            snapshot: what :meth:`Session.snapshot` gave, or the file of :meth:`Session.save`.
            n_ctx: how many tokens it may cover; None: as before.
            cache: one of :meth:`open_cache`, which the session then uses. It takes what it does not
                have yet.

        Raises:
            FormatError: the data is damaged, or something else.
            InvalidArgumentError: it is of another model, which the message names, or of other
                settings; with a cache, of another backend or version.
            StorageError: the file cannot be read.
        """
        if isinstance(snapshot, str | os.PathLike):
            snapshot = file_path(snapshot)
        elif not isinstance(snapshot, bytes | bytearray | memoryview):
            raise InvalidArgumentError(
                f"snapshot is {shown(snapshot)}; bytes, or the name of a file, are expected"
            )
        if n_ctx is not None:
            n_ctx = integer("n_ctx", n_ctx, 1, self._config.max_context)
        session = self._adopt(self._live.restore(snapshot, n_ctx or 0, _engine_cache(cache)))
        session._cache = cache
        return session

    def step(
        self, inputs: Sequence[tuple[Session, Tokens]], logits: str = "last"
    ) -> NDArray[np.float32]:
        """Append tokens to several sessions in one pass over the weights.

        Each session's result is bit-identical to stepping it alone. On error every session is as
        before the call.

        Args:
            inputs: pairs of a session and its tokens; sessions distinct, together at most
                prefill_chunk tokens.
            logits: "last" gives one row per session, "all" one per token, "none" none.

        Returns:
            f32[rows, vocab_size], in the order of the inputs.
        """
        pairs = []
        for i, item in enumerate(inputs):
            if not isinstance(item, tuple | list) or len(item) != 2:
                raise InvalidArgumentError(
                    f"inputs[{i}] is {shown(item)}; a pair (session, tokens) is expected"
                )
            session, tokens = item
            if not isinstance(session, Session):
                raise InvalidArgumentError(
                    f"inputs[{i}][0] is {shown(session)}; a grebe.Session is expected"
                )
            pairs.append((session._live, tokens))
        return self._live.step(pairs, text("logits", logits))

    def complete(
        self,
        prompt: Tokens | str,
        *,
        max_tokens: int | None = 256,
        stop: str | Sequence[str] | None = None,
        sampling: Sampling | None = None,
        n_ctx: int | None = None,
        on_progress: Callable[[int, int], object] | None = None,
    ) -> Completion:
        """The continuation of a prompt, in a session of its own; see :meth:`Session.generate`.

        Example:
            >>> import grebe
            >>> model = grebe.Model.load()
            >>> model.complete("Once upon a time", max_tokens=4).usage.completion_tokens
            4
        """
        with self.session(n_ctx) as session:
            return complete(
                session.generate(
                    prompt,
                    max_tokens=max_tokens,
                    stop=stop,
                    sampling=sampling,
                    on_progress=on_progress,
                )
            )

    async def acomplete(
        self,
        prompt: Tokens | str,
        *,
        max_tokens: int | None = 256,
        stop: str | Sequence[str] | None = None,
        sampling: Sampling | None = None,
        n_ctx: int | None = None,
        on_progress: Callable[[int, int], object] | None = None,
    ) -> Completion:
        """As :meth:`complete`, in a worker thread, where on_progress runs too.

        Cancelling the task ends the computation at the next chunk or token.
        """
        with self.session(n_ctx) as session:
            generation = session.generate(
                prompt,
                max_tokens=max_tokens,
                stop=stop,
                sampling=sampling,
                on_progress=on_progress,
            )
            return await in_thread(generation, complete)

    def close(self) -> None:
        """Close the model, its sessions and its caches. Twice is fine.

        Does not wait for running calls; caches are flushed, for ten seconds at most.
        """
        for session in list(self._sessions):
            session.close()
        for cache in list(self._caches):
            cache.close()
        self._impl = None

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError("a grebe.Model cannot be copied or pickled; share it, or load it again")

    def _facts(self) -> dict[str, str]:
        config, options = self._config, self.options
        rounding, kernels = str(options["kv_rounding"]), str(options["kernels"])
        return {
            "name": config.name or self._path.name,
            "layers": str(config.n_layers),
            "hidden": str(config.hidden_size),
            "vocabulary": str(config.vocab_size),
            "experts": f"{config.n_experts_per_token} of {config.n_experts}",
            "file": f"{self._live.file_bytes / 1e6:.1f} MB",
            "runs on": str(options["device"]),
            "KV": f"{config.kv_bytes_per_token(rounding, kernels):.1f} B a token",
        }

    def __repr__(self) -> str:
        if self._impl is None:
            return "<grebe.Model closed>"
        facts = self._facts()
        return (
            f"<grebe.Model {facts['name']!r}: {facts['layers']} layers, hidden {facts['hidden']}, "
            f"{facts['file']}, {facts['runs on']}>"
        )

    def _repr_html_(self) -> str:
        if self._impl is None:
            return f"<code>{escape(repr(self))}</code>"
        rows = "".join(
            f"<tr><th>{escape(k)}</th><td>{escape(v)}</td></tr>" for k, v in self._facts().items()
        )
        return f"<table><caption>grebe.Model</caption>{rows}</table>"
