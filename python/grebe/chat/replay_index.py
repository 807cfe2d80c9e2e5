"""Records in memory: by call, by what was said before and the answer, by last use."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from .messages import Message
from .parts import alphanumerics
from .records import Record, digest

__all__ = ["Index"]

#: Turns of the same conversation with the same answer, sampled differently.
_MAX_TWINS = 4
#: Bytes of a record in memory beside its packed form.
_OVERHEAD = 600


class Index:
    """Bounded by bytes; what was not used for longest is forgotten first. Not thread-safe.

    Attributes:
        n_bytes: of all records.
    """

    def __init__(self, budget_bytes: int) -> None:
        self._budget = budget_bytes
        # Least recently used first; the values are sizes.
        self._records: OrderedDict[int, tuple[Record, int]] = OrderedDict()
        self._numbers = 0
        self.n_bytes = 0
        self._by_call: dict[tuple[str, str], int] = {}
        self._by_text: dict[tuple[str, str, str], list[int]] = {}

    def __len__(self) -> int:
        return len(self._records)

    def add(self, record: Record, n_payload: int) -> bool:
        """Remembers a record of so many bytes when packed; False if that alone is too much."""
        size = n_payload + _OVERHEAD
        if size > self._budget:
            return False
        number = self._numbers
        self._numbers += 1
        self._records[number] = (record, size)
        self.n_bytes += size
        for key in _call_keys(record):
            self._by_call[key] = number
        if not record.calls:
            twins = self._by_text.setdefault((record.owner, record.chain, record.content), [])
            twins.append(number)
            if len(twins) > _MAX_TWINS:
                self._forget(twins[0])
        while self.n_bytes > self._budget:
            self._forget(next(iter(self._records)))
        return True

    def find(self, owner: str, chain: str, message: Message) -> list[tuple[int, Record]]:
        """Records that may be of this message, the newest first, with their numbers."""
        numbers: Sequence[int | None]
        if message.tool_calls:
            key = (owner, alphanumerics(message.tool_calls[0].id or ""))
            numbers = [self._by_call.get(key)]
        else:
            numbers = self._by_text.get((owner, chain, digest(message.content)), ())[::-1]
        return [(n, self._records[n][0]) for n in numbers if n is not None]

    def knows(self, owner: str, call_id: str) -> bool:
        """Whether a record has a call with this id."""
        return (owner, alphanumerics(call_id)) in self._by_call

    def touch(self, number: int) -> None:
        """A record was used."""
        if number in self._records:
            self._records.move_to_end(number)

    def records(self) -> list[Record]:
        """All of them, those to be forgotten first in front."""
        return [record for record, _ in self._records.values()]

    def _forget(self, number: int) -> None:
        record, size = self._records.pop(number)
        self.n_bytes -= size
        for key in _call_keys(record):
            if self._by_call.get(key) == number:
                del self._by_call[key]
        if not record.calls:
            place = (record.owner, record.chain, record.content)
            twins = self._by_text[place]
            twins.remove(number)
            if not twins:
                del self._by_text[place]


def _call_keys(record: Record) -> list[tuple[str, str]]:
    return [(record.owner, alphanumerics(call.id or "")) for call in record.calls]
