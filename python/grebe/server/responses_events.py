"""A turn as /v1/responses answers it: the response object, and the events that make it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from ..chat.deltas import (
    CallArguments,
    CallEnd,
    CallStart,
    ContentDelta,
    Delta,
    ReasoningDelta,
)
from .chat_events import Logprobs, TokenBytes
from .errors import api_error
from .jobs import EngineFailed, Finished, JobEvent, JobUsage, TokenEvent
from .responses_items import seal_handle
from .responses_request import Asked
from .sse import sse_event
from .turns import Turn

__all__ = ["ResponseEncoder"]

Item = dict[str, Any]

_STATUS = {"length": "incomplete", "context": "incomplete", "cancelled": "cancelled"}
_encode = msgspec.json.Encoder().encode


class ResponseEncoder:
    """The events of one response; it holds the whole response too.

    Attributes:
        body: the response object, complete when ``status`` is no longer "in_progress".

    Args:
        turn: to answer.
        asked: what it answers.
        tokenizer: names tokens, for log-probabilities.
        keep: called with the body when it begins and when it is over.
    """

    def __init__(
        self,
        turn: Turn,
        asked: Asked,
        tokenizer: TokenBytes,
        *,
        keep: Callable[[Item], None] = lambda body: None,
    ) -> None:
        self._turn, self._asked, self._keep = turn, asked, keep
        chat = asked.chat
        listed = chat.sampling.top_logprobs is not None
        thinking = chat.conversation.thinking
        self._logprobs = Logprobs(tokenizer, thinking=thinking) if listed else None
        self._sequence = 0
        self._item: Item | None = None
        self._text: list[str] = []
        self._listed: list[Item] = []  # of the open message
        self.body: Item = {
            "id": f"resp_{turn.id}",
            "object": "response",
            "created_at": turn.created,
            "status": "in_progress",
            "completed_at": None,
            "error": None,
            "incomplete_details": None,
            **asked.echo,
            "model": turn.request.model,
            "output": [],
            "usage": None,
        }
        keep(self.body)

    # ---------------------------------------------------------------- of a stream

    def start(self) -> bytes:
        """``response.created`` and ``response.in_progress``."""
        return self._whole("response.created") + self._whole("response.in_progress")

    def event(self, event: JobEvent) -> bytes:
        """Of the response."""
        if isinstance(event, TokenEvent):
            if self._logprobs is not None:
                self._logprobs.sampled(event)
            return self._deltas(event.deltas)
        if isinstance(event, Finished):
            return self._deltas(event.deltas) + self._end(event)
        return b""

    def keepalive(self) -> bytes:
        """``response.in_progress`` once more: the one form that all clients count as life."""
        return self._whole("response.in_progress")

    def failed(self, error: EngineFailed) -> bytes:
        """``response.failed``."""
        self.body["error"] = {"code": "server_error", "message": api_error(error).message}
        self._over("failed")
        return self._whole("response.failed")

    def abandoned(self) -> None:
        """No more events will come; the response is over whether it is whole or not."""
        if self.body["status"] == "in_progress":
            self._over("cancelled")

    # ---------------------------------------------------------------- items

    def _deltas(self, deltas: Iterable[Delta]) -> bytes:
        return b"".join(map(self._one, deltas))

    def _one(self, delta: Delta) -> bytes:
        if self._logprobs is not None:
            self._logprobs.became(delta)
        if isinstance(delta, ContentDelta):
            return self._message(delta.text)
        if isinstance(delta, ReasoningDelta):
            return self._reasoning(delta.text)
        if isinstance(delta, CallStart):
            return self._call(delta)
        assert self._item is not None
        if isinstance(delta, CallArguments):
            if self._item["type"] == "custom_tool_call":
                return b""  # its text is inside the JSON
            return self._emit(
                "response.function_call_arguments.delta",
                item_id=self._item["id"],
                output_index=self._at,
                delta=delta.text,
            )
        assert isinstance(delta, CallEnd)
        return self._call_done(delta.arguments)

    def _message(self, text: str) -> bytes:
        out = b""
        if self._item is None or self._item["type"] != "message":
            out = self._open(
                "msg", type="message", role="assistant", phase="final_answer", content=[]
            )
            out += self._part("added", _output_text(""))
        self._text.append(text)
        taken = self._logprobs.take() if self._logprobs is not None else None
        listed = taken["content"] if taken is not None else []
        self._listed += listed
        return out + self._emit(
            "response.output_text.delta", **self._place(), delta=text, logprobs=listed
        )

    def _reasoning(self, text: str) -> bytes:
        out = b""
        if self._item is None or self._item["type"] != "reasoning":
            out = self._open("rs", type="reasoning", summary=[], content=[])
            out += self._part("added", {"type": "reasoning_text", "text": ""})
        self._text.append(text)
        return out + self._emit("response.reasoning_text.delta", **self._place(), delta=text)

    def _call(self, delta: CallStart) -> bytes:
        named = self._asked.names.client(delta.name)
        if delta.name in self._asked.names.custom:
            new: Item = {"type": "custom_tool_call", "call_id": delta.id, **named, "input": ""}
            return self._open("ctc", calls=True, **new)
        new = {"type": "function_call", "call_id": delta.id, **named, "arguments": ""}
        return self._open("fc", calls=True, **new)

    def _call_done(self, arguments: str) -> bytes:
        item = self._item
        assert item is not None
        place = {"item_id": item["id"], "output_index": self._at}
        if item["type"] == "custom_tool_call":
            item["input"] = text = _custom_input(arguments)
            out = self._emit("response.custom_tool_call_input.delta", **place, delta=text)
            out += self._emit("response.custom_tool_call_input.done", **place, input=text)
        else:
            item["arguments"] = arguments
            out = self._emit(
                "response.function_call_arguments.done",
                **place,
                name=item["name"],
                arguments=arguments,
            )
        return out + self._done("completed")

    # ---------------------------------------------------------------- the open item

    @property
    def _at(self) -> int:
        return len(self.body["output"])

    def _place(self) -> Item:
        assert self._item is not None
        return {"item_id": self._item["id"], "output_index": self._at, "content_index": 0}

    def _open(self, prefix: str, *, calls: bool = False, **item: Any) -> bytes:
        """A new item; the one that was open is complete."""
        out = self._close("completed", calls=calls)
        self._item = {
            "id": f"{prefix}_{self._turn.id}{self._at}",
            **item,
            "status": "in_progress",
        }
        self._text, self._listed = [], []
        return out + self._emit(
            "response.output_item.added", output_index=self._at, item=self._item
        )

    def _close(self, status: str, *, calls: bool = False) -> bytes:
        """The end of a message or of reasoning; a call that is open was cut, and is none."""
        item = self._item
        if item is None:
            return b""
        text = "".join(self._text)
        if item["type"] == "message":
            # What comes before calls is not the answer yet.
            item["phase"] = "commentary" if calls else "final_answer"
            part = _output_text(text, self._listed)
            out = self._emit(
                "response.output_text.done", **self._place(), text=text, logprobs=self._listed
            )
        elif item["type"] == "reasoning":
            part = {"type": "reasoning_text", "text": text}
            out = self._emit("response.reasoning_text.done", **self._place(), text=text)
            if self._asked.sealed:
                item["encrypted_content"] = seal_handle(text)
        else:
            self._item = None
            return b""
        item["content"] = [part]
        return out + self._part("done", part) + self._done(status)

    def _done(self, status: str) -> bytes:
        item = self._item
        assert item is not None
        item["status"] = status
        out = self._emit("response.output_item.done", output_index=self._at, item=item)
        self.body["output"].append(item)
        self._item = None
        return out

    def _part(self, what: str, part: Item) -> bytes:
        return self._emit(f"response.content_part.{what}", **self._place(), part=part)

    # ---------------------------------------------------------------- the response

    def _end(self, event: Finished) -> bytes:
        status = _STATUS.get(event.reason, "completed")
        out = self._close("completed" if status == "completed" else "incomplete")
        self.body["usage"] = _usage(event.usage, self._turn.reasoning_tokens)
        if status == "incomplete":
            self.body["incomplete_details"] = {"reason": "max_output_tokens"}
        self._over(status)
        if status == "cancelled":
            # By the server or by another request; what went out must not look complete.
            return out + self._emit(
                "error", code="cancelled", message="the response was cancelled", param=None
            )
        return out + self._whole(f"response.{status}")

    def _over(self, status: str) -> None:
        self.body["status"] = status
        self.body["completed_at"] = int(time.time())
        self._keep(self.body)

    def _whole(self, kind: str) -> bytes:
        return self._emit(kind, response=self.body)

    def _emit(self, kind: str, **fields: Any) -> bytes:
        data = _encode({"type": kind, "sequence_number": self._sequence, **fields})
        self._sequence += 1
        return sse_event(data, kind)


def _output_text(text: str, logprobs: list[Item] | None = None) -> Item:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs or []}


def _custom_input(arguments: str) -> str:
    """The text of a custom tool's call; a model that gave it another name gave it all the same."""
    given = json.loads(arguments)
    text = given.get("input")
    if text is None and len(given) == 1:
        text = next(iter(given.values()))
    return text if isinstance(text, str) else arguments


def _usage(usage: JobUsage, reasoning_tokens: int) -> Item:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": reasoning_tokens},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }
