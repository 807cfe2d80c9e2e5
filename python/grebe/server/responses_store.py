"""Responses that clients come back to: kept in memory, the least recently used go first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from .errors import ApiError, invalid

__all__ = ["ResponseStore", "Stored"]

Item = dict[str, Any]

MAX_RESPONSES = 2000
MAX_BYTES = 128 << 20


@dataclass(slots=True)
class Stored:
    """A response and the input that led to it.

    Attributes:
        data: the response object as JSON.
        inputs: the items that came with the request, as JSON.
        before: what ``previous_response_id`` named; kept while this one is.
        running: it is not over.
    """

    data: bytes
    inputs: bytes
    before: Stored | None = None
    running: bool = False

    @property
    def body(self) -> Item:
        """The response object."""
        body: Item = msgspec.json.decode(self.data)
        return body

    @property
    def items(self) -> list[Item]:
        """The items of the request."""
        items: list[Item] = msgspec.json.decode(self.inputs)
        return items

    def conversation(self) -> list[Item]:
        """All items up to and with this response's output."""
        chain: list[Stored] = []
        node: Stored | None = self
        while node is not None:
            chain.append(node)
            node = node.before
        return [
            item for stored in reversed(chain) for item in (*stored.items, *stored.body["output"])
        ]


@dataclass(slots=True)
class ResponseStore:
    """Responses by owner and id. Used in the event loop only."""

    max_responses: int = MAX_RESPONSES
    max_bytes: int = MAX_BYTES
    _kept: OrderedDict[tuple[str, str], Stored] = field(default_factory=OrderedDict)
    _owners: dict[tuple[str, str], tuple[str, str]] = field(default_factory=dict)
    _n_bytes: int = 0

    def put(
        self,
        owner: str,
        body: Mapping[str, Any],
        items: Sequence[Item],
        *,
        before: Stored | None = None,
        running: bool = False,
    ) -> None:
        """Keeps a response, or the newer state of one."""
        key = (owner, str(body["id"]))
        self._drop(key)
        encode = msgspec.json.encode
        stored = Stored(encode(body), encode(items), before, running)
        self._kept[key] = stored
        self._n_bytes += len(stored.data) + len(stored.inputs)
        for item_id in _ids(body):
            self._owners[owner, item_id] = key
        while len(self._kept) > 1 and (
            len(self._kept) > self.max_responses or self._n_bytes > self.max_bytes
        ):
            self._drop(next(iter(self._kept)))

    def get(self, owner: str, response_id: str) -> Stored:
        """A response.

        Raises:
            ApiError: 404.
        """
        stored = self._kept.get((owner, response_id))
        if stored is None:
            raise ApiError(
                404,
                f"Response with id '{response_id[:80]}' not found.",
                kind="not_found_error",
                param="response_id",
            )
        self._kept.move_to_end((owner, response_id))
        return stored

    def previous(self, owner: str, response_id: str) -> Stored:
        """The response that a request goes on with.

        Raises:
            ApiError: 400, there is none, or it is not over.
        """
        stored = self._kept.get((owner, response_id))
        if stored is None:
            raise invalid(
                f"Previous response with id '{response_id[:80]}' not found.",
                "previous_response_id",
                "previous_response_not_found",
            )
        if stored.running:
            raise invalid(
                f"Response '{response_id[:80]}' is still in progress.", "previous_response_id"
            )
        self._kept.move_to_end((owner, response_id))
        return stored

    def item(self, owner: str, item_id: str) -> Item | None:
        """An output item of a kept response, by its own id."""
        stored = self._kept.get(self._owners.get((owner, item_id), ("", "")))
        if stored is None:
            return None
        return next((item for item in stored.body["output"] if item["id"] == item_id), None)

    def delete(self, owner: str, response_id: str) -> None:
        """Forgets a response; those that went on with it keep what they need.

        Raises:
            ApiError: 404.
        """
        self.get(owner, response_id)
        self._drop((owner, response_id))

    def _drop(self, key: tuple[str, str]) -> None:
        stored = self._kept.pop(key, None)
        if stored is not None:
            self._n_bytes -= len(stored.data) + len(stored.inputs)
            for item_id in _ids(stored.body):
                self._owners.pop((key[0], item_id), None)


def _ids(body: Mapping[str, Any]) -> Iterator[str]:
    for item in body["output"]:
        yield item["id"]
