"""What is known of a request when it is over, for the log and for metrics. Never any text of it.

The application opens a note before it calls a handler; the turn that the handler starts writes into
it. The two find each other by the task in which they run.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextvars import ContextVar
from dataclasses import dataclass

from .jobs import EngineFailed, Finished, Job, JobEvent, Progress, TokenEvent

__all__ = ["Note", "current", "noted"]


@dataclass(slots=True)
class Note:
    """Of one request; it has a turn when ``prompt_tokens`` is not None.

    Attributes:
        cached_tokens: None: the job has not left the queue.
        miss: why more was computed than what is new; see :class:`~.jobs.JobUsage`.
        end: the reason of the end; "gone" when the client left, "failed" when the engine did.
        scripted: which reply was forced, if any.
    """

    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    completion_tokens: int = 0
    miss: str = "none"
    miss_at: int | None = None
    end: str = "gone"
    scripted: str | None = None

    def __str__(self) -> str:
        """For a line of the log; empty without a turn."""
        if self.prompt_tokens is None:
            return ""
        cached = "-" if self.cached_tokens is None else self.cached_tokens
        at = "" if self.miss_at is None else f"@{self.miss_at}"
        scripted = "" if self.scripted is None else f" scripted={self.scripted}"
        return (
            f" prompt={self.prompt_tokens} cached={cached} completion={self.completion_tokens}"
            f" miss={self.miss}{at} end={self.end}{scripted}"
        )


#: The note of the request that the running task works for.
current: ContextVar[Note | None] = ContextVar("grebe_note", default=None)


def noted(stream: AsyncIterator[JobEvent], job: Job) -> AsyncIterator[JobEvent]:
    """The same events; what they say goes into the current note, if there is one."""
    note = current.get()
    return stream if note is None else _Noted(stream, job, note)


class _Noted(AsyncIterator[JobEvent]):
    def __init__(self, stream: AsyncIterator[JobEvent], job: Job, note: Note) -> None:
        self._stream, self._note = stream, note
        note.prompt_tokens = len(job.tokens)
        note.scripted = None if job.script is None else job.script.label

    async def __anext__(self) -> JobEvent:
        note = self._note
        try:
            event = await self._stream.__anext__()
        except EngineFailed:
            note.end = "failed"
            raise
        if isinstance(event, TokenEvent):
            note.completion_tokens += 1
        elif isinstance(event, Progress):
            note.cached_tokens = event.cached
            note.miss, note.miss_at = event.miss, event.miss_at
        elif isinstance(event, Finished):
            usage = event.usage
            note.end, note.cached_tokens = event.reason, usage.cached_tokens
            note.completion_tokens = usage.completion_tokens
            note.miss, note.miss_at = usage.miss, usage.miss_at
        return event

    async def aclose(self) -> None:
        """Cancels the job, unless it has ended."""
        close = getattr(self._stream, "aclose", None)
        if close is not None:
            await close()
