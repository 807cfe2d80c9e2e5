"""The Python interface on the embedded model: what is accepted, refused, kept and freed."""

from __future__ import annotations

import asyncio
import gc
import itertools
import os
import signal
import threading
import time
import weakref

import grebe
import numpy as np
import pytest
from grebe.generate import pack_mask
from grebe.stopping import StopFilter
from hypothesis import given
from hypothesis import strategies as st

PROMPT = [0, 2383, 692, 262, 623, 14, 493, 315, 262]
# Greedy continuation of PROMPT by an independent implementation (the PyTorch trainer, f32, without cache rounding).
GREEDY = [2395, 939, 1189, 2250, 16, 2213, 943, 1008, 265, 1525, 16, 987, 1566, 556, 14, 383]


@pytest.fixture(scope="module")
def model():
    with grebe.Model.load() as model:
        yield model


@pytest.fixture
def session(model):
    with model.session(n_ctx=1024) as session:
        yield session


# ------------------------------------------------------------------ numbers


def test_greedy_equals_the_trainer():
    with grebe.Model.load(kv_rounding="off", kernels="exact") as model, model.session() as s:
        assert [e.token for e in s.generate(PROMPT, max_tokens=len(GREEDY))] == GREEDY


def test_config_is_frozen_and_complete(model):
    assert model.config.vocab_size == 8192
    assert model.config.compress_ratios == (0, 0, 4, 128)
    assert model.config.rms_eps == 1e-6
    with pytest.raises(AttributeError):
        model.config.n_layers = 1
    assert len(model.fingerprint) == 64
    assert set(model.fingerprint) <= set("0123456789abcdef")


def test_flash_bytes_per_token():
    flash = {**grebe.Model.load().config.__dict__}
    flash.update(
        n_layers=43, head_dim=512, rope_dim=64, index_head_dim=128, window_size=128,
        compress_ratios=(0, 0) + (4, 128) * 20 + (4,),
    )  # fmt: skip
    config = grebe.ModelConfig(**flash)
    assert config.kv_row_bytes() == 584
    assert config.index_row_bytes() == 68
    assert config.kv_bytes_per_token() == pytest.approx(3514.25)
    assert config.kv_fixed_bytes() < 6e6


def test_session_bytes_are_what_the_config_says(model):
    c = model.config
    with model.session() as s:
        assert s.nbytes == c.kv_fixed_bytes()
        s.prefill(np.full(1000, 7))
        assert s.nbytes == pytest.approx(
            c.kv_fixed_bytes() + 1024 * c.kv_bytes_per_token(), rel=1e-3
        )


def test_logits_are_an_owned_copy(session):
    session.prefill(PROMPT)
    first = session.logits
    assert first.dtype == np.float32
    assert first.shape == (8192,)
    kept = first.copy()
    first[:] = 0
    assert np.array_equal(session.logits, kept)
    session.decode(5)
    assert not np.array_equal(session.logits, kept)


def test_evaluate_and_step_agree_with_decode(model, session):
    rows = session.evaluate(PROMPT)
    assert rows.shape == (len(PROMPT), 8192)
    with model.session() as a, model.session() as b:
        together = model.step([(a, PROMPT), (b, np.array(PROMPT[:3]))])
        assert np.array_equal(together, rows[[-1, 2]])
        assert np.array_equal(a.logits, rows[-1])
        every = model.step([(b, PROMPT[3:])], logits="all")
        assert np.array_equal(every, rows[3:])
        assert model.step([(a, [1])], logits="none").shape == (0, 8192)


def test_step_refuses_one_session_twice(model, session):
    with pytest.raises(grebe.InvalidArgumentError, match="same session"):
        model.step([(session, [1]), (session, [2])])
    with pytest.raises(grebe.InvalidArgumentError, match="logits"):
        model.step([(session, [1])], logits="some")
    assert session.pos == 0


def test_prefill_fork_rewind_snapshot(model, session):
    assert session.prefill(PROMPT) == len(PROMPT)
    assert session.prefill(PROMPT) == 0
    assert session.prefill([*PROMPT, 5, 6]) == 2
    logits = session.logits
    with session.fork() as other, model.restore(session.snapshot()) as third:
        other.decode(9)
        assert session.tokens == [*PROMPT, 5, 6]
        assert other.tokens == [*PROMPT, 5, 6, 9]
        assert other.rewind(len(PROMPT) + 2) >= 0
        assert np.array_equal(other.logits, logits)
        assert np.array_equal(third.logits, logits)
        assert third.tokens == session.tokens
    session.rewind(0)
    assert session.pos == 0
    with pytest.raises(grebe.InvalidArgumentError):
        _ = session.logits


