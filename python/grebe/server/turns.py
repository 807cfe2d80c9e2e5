"""The service behind all APIs: from a neutral request to the events of a turn."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

from ..chat.deltas import Delta
from ..chat.messages import Generation, ToolCall
from .jobs import EndReason, JobEvent, JobRunner, JobUsage, TokenEvent
from .requests import ChatRequest, RawRequest

__all__ = ["Answer", "ServiceConfig", "Turn", "TurnService", "collect"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceConfig:
    """Options of the service.

    Attributes:
        model_id: the one model's name, in lists and where the client gave none.
        n_ctx: tokens of a session.
        generation: of the checkpoint.
        official_sampling: thinking ignores the client's temperature and top_p, as DeepSeek's API.
        thinking_default: whether a request thinks that says nothing of it; None: as each API's
            clients expect (off for Messages, on for the others).
        deadline_s: give up a request after so many seconds.
    """

    model_id: str = "deepseek-v4-flash"
    n_ctx: int
    generation: Generation = "0731"
    official_sampling: bool = False
    thinking_default: bool | None = None
    deadline_s: float | None = None


class Turn:
    """A generation that was accepted: nothing of it can be an HTTP error any more.

    Attributes:
        id: random, of letters and digits; APIs put their prefix before it.
        created: Unix time.
        request: what it answers.
        prompt_tokens: of its prompt.
        headers: for the response.
    """

    id: str
    created: int
    request: ChatRequest | RawRequest
    prompt_tokens: int
    headers: dict[str, str]

    def events(self) -> AsyncIterator[JobEvent]:
        """The job's events, up to Finished. To be iterated once; closing it cancels the job."""
        raise NotImplementedError

    @property
    def reasoning_tokens(self) -> int:
        """Of the output so far; certain after Finished."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole turn.

    Attributes:
        calls: complete ones only.
        reason: "tool_calls" if there are calls and nothing cut the output.
        tokens: all events, for log-probabilities.
        deltas: all of them, in order.
    """

    reasoning: str
    content: str
    calls: tuple[ToolCall, ...]
    reason: EndReason
    stop_sequence: str | None
    usage: JobUsage
    reasoning_tokens: int
    tokens: Sequence[TokenEvent]
    deltas: Sequence[Delta]


async def collect(turn: Turn) -> Answer:
    """Runs a turn to its end, for answers that are not streamed.

    Raises:
        EngineFailed: the engine failed.
    """
    raise NotImplementedError


class TurnService:
    """Accepts requests: everything that may be an HTTP error happens before a turn exists."""

    def __init__(self, runner: JobRunner, tokenizer: Any, config: ServiceConfig) -> None:
        self.runner, self.tokenizer, self.config = runner, tokenizer, config
        self.created = int(time.time())

    async def start(self, request: ChatRequest, owner: str = "") -> Turn:
        """Renders, tokenizes (off the event loop), checks the context, and submits.

        Args:
            request: what to do.
            owner: whose records may be replayed: a digest of the API key, "" without keys.

        Raises:
            ApiError: whatever is wrong.
        """
        raise NotImplementedError

    async def count_tokens(self, request: ChatRequest, owner: str = "") -> int:
        """Tokens of the prompt, without the engine.

        Raises:
            ApiError: whatever is wrong.
        """
        raise NotImplementedError
