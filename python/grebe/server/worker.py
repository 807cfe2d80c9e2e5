"""The thread that owns the engine: takes jobs from a bounded queue, steps them, posts events."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import threading
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import ContextOverflowError, InvalidArgumentError
from ..generate import _sampler
from .inbox import Inbox
from .jobs import EngineFailed, Finished, Job, JobEvent, JobUsage, QueueFull
from .running import Running, Ticket
from .scheduler import SLICE_TOKENS, Scheduler
from .sessions import SessionPool
from .streams import Channel, JobStream, Post
from .tally import Tally

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..cache import Cache
    from ..model import Model
    from .jobs import EndReason

__all__ = ["EngineWorker"]

log = logging.getLogger("grebe.server")

MAX_RETRY_AFTER_S = 60


class EngineWorker:
    """Runs jobs on a model; a :class:`JobRunner`.

    Args:
        model: stays open as long as the worker lives; closed by whoever opened it.
        cache: of the model, for sessions to use.
        n_ctx: tokens that a prompt and its answer may have; None: as many as the model can.
        max_waiting: jobs in the queue beyond those that can run; more are refused.
        max_running: jobs that have a session at a time.
        max_idle: sessions that are kept between jobs.
        ram_bytes: what these may hold.
        gap_s: how long a running answer may wait for a slice of another job's prompt.

    Example:
        >>> import asyncio, grebe
        >>> from grebe.server.jobs import Finished, Job, Sunk
        >>> class Ignore:
        ...     def feed(self, token):
        ...         return Sunk()
        ...     def finish(self, reason):
        ...         return ()
        >>> async def run(worker):
        ...     job = Job([0, 2383, 692], Ignore(), max_tokens=3)
        ...     return [event async for event in worker.submit(job)][-1].reason
        >>> with EngineWorker(grebe.Model.load(), n_ctx=256) as worker:
        ...     asyncio.run(run(worker))
        'length'
    """

    def __init__(
        self,
        model: Model,
        *,
        cache: Cache | None = None,
        n_ctx: int | None = None,
        max_waiting: int = 64,
        max_running: int = 16,
        max_idle: int = 64,
        ram_bytes: int = 4 << 30,
        gap_s: float = 0.25,
    ) -> None:
        self.model, self.cache = model, cache
        self.n_ctx = model.config.max_context if n_ctx is None else n_ctx
        self.max_running = max_running
        self._inbox = Inbox(max_waiting)
        self._pool = SessionPool(
            model, cache=cache, n_ctx=self.n_ctx, ram_bytes=ram_bytes, max_idle=max_idle
        )
        self._scheduler = Scheduler(int(model.options["prefill_chunk"]), gap_s)
        self._post = Post()
        # Of the engine's thread; others only look.
        self._running: list[Running] = []
        self._thread = threading.Thread(target=self._main, name="grebe-engine", daemon=True)
        self._tally = Tally()

    # ---------------------------------------------------------------- in the event loop

    def start(self) -> EngineWorker:
        """Takes jobs from now on."""
        self._inbox.open()
        self._thread.start()
        return self

    def submit(self, job: Job) -> AsyncIterator[JobEvent]:
        """Queues a job at once and returns its events; closing the iterator cancels the job.

        A job that its deadline ends, or that is cut off by a shutdown in good time, is finished
        with the reason "cancelled".

        Raises:
            QueueFull: too many are waiting.
            Loading: not started, or shutting down.
            ContextOverflowError: the prompt leaves no room for a token.
            InvalidArgumentError: no prompt, or a sampling option out of range.
        """
        n = len(job.tokens)
        if n == 0:
            raise InvalidArgumentError("the prompt has no tokens; at least 1 is expected")
        if n >= self.n_ctx:
            raise ContextOverflowError(
                f"prompt of {n} tokens leaves no room in a context of {self.n_ctx}", n, self.n_ctx
            )
        seed, vocab_size = job.sampling.resolved_seed(), self.model.config.vocab_size
        sampler = _sampler(job.sampling, seed, n, vocab_size)  # as Session.generate draws
        channel = Channel(asyncio.get_running_loop())
        ticket = Ticket(job, channel, sampler, self.n_ctx, time.monotonic())
        n_free = max(self.max_running - len(self._running), 0)
        try:
            self._inbox.put(ticket, n_free, self._retry_after_s)
        except QueueFull:
            self._tally.refused()
            raise
        return JobStream(channel, lambda: self._cancel(ticket))

    def _cancel(self, ticket: Ticket) -> None:
        if self._inbox.cancel(ticket):  # else it runs, or has ended
            self._tally.left()

    def _retry_after_s(self, n_waiting: int) -> int:
        """When about half of those that wait will have left the queue."""
        wait_s = self._tally.job_s * n_waiting / self.max_running / 2
        return min(max(math.ceil(wait_s), 1), MAX_RETRY_AFTER_S)

    def stats(self) -> dict[str, Any]:
        """Numbers for /health, /metrics and the status page. Callable from any thread."""
        running = [
            {
                "prompt_tokens": len(job.prompt),
                "read_tokens": min(job.resident.pos, len(job.prompt)),
                "cached_tokens": job.progress().cached,
                "completion_tokens": len(job.out),
            }
            for job in list(self._running)
        ]
        return {
            **self._tally.stats(),
            "state": self._inbox.state,
            "n_ctx": self.n_ctx,
            "n_waiting": len(self._inbox),
            "n_running": len(running),
            "max_waiting": self._inbox.max_waiting,
            "max_running": self.max_running,
            "running": running,
            "sessions": self._pool.describe(),
            "sessions_evicted": self._pool.n_evicted,
            "sessions_forked": self._pool.n_forked,
        }

    def close(self, timeout_s: float = 10.0) -> None:
        """Takes no more jobs, gives those that run some time to end, and flushes the cache.

        Jobs that are still there then, and those in the queue, raise :class:`EngineFailed`.
        Twice is fine.
        """
        begun = self._inbox.stop(timeout_s)
        if begun and self._thread is not threading.current_thread():
            self._thread.join()

    def __enter__(self) -> EngineWorker:
        return self.start()

    def __exit__(self, *error: object) -> None:
        self.close()

    # ---------------------------------------------------------------- on the engine's thread

    def _main(self) -> None:
        while True:
            try:
                if not self._next():
                    break
            except Exception as error:  # a fault of our own: nobody is to wait for ever
                if not self._running:
                    log.exception("the engine's thread failed")
                    self._stop(f"the server failed: {error!r}")
                    return
                for job in list(self._running):
                    self._drop(job, error)
        self._stop("the server is shutting down")

    def _next(self) -> bool:
        """One step, or a wait for something to do. False: the worker is to end."""
        stopping = self._inbox.state == "stopping"
        if stopping and (not self._running or time.monotonic() >= self._inbox.stop_at):
            return False
        taken = self._inbox.take(self.max_running - len(self._running))
        for ticket in taken.late:
            self._give_up(ticket)
        for ticket in taken.refused:
            self._post.put(ticket.channel, EngineFailed("the server is shutting down"))
        for ticket in taken.next:
            self._admit(ticket)
        now = time.monotonic()
        for job in list(self._running):
            if job.channel.cancelled or job.ticket.deadline <= now:
                self._end(job, "cancelled")
            elif job.first_logits is not None and job.ready_at <= now:
                self._sample_first(job, now)
            elif job.follows is not None:
                self._follow(job)
        self._post.send()
        plan = self._scheduler.plan(self._running, time.monotonic())
        if plan:
            self._step(plan)
        self._post.send()
        if not plan:
            self._sleep()
        return True

    def _give_up(self, ticket: Ticket) -> None:
        """Ends a job that has never begun."""
        self._tally.left()
        queued_s = time.monotonic() - ticket.since
        usage = JobUsage(len(ticket.job.tokens), 0, 0, queued_s=queued_s)
        deltas = ticket.job.sink.finish("cancelled")
        self._post.put(ticket.channel, Finished("cancelled", deltas, usage))

    def _sleep(self) -> None:
        """Waits until a job comes, one is cancelled, or a delay is over."""
        until = [job.ready_at for job in self._running if job.follows is None]
        until += [job.ticket.deadline for job in self._running]
        n_free = self.max_running - len(self._running)
        self._inbox.wait(min(until, default=math.inf), n_free, self._news)

    def _news(self) -> bool:
        if not self._running:
            return self._inbox.state == "stopping"
        return any(job.channel.cancelled for job in self._running)

    def _admit(self, ticket: Ticket) -> None:
        if ticket.channel.cancelled:
            self._tally.left()
            return
        job = ticket.job
        try:
            prompt = np.array(job.tokens, np.int32)
            if job.echo_logprobs is not None:
                found = self._pool.empty(prompt)
            else:
                found = self._pool.acquire(prompt, _marks(job), job.session_hint)
        except Exception as error:
            self._fail(ticket.channel, error)
            return
        running = Running(ticket, prompt, found, keeps_starts=self.cache is None)
        if not running.echoes:
            self._find_leader(running)
        self._running.append(running)
        self._tally.begun()
        self._post.put(running.channel, running.progress())

    def _find_leader(self, job: Running) -> None:
        delayed = {r.resident for r in self._running if r.ready_at > 0}  # by a script
        job.follows = self._pool.reader_of(job.resident, delayed)

    def _follow(self, job: Running) -> None:
        """Another job reads what this one shares with it: goes on from there when it is done."""
        assert job.follows is not None
        leader, n_common = job.follows
        if leader.busy and leader.pos < n_common and self._pool.holds(leader):
            return
        job.follows = None
        self._pool.release(job.resident, job.covered())
        try:
            job.found(self._pool.acquire(job.prompt, _marks(job.job), job.job.session_hint))
        except Exception as error:
            self._running.remove(job)
            self._fail(job.channel, error)
            return
        self._post.put(job.channel, job.progress())

    def _step(self, plan: list[tuple[Running, int]]) -> None:
        begin = time.monotonic()
        done = self._compute(plan)
        now = time.monotonic()
        n_read = sum(n for job, n in plan if job.reading)
        self._scheduler.measured(n_read, now - begin)
        self._tally.step(n_read, now - begin)
        for job, n, logits in done:
            try:
                self._took(job, n, logits, now)
            except Exception as error:  # of its sampler, its mask or its sink
                self._drop(job, error)

    def _compute(
        self, plan: list[tuple[Running, int]]
    ) -> list[tuple[Running, int, NDArray[np.float32]]]:
        """The jobs that came through, with their logits."""
        try:
            return self._forward(plan)
        except Exception as error:
            if isinstance(error, MemoryError):
                self._pool.trim(0)
            elif len(plan) == 1:
                self._drop(plan[0][0], error)
                return []
        done = []
        for item in plan:  # sessions are as before the call: who can go on does
            try:
                done += self._forward([item])
            except Exception as error:
                self._drop(item[0], error)
        return done

    def _forward(
        self, plan: list[tuple[Running, int]]
    ) -> list[tuple[Running, int, NDArray[np.float32]]]:
        inputs = []
        for job, n in plan:
            pos = job.resident.pos
            tokens = job.prompt[pos : pos + n] if job.reading else job.out[-1:]
            inputs.append((job.resident.session, tokens))
        echoes = plan[0][0].reading and plan[0][0].echoes
        logits = self.model.step(inputs, logits="all" if echoes else "last")
        if echoes:
            return [(plan[0][0], plan[0][1], logits)]
        return [(job, n, logits[i]) for i, (job, n) in enumerate(plan)]

    def _took(self, job: Running, n: int, logits: NDArray[np.float32], now: float) -> None:
        """A job's tokens are in its session."""
        if job.reading:
            job.read(n, now)
            if job.echoes:
                job.read_logits(logits)
                logits = logits[-1]
            self._keep_start(job)
            self._post.put(job.channel, job.progress())
            if job.reading:
                return
            job.resident.session.end_turn()
            self._pool.bookmark(job.resident)
            if job.ready_at > now:  # a script delays its first token, too
                job.first_logits = logits
                return
        else:
            job.resident.pos += 1
        self._sample(job, logits, now)

    def _sample_first(self, job: Running, now: float) -> None:
        logits, job.first_logits = job.first_logits, None
        assert logits is not None
        try:
            self._sample(job, logits, now)
        except Exception as error:
            self._drop(job, error)

    def _sample(self, job: Running, logits: NDArray[np.float32], now: float) -> None:
        event = job.sample(logits, now)
        self._tally.sampled()
        self._post.put(job.channel, event)
        if job.end is not None:
            self._end(job, job.end)

    def _keep_start(self, job: Running) -> None:
        """A fork where other prompts may part from this one. A cache knows such places."""
        pos = job.resident.pos
        if pos in job.starts and pos < len(job.prompt):
            self._pool.keep_start(job.resident, pos)

    def _end(self, job: Running, reason: EndReason) -> None:
        now = time.monotonic()
        self._running.remove(job)
        try:
            job.resident.session.end_turn()
            self._pool.release(job.resident, job.covered())
            if job.job.on_done is not None:
                job.job.on_done(list(job.out), reason)
            event = job.finish(reason, now)
        except Exception as error:
            self._fail(job.channel, error)
            return
        self._post.put(job.channel, event)
        self._tally.ended(reason, event.usage, now - job.started)

    def _drop(self, job: Running, error: Exception) -> None:
        """The engine failed under a job: its state is not trusted any more."""
        self._running.remove(job)
        self._pool.drop(job.resident)
        self._fail(job.channel, error)

    def _fail(self, channel: Channel, error: Exception) -> None:
        log.error("a job failed", exc_info=error)
        failure = EngineFailed(self._tally.failed(error))
        failure.__cause__ = error
        self._post.put(channel, failure)

    def _stop(self, why: str) -> None:
        waiting = self._inbox.end()
        for channel in [ticket.channel for ticket in waiting] + [
            job.channel for job in self._running
        ]:
            self._post.put(channel, EngineFailed(why))
        for job in self._running:
            with contextlib.suppress(Exception):
                self._pool.release(job.resident, job.covered())
        self._running = []
        self._post.send()
        with contextlib.suppress(Exception):
            self._pool.close()
        if self.cache is not None:
            left = max(self._inbox.stop_at - time.monotonic(), 5.0)
            with contextlib.suppress(Exception):
                self.cache.flush(left)


def _marks(job: Job) -> list[int]:
    """Positions that the cache is to keep: the job's, and some before the end of its prompt.

    Clients put changing text there, so the next prompt may part a little before.
    """
    n = len(job.tokens)
    marks = {mark for mark in job.marks if 0 <= mark <= n}
    return sorted(marks | set(range(max(n - 4 * SLICE_TOKENS, 0), n, SLICE_TOKENS)))
