"""What Completions says: whole texts and chunks, with log-probabilities in the older form."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import msgspec

from ..chat.deltas import ContentDelta, Delta
from ..events import TokenLogprob
from .chat_events import FINISH, usage_body
from .errors import api_error, openai_error_body
from .jobs import EngineFailed, Finished, JobEvent, TokenEvent
from .requests import RawRequest
from .sse import sse_event
from .turns import ENDED, Answer, Turn

if TYPE_CHECKING:
    from .. import Tokenizer

__all__ = ["CompletionEncoder", "Scores", "text_body"]

_encode = msgspec.json.Encoder().encode


class Scores:
    """Collects ``logprobs`` of a choice: parallel lists, a token each.

    Args:
        tokenizer: of the tokens.
        offset: where their text begins in the text that is given back.
    """

    def __init__(self, tokenizer: Tokenizer, offset: int = 0) -> None:
        self._tokenizer, self._stream = tokenizer, tokenizer.stream()
        self._offset = offset
        self._rows: list[tuple[str, float | None, dict[str, float] | None, int]] = []

    def add(self, token: int, logprob: float | None, top: Sequence[TokenLogprob]) -> None:
        """One more token; None when nothing is known of it."""
        best = None
        if logprob is not None:
            logprob = _finite(logprob)
            best = {self._text(entry.token): _finite(entry.logprob) for entry in top}
        self._rows.append((self._text(token), logprob, best, self._offset))
        self._offset += len(self._stream.push(token))

    def body(self, end: int | None = None) -> dict[str, Any]:
        """What was collected since the last call, less what begins at ``end`` of the text."""
        rows = [row for row in self._rows if end is None or row[3] < end or not row[0]]
        self._rows = []
        return {
            "tokens": [row[0] for row in rows],
            "token_logprobs": [row[1] for row in rows],
            "top_logprobs": [row[2] for row in rows],
            "text_offset": [row[3] for row in rows],
        }

    def _text(self, token: int) -> str:
        data = self._tokenizer.token_bytes(token)
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def _finite(logprob: float) -> float:
    return logprob if math.isfinite(logprob) else -9999.0


def text_body(turn: Turn, answer: Answer, tokenizer: Tokenizer, n_own: int) -> dict[str, Any]:
    """``text_completion``. ``n_own``: tokens at the prompt's start that the client did not send."""
    request = turn.request
    assert isinstance(request, RawRequest)
    text, tokens, usage, reason = answer.content, answer.tokens, answer.usage, answer.reason
    if request.max_tokens == 0:  # one was sampled, since there is no job without
        text, tokens, reason = "", (), "length"
        usage = replace(usage, completion_tokens=0)
    before = echoed(request, tokenizer) if request.echo else ""
    logprobs = None
    if request.sampling.top_logprobs is not None:
        scores = Scores(tokenizer)
        if request.echo:
            for token, logprob, top in answer.finished.prompt_logprobs[n_own:]:
                scores.add(token, None if math.isnan(logprob) else logprob, top)
        for event in tokens:
            if event.token != tokenizer.eos:
                scores.add(event.token, event.logprob, event.top_logprobs)
        logprobs = scores.body(len(before) + len(text))
    choice = {"index": 0, "text": before + text, "logprobs": logprobs}
    return {
        "id": f"cmpl-{turn.id}",
        "object": "text_completion",
        "created": turn.created,
        "model": request.model,
        "choices": [{**choice, "finish_reason": FINISH[reason]}],
        "usage": usage_body(usage),
        "system_fingerprint": None,
    }


def echoed(request: RawRequest, tokenizer: Tokenizer) -> str:
    """The prompt as text."""
    prompt = request.prompt
    return prompt if isinstance(prompt, str) else tokenizer.decode(prompt)


class CompletionEncoder:
    """Writes chunks of ``text_completion``."""

    def __init__(self, turn: Turn, tokenizer: Tokenizer) -> None:
        request = turn.request
        assert isinstance(request, RawRequest)
        self._request = request
        self._before = echoed(request, tokenizer) if request.echo else ""
        self._eos = tokenizer.eos
        self._scores = None
        if request.sampling.top_logprobs is not None:
            self._scores = Scores(tokenizer, len(self._before))
        head = {
            "id": f"cmpl-{turn.id}",
            "object": "text_completion",
            "created": turn.created,
            "model": request.model,
            "system_fingerprint": None,
        }
        self._head = _encode(head)[:-1] + b',"choices":'
        self._tail = b',"usage":null}' if request.include_usage else b"}"

    def start(self) -> bytes:
        """The prompt, if it is wanted."""
        return self._chunk(self._before) if self._before else b""

    def keepalive(self) -> bytes:
        """A text that has not grown."""
        return self._chunk("")

    def event(self, event: JobEvent) -> bytes:
        """Chunks of what became certain."""
        if isinstance(event, TokenEvent):
            if self._scores is not None and event.token != self._eos:
                self._scores.add(event.token, event.logprob, event.top_logprobs)
            text = _joined(event.deltas)
            return self._chunk(text) if text else b""
        if not isinstance(event, Finished):
            return b""
        text = _joined(event.deltas)
        if event.reason == "cancelled":
            return (self._chunk(text) if text else b"") + self.failed(EngineFailed(ENDED))
        out = [self._chunk(text, FINISH[event.reason])]
        if self._request.include_usage:
            usage = usage_body(event.usage)
            out.append(sse_event(self._head + b'[],"usage":' + _encode(usage) + b"}"))
        out.append(sse_event(b"[DONE]"))
        return b"".join(out)

    def failed(self, error: EngineFailed) -> bytes:
        """The error, in the place of the next chunk."""
        return sse_event(_encode(openai_error_body(api_error(error))))

    def _chunk(self, text: str, reason: str | None = None) -> bytes:
        logprobs = None
        if self._scores is not None and text:
            logprobs = self._scores.body()
        choice = {"index": 0, "text": text, "logprobs": logprobs, "finish_reason": reason}
        return sse_event(self._head + b"[" + _encode(choice) + b"]" + self._tail)


def _joined(deltas: Iterable[Delta]) -> str:
    return "".join(delta.text for delta in deltas if isinstance(delta, ContentDelta))