# ------------------------------------------------------------------ tokens


@pytest.mark.parametrize(
    "tokens",
    [
        (5, 6, 7),
        np.array([5, 6, 7]),
        np.array([5, 6, 7], np.uint8),
        np.array([5, 0, 6, 0, 7, 0], np.int16)[::2],
        np.array([7, 6, 5], np.uint64)[::-1],
        [np.int32(5), np.int64(6), 7],
        range(5, 8),
        iter([5, 6, 7]),
    ],
)
def test_tokens_of_many_kinds(session, tokens):
    session.prefill(tokens)
    assert session.tokens == [5, 6, 7]


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([1, True], r"tokens\[1\] is True \(bool\).*0 to 8191"),
        ([1.0], r"tokens\[0\] is 1.0 \(float\)"),
        ([0, 8192], r"tokens\[1\] is 8192; .*0 to 8191"),
        ([-1], r"tokens\[0\] is -1"),
        ([10**30], r"tokens\[0\] is 10+;"),
        ([None], r"tokens\[0\] is None"),
        ([np.bool_(True)], r"tokens\[0\]"),
        (np.array([3, -2]), r"tokens\[1\] is -2"),
        (np.array([2**63], np.uint64), r"tokens\[0\] is 9223372036854775808"),
        (np.array([1.5]), "floats or bools"),
        (np.array([True]), "floats or bools"),
        (np.array([[1]]), "2 dimensions"),
        ("text", "encode"),
        (b"bytes", "encode"),
        (5, "sequence"),
        ([], "no tokens|at least 1"),
    ],
)
def test_what_is_no_token(session, tokens, message):
    session.prefill(PROMPT)
    before = session.logits
    with pytest.raises(grebe.InvalidArgumentError, match=message):
        session.prefill(tokens)
    assert session.tokens == PROMPT
    assert np.array_equal(session.logits, before)


def test_one_bad_token_and_a_full_context(model):
    with model.session(n_ctx=4) as s:
        s.prefill([1, 2, 3])
        with pytest.raises(grebe.InvalidArgumentError, match="token is 8192"):
            s.decode(8192)
        s.decode(4)
        with pytest.raises(grebe.ContextOverflowError) as caught:
            s.decode(5)
        assert caught.value.n_ctx == 4
        assert s.tokens == [1, 2, 3, 4]
        with pytest.raises(grebe.ContextOverflowError):
            s.prefill([1] * 5)
        with pytest.raises(grebe.ContextOverflowError):
            s.generate()
        assert s.tokens == [1, 2, 3, 4]


@pytest.mark.parametrize("bad", [0, -3, 2_000_000])
def test_context_size_is_checked(model, bad):
    with pytest.raises(grebe.InvalidArgumentError, match="n_ctx"):
        model.session(n_ctx=bad)


# ------------------------------------------------------------------ generation


def test_text_prompts_begin_with_bos_and_append_later(model, session):
    first = session.generate("Once upon a time", max_tokens=4)
    text = "".join(e.text for e in first)
    assert first.prompt == [0, *model.tokenizer.encode("Once upon a time")]
    assert session.tokens == first.prompt + first.tokens  # a loop that ends leaves the whole answer
    assert text == first.text == model.tokenizer.decode(first.tokens)
    second = session.generate(" And then", max_tokens=2)
    assert second.prompt == session.tokens + model.tokenizer.encode(" And then")
    list(second)
    assert second.usage.cached_tokens == len(first.prompt) + 4
    third = session.generate(max_tokens=1)
    assert third.prompt == session.tokens


def test_special_strings_in_a_prompt_are_text(model, session):
    generation = session.generate("<｜User｜>", max_tokens=1)
    assert not any(model.tokenizer.is_special(t) for t in generation.prompt[1:])


def test_nothing_to_continue(session):
    with pytest.raises(grebe.InvalidArgumentError, match="empty"):
        session.generate()


def test_length_and_usage(model):
    done = model.complete(PROMPT, max_tokens=5)
    assert done.tokens == tuple(GREEDY[:5])
    assert done.finish_reason == "length"
    assert done.usage == grebe.Usage(len(PROMPT), 0, 5)
    assert done.usage.total_tokens == len(PROMPT) + 5
    assert str(done) == done.text == model.tokenizer.decode(done.tokens)
    assert len(done.logprobs) == 5
    assert all(p <= 0 for p in done.logprobs)


