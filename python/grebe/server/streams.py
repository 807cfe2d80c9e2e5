"""A job's events on their way from the engine's thread to the event loop."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence

from .jobs import Finished, JobEvent

__all__ = ["Channel", "JobStream", "Post"]


class Channel:
    """The engine's end: where events are put.

    Attributes:
        cancelled: nobody listens any more. Set in the event loop, read by the engine's thread.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.cancelled = False
        self._items: deque[JobEvent | Exception] = deque()
        self._waiter: asyncio.Future[None] | None = None

    def deliver(self, item: JobEvent | Exception) -> None:
        """One more event, or the error that ends them; in the event loop."""
        if self.cancelled:
            return
        self._items.append(item)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def next(self) -> JobEvent | Exception:
        """The next event, when there is one."""
        while not self._items:
            self._waiter = self.loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        return self._items.popleft()

    def forget(self) -> None:
        """Drops what has not been read."""
        self._items.clear()


class JobStream(AsyncIterator[JobEvent]):
    """The listener's end: the job's events. Closing it, or dropping it, cancels the job."""

    def __init__(self, channel: Channel, cancel: Callable[[], None]) -> None:
        self._channel, self._cancel = channel, cancel
        self._ended = False

    async def __anext__(self) -> JobEvent:
        if self._ended:
            raise StopAsyncIteration
        item = await self._channel.next()
        if isinstance(item, Exception):
            self._ended = True
            raise item
        if isinstance(item, Finished):
            self._ended = True
        return item

    async def aclose(self) -> None:
        """Cancels the job, unless it has ended."""
        self.close()

    def close(self) -> None:
        """As :meth:`aclose`, for callers that cannot wait."""
        if not self._ended:
            self._ended = True
            self._channel.forget()
            self._cancel()

    def __del__(self) -> None:
        self.close()


class Post:
    """Collects what a step of the engine made, and wakes each event loop once for all of it."""

    def __init__(self) -> None:
        self._waiting: dict[asyncio.AbstractEventLoop, list[tuple[Channel, JobEvent | Exception]]]
        self._waiting = {}

    def put(self, channel: Channel, item: JobEvent | Exception) -> None:
        """Delivered with the next :meth:`send`."""
        if not channel.cancelled:
            self._waiting.setdefault(channel.loop, []).append((channel, item))

    def send(self) -> None:
        """Hands over what was put."""
        if not self._waiting:
            return
        waiting, self._waiting = self._waiting, {}
        for loop, items in waiting.items():
            try:
                loop.call_soon_threadsafe(_deliver, items)
            except RuntimeError:  # the loop is closed: nobody listens
                for channel, _ in items:
                    channel.cancelled = True


def _deliver(items: Sequence[tuple[Channel, JobEvent | Exception]]) -> None:
    for channel, item in items:
        channel.deliver(item)
