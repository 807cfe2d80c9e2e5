"""The engine's worker: jobs together are as alone, prefixes are found, nothing leaks."""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import grebe
import numpy as np
import pytest
from grebe import Sampling
from grebe.server.jobs import (
    EngineFailed,
    Finished,
    Job,
    JobEvent,
    Loading,
    Progress,
    QueueFull,
    Script,
    Sunk,
    TokenEvent,
)
from grebe.server.worker import EngineWorker

from tests.helpers import models

EOS = 1
N_CTX = 8192


@dataclass
class Sink:
    """Ends at EOS, or at a token, or after so many."""

    end_at: int | None = None
    tokens: list[int] = field(default_factory=list)
    finished: list[str] = field(default_factory=list)

    def feed(self, token: int) -> Sunk:
        self.tokens.append(token)
        if token == EOS:
            return Sunk(end="stop")
        if token == self.end_at:
            return Sunk(end="stop_string", stop_sequence="x")
        return Sunk()

    def finish(self, reason: str) -> Sequence[object]:
        self.finished.append(reason)
        return ()


def model() -> grebe.Model:
    return models.load("embedded", prefill_chunk=256)


def more(seed: int, n: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(300, 8000) for _ in range(n)]


def text(seed: int, n: int) -> list[int]:
    return [0, *more(seed, n - 1)]


def job(tokens: list[int], max_tokens: int | None = 8, **options: object) -> Job:
    return Job(tokens, options.pop("sink", None) or Sink(), max_tokens, **options)  # type: ignore[arg-type]


async def events(worker: EngineWorker, job: Job) -> list[JobEvent]:
    return [event async for event in worker.submit(job)]


def sampled(events: Sequence[JobEvent]) -> list[int]:
    return [event.token for event in events if isinstance(event, TokenEvent)]


def finished(events: Sequence[JobEvent]) -> Finished:
    assert isinstance(events[-1], Finished)
    assert sum(isinstance(event, Finished) for event in events) == 1
    return events[-1]


def alone(prompt: list[int], n: int, sampling: Sampling | None = None) -> list[int]:
    with model().session(N_CTX) as session:
        return [e.token for e in session.generate(prompt, max_tokens=n, sampling=sampling)]


@contextlib.contextmanager
def worker(**options: object):
    with EngineWorker(model(), n_ctx=options.pop("n_ctx", N_CTX), **options) as w:  # type: ignore[arg-type]
        yield w


def run(w: EngineWorker, *jobs: Job) -> list[list[JobEvent]]:
    async def all_of_them() -> list[list[JobEvent]]:
        return await asyncio.gather(*(events(w, j) for j in jobs))

    return asyncio.run(all_of_them())


def test_a_job_is_a_generation():
    prompt = text(1, 300)
    sampling = Sampling(temperature=0.9, seed=5, top_logprobs=2)
    done: list[object] = []
    with worker() as w:
        (found,) = run(w, job(prompt, 12, sampling=sampling, on_done=lambda *a: done.append(a)))
    assert isinstance(found[0], Progress)
    assert found[0].done == 0 and found[0].total == 300
    assert [e.done for e in found if isinstance(e, Progress)][-1] == 300
    with model().session(N_CTX) as session:
        expected = list(session.generate(prompt, max_tokens=12, sampling=sampling))
    tokens = [e for e in found if isinstance(e, TokenEvent)]
    assert [(e.token, e.logprob, e.top_logprobs) for e in tokens] == [
        (e.token, e.logprob, e.top_logprobs) for e in expected
    ]
    end = finished(found)
    assert end.reason == "length"
    assert (end.usage.prompt_tokens, end.usage.cached_tokens) == (300, 0)
    assert end.usage.completion_tokens == 12
    assert end.usage.miss == "cold"
    assert done == [(sampled(found), "length")]


def test_jobs_together_give_what_each_gives_alone():
    prompts = [text(i, n) for i, n in enumerate([5, 130, 700, 1500, 64, 900])]
    samplings = [Sampling(temperature=0.8 * (i % 2), seed=i) for i in range(len(prompts))]
    with worker() as w:
        found = run(w, *(job(p, 20, sampling=s) for p, s in zip(prompts, samplings, strict=True)))
    for prompt, sampling, one in zip(prompts, samplings, found, strict=True):
        assert sampled(one) == alone(prompt, 20, sampling)


