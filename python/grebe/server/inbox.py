"""The bounded queue between the event loops and the engine's thread, and whether it is open."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from .jobs import Loading, QueueFull
from .running import Ticket

__all__ = ["Inbox", "Taken"]


@dataclass(frozen=True, slots=True)
class Taken:
    """What left the queue.

    Attributes:
        next: whose turn it is.
        late: whose time is up.
        refused: since the engine stops.
    """

    next: list[Ticket] = field(default_factory=list)
    late: list[Ticket] = field(default_factory=list)
    refused: list[Ticket] = field(default_factory=list)


class Inbox:
    """Thread-safe.

    Args:
        max_waiting: beyond those that there is a place for.

    Attributes:
        state: tickets are taken while it is "ready".
        stop_at: when "stopping": the time at which whatever runs is to end.
    """

    def __init__(self, max_waiting: int) -> None:
        self.max_waiting = max_waiting
        self.state: Literal["loading", "ready", "stopping", "stopped"] = "loading"
        self.stop_at = 0.0
        self._tickets: deque[Ticket] = deque()
        self._changed = threading.Condition()

    def __len__(self) -> int:
        return len(self._tickets)

    def open(self) -> None:
        """Takes tickets from now on."""
        with self._changed:
            self.state = "ready"

    def put(self, ticket: Ticket, n_free: int, retry_after_s: Callable[[int], int]) -> None:
        """One more at the end.

        Args:
            ticket: which.
            n_free: places of the engine that are about to be taken.
            retry_after_s: for so many that wait: when to come again.

        Raises:
            QueueFull: too many are waiting.
            Loading: not open.
        """
        with self._changed:
            if self.state != "ready":
                raise Loading(f"the engine is {self.state}")
            n = len(self._tickets)
            if n >= self.max_waiting + n_free:
                raise QueueFull(n, retry_after_s(n))
            self._tickets.append(ticket)
            self._changed.notify()

    def cancel(self, ticket: Ticket) -> bool:
        """Marks it and wakes the engine. True: it was still here, and is not any more."""
        ticket.channel.cancelled = True
        with self._changed:
            self._changed.notify()
            if ticket not in self._tickets:
                return False
            self._tickets.remove(ticket)
            return True

    def take(self, n_free: int) -> Taken:
        """Those that leave now; ``n_free``: places of the engine."""
        now, taken = time.monotonic(), Taken()
        with self._changed:
            taken.late.extend(ticket for ticket in self._tickets if ticket.deadline <= now)
            for ticket in taken.late:
                self._tickets.remove(ticket)
            if self.state == "stopping":
                taken.refused.extend(self._tickets)
                self._tickets.clear()
            while self._tickets and len(taken.next) < n_free:
                taken.next.append(self._tickets.popleft())
        return taken

    def wait(self, until: float, n_free: int, news: Callable[[], bool]) -> None:
        """Until it is so late, or something happens.

        Args:
            until: time of the clock.
            n_free: places of the engine.
            news: whether something has happened already that does not show here.
        """
        with self._changed:
            if (self._tickets and n_free > 0) or news():
                return
            if self.state == "stopping":
                until = min(until, self.stop_at)
            until = min([until, *(ticket.deadline for ticket in self._tickets)])
            delay = until - time.monotonic()
            self._changed.wait(None if math.isinf(delay) else max(delay, 0.0))

    def stop(self, timeout_s: float) -> bool:
        """Takes no more; what runs has so long. False: nothing runs, or it has been stopped."""
        with self._changed:
            begun = self.state in ("ready", "stopping")
            self.state = "stopping" if begun else "stopped"
            self.stop_at = time.monotonic() + timeout_s
            self._changed.notify()
        return begun

    def end(self) -> list[Ticket]:
        """Stopped for good; those that still wait."""
        with self._changed:
            self.state = "stopped"
            left = list(self._tickets)
            self._tickets.clear()
        return left
