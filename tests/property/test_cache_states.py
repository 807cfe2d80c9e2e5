"""Whatever happens to sessions, cache and disk: the logits are those of a session that never saw a cache.

A state machine appends, forks, rewinds, closes, lets go of RAM, reopens the directory, takes the power away, damages and deletes
files and fills the disk, in any order. After every step the session at hand is compared, bit for bit, with an uncached twin.

    python -m tests.property.test_cache_states 250     # examples of 40 steps: 10,000 steps
"""

from __future__ import annotations

import contextlib
import gc
import shutil
import sys
import tempfile
from pathlib import Path

import grebe
import numpy as np
import pytest
from grebe import _engine
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, multiple, rule
from numpy.typing import NDArray

from tests.helpers import models

N_CTX = 4096
ENOSPC, EIO = 28, 5
lengths = st.one_of(
    st.integers(1, 40), st.integers(100, 800), st.sampled_from([127, 128, 129, 384, 511, 512, 513])
)


class Twin:
    """Logits of token sequences, from sessions without a cache."""

    def __init__(self, model: grebe.Model) -> None:
        self.model = model
        self.sessions: list[grebe.Session] = []

    def logits(self, tokens: list[int]) -> NDArray[np.float32]:
        def common(s: grebe.Session) -> int:
            return next(
                (i for i, (a, b) in enumerate(zip(s.tokens, tokens, strict=False)) if a != b),
                min(s.pos, len(tokens)),
            )

        best = max(self.sessions, key=common, default=None)
        if best is None or (common(best) < best.pos // 2 and len(self.sessions) < 4):
            best = self.model.session(N_CTX)
            self.sessions.append(best)
        best.prefill(tokens)
        return best.logits


class CacheMachine(RuleBasedStateMachine):
    sessions: Bundle[grebe.Session] = Bundle("sessions")

    def __init__(self) -> None:
        super().__init__()
        self.model = models.load("tiny_gguf", n_threads=1)
        self.twin = Twin(self.model)
        self.folder = Path(tempfile.mkdtemp(prefix="grebe-states-"))
        self.vocab = self.model.config.vocab_size
        self.ram_bytes = 0
        self.open_()

    def teardown(self) -> None:
        self.drop_sessions()
        self.cache.close(1.0)
        shutil.rmtree(self.folder, ignore_errors=True)

    # ------------------------------------------------------------ helpers

    def open_(self) -> None:
        self.storage = _engine.FaultyStorage(None, 7)
        self.storage.keep_unsynced()
        engine = self.model._live.open_cache(
            self.folder, budget_bytes=64 << 20, ram_bytes=self.ram_bytes, daily_write_bytes=0, read_only=False,
            storage=self.storage,
        )  # fmt: skip
        self.cache = grebe.Cache(self.model, engine, self.folder)
        self.live: list[grebe.Session] = []

    def drop_sessions(self) -> None:
        for s in self.live:
            s.close()
        self.live.clear()
        gc.collect()

    def fresh(self) -> grebe.Session:
        s = self.cache.session(N_CTX)
        self.live.append(s)
        return s

    def tokens(self, seed: int, n: int) -> list[int]:
        return np.random.default_rng(seed).integers(3, self.vocab, n).tolist()

    def check(self, s: grebe.Session) -> None:
        if s.pos:
            assert np.array_equal(s.logits, self.twin.logits(s.tokens))

    def usable(self, s: grebe.Session) -> bool:
        return s in self.live

    # ------------------------------------------------------------ sessions

    @rule(target=sessions, seed=st.integers(0, 3), n=lengths)
    def begin(self, seed: int, n: int) -> grebe.Session:
        s = self.fresh()
        s.prefill(self.tokens(seed, n))
        self.check(s)
        return s

    @rule(target=sessions, other=sessions, part=st.floats(0, 1), seed=st.integers(0, 3), n=lengths)
    def begin_like(self, other: grebe.Session, part: float, seed: int, n: int) -> grebe.Session:
        """A prompt that shares a beginning with another one."""
        if not self.usable(other):
            return multiple()
        shared = other.tokens[: int(part * other.pos)]
        s = self.fresh()
        s.prefill(
            (shared + self.tokens(seed, n))[:N_CTX],
            marks=[len(shared)] if len(shared) < N_CTX else [],
        )
        self.check(s)
        return s

    @rule(s=sessions, seed=st.integers(0, 3), n=lengths)
    def append(self, s: grebe.Session, seed: int, n: int) -> None:
        if self.usable(s) and s.pos + n <= N_CTX:
            s.prefill(s.tokens + self.tokens(seed, n))
            self.check(s)

    @rule(s=sessions, seed=st.integers(0, 3), n=st.integers(1, 12))
    def decode(self, s: grebe.Session, seed: int, n: int) -> None:
        if self.usable(s) and s.pos + n <= N_CTX:
            for token in self.tokens(seed, n):
                s.decode(token)
            self.check(s)

    @rule(s=sessions, part=st.floats(0, 1))
    def rewind(self, s: grebe.Session, part: float) -> None:
        if self.usable(s):
            s.rewind(int(part * s.pos))
            self.check(s)

    @rule(target=sessions, s=sessions)
    def fork(self, s: grebe.Session) -> grebe.Session:
        if not self.usable(s):
            return multiple()
        copy = s.fork()
        self.live.append(copy)
        self.check(copy)
        return copy

    @rule(s=consumes(sessions))
    def close_session(self, s: grebe.Session) -> None:
        if self.usable(s):
            self.live.remove(s)
            s.close()

    @rule(s=sessions)
    def end_turn(self, s: grebe.Session) -> None:
        if self.usable(s):
            s.end_turn()

    @rule(target=sessions, s=sessions)
    def save_and_restore(self, s: grebe.Session) -> grebe.Session:
        if not self.usable(s):
            return multiple()
        copy = self.model.restore(s.snapshot())
        self.live.append(copy)
        if copy.pos:
            assert np.array_equal(copy.logits, s.logits)
        return copy

    # ------------------------------------------------------------ cache

    @rule(ram_bytes=st.sampled_from([0, 1 << 16, 1 << 20]))
    def trim(self, ram_bytes: int) -> None:
        self.cache.trim(ram_bytes)

    @rule()
    def flush(self) -> None:
        self.cache.flush(2.0)

    @rule(ram_bytes=st.sampled_from([0, 1 << 16, 1 << 30]))
    def reopen(self, ram_bytes: int) -> None:
        self.drop_sessions()
        self.cache.close(2.0)
        self.ram_bytes = ram_bytes
        self.open_()

    # ------------------------------------------------------------ what a disk does

    @rule(ram_bytes=st.sampled_from([0, 1 << 30]))
    def power_loss(self, ram_bytes: int) -> None:
        self.storage.power_loss()
        self.drop_sessions()
        self.cache.close(0.0)
        self.ram_bytes = ram_bytes
        self.open_()

    @rule(first=st.integers(0, 20))
    def power_loss_at(self, first: int) -> None:
        """Sessions go on: what is not in RAM any more they compute again."""
        self.storage.add("any", "end_after", first=first, end="power_loss")

    @rule(
        error=st.sampled_from([ENOSPC, EIO]),
        op=st.sampled_from(["write", "sync", "any"]),
        first=st.integers(0, 5),
        count=st.integers(1, 9),
    )
    def failing_disk(self, error: int, op: str, first: int, count: int) -> None:
        self.storage.add(op, "fail", first=first, count=count, errno=error)

    @rule(first=st.integers(0, 30))
    def bit_flip_on_read(self, first: int) -> None:
        self.storage.add("read", "flip_bit", first=first)

    @rule()
    def heal(self) -> None:
        self.storage.clear()

    def segments(self) -> list[Path]:
        return sorted(self.folder.glob("segment-*"))

    @rule(which=st.integers(0, 9), where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
    def damage_a_segment(self, which: int, where: float, bit: int) -> None:
        files = self.segments()
        if not files or not (size := files[which % len(files)].stat().st_size):
            return
        with files[which % len(files)].open("r+b") as f:
            f.seek(int(where * size))
            byte = f.read(1)[0]
            f.seek(int(where * size))
            f.write(bytes([byte ^ 1 << bit]))

    @rule(which=st.integers(0, 9), part=st.floats(0, 1))
    def cut_a_segment(self, which: int, part: float) -> None:
        files = self.segments()
        if files:
            with contextlib.suppress(FileNotFoundError), files[which % len(files)].open("r+b") as f:
                f.truncate(int(part * f.seek(0, 2)))

    @rule(which=st.integers(0, 9))
    def delete_a_segment(self, which: int) -> None:
        files = self.segments()
        if files:
            files[which % len(files)].unlink(missing_ok=True)

    @rule(where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
    def damage_the_manifest(self, where: float, bit: int) -> None:
        self.drop_sessions()
        self.cache.close(2.0)
        manifest = self.folder / "manifest.kv"
        if manifest.exists() and (data := bytearray(manifest.read_bytes())):
            at = int(where * len(data))
            if at >= 16:  # magic and version: another kind of file, which is refused
                data[at] ^= 1 << bit
            manifest.write_bytes(data)
        self.open_()


CacheMachine.TestCase.settings = settings(
    max_examples=12, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
TestCacheStates = pytest.mark.timeout(600)(CacheMachine.TestCase)


if __name__ == "__main__":
    from hypothesis.stateful import run_state_machine_as_test

    run_state_machine_as_test(
        CacheMachine,
        settings=settings(
            max_examples=int(sys.argv[1]), stateful_step_count=40, deadline=None, derandomize=False, database=None,
            print_blob=True, suppress_health_check=list(HealthCheck),
        ),
    )  # fmt: skip
    print("done")
