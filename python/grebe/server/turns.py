"""The service behind all APIs: from a neutral request to the events of a turn."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from ..chat.encode import TextCache
from ..chat.markers import Markers
from ..chat.messages import Generation
from ..chat.parser import OutputParser
from ..errors import GrebeError, InvalidArgumentError
from .errors import ContextExceeded, api_error, invalid
from .jobs import EndReason, Job, JobRunner, Script
from .notes import noted
from .prompting import Prepared, Replay, ToolSections, default_max_tokens, prepare, sampling
from .requests import ChatRequest, RawRequest
from .single_call import FirstCall
from .turn import ENDED, Answer, Turn, collect

if TYPE_CHECKING:
    from .. import Tokenizer
    from ..config import TokenMask

__all__ = ["ENDED", "Answer", "Scripts", "ServiceConfig", "Turn", "TurnService", "collect"]

log = logging.getLogger("grebe.server")

#: Where the APIs take the schema of an answer.
_FORMATS = {
    "chat": "response_format",
    "messages": "output_config.format",
    "responses": "text.format",
}


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


class Scripts(Protocol):
    """Forced replies, for tests."""

    def select(self, request: ChatRequest) -> Script | None:
        """What the model is made to say, if anything."""


class TurnService:
    """Accepts requests: everything that may be an HTTP error happens before a turn exists.

    Args:
        runner: runs the jobs.
        tokenizer: of the model.
        config: options.
        replay: what was said, as it was sampled.
        scripts: forced replies.

    Attributes:
        counts: for metrics: requests that were accepted, by API; messages put back as sampled.

    Raises:
        UnsupportedModelError: the tokenizer lacks a marker of the chat protocol.
    """

    def __init__(
        self,
        runner: JobRunner,
        tokenizer: Tokenizer,
        config: ServiceConfig,
        *,
        replay: Replay | None = None,
        scripts: Scripts | None = None,
    ) -> None:
        self.runner, self.tokenizer, self.config = runner, tokenizer, config
        self.markers = Markers.of(tokenizer)
        self.created = int(time.time())
        self.counts: Counter[str] = Counter()
        self._replay, self._scripts = replay, scripts
        self._texts = TextCache(tokenizer)
        self._sections = ToolSections()

    async def start(self, request: ChatRequest, owner: str = "") -> Turn:
        """Renders, tokenizes (off the event loop), checks the context, and submits.

        Args:
            request: what to do.
            owner: whose records may be replayed: a digest of the API key, "" without keys.

        Raises:
            ApiError: whatever is wrong.
        """
        if request.ignored:
            log.debug("%s: ignored: %s", request.api, ", ".join(request.ignored))
        job, headers = await self.beside(lambda: self._job(request, owner))
        return self.submit(request, job, headers)

    def submit(
        self,
        request: ChatRequest | RawRequest,
        job: Job,
        headers: Mapping[str, str] | None = None,
    ) -> Turn:
        """Queues a job.

        Raises:
            ApiError: the queue is full, the prompt too long, the model not ready.
        """
        if len(job.tokens) >= self.config.n_ctx:
            raise ContextExceeded(len(job.tokens), self.config.n_ctx)
        try:
            stream = self.runner.submit(job)
        except Exception as error:
            raise api_error(error) from error
        self.counts[f"requests_{request.api}"] += 1
        return Turn(request, job.tokens, noted(stream, job), job.sink, headers)

    async def count_tokens(self, request: ChatRequest, owner: str = "") -> int:
        """Tokens of the prompt, without the engine.

        Raises:
            ApiError: whatever is wrong.
        """
        prepared = await self.beside(lambda: self.prepare(request, owner))
        return len(prepared.encoded.ids)

    async def beside(self, work: Callable[[], Any]) -> Any:
        """What ``work`` gives in a thread, beside the event loop.

        Raises:
            ApiError: for every error of this package.
        """
        try:
            return await asyncio.to_thread(work)
        except GrebeError as error:
            raise api_error(error) from error

    def prepare(self, request: ChatRequest, owner: str = "") -> Prepared:
        """What the engine would get; slow, for a thread.

        Raises:
            ApiError: whatever is wrong.
        """
        return prepare(
            request,
            owner,
            self._texts,
            self.markers,
            generation=self.config.generation,
            replay=self._replay,
            sections=self._sections,
        )

    def _job(self, request: ChatRequest, owner: str) -> tuple[Job, dict[str, str]]:
        prepared = self.prepare(request, owner)
        self.counts["messages_replayed"] += prepared.encoded.n_replayed
        tokens = prepared.encoded.ids
        if len(tokens) >= self.config.n_ctx:
            raise ContextExceeded(len(tokens), self.config.n_ctx)
        script = self._scripts.select(request) if self._scripts is not None else None
        parser = OutputParser(
            self.markers,
            self.tokenizer,
            prepared.conversation.tools if prepared.calls else (),
            thinking=prepared.conversation.thinking,
            start=prepared.prompt.start,
            stop=request.stop,
        )
        one_call = prepared.calls and not request.parallel_tool_calls
        first = FirstCall(parser, self.tokenizer, self.markers) if one_call else None
        limit = request.max_tokens
        job = Job(
            tokens,
            first or parser,
            max_tokens=default_max_tokens(prepared.conversation) if limit is None else limit,
            sampling=sampling(
                request.sampling,
                thinking=prepared.conversation.thinking,
                calls=prepared.calls,
                official=self.config.official_sampling,
                banned=(self.markers.dsml,) if prepared.banned else (),
                mask=self._mask(request, prepared),
                vocab_size=self.tokenizer.vocab_size,
            ),
            marks=prepared.encoded.marks,
            session_hint=request.session_hint,
            script=script,
            deadline_s=self.config.deadline_s,
        )
        job.on_done = self._recorder(owner, prepared, parser, first)
        headers = {"x-scripted": script.label} if script is not None and script.label else {}
        return job, headers

    def _mask(self, request: ChatRequest, prepared: Prepared) -> TokenMask | None:
        """What the answer must obey, if anything."""
        asked = request.constrained
        obeys = asked.response_schema is not None or asked.json_object
        calls = prepared.calls and (asked.forced or any(tool.strict for tool in asked.tools))
        if not obeys and not calls:
            return None
        from ..chat.constraint import make_mask

        if not prepared.calls:
            asked = replace(asked, tools=(), forced=None)
        try:
            return make_mask(self.tokenizer, self.markers, asked, start=prepared.prompt.start)
        except InvalidArgumentError as error:
            param = _FORMATS.get(request.api) if obeys else "tools"
            raise invalid(str(error), param) from error

    def _recorder(
        self, owner: str, prepared: Prepared, parser: OutputParser, first: FirstCall | None
    ) -> Callable[[list[int], EndReason], None] | None:
        """What remembers the turn when it is over."""
        replay, generation = self._replay, self.config.generation
        if replay is None:
            return None

        def record(sampled: list[int], reason: EndReason) -> None:
            if first is not None:
                sampled = [*sampled, *first.rest()]
            conversation, encoded = prepared.conversation, prepared.encoded
            try:
                replay.record(
                    owner,
                    conversation,
                    encoded,
                    sampled,
                    parser.turn,
                    reason,
                    generation=generation,
                )
            except Exception:  # the answer is worth more than its record
                log.exception("a turn could not be recorded")

        return record
