"""From a neutral request to what the engine needs: tokens, sampling, a parser.

Pure and thread-safe but for the replay table; it runs beside the event loop.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from ..chat.deltas import EndReason
from ..chat.encode import Encoded, Encoder, Splices, encode
from ..chat.markers import Markers
from ..chat.messages import Conversation, Generation
from ..chat.parser import ParsedTurn
from ..chat.prompt import Marker, Prompt
from ..chat.render import render
from ..config import Sampling
from .errors import invalid
from .requests import ChatRequest, SamplingOptions

if TYPE_CHECKING:
    from ..config import TokenMask

__all__ = ["Prepared", "Replay", "ToolSections", "default_max_tokens", "prepare", "sampling"]

# Nothing that the model computes comes near it: a banned token is never sampled.
_BANNED = -1e9


class Replay(Protocol):
    """What is asked of the replay table here."""

    def splices(self, conversation: Conversation, owner: str, *, generation: Generation) -> Splices:
        """Tokens of the assistant messages that are remembered."""

    def record(
        self,
        owner: str,
        conversation: Conversation,
        prompt: Encoded,
        sampled: Sequence[int],
        turn: ParsedTurn,
        reason: EndReason,
        *,
        generation: Generation,
    ) -> bool:
        """Remembers a turn."""

    def knows(self, owner: str, call_id: str) -> bool:
        """Whether this server gave out the id to the owner."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request that is ready for the engine.

    Attributes:
        conversation: as the prompt shows it.
        prompt: rendered.
        encoded: its tokens.
        calls: whether the output may hold calls.
        banned: the model must not begin a call, although it is shown tools.
    """

    conversation: Conversation
    prompt: Prompt
    encoded: Encoded
    calls: bool
    banned: bool


class ToolSections:
    """The system parts with tools that were rendered lately.

    A request with tool_choice "none" keeps the section if a session was built with it, so that the
    session can go on.
    """

    def __init__(self, size: int = 1024) -> None:
        self._seen: OrderedDict[bytes, None] = OrderedDict()
        self._size = size
        self._lock = threading.Lock()

    def add(self, key: bytes) -> None:
        """It was rendered."""
        with self._lock:
            self._seen[key] = None
            self._seen.move_to_end(key)
            if len(self._seen) > self._size:
                self._seen.popitem(last=False)

    def __contains__(self, key: bytes) -> bool:
        with self._lock:
            return key in self._seen


def prepare(
    request: ChatRequest,
    owner: str,
    tokenizer: Encoder,
    markers: Markers,
    *,
    generation: Generation,
    replay: Replay | None,
    sections: ToolSections,
) -> Prepared:
    """Renders and encodes.

    Raises:
        ApiError: a call without a result, or a result without a call.
        InvalidArgumentError: a conversation that cannot be rendered.
    """
    for unmatched in request.unmatched:
        if replay is None or not replay.knows(owner, unmatched.call_id):
            raise unmatched.error
    conversation = _whole(request.conversation)
    prompt = render(conversation, generation=generation)
    banned = False
    if conversation.tools:
        key = _section(prompt, owner)
        if request.tools_allowed:
            sections.add(key)
        elif key in sections or _called(conversation, owner, replay):
            banned = True
        else:
            conversation = replace(conversation, tools=())
            prompt = render(conversation, generation=generation)
    splices = None
    if replay is not None:
        splices = replay.splices(conversation, owner, generation=generation)
    encoded = encode(prompt, tokenizer, markers, splices)
    calls = bool(conversation.tools) and not banned
    return Prepared(conversation, prompt, encoded, calls, banned)


def _whole(conversation: Conversation) -> Conversation:
    """Without the reasoning that is left of an answer that broke off.

    Clients ask again then, and some keep it: at the end, and later before the answer that they got.
    """
    messages = conversation.messages
    kept = tuple(
        message
        for message, following in zip(messages, (*messages, None)[1:], strict=True)
        if not (
            message.role == "assistant"
            and not message.content
            and not message.tool_calls
            and not message.prefix
            and (following is None or following.role == "assistant")
        )
    )
    return conversation if len(kept) == len(messages) else replace(conversation, messages=kept)


def _section(prompt: Prompt, owner: str) -> bytes:
    """Names the system part of a prompt."""
    digest = hashlib.blake2b(owner.encode() + b"\0", digest_size=16)
    end = prompt.ends[0] if prompt.ends else 0
    for segment in prompt.segments[:end]:
        text = segment.name if isinstance(segment, Marker) else getattr(segment, "text", "")
        digest.update(text.encode("utf-8", "replace") + b"\0")
    return digest.digest()


def _called(conversation: Conversation, owner: str, replay: Replay | None) -> bool:
    return replay is not None and any(
        call.id is not None and replay.knows(owner, call.id)
        for message in conversation.messages
        for call in message.tool_calls
    )


def default_max_tokens(conversation: Conversation) -> int:
    """How long an answer may be when the client does not say, as in DeepSeek's API."""
    if not conversation.thinking:
        return 8192
    return 131072 if conversation.effort == "max" else 65536


def sampling(
    options: SamplingOptions,
    *,
    thinking: bool,
    calls: bool,
    official: bool = False,
    banned: Sequence[int] = (),
    mask: TokenMask | None = None,
    vocab_size: int,
) -> Sampling:
    """How tokens are chosen: what the client said, and DeepSeek's defaults.

    Args:
        options: of the client.
        thinking: changes the defaults.
        calls: so does this.
        official: as the API: while thinking, what the client says of temperature and top_p does not
            count.
        banned: tokens that must not be sampled.
        mask: of the tokens that may be.
        vocab_size: bounds the ids of ``logit_bias``.

    Raises:
        ApiError: a token id that does not exist.
    """
    temperature, top_p = options.temperature, options.top_p
    if thinking and official:
        temperature = top_p = None
    if temperature is None:
        temperature = 1.0
    if top_p is None:
        top_p = 0.95 if thinking and calls else 1.0
    bias = dict(options.logit_bias)
    for token in bias:
        if token >= vocab_size:
            raise invalid(
                f"logit_bias: {token} is no token id; there are {vocab_size}", "logit_bias"
            )
    bias.update((token, _BANNED) for token in banned)

    def given(value: float | None, default: float) -> float:
        return default if value is None else value

    return Sampling(
        temperature=temperature,
        top_p=top_p,
        top_k=options.top_k or 0,
        min_p=given(options.min_p, 0.0),
        repetition_penalty=given(options.repetition_penalty, 1.0),
        presence_penalty=given(options.presence_penalty, 0.0),
        frequency_penalty=given(options.frequency_penalty, 0.0),
        logit_bias=bias,
        seed=options.seed,
        top_logprobs=options.top_logprobs or 0,
        mask=mask,
    )