def test_the_context_bounds_a_generation(model):
    done = model.complete(PROMPT, max_tokens=None, n_ctx=len(PROMPT) + 3)
    assert done.finish_reason == "length"
    assert len(done.tokens) == 3
    with pytest.raises(grebe.ContextOverflowError):
        model.complete(PROMPT, n_ctx=len(PROMPT))


def test_stop_strings_cut_across_tokens(model):
    whole = model.complete(PROMPT, max_tokens=40).text
    stop = whole[17:27]
    done = model.complete(PROMPT, max_tokens=40, stop=["never there", stop])
    assert done.finish_reason == "stop"
    assert done.text == whole[: whole.index(stop)]
    single = model.complete(PROMPT, max_tokens=40, stop=stop)
    assert single.text == done.text


@pytest.mark.parametrize("stop", ["", ["ok", ""], [3]])
def test_stop_strings_are_checked(session, stop):
    with pytest.raises(grebe.InvalidArgumentError, match="stop"):
        session.generate(PROMPT, stop=stop)


def test_eos_ends_with_stop(model):
    only_eos = np.zeros(8192, bool)
    only_eos[model.config.eos_token] = True
    done = model.complete(
        PROMPT, sampling=grebe.Sampling(mask=lambda tokens: only_eos if len(tokens) == 2 else None)
    )
    assert done.finish_reason == "stop"
    assert done.tokens == (*GREEDY[:2], model.config.eos_token)
    assert done.text == model.tokenizer.decode(done.tokens[:2])


def test_masks(model):
    allowed = [300, 301, 8191]
    as_bool = np.zeros(8192, bool)
    as_bool[allowed] = True
    bits = pack_mask(as_bool, 8192)
    assert bits.dtype == np.uint32
    for mask in (as_bool, bits):
        done = model.complete(
            PROMPT, max_tokens=6, sampling=grebe.Sampling(mask=lambda _, m=mask: m)
        )
        assert set(done.tokens) <= set(allowed)
    for bad in (np.zeros(8191, bool), np.zeros(255, np.uint32), np.zeros(8192)):
        with pytest.raises(grebe.InvalidArgumentError, match="mask"):
            model.complete(PROMPT, sampling=grebe.Sampling(mask=lambda _, m=bad: m))
    with pytest.raises(grebe.InvalidArgumentError):
        model.complete(PROMPT, sampling=grebe.Sampling(mask=lambda _: np.zeros(8192, bool)))


def test_seeds_repeat_and_are_reported(model):
    warm = grebe.Sampling(temperature=1.0, seed=7)
    one, two = (model.complete(PROMPT, max_tokens=20, sampling=warm) for _ in range(2))
    assert one.tokens == two.tokens
    assert one.seed == 7
    free = model.complete(PROMPT, max_tokens=20, sampling=grebe.Sampling(temperature=1.0))
    again = model.complete(
        PROMPT, max_tokens=20, sampling=grebe.Sampling(temperature=1.0, seed=free.seed)
    )
    assert free.tokens == again.tokens


def test_logprobs(session):
    events = list(session.generate(PROMPT, max_tokens=3, sampling=grebe.Sampling(top_logprobs=4)))
    for event in events:
        assert len(event.top_logprobs) == 4
        assert event.top_logprobs[0] == grebe.TokenLogprob(event.token, event.logprob)
    session.prefill(PROMPT)
    x = session.logits.astype(np.float64)
    expected = x[GREEDY[0]] - x.max() - np.log(np.exp(x - x.max()).sum())
    assert events[0].logprob == pytest.approx(expected, abs=1e-5)


def test_penalties_and_bias_reach_the_sampler(model):
    banned = grebe.Sampling(logit_bias={GREEDY[0]: -100.0})
    assert model.complete(PROMPT, max_tokens=1, sampling=banned).tokens[0] != GREEDY[0]
    once = grebe.Sampling(presence_penalty=100.0)
    tokens = model.complete(PROMPT, max_tokens=30, sampling=once).tokens
    assert len(set(tokens)) == len(tokens)


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": -1.0}, {"temperature": float("nan")}, {"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.5},
        {"min_p": 1.0}, {"repetition_penalty": 0.0}, {"top_logprobs": 1001}, {"logit_bias": {8192: 1.0}},
    ],
)  # fmt: skip
def test_sampling_ranges(session, options):
    with pytest.raises(grebe.InvalidArgumentError, match=next(iter(options))):
        session.generate(PROMPT, sampling=grebe.Sampling(**options))


def test_max_tokens_range(session):
    with pytest.raises(grebe.InvalidArgumentError, match="max_tokens"):
        session.generate(PROMPT, max_tokens=0)