def test_a_follow_up_reads_only_what_is_new():
    with worker() as w:
        prompt = text(1, 700)
        for turn in range(4):
            (found,) = run(w, job(prompt, 30, session_hint="a"))
            usage = finished(found).usage
            if turn > 0:
                assert usage.prompt_tokens - usage.cached_tokens <= 51  # the last token, and new
                assert usage.miss == "none"
            prompt = prompt + sampled(found) + more(100 + turn, 50)
        assert sampled(found) == alone(prompt[: usage.prompt_tokens], 30)


@pytest.mark.parametrize("cached", [False, True])
def test_a_changed_tail_costs_little_and_the_older_branch_stays(cached: bool, tmp_path: Path):
    with contextlib.ExitStack() as stack:
        cache = stack.enter_context(model().open_cache(tmp_path)) if cached else None
        w = stack.enter_context(worker(cache=cache))
        before = history = text(1, 1000)
        for turn in range(5):  # what stands at the end is gone in the next prompt
            prompt = history + more(200 + turn, 150)
            (found,) = run(w, job(prompt, 400))
            usage = finished(found).usage
            if turn > 0:
                assert usage.cached_tokens > len(before) - 128
                assert (usage.miss, usage.miss_at) == ("diverged", len(before))
            before = history
            history = history + more(300 + turn, 60)
        (found,) = run(w, job(prompt + sampled(found) + more(9, 10), 5))
        usage = finished(found).usage
        assert usage.prompt_tokens - usage.cached_tokens <= 11


def test_the_end_of_the_system_part_is_kept_for_other_conversations():
    with worker() as w:
        system = text(1, 1000)
        long_one = system + more(2, 5000)
        run(w, job(long_one, 5, marks=(1000, 6000), session_hint="a"))
        (found,) = run(w, job(system + more(3, 400), 5, marks=(1000,), session_hint="b"))
        usage = finished(found).usage
        assert usage.cached_tokens == 896
        assert (usage.miss, usage.miss_at) == ("cold", 1000)
        (found,) = run(w, job(long_one + more(4, 10), 5, session_hint="a"))
        assert finished(found).usage.cached_tokens >= 6000


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("n", [1100, 3000])
def test_where_two_prompts_part_is_kept_for_a_third(n: int, cached: bool, tmp_path: Path):
    with contextlib.ExitStack() as stack:
        cache = stack.enter_context(model().open_cache(tmp_path)) if cached else None
        w = stack.enter_context(worker(cache=cache))
        found = []
        for seed in range(4):
            prompt = text(1, n) + more(2 + seed, 3000)
            (events,) = run(w, job(prompt, 3, marks=(200, len(prompt) - 1)))
            found.append(finished(events).usage.cached_tokens)
        assert found[0] == 0
        assert found[2] == found[3] == n - n % 128
        assert sampled(events) == alone(prompt, 3)


def test_a_prompt_waits_for_another_that_reads_the_same_start():
    system = text(1, 2000)
    first, second = system + more(2, 300), system + more(3, 200)
    with worker() as w:
        a, b = run(w, job(first), job(second))
        assert w.stats()["prefilled_tokens"] <= 2000 + 300 + 200 + 128
    assert sampled(a) == alone(first, 8)
    assert sampled(b) == alone(second, 8)
    assert finished(b).usage.cached_tokens >= 2000 - 128


def test_ends():
    prompt = text(1, 50)
    free = alone(prompt, 10)
    with worker(n_ctx=60) as w:
        (full,) = run(w, job(prompt, None))
        assert finished(full).reason == "context"
        assert len(sampled(full)) == 10
        (length,) = run(w, job(prompt, 10))
        assert finished(length).reason == "length"
        sink = Sink(end_at=free[4])
        (stop,) = run(w, job(prompt, 10, sink=sink))
        end = finished(stop)
        assert (end.reason, end.stop_sequence) == ("stop_string", "x")
        assert sampled(stop) == free[: free.index(free[4]) + 1]
        assert sink.finished == ["stop_string"]
        bias = Sampling(logit_bias={EOS: 1000.0})
        (eos,) = run(w, job(prompt, 10, sampling=bias))
        assert finished(eos).reason == "stop"
        assert sampled(eos) == [EOS]
        with pytest.raises(grebe.ContextOverflowError):
            run(w, job(text(1, 60)))
        with pytest.raises(grebe.InvalidArgumentError, match="prompt"):
            run(w, job([]))
        with pytest.raises(grebe.InvalidArgumentError, match="top_p"):
            run(w, job(prompt, sampling=Sampling(top_p=2.0)))


