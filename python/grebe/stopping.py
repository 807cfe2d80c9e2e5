"""Stop strings: found across token boundaries, without delaying text that cannot be part of one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from .errors import InvalidArgumentError

__all__ = ["StopFilter", "stop_strings"]


class StopFilter:
    """Cuts text at the first stop string and holds back only what may be the beginning of one.

    The result does not depend on how the text is cut into pieces: the stop string that is complete
    first wins, and of several that end at the same place the longest.

    Attributes:
        found: the stop string that ended the text.

    Example:
        >>> stop = StopFilter(["END"])
        >>> stop.feed("the E"), stop.feed("ND of it")
        (('the ', False), ('', True))
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.found: str | None = None

    def feed(self, text: str) -> tuple[str, bool]:
        """The text that is now certain, and whether a stop string ended it."""
        text = self._held + text
        ends = [(i + len(stop), i) for stop in self._stops if (i := text.find(stop)) >= 0]
        if ends:
            self._held = ""
            end, start = min(ends)
            self.found = text[start:end]
            return text[:start], True
        n_held = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - n_held :]
        return text[: len(text) - n_held], False

    def flush(self) -> str:
        """What was held back, when no more text will come."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of text that is a proper beginning of stop."""
    i = max(0, len(text) - len(stop) + 1)
    while (i := text.find(stop[0], i)) >= 0:
        if stop.startswith(text[i:]):
            return len(text) - i
        i += 1
    return 0


def stop_strings(stop: str | Sequence[str] | None) -> tuple[str, ...]:
    """The stop strings of an option: one, several or none.

    Raises:
        InvalidArgumentError: one is empty or no string.
    """
    if isinstance(stop, bytes | bytearray | Mapping) or not isinstance(stop, Iterable | None):
        raise InvalidArgumentError(f"stop is {stop!r}; a str or a sequence of them is expected")
    stops = () if stop is None else (stop,) if isinstance(stop, str) else tuple(stop)
    for i, text in enumerate(stops):
        if not isinstance(text, str) or not text:
            raise InvalidArgumentError(f"stop[{i}] is {text!r}; a non-empty string is expected")
    return stops
