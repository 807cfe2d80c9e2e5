"""A row's logits are one function of its tokens: cuts, threads, forks, restores and company never change a bit.

Everything is compared with ``np.array_equal`` to one evaluation of the whole sequence by one thread in one chunk.
"""

from __future__ import annotations

import functools

import grebe
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.helpers import models

N = 300  # crosses the window, two ratio-128 rows, checkpoints at 128 and 256, and tiny_gguf's top-k selection
MODELS = ("tiny_gguf", "embedded")


@functools.cache
def sequence(name: str, seed: int = 0) -> tuple[int, ...]:
    vocab = models.load(name).config.vocab_size
    return tuple(np.random.default_rng(seed).integers(3, vocab - 200, N).tolist())


@functools.cache
def truth(name: str, seed: int = 0) -> NDArray[np.float32]:
    model = models.load(name, n_threads=1, prefill_chunk=1024)
    return model.session().evaluate(sequence(name, seed))


cuts = st.lists(st.integers(1, N - 1), max_size=6, unique=True).map(sorted)
names = st.sampled_from(MODELS)


@settings(max_examples=60, deadline=None)
@given(names, cuts, st.sampled_from([1, 2, 4]), st.sampled_from([512, 100, 64, 17]))
def test_any_cut_any_threads(name: str, at: list[int], n_threads: int, chunk: int) -> None:
    s = models.load(name, n_threads=n_threads, prefill_chunk=chunk).session()
    ids = sequence(name)
    parts = [s.evaluate(ids[a:b]) for a, b in zip([0, *at], [*at, N], strict=True)]
    assert np.array_equal(np.concatenate(parts), truth(name))


@settings(max_examples=8, deadline=None)
@given(names, st.integers(1, N - 40))
def test_single_tokens(name: str, start: int) -> None:
    s = models.load(name).session()
    ids = sequence(name)
    s.prefill(ids[:start])
    assert np.array_equal(s.logits, truth(name)[start - 1])
    for i in range(start, start + 40):
        s.decode(ids[i])
        assert np.array_equal(s.logits, truth(name)[i])


@settings(max_examples=60, deadline=None)
@given(names, st.integers(1, N), st.integers(0, N), st.integers(0, N))
def test_rewind_and_replay(name: str, length: int, back: int, forward: int) -> None:
    s = models.load(name).session()
    ids = sequence(name)
    s.prefill(ids[:length])
    back = min(back, length)
    replayed = s.rewind(back)
    assert s.pos == back
    assert s.tokens == list(ids[:back])
    assert replayed <= 128
    if back:
        assert np.array_equal(s.logits, truth(name)[back - 1])
    forward = min(forward, N - back)
    if forward:
        assert np.array_equal(
            s.evaluate(ids[back : back + forward]), truth(name)[back : back + forward]
        )


@settings(max_examples=40, deadline=None)
@given(names, st.integers(1, N - 1), st.integers(1, N))
def test_fork_shares_but_never_leaks(name: str, split: int, n_other: int) -> None:
    s = models.load(name).session()
    ids, other = sequence(name), sequence(name, 1)
    s.prefill(ids[:split])
    f = s.fork()
    f.evaluate(other[:n_other])  # the fork writes into history that it shared
    assert np.array_equal(s.evaluate(ids[split:]), truth(name)[split:])
    f.rewind(split)
    assert np.array_equal(f.evaluate(ids[split:]), truth(name)[split:])


@settings(max_examples=30, deadline=None)
@given(names, st.integers(0, N - 1))
def test_snapshot_and_restore(name: str, at: int) -> None:
    model = models.load(name)
    s = model.session()
    ids = sequence(name)
    if at:
        s.prefill(ids[:at])
    r = model.restore(s.snapshot())
    assert (r.pos, r.tokens, r.n_ctx) == (s.pos, s.tokens, s.n_ctx)
    if at:
        assert np.array_equal(r.logits, truth(name)[at - 1])
    assert np.array_equal(r.evaluate(ids[at:]), truth(name)[at:])
    back = max(at - 5, 0)
    assert r.rewind(back) <= max(128, at - at // 128 * 128 + 128)  # checkpoints came along
    assert np.array_equal(r.evaluate(ids[back:]), truth(name)[back:])


@pytest.mark.parametrize("name", MODELS)
def test_equal_sessions_have_equal_snapshots(name: str) -> None:
    model = models.load(name)
    a, b = model.session(), model.session()
    a.prefill(sequence(name, 1))
    a.rewind(0)
    a.prefill(sequence(name)[:40])
    b.prefill(sequence(name)[:40])
    assert a.snapshot() == b.snapshot()


def test_snapshots_know_their_kernels() -> None:
    """With plain f32 rows both settings have the same row format, and still other numbers."""
    s = models.load("tiny_gguf", "off", "fast").session()
    s.prefill(sequence("tiny_gguf")[:20])
    with pytest.raises(grebe.InvalidArgumentError, match="kernels"):
        models.load("tiny_gguf", "off", "exact").restore(s.snapshot())


@settings(max_examples=30, deadline=None)
@given(
    names, st.lists(st.tuples(st.integers(0, N - 1), st.integers(1, 60)), min_size=4, max_size=4)
)
def test_company_in_a_step(name: str, where: list[tuple[int, int]]) -> None:
    """Rows of four sessions in one step: each as if it were alone."""
    model = models.load(name)
    inputs, wanted = [], []
    for seed, (start, n) in enumerate(where):
        ids = sequence(name, seed)
        s = model.session()
        if start:
            s.prefill(ids[:start])
        end = min(start + n, N)
        inputs.append((s, list(ids[start:end])))
        wanted.append(truth(name, seed)[start:end])
    assert np.array_equal(model.step(inputs, logits="all"), np.concatenate(wanted))
    for (s, _), w in zip(inputs, wanted, strict=True):
        assert np.array_equal(s.logits, w[-1])


class Walk:
    """A random walk over everything that a session can do, checked against the truth at every step."""

    def __init__(self, model: grebe.Model, name: str) -> None:
        self.model, self.name = model, name
        self.s = model.session()

    def check(self) -> None:
        if self.s.pos:
            assert np.array_equal(self.s.logits, truth(self.name)[self.s.pos - 1])


@settings(max_examples=40, deadline=None)
@given(
    names,
    st.lists(
        st.tuples(
            st.sampled_from(["prefill", "decode", "rewind", "fork", "restore"]), st.integers(1, N)
        ),
        min_size=3,
        max_size=12,
    ),
)
def test_walk(name: str, moves: list[tuple[str, int]]) -> None:
    walk = Walk(models.load(name), name)
    ids = sequence(name)
    for move, x in moves:
        s = walk.s
        if move == "prefill":
            s.prefill(ids[:x])
            assert s.pos == x
        elif move == "decode" and s.pos < N:
            s.decode(ids[s.pos])
        elif move == "rewind":
            s.rewind(min(x, s.pos))
        elif move == "fork":
            walk.s = s.fork()
            s.evaluate([x % 50 + 5])  # the original goes elsewhere
        elif move == "restore":
            walk.s = walk.model.restore(s.snapshot())
        walk.check()


@pytest.mark.parametrize("name", MODELS)
def test_exact_kernels_too(name: str) -> None:
    a = models.load(name, kernels="exact", n_threads=1).session().evaluate(sequence(name)[:150])
    s = models.load(name, kernels="exact", n_threads=4, prefill_chunk=33).session()
    parts = [s.evaluate(sequence(name)[i : i + 50]) for i in (0, 50, 100)]
    assert np.array_equal(np.concatenate(parts), a)
