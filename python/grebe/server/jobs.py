"""What passes between the request handlers and the thread that owns the engine.

A handler makes a :class:`Job` and gives it to a :class:`JobRunner`; events come back as they
happen. Neither side knows more of the other than this file.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from ..chat.deltas import Delta, EndReason, Sunk
from ..config import Sampling
from ..events import TokenLogprob

__all__ = [
    "EndReason",
    "EngineFailed",
    "Finished",
    "Job",
    "JobEvent",
    "JobRunner",
    "JobUsage",
    "Loading",
    "Progress",
    "QueueFull",
    "Script",
    "Sink",
    "Sunk",
    "TokenEvent",
]


class QueueFull(Exception):
    """No room for another job now. ``retry_after_s``: when to ask again."""

    def __init__(self, waiting: int, retry_after_s: int) -> None:
        super().__init__(f"{waiting} requests are waiting already; try again in {retry_after_s} s")
        self.waiting, self.retry_after_s = waiting, retry_after_s


class Loading(Exception):
    """The model is not loaded yet, or the server is shutting down."""


class EngineFailed(Exception):
    """The engine failed in the middle of a job; its state is lost, the server goes on."""


class Sink(Protocol):
    """Makes deltas of sampled tokens. Called by the engine's thread only; must be quick."""

    def feed(self, token: int) -> Sunk:
        """One more token, the end token included."""

    def finish(self, reason: EndReason) -> Sequence[Delta]:
        """No more tokens will come: what was held back. Called once, also after an end of feed."""


@dataclass(frozen=True, slots=True)
class Script:
    """Forced output, for tests: the forward pass runs, the sampled token is replaced.

    Attributes:
        tokens: what the model "samples", the end token included unless ``finish`` is "length".
        finish: "length" ends the output as max_tokens would.
        prefill_delay_s: slept between prefill chunks.
        token_delay_s: slept between tokens.
        label: for the header x-scripted.
    """

    tokens: tuple[int, ...]
    finish: Literal["stop", "length"] = "stop"
    prefill_delay_s: float = 0.0
    token_delay_s: float = 0.0
    label: str = ""


@dataclass(slots=True)
class Job:
    """One generation.

    Attributes:
        tokens: the prompt, whole.
        sink: what becomes of the output.
        max_tokens: at most so many; None: what the context has room for.
        sampling: ``sampling.mask`` is called before each token with all of them so far, in a list
            that grows; it must neither keep nor change it.
        marks: positions in ``tokens`` that later prompts may share: end of the system part, ends
            of messages, generation header.
        session_hint: what the client says of the conversation it belongs to; a preference among
            sessions that fit equally well, never more.
        script: forced output.
        echo_logprobs: also deliver log-probabilities of the prompt's tokens (raw completions).
        on_done: called by the engine's thread when the output is over, before :class:`Finished`
            is delivered, with all sampled ids and the reason; for the replay table.
        deadline_s: give up after so many seconds in all; None: never.
    """

    tokens: list[int]
    sink: Sink
    max_tokens: int | None = None
    sampling: Sampling = field(default_factory=Sampling)
    marks: tuple[int, ...] = ()
    session_hint: str | None = None
    script: Script | None = None
    echo_logprobs: int | None = None
    on_done: Callable[[list[int], EndReason], None] | None = None
    deadline_s: float | None = None


@dataclass(frozen=True, slots=True)
class Progress:
    """Of the prompt: ``done`` of ``total`` tokens are there, ``cached`` of them were at the start.

    Comes once when the job leaves the queue, then after each chunk. ``miss`` and ``miss_at`` are
    those of :class:`JobUsage`.
    """

    done: int
    total: int
    cached: int
    miss: str = "none"
    miss_at: int | None = None


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """One sampled token and the deltas that it made certain, possibly none."""

    token: int
    deltas: Sequence[Delta]
    logprob: float = 0.0
    top_logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class JobUsage:
    """Token counts, and why the prefix that was found is not longer.

    Attributes:
        miss: reason for what had to be computed beyond the newest part, for metrics and logs:
            "none", "cold", "diverged", "evicted", "rewound" (a session is further along, and
            cannot go back to where the prompt ends); with the position in ``miss_at``.
    """

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    miss: str = "none"
    miss_at: int | None = None
    prefill_s: float = 0.0
    decode_s: float = 0.0
    queued_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Finished:
    """The last event. ``deltas``: what the sink had held back."""

    reason: EndReason
    deltas: Sequence[Delta]
    usage: JobUsage
    stop_sequence: str | None = None
    prompt_logprobs: Sequence[tuple[int, float, tuple[TokenLogprob, ...]]] = ()


JobEvent = Progress | TokenEvent | Finished


class JobRunner(Protocol):
    """Runs jobs on the engine. Methods are called in the event loop."""

    def submit(self, job: Job) -> AsyncIterator[JobEvent]:
        """Queues a job at once and returns its events; closing the iterator cancels the job.

        Raises:
            QueueFull: too many are waiting.
            Loading: not ready, or shutting down.

        The iterator raises EngineFailed when the engine fails under the job.
        """

    def stats(self) -> dict[str, Any]:
        """Numbers for /health, /metrics and the status page."""
