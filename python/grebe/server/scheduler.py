"""What the engine does next: decode rows of all running jobs, and a slice of the prompts.

Each step takes one row of every job that decodes. While there are some, a slice of a prompt is so
short that they wait no longer than ``gap_s`` for their next token; else it fills the step. Slices
end at multiples of 128 tokens, where the engine makes checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .running import Running

__all__ = ["SLICE_TOKENS", "Scheduler"]

SLICE_TOKENS = 128
# Steps that read fewer tokens say little about the cost of a token.
LEAST_MEASURED = 64


class Scheduler:
    """Chooses who takes part in a step.

    Args:
        chunk_tokens: that one step takes at most.
        gap_s: how long a job that decodes may wait for a slice of another's prompt. A slice has at
            least 128 tokens all the same.
    """

    def __init__(self, chunk_tokens: int, gap_s: float) -> None:
        self._chunk_tokens, self._gap_s = chunk_tokens, gap_s
        self._token_s: float | None = None  # of a prompt's token
        self._n_steps = 0
        self._n_served = 1  # 0 marks jobs that are new

    def plan(self, jobs: Sequence[Running], now: float) -> list[tuple[Running, int]]:
        """Pairs of a job and how many tokens of it to take; 1 for one that decodes.

        A job that echoes its prompt's log-probabilities comes alone.
        """
        self._n_steps += 1
        for job in jobs:
            if job.served == 0:  # new: as if it had been served just now
                job.served = self._n_served
        readers = self._readers(jobs, now)
        decoding = [job for job in jobs if not job.reading]
        batch = [job for job in decoding if job.out and job.ready_at <= now]
        most = self._chunk_tokens
        if readers:  # of a small step they get a share, too
            most -= max(most // 4, self._n_steps % 2 if most == 1 else 1)
        if len(batch) > most:
            batch = sorted(batch, key=lambda job: job.served)[:most]
        plan = [(job, 1) for job in batch]
        room = self._chunk_tokens - len(plan)
        if decoding:
            room = min(room, self._slice_tokens())
        for job in readers:
            if job.echoes:
                if plan and self._n_steps % 2 == 0:  # takes turns with the others
                    continue
                plan = [(job, min(job.remaining, SLICE_TOKENS, self._chunk_tokens))]
                break
            pos = job.resident.pos
            n = _slice(pos, job.slice_end - pos, room)
            if n > 0:
                plan.append((job, n))
                room -= n
        for job, _ in plan:
            self._n_served += 1
            job.served = self._n_served
        return plan

    def _readers(self, jobs: Sequence[Running], now: float) -> list[Running]:
        """Whose prompt is to be read, in order.

        In every other step the shortest comes first, in the others the one that has waited longest:
        short ones are quick, and no one starves.
        """
        ready = [job for job in jobs if job.reading and job.ready_at <= now and not job.follows]
        if self._n_steps % 2:
            return sorted(ready, key=lambda job: job.served)
        return sorted(ready, key=lambda job: job.remaining)

    def _slice_tokens(self) -> int:
        if self._token_s is None:
            return SLICE_TOKENS
        n = int(self._gap_s / self._token_s)
        return max(n - n % SLICE_TOKENS, SLICE_TOKENS)

    def measured(self, n_tokens: int, seconds: float) -> None:
        """A step took so long, which read so many tokens of prompts."""
        if n_tokens >= LEAST_MEASURED:
            token_s = seconds / n_tokens
            old = self._token_s
            self._token_s = token_s if old is None else 0.7 * old + 0.3 * token_s


def _slice(pos: int, remaining: int, room: int) -> int:
    """How many tokens to read: all, or up to a multiple of 128, or what there is room for."""
    if remaining <= room:
        return remaining
    return (pos + room) // SLICE_TOKENS * SLICE_TOKENS - pos if room >= SLICE_TOKENS else room