def test_a_mask_is_asked_before_each_token():
    seen, lists = [], []

    def mask(tokens: Sequence[int]) -> np.ndarray:
        seen.append(tuple(tokens))
        lists.append(tokens)
        allowed = np.zeros(8192, bool)
        allowed[500 + len(tokens)] = True
        return allowed

    with worker() as w:
        (found,) = run(w, job(text(1, 20), 3, sampling=Sampling(mask=mask)))
    assert sampled(found) == [500, 501, 502]
    assert seen == [(), (500,), (500, 501)]
    assert lists[0] is lists[1] is lists[2]  # no copy a token


def test_forced_output_runs_through_the_model():
    prompt, forced = text(1, 300), (700, 701, 702, EOS)
    with worker() as w:
        (found,) = run(w, job(prompt, 50, script=Script(forced), sampling=Sampling(top_logprobs=1)))
        assert sampled(found) == list(forced)
        assert finished(found).reason == "stop"
        tokens = [e for e in found if isinstance(e, TokenEvent)]
        assert tokens[0].logprob < tokens[0].top_logprobs[0].logprob <= 0
        (follow,) = run(w, job(prompt + list(forced) + more(2, 9)))
        usage = finished(follow).usage
        assert usage.prompt_tokens - usage.cached_tokens == 10  # the end token, and nine
        (cut,) = run(w, job(prompt, 50, script=Script((700, 701), finish="length")))
        assert finished(cut).reason == "length"
        (short,) = run(w, job(prompt, 2, script=Script(forced)))
        assert finished(short).reason == "length"
        assert sampled(follow) == alone(prompt + list(forced) + more(2, 9), 8)


def test_scripted_delays_hold_up_nobody_else():
    with worker() as w:
        begin = time.monotonic()
        slow = job(text(1, 600), 3, script=Script((700, 701, 702), "length", 0.6, 0.05))

        async def both() -> float:
            task = asyncio.create_task(events(w, slow))
            await asyncio.sleep(0.05)
            await events(w, job(text(2, 100), 3))
            quick = time.monotonic() - begin
            found = await task
            assert finished(found).usage.prefill_s >= 0.6
            return quick

        assert asyncio.run(both()) < 0.5
        assert 0.7 <= time.monotonic() - begin < 2


def test_a_script_that_waits_can_be_cancelled():
    async def leave(w: EngineWorker) -> None:
        stream = w.submit(job(text(1, 600), 3, script=Script((700,), "length", 60.0)))
        await anext(stream)
        await stream.aclose()  # type: ignore[attr-defined]
        await events(w, job(text(2, 10), 2))

    with worker() as w:
        asyncio.run(asyncio.wait_for(leave(w), 20))
        assert w.stats()["finished"] == {"cancelled": 1, "length": 1}


def test_a_cancelled_prompt_keeps_what_was_read():
    prompt = text(1, 6000)

    async def leave(w: EngineWorker) -> int:
        stream = w.submit(job(prompt))
        async for event in stream:
            assert isinstance(event, Progress)
            if event.done >= 1024:
                await stream.aclose()  # type: ignore[attr-defined]
                break
        while w.stats()["n_running"]:
            await asyncio.sleep(0.001)
        found = await events(w, job(prompt, 2))
        assert sampled(found) == alone(prompt, 2)
        return finished(found).usage.cached_tokens

    with worker() as w:
        assert 1024 <= asyncio.run(leave(w)) < 5000


