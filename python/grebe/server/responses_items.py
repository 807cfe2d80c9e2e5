"""Input items of /v1/responses to messages: the items of one turn become one message."""

from __future__ import annotations

import base64
import binascii
import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ..chat.calls import dumps
from ..chat.messages import Message, ToolCall
from .errors import invalid
from .requests import Unmatched
from .responses_tools import ToolNames

__all__ = ["ItemReader", "open_handle", "seal_handle"]

_OUTPUTS = ("function_call_output", "custom_tool_call_output")
_UNSUPPORTED = {"input_image": "[Unsupported Image]", "input_file": "[Unsupported Document]"}

# ---------------------------------------------------------------- reasoning that clients carry

# Clients give ``encrypted_content`` back as it was, and some of them nothing else of the reasoning.
_HANDLE = "grebe1."
_MAX_REASONING_BYTES = 8 << 20


def seal_handle(reasoning: str) -> str:
    """Reasoning as ``encrypted_content``. Nothing is hidden: the client has had the text already.

    Example:
        >>> open_handle(seal_handle("Count the steps."))
        'Count the steps.'
    """
    packed = zlib.compress(reasoning.encode("utf-8", "replace"))
    return _HANDLE + base64.urlsafe_b64encode(packed).decode()


def open_handle(handle: object) -> str | None:
    """The reasoning in a handle; None if it is not one of ours."""
    if not isinstance(handle, str) or not handle.startswith(_HANDLE):
        return None
    try:
        packed = base64.urlsafe_b64decode(handle[len(_HANDLE) :].encode())
        unpacker = zlib.decompressobj()
        text = unpacker.decompress(packed, _MAX_REASONING_BYTES)
        return text.decode() if unpacker.eof else None
    except (ValueError, binascii.Error, zlib.error):
        return None


# ---------------------------------------------------------------- items


class ItemReader:
    """Reads items in order.

    Attributes:
        messages: so far; :meth:`finish` adds the last.
        unmatched: calls without an output and outputs without a call.
        ignored: types of items that mean nothing here.
    """

    def __init__(
        self, names: ToolNames, find: Callable[[str], Mapping[str, Any] | None] | None = None
    ) -> None:
        self._names = names
        self._find = find
        self.messages: list[Message] = []
        self.unmatched: list[Unmatched] = []
        self.ignored: list[str] = []
        self._open = False
        self._thoughts: list[str] = []
        self._texts: list[str] = []
        self._calls: list[ToolCall] = []
        self._waiting: dict[str, str] = {}
        self._answered: set[str] = set()

    def read(self, items: Iterable[Mapping[str, Any]]) -> None:
        """More items.

        Raises:
            ApiError: a call or an output comes twice.
        """
        for item in items:
            self._item(item)

    def finish(self) -> list[Message]:
        """All messages; no more items will come."""
        self._close_turn()
        self._close_calls()
        return self.messages

    def _item(self, item: Mapping[str, Any]) -> None:
        kind = item.get("type") or ("message" if "role" in item else None)
        if kind == "message":
            self._message(item)
        elif kind == "reasoning":
            self._reasoning(item)
        elif kind in ("function_call", "custom_tool_call"):
            self._call(item, kind)
        elif kind in _OUTPUTS:
            self._output(item)
        elif kind == "item_reference" and self._find is not None:
            found = self._find(str(item.get("id")))
            if found is not None and found.get("type") != "item_reference":
                self._item(found)
        else:
            self.ignored.append(f"input: {str(kind)[:40]}")

    def _message(self, item: Mapping[str, Any]) -> None:
        text = _text(item.get("content"))
        role = item.get("role")
        if role == "assistant":
            self._assistant()
            self._texts.append(text)
            return
        self._close_turn()
        self.messages.append(Message("system" if role == "system" else "user", text))

    def _reasoning(self, item: Mapping[str, Any]) -> None:
        if self._texts and not self._calls:
            self._close_turn()  # after an answer a new turn begins
        self._assistant()
        content = item.get("content")
        texts = [
            part["text"]
            for part in (content if isinstance(content, list) else ())
            if isinstance(part, Mapping) and isinstance(part.get("text"), str)
        ]
        if not texts:
            sealed = open_handle(item.get("encrypted_content"))
            texts = [] if sealed is None else [sealed]
        self._thoughts += texts

    def _call(self, item: Mapping[str, Any], kind: str) -> None:
        self._assistant()
        name = self._names.shown(item.get("namespace"), str(item.get("name", "")))
        if kind == "custom_tool_call":
            arguments = dumps({"input": item.get("input", "")})
        else:
            given = item.get("arguments", "")
            arguments = given if isinstance(given, str) else dumps(given)
        call_id = str(item.get("call_id", ""))
        if call_id and self._waiting.get(_plain(call_id)) == call_id:
            raise invalid(f"Duplicate 'call_id': {call_id}.", "input")
        self._calls.append(ToolCall(name, arguments, call_id))
        self._waiting[_plain(call_id)] = call_id

    def _output(self, item: Mapping[str, Any]) -> None:
        self._close_turn()
        call_id = str(item.get("call_id", ""))
        output = item.get("output")
        text = dumps(output) if isinstance(output, Mapping) else _text(output)
        self.messages.append(Message("tool", text, tool_call_id=call_id))
        if _plain(call_id) in self._answered:
            raise invalid(f"Duplicate tool output for call_id: {call_id}.", "input")
        if _plain(call_id) in self._waiting:
            self._answered.add(_plain(call_id))
        else:
            error = invalid(f"No tool call found for tool output with call_id {call_id}.", "input")
            self.unmatched.append(Unmatched(call_id, error))

    def _assistant(self) -> None:
        """An item of the assistant comes: its turn goes on, or a new one begins."""
        if not self._open:
            if not self.messages or self.messages[-1].role != "assistant":
                self._close_calls()
            self._open = True

    def _close_turn(self) -> None:
        if not self._open:
            return
        self._open = False
        self.messages.append(
            Message(
                "assistant",
                "\n\n".join(text for text in self._texts if text),
                "\n".join(self._thoughts) if self._thoughts else None,
                tool_calls=tuple(self._calls),
            )
        )
        self._thoughts, self._texts, self._calls = [], [], []

    def _close_calls(self) -> None:
        for plain, call_id in self._waiting.items():
            if plain not in self._answered:
                error = invalid(f"No tool output found for tool call {call_id}.", "input")
                self.unmatched.append(Unmatched(call_id, error))
        self._waiting.clear()
        self._answered.clear()


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    texts: list[str] = []
    for part in content:
        if isinstance(part, str):
            texts.append(part)
        elif isinstance(part, Mapping):
            kind = str(part.get("type"))
            text = part.get("text", part.get("refusal"))
            if isinstance(text, str):
                texts.append(text)
            elif kind in _UNSUPPORTED:
                texts.append(_UNSUPPORTED[kind])
    return "\n\n".join(texts)


def _plain(call_id: str) -> str:
    """An id as it is compared: some clients keep only its letters and digits."""
    return "".join(c for c in call_id if c.isalnum())
