"""What the engine's thread counts, for /health, /metrics and the status page."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

from .jobs import EndReason, JobUsage

__all__ = ["Tally"]


class Tally:
    """Written by the engine's thread, but for what leaves the queue; read by any.

    Attributes:
        job_s: moving average of how long a job runs.
    """

    def __init__(self) -> None:
        self.job_s = 1.0
        self._started = time.monotonic()
        self._counts: Counter[str] = Counter()
        self._ends: Counter[str] = Counter()
        self._misses: Counter[str] = Counter()
        self._prefill_s = self._decode_s = 0.0
        self._last_error = ""

    def refused(self) -> None:
        """The queue was full."""
        self._counts["refused"] += 1

    def begun(self) -> None:
        """A job has a session."""
        self._counts["jobs"] += 1

    def left(self) -> None:
        """A job has ended before it began."""
        self._ends["cancelled"] += 1

    def step(self, n_read: int, seconds: float) -> None:
        """A pass over the weights, which read so many tokens of prompts."""
        self._counts["steps"] += 1
        self._counts["prefilled"] += n_read
        if n_read:
            self._prefill_s += seconds
        else:
            self._decode_s += seconds

    def sampled(self) -> None:
        """A token."""
        self._counts["completion"] += 1

    def ended(self, reason: EndReason, usage: JobUsage, seconds: float) -> None:
        """A job has ended that ran for so long."""
        self._ends[reason] += 1
        self._counts["prompt"] += usage.prompt_tokens
        self._counts["cached"] += usage.cached_tokens
        self._misses[usage.miss] += 1
        self.job_s = 0.9 * self.job_s + 0.1 * seconds

    def failed(self, error: Exception) -> str:
        """A job has failed; what is told of it."""
        self._counts["failed"] += 1
        self._last_error = f"{type(error).__name__}: {error}"
        return self._last_error

    def stats(self) -> dict[str, Any]:
        """Numbers by name."""
        counts = self._counts
        return {
            "uptime_s": time.monotonic() - self._started,
            "jobs": counts["jobs"],
            "jobs_refused": counts["refused"],
            "jobs_failed": counts["failed"],
            "finished": dict(self._ends),
            "misses": dict(self._misses),
            "prompt_tokens": counts["prompt"],
            "cached_tokens": counts["cached"],
            "prefilled_tokens": counts["prefilled"],
            "completion_tokens": counts["completion"],
            "steps": counts["steps"],
            "prefill_s": self._prefill_s,
            "decode_s": self._decode_s,
            "last_error": self._last_error,
        }
