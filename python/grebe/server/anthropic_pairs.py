"""Calls and results in the messages of /v1/messages: which of them have no partner."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .anthropic_schemas import Blocks, MessageParam
from .errors import ApiError, invalid
from .requests import Unmatched

__all__ = ["blocks", "unmatched"]


def blocks(content: Blocks) -> Iterator[Mapping[str, Any]]:
    """The blocks of a content. A string is one block of text: clients send both for one message."""
    if isinstance(content, str):
        yield {"type": "text", "text": content}
        return
    for block in content or ():
        if isinstance(block, str):
            yield {"type": "text", "text": block}
        elif isinstance(block, Mapping):  # inside results and documents nobody has looked yet
            yield block


def unmatched(messages: Sequence[MessageParam]) -> tuple[Unmatched, ...]:
    """Calls and results without a partner.

    Results may come in any order, in several messages and after other text, as long as they come
    before the next assistant message.

    Raises:
        ApiError: 400, an id is used twice.
    """
    pairs = _Pairs()
    for i, message in enumerate(messages):
        if message.role == "assistant":
            if i > pairs.asked + 1:
                pairs.close(i)
            for k, block in enumerate(blocks(message.content)):
                if block.get("type") == "tool_use":
                    pairs.call(i, k, str(block.get("id", "")))
        else:
            for k, block in enumerate(blocks(message.content)):
                if block.get("type") == "tool_result":
                    pairs.result(i, k, str(block.get("tool_use_id", "")))
    pairs.close(len(messages))
    return tuple(pairs.found)


class _Pairs:
    """The calls that wait for results, by their ids' letters and digits: some clients keep no more.

    Attributes:
        asked: which message made the last call.
    """

    def __init__(self) -> None:
        self.found: list[Unmatched] = []
        self.asked = -1
        self._calls: dict[str, str] = {}
        self._answered: set[str] = set()

    def call(self, i: int, k: int, given: str) -> None:
        if _plain(given) in self._calls:
            raise invalid(f"messages.{i}.content.{k}: `tool_use` ids must be unique")
        self._calls[_plain(given)] = given
        self.asked = i

    def result(self, i: int, k: int, given: str) -> None:
        plain = _plain(given)
        if plain in self._answered:
            raise invalid(
                f"messages.{i}.content.{k}: each tool_use must have a single result. Found "
                f"multiple `tool_result` blocks with id: {given}"
            )
        if plain in self._calls:
            self._answered.add(plain)
        else:
            self.found.append(Unmatched(given, _orphan(i, k, given)))

    def close(self, end: int) -> None:
        """No more results will come: message ``end`` is the assistant's, or there is none."""
        missing = [given for plain, given in self._calls.items() if plain not in self._answered]
        # Two wordings, as Anthropic's and DeepSeek's servers have them.
        beside = self._answered or self.asked + 1 >= end
        place = f"{self.asked}:" if beside else f"{self.asked + 1}: "
        for given in missing:
            message = (
                f"messages.{place}`tool_use` ids were found without `tool_result` blocks "
                f"immediately after: {', '.join(missing)}. Each `tool_use` block must have a "
                "corresponding `tool_result` block in the next message."
            )
            self.found.append(Unmatched(given, invalid(message)))
        self._calls.clear()
        self._answered.clear()


def _plain(call_id: str) -> str:
    return "".join(c for c in call_id if c.isalnum())


def _orphan(i: int, k: int, given: str) -> ApiError:
    return invalid(
        f"unexpected `messages.{i}.content.{k}: tool_use_id` found in `tool_result` blocks: "
        f"{given}. Each `tool_result` block must have a corresponding `tool_use` block in the "
        "previous message."
    )
