"""A progress bar for things that take longer than a second, on a terminal only."""

from __future__ import annotations

import sys
import time
from typing import TextIO

__all__ = ["ProgressBar"]


class ProgressBar:
    """One line on stderr that redraws itself.

    Silent when the stream is no terminal or the work ends within ``delay`` seconds.

    Example:
        >>> bar = ProgressBar("reading")
        >>> bar(10, 100)  # done, total
        >>> bar.close()
    """

    def __init__(
        self,
        label: str,
        *,
        unit: str = "tok",
        stream: TextIO | None = None,
        enabled: bool = True,
        delay: float = 1.0,
    ) -> None:
        self._label = label
        self._unit = unit
        self._stream = stream if stream is not None else sys.stderr
        self._enabled = enabled and self._stream.isatty()
        self._start = time.monotonic()
        self._next_draw = self._start + delay
        self._drawn = 0

    def __call__(self, done: int, total: int) -> None:
        """Shows that ``done`` of ``total`` are done; cheap enough to be called for every token."""
        now = time.monotonic()
        if not self._enabled or now < self._next_draw:
            return
        self._next_draw = now + 0.1
        elapsed = now - self._start
        rate = done / elapsed if elapsed > 0 else 0.0
        left = f", {(total - done) / rate:.0f} s left" if rate > 0 and done < total else ""
        filled = 24 * done // max(total, 1)
        bar = "#" * filled + "." * (24 - filled)
        line = f"{self._label} [{bar}] {done}/{total} {self._unit}, {rate:.3g}/s{left}"
        self._stream.write("\r" + line.ljust(self._drawn))
        self._stream.flush()
        self._drawn = len(line)

    def close(self) -> None:
        """Clears the line."""
        if self._drawn:
            self._stream.write("\r" + " " * self._drawn + "\r")
            self._stream.flush()
            self._drawn = 0

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
