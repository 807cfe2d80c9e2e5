"""Which jobs take part in a step: bounded gaps, short prompts first, nobody starves."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from grebe.server.scheduler import Scheduler
from grebe.server.sessions import SessionPool, common_prefix

from tests.helpers import models


class Fake:
    """A job as the scheduler sees it."""

    def __init__(self, prompt: int, pos: int = 0, *, echoes: bool = False) -> None:
        self.prompt, self.resident = prompt, SimpleNamespace(pos=pos)
        self.echoes, self.ready_at, self.served, self.follows = echoes, 0.0, 0, None
        self.out = [1] if pos >= prompt else []
        self.slice_end = prompt

    @property
    def remaining(self) -> int:
        return max(self.prompt - self.resident.pos, 0)

    @property
    def reading(self) -> bool:
        return self.remaining > 0


def decoding() -> Fake:
    return Fake(10, 10)


def step(scheduler: Scheduler, jobs: list[Any], now: float = 1.0) -> dict[Any, int]:
    plan = scheduler.plan(jobs, now)
    assert len({id(job) for job, _ in plan}) == len(plan)
    for job, n in plan:
        assert n >= 1
        job.resident.pos += n
        if not job.reading:
            job.out = [1]
    return dict(plan)


def test_a_slice_ends_where_a_place_is_to_be_kept():
    job = Fake(1300)
    job.slice_end = 256
    scheduler = Scheduler(512, 0.1)
    assert step(scheduler, [job]) == {job: 256}
    job.slice_end = 1300
    assert step(scheduler, [job]) == {job: 512}


def test_a_prompt_alone_fills_the_step():
    job = Fake(1300, 100)
    scheduler = Scheduler(512, 0.1)
    taken = [step(scheduler, [job])[job] for _ in range(3)]
    assert taken == [412, 512, 276]


def test_while_others_decode_slices_are_short_and_end_at_multiples_of_128():
    jobs = [decoding(), decoding(), Fake(2000, 70)]
    scheduler = Scheduler(512, 0.1)
    taken = step(scheduler, jobs)
    assert [taken[job] for job in jobs] == [1, 1, 58]
    scheduler.measured(500, 0.05)  # 0.1 ms a token: 1,000 would do in the gap
    taken = step(scheduler, jobs)
    assert taken[jobs[2]] == 384  # of the 510 that there is room for
    for _ in range(20):
        scheduler.measured(128, 1.0)
    assert step(scheduler, jobs)[jobs[2]] == 128  # the least


def test_a_step_has_no_more_rows_than_it_can():
    jobs = [decoding() for _ in range(7)]
    scheduler = Scheduler(3, 0.1)
    counts: dict[Any, int] = dict.fromkeys(jobs, 0)
    prompt = Fake(60)
    for _ in range(70):
        taken = step(scheduler, [*jobs, prompt] if prompt.reading else jobs)
        assert sum(taken.values()) <= 3
        for job in taken:
            if job in counts:
                counts[job] += 1
    assert not prompt.reading
    assert sum(counts.values()) == 60 * 2 + 10 * 3
    assert max(counts.values()) - min(counts.values()) <= 1


def test_even_single_rows_are_shared():
    jobs = [decoding(), Fake(5)]
    scheduler = Scheduler(1, 0.1)
    for _ in range(10):
        assert sum(step(scheduler, jobs).values()) == 1
    assert not jobs[1].reading
    assert jobs[0].resident.pos == 15


def test_small_chunks_still_read():
    job = Fake(100)
    scheduler = Scheduler(7, 0.1)
    n_steps = 0
    while job.reading:
        step(scheduler, [job])
        n_steps += 1
    assert n_steps == 15


def test_short_prompts_overtake_long_ones_and_long_ones_get_on():
    scheduler = Scheduler(512, 0.0)
    long_one = Fake(100_000)
    for _ in range(200):  # a stream of short ones that would fill every step
        short = Fake(512)
        n = 0
        while short.reading:
            step(scheduler, [decoding(), long_one, short])
            n += 1
        assert n <= 9  # four slices of its own, every other step
    assert long_one.resident.pos >= 200 * 4 * 128 * 0.8


def test_several_prompts_share_a_step():
    jobs = [Fake(100), Fake(60), Fake(2000)]
    taken = step(Scheduler(512, 0.1), jobs)
    assert taken == {jobs[0]: 100, jobs[1]: 60, jobs[2]: 256}


def test_delayed_and_following_jobs_are_left_out():
    late, waits, done = Fake(100), Fake(100), decoding()
    late.ready_at = done.ready_at = 5.0
    waits.follows = object()  # type: ignore[assignment]
    scheduler = Scheduler(512, 0.1)
    assert step(scheduler, [late, waits, done], now=4.0) == {}
    assert step(scheduler, [late, waits, done], now=5.0) == {done: 1, late: 100}


def test_a_job_that_echoes_comes_alone_and_in_turn():
    scheduler = Scheduler(512, 0.1)
    echo, other = Fake(1000, echoes=True), decoding()
    seen = [list(step(scheduler, [echo, other])) for _ in range(15)]
    assert all(jobs in ([echo], [other]) for jobs in seen)
    assert seen.count([echo]) == 8
    assert not echo.reading


@pytest.mark.parametrize("n", [0, 1, 5000, 4096, 8192])
def test_common_prefix(n: int):
    a = np.arange(9000, dtype=np.int32)
    b = a.copy()
    b[n] = -1
    assert common_prefix(a.tobytes(), b.tobytes()) == n
    assert common_prefix(a.tobytes(), a[:n].tobytes()) == n
    assert common_prefix(a[:n].tobytes(), a.tobytes()) == n


def pool(**options: Any) -> SessionPool:
    defaults = {"cache": None, "n_ctx": 4096, "ram_bytes": 1 << 30, "max_idle": 8}
    return SessionPool(models.load("embedded"), **{**defaults, **options})


def fill(p: SessionPool, tokens: list[int], hint: str | None = None) -> Any:
    array = np.array(tokens, np.int32)
    found = p.acquire(array, (), hint)
    found.resident.session.prefill(array)
    found.resident.session.decode(5)
    p.release(found.resident, np.append(array, np.int32(5)))
    return found


def test_a_hint_decides_between_sessions_that_fit_equally_well():
    p = pool()
    start = [0, *range(300, 500)]
    a = fill(p, [*start, *range(600, 900)], "a").resident
    b = fill(p, [*start, *range(1600, 1900)], "b").resident
    prompt = np.array([*start, *range(2000, 2100)], np.int32)
    for hint, parent in (("a", a), ("b", b)):
        seen = parent.last_used
        found = p.acquire(prompt, (), hint)
        assert found.cached == 128
        assert (found.miss, found.miss_at) == ("diverged", 201)
        assert parent.last_used > seen  # it was forked
        p.drop(found.resident)
    found = p.acquire(prompt, (), "c")
    assert (found.miss, found.miss_at) == ("cold", 201)  # another conversation


def test_what_is_evicted_is_short_or_old_and_said_to_be():
    p = pool(max_idle=3)
    fill(p, [0, *range(300, 3300)], "long")
    for i in range(6):
        fill(p, [0, *range(4000 + 100 * i, 4090 + 100 * i)], f"short {i}")
    assert len(p) == 3
    assert p.n_evicted == 4
    assert max(line["tokens"] for line in p.describe()) == 3002
    found = p.acquire(np.array([0, *range(4000, 4090), 5, 9], np.int32), (), "short 0")
    assert (found.cached, found.miss) == (0, "cold")  # too short to speak of
    p.drop(found.resident)
    p.trim(0)
    assert len(p) == 0
    found = p.acquire(np.arange(300, 3300, dtype=np.int32), (), "long")
    assert (found.cached, found.miss, found.miss_at) == (0, "evicted", 0)


def test_common_history_counts_once():
    p = pool(n_ctx=8192)
    tokens = [0, *range(300, 6300)]
    a = fill(p, tokens)
    one = p.n_bytes
    p.bookmark(a.resident)
    assert one < p.n_bytes < 1.9 * one
    assert a.resident.unique_tokens == 0