def test_the_queue_is_bounded_and_leaving_it_makes_room():
    async def fill(w: EngineWorker) -> None:
        streams = [w.submit(job(text(i, 600), 200)) for i in range(1)]
        await anext(streams[0])
        streams += [w.submit(job(text(i, 50), 2)) for i in range(1, 4)]
        with pytest.raises(QueueFull) as full:
            w.submit(job(text(9, 50), 2))
        assert full.value.waiting == 3
        assert 1 <= full.value.retry_after_s <= 60
        await streams[2].aclose()  # type: ignore[attr-defined]
        streams.append(w.submit(job(text(9, 50), 2)))
        assert w.stats()["n_waiting"] == 3
        for i in (0, 1, 3, 4):
            assert [e async for e in streams[i]]

    with worker(max_waiting=3, max_running=1) as w:
        asyncio.run(fill(w))
        assert w.stats()["jobs_refused"] == 1


def test_deadlines():
    with worker(max_running=1) as w:
        long_one = job(text(1, 200), 8000, deadline_s=0.3)
        behind = job(text(2, 200), 5, deadline_s=0.1)
        a, b = run(w, long_one, behind)
        assert finished(a).reason == "cancelled"
        assert 0 < len(sampled(a)) < 8000
        assert finished(b).reason == "cancelled"
        assert finished(b).usage.queued_s >= 0.1
        assert b == [finished(b)]


def test_dropping_the_stream_cancels_the_job():
    async def drop(w: EngineWorker) -> None:
        stream = w.submit(job(text(1, 100), 8000))
        await anext(stream)
        del stream
        while w.stats()["n_running"]:
            await asyncio.sleep(0.01)

    with worker() as w:
        asyncio.run(asyncio.wait_for(drop(w), 10))


def test_a_storm_of_cancellations_leaks_nothing():
    rng = random.Random(7)

    async def client(w: EngineWorker, i: int) -> None:
        for k in range(6):
            prompt = text(rng.randrange(5), 200) + more(100 * i + k, rng.randrange(1, 400))
            try:
                stream = w.submit(job(prompt, 40))
            except QueueFull:
                await asyncio.sleep(0.01)
                continue
            n = rng.randrange(25)
            async for _ in stream:
                n -= 1
                if n < 0:
                    break
            await stream.aclose()  # type: ignore[attr-defined]

    async def storm(w: EngineWorker) -> None:
        await asyncio.gather(*(client(w, i) for i in range(12)))

    with worker(max_idle=10, max_running=5, max_waiting=5) as w:
        asyncio.run(storm(w))
        prompt = text(77, 300)
        assert sampled(run(w, job(prompt, 10))[0]) == alone(prompt, 10)
        stats = w.stats()
        assert stats["n_running"] == stats["n_waiting"] == 0
        assert stats["jobs_failed"] == 0
        assert len(w._pool) <= 10
        assert not any(r.busy for r in w._pool._residents)
        live = {id(r) for r in w._pool._residents}
        assert all({id(o) for o in r.shared} < live for r in w._pool._residents)


def test_a_failing_sink_fails_its_job_alone():
    class Broken(Sink):
        def feed(self, token: int) -> Sunk:
            if len(self.tokens) == 3:
                raise ZeroDivisionError
            return super().feed(token)

    async def both(w: EngineWorker) -> list[object]:
        return await asyncio.gather(
            events(w, job(text(1, 100), 10, sink=Broken())),
            events(w, job(text(2, 100), 10)),
            return_exceptions=True,
        )

    with worker() as w:
        broken, fine = asyncio.run(both(w))
        assert isinstance(broken, EngineFailed)
        assert sampled(fine) == alone(text(2, 100), 10)  # type: ignore[arg-type]
        assert w.stats()["jobs_failed"] == 1