def test_break_keeps_the_session_usable(session):
    generation = session.generate(PROMPT, max_tokens=50)
    for event in generation:
        assert event.finish_reason is None
        if len(generation.tokens) == 3:
            break
    assert session.tokens == PROMPT + GREEDY[:2]
    assert session.prefill(PROMPT + GREEDY[:4]) == 2


def test_a_moved_session_is_noticed(session):
    generation = session.generate(PROMPT)
    next(generation)
    session.decode(3)
    with pytest.raises(grebe.InvalidArgumentError, match="moved"):
        next(generation)
    with pytest.raises(StopIteration):
        next(generation)


def test_cancel(session):
    generation = session.generate(PROMPT)
    next(generation)
    generation.cancel()
    assert list(generation) == []
    assert generation.finish_reason == "cancelled"


@given(
    st.lists(st.text("ab", min_size=1, max_size=4), max_size=3),
    st.text("abc", max_size=30),
    st.lists(st.integers(0, 30), max_size=8),
)
def test_stop_filter_does_not_depend_on_the_cuts(stops, text, cuts):
    ends = [(text.index(s) + len(s), text.index(s)) for s in stops if s in text]
    expected = text[: min(ends)[1]] if ends else text
    stop, out, found = StopFilter(stops), "", False
    edges = sorted({0, len(text), *(c for c in cuts if c <= len(text))})
    for a, b in itertools.pairwise(edges):
        piece, found = stop.feed(text[a:b])
        out += piece
        # Only what may be the beginning of a stop string is held back.
        held = text[len(out) : b]
        assert found or not held or any(s.startswith(held) for s in stops)
        if found:
            break
    assert found == bool(ends)
    assert out + (stop.flush() if not found else "") == expected


# ------------------------------------------------------------------ async, threads, signals


def test_async_events_equal_sync(model, session):
    async def collect():
        return [e async for e in session.agenerate(PROMPT, max_tokens=6)]

    events = asyncio.run(collect())
    assert [e.token for e in events] == GREEDY[:6]
    assert events[-1].finish_reason == "length"
    done = asyncio.run(model.acomplete(PROMPT, max_tokens=6))
    assert done.tokens == tuple(GREEDY[:6])


def test_async_cancel_frees_the_session(model):
    async def main():
        with model.session() as s:

            async def endless():
                async for _ in s.agenerate(PROMPT, max_tokens=None):
                    started.set()

            started = asyncio.Event()
            task = asyncio.create_task(endless())
            await started.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert s.tokens[: len(PROMPT)] == PROMPT
            s.decode(1)  # not busy

    asyncio.run(main())


def test_async_cancel_during_the_prompt():
    with grebe.Model.load(prefill_chunk=16) as model:

        async def main():
            task = asyncio.create_task(model.acomplete([5] * 200_000))
            await asyncio.sleep(0.05)
            task.cancel()
            start = time.perf_counter()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert time.perf_counter() - start < 5

        asyncio.run(main())


def test_two_threads_are_refused_or_served_never_mixed(model):
    entered, proceed = threading.Event(), threading.Event()

    def hold(done, total):
        entered.set()
        proceed.wait(10)

    with model.session() as s, model.session() as other:
        thread = threading.Thread(target=lambda: s.prefill(PROMPT, hold))
        thread.start()
        assert entered.wait(10)
        for use in (
            lambda: s.decode(1),
            lambda: s.tokens,
            lambda: s.logits,
            s.fork,
            s.snapshot,
            lambda: s.rewind(0),
        ):
            with pytest.raises(grebe.InvalidArgumentError, match="busy"):
                use()
        assert "busy" in repr(s)
        other.prefill(PROMPT)  # another session of the same model is free
        proceed.set()
        thread.join()
        assert s.tokens == PROMPT


def test_a_callback_may_look_but_not_compute(session):
    seen = []

    def look(done, total):
        seen.append((done, total, session.pos))
        with pytest.raises(grebe.InvalidArgumentError, match="busy"):
            session.decode(1)

    session.prefill(PROMPT, look)
    assert seen == [(len(PROMPT), len(PROMPT), len(PROMPT))]


def test_progress_counts_and_exceptions_cancel():
    with grebe.Model.load(prefill_chunk=32) as model, model.session() as s:
        steps = []
        s.prefill([7] * 100, lambda done, total: steps.append((done, total)))
        assert [t for _, t in steps] == [100] * len(steps)
        assert [d for d, _ in steps] == [32, 64, 96, 100]

        def refuse(done, total):
            if done == 64:
                raise RuntimeError("enough")

        with pytest.raises(RuntimeError, match="enough"):
            s.prefill([9] * 100, refuse)
        assert s.tokens == [9] * 64
        assert s.prefill([9] * 100) == 36


