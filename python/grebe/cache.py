"""The KV cache: what sessions have computed, in RAM and in a directory, found by its tokens."""

from __future__ import annotations

import atexit
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from . import _engine
from .checks import integer, number
from .errors import InvalidArgumentError

if TYPE_CHECKING:
    from types import TracebackType

    from .model import Model
    from .session import Session

__all__ = ["Cache", "CacheStats"]

_open: weakref.WeakSet[Cache] = weakref.WeakSet()


@dataclass(frozen=True)
class CacheStats:
    """Counters of a cache since it was opened, and what it holds now. Bytes unless it says else."""

    #: Prompts that asked for a known prefix, and those that got one.
    lookups: int
    hits: int
    #: Tokens of these prompts that were not covered already, and those that need not be computed.
    tokens_wanted: int
    tokens_found: int
    blocks_from_ram: int
    blocks_from_disk: int
    #: Why a lookup found nothing: tokens never seen; blocks, but no anchor to start from; damaged
    #: or vanished files (what they held was dropped, and computed again); no memory.
    misses_unknown: int
    misses_no_anchor: int
    misses_damaged: int
    misses_memory: int
    #: Blocks that were computed again since the disk lost their rows under a session.
    rows_lost: int
    #: Blocks that became full, and those of them that were known already.
    blocks_sealed: int
    blocks_shared: int
    anchors_made: int
    anchors_written: int
    #: What could be let go, in RAM.
    ram_bytes: int
    #: Blocks in RAM that are not on disk yet.
    unsaved_bytes: int
    #: Pages of rows that decoded tokens found in RAM, had to read, or had been brought in ahead.
    page_hits: int
    page_misses: int
    pages_prefetched: int
    #: Read in long runs for prompts.
    streamed_bytes: int
    queued_bytes: int
    writing_paused: bool
    blocks_on_disk: int
    anchors_on_disk: int
    #: All files of the directory; and what in them is alive.
    disk_bytes: int
    live_bytes: int
    #: Records written, and all that was given to the disk for them.
    payload_written: int
    bytes_written: int
    bytes_read: int
    records_evicted: int
    records_damaged: int
    write_failures: int
    read_failures: int
    #: Records not written since a budget did not allow it.
    refused_by_budget: int
    #: What was cut off when the directory was opened, and why; "" for nothing.
    dropped_at_open: str
    #: The last error of the disk, "" for none.
    last_error: str
    #: Another process writes the directory; this one reads what that has committed.
    read_only: bool

    @property
    def write_amplification(self) -> float:
        """Bytes given to the disk for each byte of records; 1.0 before the first."""
        return self.bytes_written / self.payload_written if self.payload_written else 1.0


class Cache:
    """Known states of a model, in RAM and in a directory. Made by :meth:`Model.open_cache`.

    Sessions made with it find the longest known prefix of their prompt by themselves and add what
    they compute. Each token's rows are stored once, whatever number of sessions share them. A
    state that comes from here is the one that was computed, bit for bit; what a disk has damaged
    or lost is computed again. Thread-safe.

    Example:
        >>> import grebe, tempfile
        >>> model = grebe.Model.load()
        >>> with tempfile.TemporaryDirectory() as folder, model.open_cache(folder) as cache:
        ...     tokens = [0] + [300 + i % 50 for i in range(600)]
        ...     with cache.session() as s:
        ...         s.prefill(tokens)
        ...     with cache.session() as s:
        ...         s.prefill(tokens + [5])  # goes on at 512, a multiple of 128
        601
        90
    """

    def __init__(self, model: Model, engine: _engine.KvCache, path: Path) -> None:
        self._model = model
        self._impl: _engine.KvCache | None = engine
        self._path = path
        _open.add(self)

    @property
    def _live(self) -> _engine.KvCache:
        if self._impl is None:
            raise InvalidArgumentError("the cache is closed")
        return self._impl

    @property
    def model(self) -> Model:
        """The model whose states these are."""
        return self._model

    @property
    def path(self) -> Path:
        """The directory."""
        return self._path

    def session(self, n_ctx: int | None = None) -> Session:
        """A new session that uses the cache; see :meth:`Model.session`."""
        return self._model.session(n_ctx, cache=self)

    def stats(self) -> CacheStats:
        """Counters, and what is held now."""
        return CacheStats(**self._live.stats())

    def trim(self, ram_bytes: int = 0) -> None:
        """Let go of what is held in RAM beyond so many bytes and is on disk or unused."""
        self._model._live.trim_cache(self._live, integer("ram_bytes", ram_bytes, 0, 2**62))

    def flush(self, timeout_s: float = 10.0) -> bool:
        """Wait until what is worth writing is on disk.

        Returns:
            False when it is not: the time was too short, a budget or the disk refused it
            (:attr:`CacheStats.last_error`). True for a cache that only reads: it has nothing to
            write.
        """
        return self._live.flush(_seconds(timeout_s))

    def close(self, timeout_s: float = 10.0) -> bool:
        """Flush and stop writing. Its sessions go on without it. Twice is fine.

        May take some seconds longer than ``timeout_s``: a write under way comes to its end.

        Returns:
            As :meth:`flush`.
        """
        seconds = _seconds(timeout_s)
        if self._impl is None:
            return True
        engine, self._impl = self._impl, None
        _open.discard(self)
        return engine.close(seconds)

    def __del__(self) -> None:
        if getattr(self, "_impl", None) is not None:
            self.close()

    def __enter__(self) -> Cache:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError("a grebe.Cache cannot be copied or pickled; open the directory again")

    def __repr__(self) -> str:
        if self._impl is None:
            return f"<grebe.Cache {str(self._path)!r} closed>"
        s = self.stats()
        return (
            f"<grebe.Cache {str(self._path)!r}: {s.blocks_on_disk} blocks, "
            f"{s.anchors_on_disk} anchors, {s.disk_bytes / 1e6:.1f} MB on disk>"
        )


def _seconds(value: float) -> float:
    seconds = number("timeout_s", value)
    if not 0 <= seconds <= 1e6:
        raise InvalidArgumentError(f"timeout_s is {seconds}; 0 to 1e6 seconds are expected")
    return seconds


def _close_all() -> None:
    for cache in list(_open):
        cache.close()


atexit.register(_close_all)