def test_an_error_of_the_engine_fails_the_jobs_concerned(monkeypatch: pytest.MonkeyPatch):
    m = model()
    step = type(m).step
    poison = text(1, 100)

    def failing(self: grebe.Model, inputs: list, logits: str = "last") -> object:  # type: ignore[type-arg]
        if any(s.pos > 104 and s.tokens[:100] == poison for s, _ in inputs):
            raise grebe.BackendError("a device fault", "matmul")
        return step(self, inputs, logits)

    monkeypatch.setattr(type(m), "step", failing)

    async def both(w: EngineWorker) -> list[object]:
        return await asyncio.gather(
            events(w, job(poison, 10)), events(w, job(text(2, 100), 10)), return_exceptions=True
        )

    with worker() as w:
        broken, fine = asyncio.run(both(w))
        assert isinstance(broken, EngineFailed)
        assert "a device fault" in str(broken)
        monkeypatch.undo()
        assert sampled(fine) == alone(text(2, 100), 10)  # type: ignore[arg-type]
        (again,) = run(w, job(poison, 10))
        assert finished(again).usage.cached_tokens == 0  # that session is gone
        assert sampled(again) == alone(poison, 10)


def test_prompt_logprobs():
    prompt = text(1, 300)
    with worker() as w:
        found, other = run(w, job(prompt, 3, echo_logprobs=2), job(text(2, 500), 20))
        assert sampled(other) == alone(text(2, 500), 20)
    rows = finished(found).prompt_logprobs
    assert [row[0] for row in rows] == prompt
    assert np.isnan(rows[0][1]) and rows[0][2] == ()
    with model().session(N_CTX) as session:
        logits = session.evaluate(prompt).astype(np.float64)
    logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True))
    expected = logits[np.arange(299), prompt[1:]]
    np.testing.assert_allclose([row[1] for row in rows[1:]], expected, atol=1e-9)
    assert [row[2][0].token for row in rows[1:]] == list(logits[:-1].argmax(axis=1))
    assert all(len(row[2]) == 2 for row in rows[1:])
    assert sampled(found) == alone(prompt, 3)


def test_closing():
    w = EngineWorker(model(), n_ctx=N_CTX)

    async def while_closing() -> None:
        with pytest.raises(Loading):
            w.submit(job(text(1, 10)))
        w.start()
        first = w.submit(job(text(1, 100), 30))
        await anext(first)
        endless = w.submit(job(text(2, 100), 8000))
        await anext(endless)
        closing = threading.Thread(target=w.close, args=(1.0,))
        closing.start()
        await asyncio.sleep(0.05)
        with pytest.raises(Loading):
            w.submit(job(text(3, 10)))
        rest = [e async for e in first]
        assert finished(rest).reason == "length"
        with pytest.raises(EngineFailed, match="shutting down"):
            async for _ in endless:
                pass
        closing.join()

    asyncio.run(while_closing())
    assert w.stats()["state"] == "stopped"
    w.close()


def test_a_restart_finds_what_the_cache_has(tmp_path: Path):
    m = model()
    prompt = text(1, 3500)
    with m.open_cache(tmp_path) as cache, worker(cache=cache) as w:
        (found,) = run(w, job(prompt, 20, marks=(2200,)))
    prompt = prompt + sampled(found) + more(2, 40)
    with m.open_cache(tmp_path) as cache, worker(cache=cache) as w:
        (found,) = run(w, job(prompt, 20))
        usage = finished(found).usage
        assert usage.prompt_tokens - usage.cached_tokens < 41 + 128
        assert sampled(found) == alone(prompt, 20)
        (found,) = run(w, job(prompt[:2200] + more(3, 40), 4))
        assert finished(found).usage.cached_tokens == 2176


def test_inter_token_gap_stays_bounded_while_a_long_prompt_is_read():
    async def both(w: EngineWorker) -> tuple[int, int]:
        stream = w.submit(job(text(1, 100), 400))
        kinds: list[str] = []

        async def read_long() -> None:
            async for event in w.submit(job(text(2, 5000), 2)):
                kinds.append(type(event).__name__)

        task: asyncio.Task[None] | None = None
        async for event in stream:
            kinds.append("short")
            if task is None and isinstance(event, TokenEvent):
                task = asyncio.create_task(read_long())
        assert task is not None
        await task
        first = kinds.index("Progress")
        last = len(kinds) - 1 - kinds[::-1].index("Progress")
        return kinds[first:last].count("short"), kinds[first:last].count("Progress")

    with worker(gap_s=0.0) as w:
        tokens, slices = asyncio.run(both(w))
        assert slices >= 5000 // 128
        assert tokens >= slices - 2  # one token with each slice