@pytest.mark.parametrize("how", ["prefill", "evaluate", "generate"])
def test_ctrl_c_interrupts(how):
    """The signal arrives while the engine computes; the handler runs between two chunks."""
    tokens = [5] * 400_000
    with grebe.Model.load(prefill_chunk=64) as model, model.session() as s:
        timer = threading.Timer(0.2, lambda: os.kill(os.getpid(), signal.SIGINT))
        timer.start()
        start = time.perf_counter()
        with pytest.raises(KeyboardInterrupt):
            if how == "prefill":
                s.prefill(tokens)
            elif how == "evaluate":
                s.evaluate(tokens[:20_000])
            else:
                list(s.generate(tokens))
        assert time.perf_counter() - start < 10
        assert 0 < s.pos < len(tokens)
        assert s.tokens == tokens[: s.pos]
        s.prefill([1, 2])
        timer.join()


def test_computing_releases_the_gil(model):
    """While one thread is in a prefill, another gets to run Python code."""
    ticks = []
    with model.session() as s:
        thread = threading.Thread(target=lambda: s.prefill([5] * 4000))
        thread.start()
        while thread.is_alive():
            ticks.append(None)
            time.sleep(0.001)
    assert len(ticks) > 5


# ------------------------------------------------------------------ lifetime


def test_closed_things_say_so():
    model = grebe.Model.load()
    s = model.session()
    s.prefill(PROMPT)
    generation = s.generate()
    next(generation)
    model.close()
    model.close()
    for use in (
        lambda: s.pos,
        lambda: s.decode(1),
        lambda: next(generation),
        s.fork,
        lambda: s.logits,
    ):
        with pytest.raises(grebe.InvalidArgumentError, match="closed"):
            use()
    for use in (
        model.session,
        lambda: model.tokenizer,
        lambda: model.fingerprint,
        lambda: model.complete("x"),
    ):
        with pytest.raises(grebe.InvalidArgumentError, match="model is closed"):
            use()
    assert "closed" in repr(s)
    assert "closed" in repr(model)
    assert "closed" in model._repr_html_()


def test_a_session_keeps_its_model_alive():
    s = grebe.Model.load().session()
    gc.collect()
    s.prefill(PROMPT)
    model = s.model
    assert model.config.n_layers == 4


def test_closing_frees():
    model = grebe.Model.load()
    engine = weakref.ref(model._live) if hasattr(type(model._live), "__weakref__") else None
    with model.session() as s:
        s.prefill(PROMPT)
    model.close()
    gc.collect()
    assert engine is None or engine() is None


def test_close_during_a_call_in_another_thread():
    entered, proceed, result = threading.Event(), threading.Event(), []

    def hold(done, total):
        entered.set()
        proceed.wait(10)

    model = grebe.Model.load()
    s = model.session()
    thread = threading.Thread(target=lambda: result.append(s.prefill(PROMPT, hold)))
    thread.start()
    assert entered.wait(10)
    model.close()
    proceed.set()
    thread.join()
    assert result == [len(PROMPT)]


def test_readable(model, session):
    session.prefill(PROMPT)
    assert "4 layers" in repr(model)
    assert repr(session).startswith("<grebe.Session 9 of 1024 tokens")
    assert "<table>" in model._repr_html_()
    assert "&lt;grebe.Session" in session._repr_html_()


def test_public_names():
    for name in grebe.__all__:
        assert getattr(grebe, name) is not None
    public = {n for n in vars(grebe) if not n.startswith("_")}
    modules = {n for n in public if type(getattr(grebe, n)).__name__ == "module"}
    assert public - modules - {"annotations", "TYPE_CHECKING", "Any"} <= set(grebe.__all__)


# ------------------------------------------------------------------ inspect


def test_inspect_the_embedded_model():
    info = grebe.inspect()
    assert info.problem is None
    assert info.config == grebe.Model.load().config
    assert sum(n for n, _ in info.dtypes.values()) == len(info.tensors)
    plan = info.memory_plan(1000)
    assert plan.kv == round(1024 * plan.kv_per_token)
    assert plan.dense + plan.experts == plan.mapping == info.n_bytes
    assert "Q8_0" in str(info)
    assert info.backends[0].available
    assert not info.backends[1].available


def test_scratch_estimate_is_of_the_right_size(model):
    with model.session() as s:
        s.prefill([5] * 600)
    estimate = grebe.inspect().memory_plan().scratch
    assert estimate / 3 < model.scratch_nbytes < 3 * estimate
