"""Live sessions between jobs: which one a prompt goes on from, and which ones are kept.

A prompt takes the session that shares the longest prefix with it. Where the two part, the session
is forked, so that the older branch can be taken up again. Nothing here computes: positions are
reached by :meth:`Session.resume`, from the session's own checkpoints or from the cache.

Used by the engine's thread alone; :meth:`SessionPool.describe` by any.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..cache import Cache
    from ..model import Model
    from ..session import Session

__all__ = ["Found", "Resident", "SessionPool", "common_prefix"]

TOKEN_BYTES = 4
COMPARED_TOKENS = 4096  # at once
CHECKPOINT_TOKENS = 128  # what diverges before the first checkpoint shares nothing
MAX_FORKS = 4  # candidates that are tried for one prompt
LEAST_WORTH = 512  # tokens; a session that others cover still saves its way back
FRESH_S = 10.0  # differences in age below this do not count
MAX_HINTS = 1024


@dataclass(eq=False, slots=True)
class Resident:
    """A session of the pool.

    Attributes:
        tokens: i32 that it covers; while busy, those of the prompt that it is led to.
        pos: how many it covers.
        busy: a job works on it; it can be forked, no more.
        hint: of the job that used it last.
        start: kept for its first tokens, so many, which other prompts begin with, too.
        bookmark: a fork that stands where this branch's last prompt ended.
        history_bytes: of what it may share with others.
        own_bytes: of the rest.
        shared: length of the common prefix with each other idle one.
    """

    session: Session
    tokens: bytes = b""
    pos: int = 0
    busy: bool = True
    hint: str | None = None
    last_used: float = 0.0
    history_bytes: int = 0
    own_bytes: int = 0
    bookmark: Resident | None = None
    is_bookmark: bool = False
    start: int = 0
    shared: dict[Resident, int] = field(default_factory=dict)

    @property
    def unique_tokens(self) -> int:
        """How many no other session covers."""
        return self.pos - max(self.shared.values(), default=0)


@dataclass(frozen=True, slots=True)
class Found:
    """Where a prompt starts from.

    Attributes:
        cached: tokens of the prompt that the session covers.
        miss: why not more, as in :class:`JobUsage`.
        miss_at: length of the prefix that was known, when less than the whole is good.
        shared: so much of the beginning another session has too, and it will be read again; what
            two prompts share, others may.
    """

    resident: Resident
    cached: int
    miss: str
    miss_at: int | None
    shared: int = 0


def common_prefix(a: bytes, b: bytes) -> int:
    """How many i32 at the start of two arrays are equal."""
    short = min(len(a), len(b)) // TOKEN_BYTES
    size = COMPARED_TOKENS * TOKEN_BYTES
    for start in range(0, short * TOKEN_BYTES, size):
        end = min(start + size, short * TOKEN_BYTES)
        if not a.startswith(b[start:end], start):
            left = np.frombuffer(a[start:end], np.int32)
            right = np.frombuffer(b[start:end], np.int32)
            return start // TOKEN_BYTES + int(np.argmax(left != right))
    return short


class SessionPool:
    """The sessions of one model.

    Args:
        model: whose sessions they are.
        cache: that new ones use.
        n_ctx: of new ones.
        ram_bytes: what idle ones may hold together.
        max_idle: how many may be idle.
    """

    def __init__(
        self,
        model: Model,
        *,
        cache: Cache | None,
        n_ctx: int,
        ram_bytes: int,
        max_idle: int,
    ) -> None:
        self._model, self._cache, self._n_ctx = model, cache, n_ctx
        self._ram_bytes, self._max_idle = ram_bytes, max_idle
        self._residents: list[Resident] = []
        self._fixed_bytes = model.session(1).nbytes
        self._hints: dict[str, int] = {}  # how much their last job covered
        self.n_evicted = 0
        self.n_forked = 0

    def __len__(self) -> int:
        return len(self._residents)

    def acquire(
        self, tokens: NDArray[np.int32], marks: Sequence[int], hint: str | None = None
    ) -> Found:
        """The session to read a prompt with, busy from now on, as far along as is known.

        Raises:
            GrebeError: as :meth:`Session.resume`; the pool is as before, but for sessions evicted.
        """
        goal = tokens.tobytes()
        lengths = {r: common_prefix(goal, r.tokens[: r.pos * TOKEN_BYTES]) for r in self._residents}
        order = sorted(
            self._residents,
            key=lambda r: (lengths[r], r.hint == hint and hint is not None, -r.pos, r.last_used),
            reverse=True,
        )
        longest = order[0] if order and lengths[order[0]] > 1 else None
        n_known = lengths[longest] if longest is not None else 0
        parted = longest is not None and n_known < min(longest.pos, len(tokens) - 1)
        if parted:
            marks = [*marks, n_known]
        # Among those that share about as much, one that ends there is there already.
        order.sort(
            key=lambda r: (lengths[r] // CHECKPOINT_TOKENS, lengths[r] == r.pos), reverse=True
        )
        best: Resident | None = None
        reached = 0
        for n_tried, known in enumerate(order):
            n_common = min(lengths[known], len(tokens) - 1)
            little = best is not None and n_common - reached < CHECKPOINT_TOKENS
            if n_common <= reached or little or n_tried >= MAX_FORKS:
                break
            whole = n_common == known.pos
            if not whole and n_common < CHECKPOINT_TOKENS and self._cache is None:
                break
            candidate = known
            if known.busy or known.start or not (whole or known.pos - n_common < CHECKPOINT_TOKENS):
                candidate = Resident(known.session.fork())
                known.last_used = time.monotonic()
                self.n_forked += 1
            pos = candidate.session.resume(tokens, marks=marks)
            if candidate is known:
                known.pos = pos
                known.tokens = known.tokens[: pos * TOKEN_BYTES]
            if pos > reached:
                best, reached = candidate, pos
        if best is None:
            best = Resident(self._model.session(self._n_ctx, cache=self._cache))
            reached = best.session.resume(tokens, marks=marks)
        same = longest is not None and (hint is None or longest.hint == hint)
        miss, miss_at = self._miss(n_known, parted, same, reached, hint)
        self._occupy(best, goal, reached, hint)
        shared = n_known if parted and n_known - reached >= LEAST_WORTH else 0
        return Found(best, reached, miss, miss_at, shared)

    def empty(self, tokens: NDArray[np.int32]) -> Found:
        """A new session, busy, for a prompt that is to be read from its first token."""
        resident = Resident(self._model.session(self._n_ctx, cache=self._cache))
        self._occupy(resident, tokens.tobytes(), 0, None)
        return Found(resident, 0, "cold", 0)

    def _miss(
        self, n_known: int, parted: bool, same: bool, reached: int, hint: str | None
    ) -> tuple[str, int | None]:
        """Why a prompt's state does not reach further. n_known: tokens that some session has."""
        n_common = max(reached, n_known)
        if hint is not None and self._hints.get(hint, 0) > n_common + CHECKPOINT_TOKENS:
            ours = any(r.hint == hint and r.pos > n_common for r in self._residents)
            return ("diverged" if ours else "evicted"), n_common
        if parted:
            same = same and n_common >= CHECKPOINT_TOKENS  # all chats begin with the same tokens
            return ("diverged" if same else "cold"), n_common
        if reached > 0:
            return "none", None
        return ("rewound", n_known) if n_known > 1 else ("cold", 0)

    def _occupy(self, resident: Resident, goal: bytes, pos: int, hint: str | None) -> None:
        resident.busy, resident.tokens, resident.pos, resident.hint = True, goal, pos, hint
        resident.last_used = time.monotonic()
        self._untie(resident)
        if resident not in self._residents:
            self._residents.append(resident)

    def reader_of(
        self, reader: Resident, without: Collection[Resident] = ()
    ) -> tuple[Resident, int] | None:
        """A busy session that is about to cover more of ``reader``'s prompt, and how much."""
        goal, n_tokens = reader.tokens, len(reader.tokens) // TOKEN_BYTES
        best: tuple[Resident, int] | None = None
        for r in self._residents:
            if r is reader or r in without:
                continue
            if not r.busy or r.pos * TOKEN_BYTES >= len(r.tokens):
                continue
            n_common = min(common_prefix(goal, r.tokens), n_tokens - 1)
            n_common -= n_common % CHECKPOINT_TOKENS
            if n_common > max(reader.pos, r.pos, best[1] if best else 0):
                best = r, n_common
        return best

    def release(self, resident: Resident, tokens: NDArray[np.int32]) -> None:
        """Gives a session back that covers ``tokens``."""
        resident.pos = len(tokens)
        if resident.pos == 0:
            self.drop(resident)
            return
        if resident.hint is not None:
            self._hints.pop(resident.hint, None)
            self._hints[resident.hint] = resident.pos
            if len(self._hints) > MAX_HINTS:
                del self._hints[next(iter(self._hints))]
        self._rest(resident, tokens.tobytes())
        self.trim()

    def _rest(self, resident: Resident, tokens: bytes) -> None:
        resident.tokens, resident.busy = tokens, False
        resident.last_used = time.monotonic()
        self._measure(resident)
        for other in self._residents:
            if other is not resident and not other.busy:
                n_common = common_prefix(tokens, other.tokens)
                resident.shared[other] = other.shared[resident] = n_common

    def _measure(self, resident: Resident) -> None:
        total = resident.session.nbytes
        resident.history_bytes = max(total - self._fixed_bytes, 0)
        resident.own_bytes = total - resident.history_bytes + resident.session.checkpoint_nbytes

    def bookmark(self, resident: Resident) -> None:
        """Keeps a fork of a busy session where it is: the next prompt may part a little before.

        It has the checkpoints that lie close to here, which the session itself gives up as it
        goes on. A cache has them anyway.
        """
        if self._cache is not None:
            return
        if resident.bookmark is not None:
            self.drop(resident.bookmark)
        fork = Resident(
            resident.session.fork(), pos=resident.pos, hint=resident.hint, is_bookmark=True
        )
        self._residents.append(fork)
        resident.bookmark = fork
        self._rest(fork, resident.tokens[: resident.pos * TOKEN_BYTES])

    def keep_start(self, resident: Resident, start: int) -> None:
        """Keeps a fork of a busy session for its first tokens, unless there is one."""
        tokens = resident.tokens[: start * TOKEN_BYTES]
        for r in self._residents:
            if r.start == start and r.tokens.startswith(tokens):
                r.last_used = time.monotonic()
                return
        fork = Resident(resident.session.fork(), pos=resident.pos, start=start)
        self._residents.append(fork)
        self._rest(fork, resident.tokens[: resident.pos * TOKEN_BYTES])

    def holds(self, resident: Resident) -> bool:
        """Whether it is still there."""
        return resident in self._residents

    def drop(self, resident: Resident) -> None:
        """Forgets a session: its state is broken, or not worth its memory."""
        if resident in self._residents:
            self._residents.remove(resident)
        self._untie(resident)
        resident.session.close()

    def _untie(self, resident: Resident) -> None:
        for other in resident.shared:
            other.shared.pop(resident, None)
        resident.shared.clear()
        if resident.is_bookmark:
            resident.is_bookmark = False
            for r in self._residents:
                if r.bookmark is resident:
                    r.bookmark = None

    def trim(self, ram_bytes: int | None = None) -> None:
        """Lets go of idle sessions until the rest fits the budget."""
        budget = self._ram_bytes if ram_bytes is None else ram_bytes
        now = time.monotonic()
        while True:
            idle = [r for r in self._residents if not r.busy]
            if not idle or (len(idle) <= self._max_idle and self.n_bytes <= budget):
                return
            self.drop(min(idle, key=lambda r: _worth(r, now)))
            self.n_evicted += 1

    @property
    def n_bytes(self) -> int:
        """What idle sessions hold together, common history counted once; an estimate."""
        total, counted = 0, set[Resident]()
        for r in sorted(self._residents, key=lambda r: r.pos, reverse=True):
            if r.busy:
                continue
            covered = max((n for other, n in r.shared.items() if other in counted), default=0)
            total += r.own_bytes + r.history_bytes * (r.pos - covered) // max(r.pos, 1)
            counted.add(r)
        return total

    def describe(self) -> list[dict[str, Any]]:
        """One line a session for the status page, without any text."""
        now = time.monotonic()
        return [
            {
                "tokens": r.pos,
                "bytes": r.history_bytes + r.own_bytes,
                "busy": r.busy,
                "idle_s": round(now - r.last_used, 1),
            }
            for r in list(self._residents)
            if not r.is_bookmark and not r.start
        ]

    def close(self) -> None:
        """Ends the turns of all sessions, for the cache, and lets go of them."""
        for r in list(self._residents):
            if not r.is_bookmark and not r.start:
                r.session.end_turn()
            self.drop(r)


def _worth(resident: Resident, now: float) -> float:
    """Tokens that would have to be computed again, for the chance that somebody wants them."""
    age = max(now - resident.last_used, 0.0) + FRESH_S
    return max(resident.unique_tokens, LEAST_WORTH) / age
