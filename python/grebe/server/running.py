"""One job on its way through the engine: what it still needs, and what becomes of its logits."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Literal

import numpy as np

from ..events import TokenLogprob
from ..generate import pack_mask
from .jobs import EndReason, Finished, Job, JobUsage, Progress, TokenEvent
from .sessions import CHECKPOINT_TOKENS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .. import _engine
    from .sessions import Found, Resident
    from .streams import Channel

__all__ = ["Running", "Ticket", "log_probabilities"]


class Ticket:
    """A job that waits for its turn."""

    __slots__ = ("channel", "job", "limit", "limit_reason", "sampler", "since")

    def __init__(
        self, job: Job, channel: Channel, sampler: _engine.Sampler, n_ctx: int, now: float
    ) -> None:
        room = n_ctx - len(job.tokens)
        wanted = room + 1 if job.max_tokens is None else job.max_tokens
        self.job, self.channel, self.sampler, self.since = job, channel, sampler, now
        self.limit = min(wanted, room)
        self.limit_reason: Literal["length", "context"] = "length" if wanted <= room else "context"

    @property
    def deadline(self) -> float:
        """When to give up."""
        return float("inf") if self.job.deadline_s is None else self.since + self.job.deadline_s


class Running:
    """A job that has a session.

    Attributes:
        prompt: i32[n].
        resident: its session in the pool.
        out: tokens sampled so far; all but the newest are in the session.
        first_logits: of the prompt, while a script delays the first token.
        ready_at: not to be stepped before this time.
        follows: another session that reads the same prompt's beginning, and how much of it; to be
            waited for.
        starts: places to keep, since other prompts may part from this one there: after its system
            part, and where one did.
        served: grows with each step that took part of it; the least has waited longest.
    """

    def __init__(
        self, ticket: Ticket, prompt: NDArray[np.int32], found: Found, *, keeps_starts: bool
    ) -> None:
        self.ticket, self.job, self.prompt = ticket, ticket.job, prompt
        self.channel, self.sampler = ticket.channel, ticket.sampler
        self.started = time.monotonic()
        self.first_token = 0.0
        self.out: list[int] = []
        self.end: EndReason | None = None
        self.first_logits: NDArray[np.float32] | None = None
        self.ready_at = 0.0
        self.follows: tuple[Resident, int] | None = None
        self.served = 0
        self.prompt_logprobs: list[tuple[int, float, tuple[TokenLogprob, ...]]] = []
        self._stop_sequence: str | None = None
        self._keeps_starts = keeps_starts
        self.found(found)
        if self.job.sampling.repetition_penalty != 1.0:
            self.sampler.observe_prompt(prompt)

    def found(self, found: Found) -> None:
        """Goes on from another session."""
        self.resident, self._found = found.resident, found
        marks = [min(self.job.marks, default=0), found.shared] if self._keeps_starts else []
        self.starts = sorted({mark - mark % CHECKPOINT_TOKENS for mark in marks} - {0})

    @property
    def remaining(self) -> int:
        """Tokens of the prompt that are still to be read."""
        return max(len(self.prompt) - self.resident.pos, 0)

    @property
    def reading(self) -> bool:
        """Whether the prompt is not read yet."""
        return self.resident.pos < len(self.prompt)

    @property
    def echoes(self) -> bool:
        """Whether logits of every position of the prompt are wanted."""
        return self.job.echo_logprobs is not None

    @property
    def slice_end(self) -> int:
        """Where a slice of the prompt ends at the latest."""
        pos = self.resident.pos
        return next((start for start in self.starts if start > pos), len(self.prompt))

    def covered(self) -> NDArray[np.int32]:
        """The tokens that the session covers."""
        pos, n = self.resident.pos, len(self.prompt)
        if pos <= n:
            return self.prompt[:pos]
        return np.concatenate([self.prompt, np.asarray(self.out[: pos - n], np.int32)])

    def progress(self) -> Progress:
        """Of the prompt."""
        found = self._found
        n_read, n = self.resident.pos, len(self.prompt)
        return Progress(n_read, n, found.cached, found.miss, found.miss_at)

    def read(self, n: int, now: float) -> None:
        """``n`` more tokens of the prompt are in the session."""
        self.resident.pos += n
        script = self.job.script
        if script is not None and script.prefill_delay_s > 0:  # that long in all
            done = self.resident.pos / len(self.prompt)
            self.ready_at = max(now, self.started + done * script.prefill_delay_s)

    def read_logits(self, logits: NDArray[np.float32]) -> None:
        """Of the prompt's last tokens, which have been read just now: log-probabilities."""
        n_top, end = self.job.echo_logprobs or 0, self.resident.pos
        if not self.prompt_logprobs:
            self.prompt_logprobs.append((int(self.prompt[0]), float("nan"), ()))
        for row, i in zip(logits, range(end - len(logits) + 1, end + 1), strict=True):
            if i < len(self.prompt):
                token = int(self.prompt[i])
                self.prompt_logprobs.append((token, *log_probabilities(row, token, n_top)))

    def sample(self, logits: NDArray[np.float32], now: float) -> TokenEvent:
        """The next token. Sets :attr:`end` when it is the last one.

        Raises:
            GrebeError: logits that are no numbers, a mask that allows nothing; whatever a hook or
                the sink raises.
        """
        if not self.out:
            self.first_token = now
        script = self.job.script
        n_top = self.job.sampling.top_logprobs
        if script is not None:
            token = script.tokens[len(self.out)]
            logprob, top = log_probabilities(logits, token, n_top)
            self.ready_at = now + script.token_delay_s
        else:
            token, logprob, best = self.sampler.sample(logits, self._mask())
            top = tuple(TokenLogprob(i, p) for i, p in best) if best else ()
        self.out.append(token)
        sunk = self.job.sink.feed(token)
        if sunk.end is not None:
            self.end, self._stop_sequence = sunk.end, sunk.stop_sequence
        elif len(self.out) >= self.ticket.limit:
            self.end = self.ticket.limit_reason
        elif script is not None and len(self.out) >= len(script.tokens):
            self.end = script.finish
        return TokenEvent(token, sunk.deltas, logprob, top)

    def _mask(self) -> NDArray[np.uint32] | None:
        if self.job.sampling.mask is None:
            return None
        allowed = self.job.sampling.mask(self.out)
        return None if allowed is None else pack_mask(allowed, self._vocab_size)

    @property
    def _vocab_size(self) -> int:
        return self.resident.session.model.config.vocab_size

    def finish(self, reason: EndReason, now: float) -> Finished:
        """The last event."""
        return Finished(
            reason,
            self.job.sink.finish(reason),
            self.usage(now),
            self._stop_sequence,
            self.prompt_logprobs,
        )

    def usage(self, now: float) -> JobUsage:
        """Counts so far."""
        read_until = self.first_token or now
        return JobUsage(
            prompt_tokens=len(self.prompt),
            cached_tokens=self._found.cached,
            completion_tokens=len(self.out),
            miss=self._found.miss,
            miss_at=self._found.miss_at,
            prefill_s=read_until - self.started,
            decode_s=now - read_until,
            queued_s=self.started - self.ticket.since,
        )


def log_probabilities(
    logits: NDArray[np.float32], token: int, n_top: int
) -> tuple[float, tuple[TokenLogprob, ...]]:
    """Of a token, and of the likeliest ones, before penalties and temperature."""
    row = logits.astype(np.float64)
    top = row.max()
    total = top + float(np.log(np.exp(row - top).sum()))
    best: tuple[TokenLogprob, ...] = ()
    if n_top > 0:
        n_top = min(n_top, len(row))
        ids = np.argpartition(-row, n_top - 1)[:n_top]
        ids = ids[np.lexsort((ids, -row[ids]))]
        best = tuple(TokenLogprob(int(i), float(row[i] - total)) for i in ids)
    return float(row[token] - total), best
