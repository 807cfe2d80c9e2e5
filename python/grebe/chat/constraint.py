"""Masks that hold the model to a form: JSON of a schema, a forced call, exact arguments.

Needs llguidance, the extra ``grebe[structured]``. Its work per token is small beside a forward
pass; the vocabulary (about a second) and compiled grammars are kept for the next request.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ..errors import GrebeError, InvalidArgumentError
from .grammar import answer_grammar, block_grammar, check_numbers, needs_answer, needs_block
from .inband import Bytes
from .markers import Markers
from .messages import Conversation, Message
from .prompt import Start

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer
    from numpy.typing import NDArray

    #: For ``Sampling.mask``: of the tokens sampled so far, which may come next; None: all.
    Mask = Callable[[Sequence[int]], "NDArray[np.uint32] | None"]

__all__ = ["ConstraintUnavailable", "Vocabulary", "make_mask", "prepare"]


class ConstraintUnavailable(InvalidArgumentError):
    """The package that makes masks is not installed."""


class Vocabulary(Bytes, Protocol):
    """What is asked of ``grebe.Tokenizer`` here."""

    @property
    def vocab_size(self) -> int:
        """Number of tokens."""

    def encode(self, text: str | bytes, /) -> list[int]:
        """Ids of a text."""

    def is_special(self, id: int, /) -> bool:
        """Whether no ordinary text gives this token."""

    def __hash__(self) -> int:
        """By identity: a vocabulary never changes."""


def make_mask(
    tokenizer: Vocabulary,
    markers: Markers,
    conversation: Conversation,
    *,
    start: Start | None = None,
) -> Mask | None:
    """The mask for the answer to a conversation; None if nothing is asked of it.

    An answer is held to ``response_schema``, ``json_object`` or ``forced`` after the reasoning,
    which must end. The calls of strict tools are held to their schemas wherever they come.

    Args:
        tokenizer: the model's.
        markers: its markers.
        conversation: what is asked.
        start: where the output begins; None: in the reasoning if the model thinks.

    Returns:
        A callable for one generation.

    Raises:
        ConstraintUnavailable: llguidance is not installed.
        InvalidArgumentError: a schema that is wrong or beyond what can be enforced, with the
            reason; a forced tool that is not declared.
    """
    begin = start or ("reasoning" if conversation.thinking else "content")
    if needs_answer(conversation):
        _check(conversation)
        matcher = _compiled(tokenizer, markers, answer_grammar(conversation, markers, begin))
        if begin == "content":
            matcher = _begun(matcher, tokenizer, conversation.messages[-1:])
        return _AnswerMask(tokenizer, markers, matcher, reasoning=begin == "reasoning")
    if needs_block(conversation):
        _check(conversation)
        matcher = _compiled(tokenizer, markers, block_grammar(conversation, markers))
        return _BlockMask(tokenizer, markers, matcher)
    return None


def prepare(tokenizer: Vocabulary, markers: Markers) -> None:
    """Reads the vocabulary, so that no request has to wait for it.

    Raises:
        ConstraintUnavailable: llguidance is not installed.
    """
    _vocabulary(tokenizer, markers.eos)


class _Mask:
    """What both masks do: follow the tokens, and ask the matcher once there is one."""

    def __init__(self, tokenizer: Vocabulary, markers: Markers, matcher: LLMatcher) -> None:
        self._markers = markers
        self._n_words = (tokenizer.vocab_size + 31) // 32
        self._bytes = tokenizer.token_bytes
        self._prototype = matcher
        self._n_seen = 0
        self._matcher: LLMatcher | None = None
        self._allowed: NDArray[np.uint32] | None = None
        self._ended = False  # nothing is asked of the rest

    def __call__(self, tokens: Sequence[int]) -> NDArray[np.uint32] | None:
        with _no_panic(GrebeError):
            for token in tokens[self._n_seen :]:
                self._see(token)
            self._n_seen = len(tokens)
            return self._next()

    def _see(self, token: int) -> None:
        if self._matcher is None:
            if not self._ended:
                self._watch(token)
        elif not self._matcher.consume_token(token):
            if self._allowed is not None and _has(self._allowed, token):
                raise GrebeError(f"structured output: {self._matcher.get_error()}")
            # The token was forced by somebody else, who must know. What follows has no form.
            self._matcher, self._ended = None, True

    def _watch(self, token: int) -> None:
        raise NotImplementedError

    def _next(self) -> NDArray[np.uint32] | None:
        if self._matcher is None:
            return None
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint32)
        if self._matcher.is_error():
            raise GrebeError(f"structured output: {self._matcher.get_error()}")
        self._allowed = bits[: self._n_words]
        return self._allowed


class _AnswerMask(_Mask):
    """The whole answer has a form. The reasoning before it is free, but must end."""

    def __init__(
        self, tokenizer: Vocabulary, markers: Markers, matcher: LLMatcher, *, reasoning: bool
    ) -> None:
        super().__init__(tokenizer, markers, matcher)
        self._reasoning = _all_but(tokenizer.vocab_size, (markers.eos, markers.dsml))
        if not reasoning:
            self._matcher = matcher.deep_copy()

    def _watch(self, token: int) -> None:
        if token == self._markers.think_end:
            self._matcher = self._prototype.deep_copy()

    def _next(self) -> NDArray[np.uint32] | None:
        if self._matcher is None and not self._ended:
            return self._reasoning
        return super()._next()


class _BlockMask(_Mask):
    """Only a block of calls has a form, from its opening tag on."""

    def __init__(self, tokenizer: Vocabulary, markers: Markers, matcher: LLMatcher) -> None:
        super().__init__(tokenizer, markers, matcher)
        self._open = False  # the newest token ended in "<"

    def _watch(self, token: int) -> None:
        if token == self._markers.dsml:
            if self._open:
                self._matcher = self._prototype.deep_copy()
        else:
            self._open = self._bytes(token).endswith(b"<")


def _has(mask: NDArray[np.uint32], token: int) -> bool:
    return bool(mask[token // 32] >> (token % 32) & 1)


def _all_but(vocab_size: int, tokens: Sequence[int]) -> NDArray[np.uint32]:
    mask = np.full((vocab_size + 31) // 32, 0xFFFFFFFF, np.uint32)
    for token in tokens:
        mask[token // 32] &= np.uint32(0xFFFFFFFF ^ (1 << token % 32))
    return mask


def _llguidance() -> Any:
    try:
        import llguidance
    except ImportError:
        raise ConstraintUnavailable(
            "structured output, forced calls and strict tools need the package llguidance: "
            "pip install 'grebe[structured]'"
        ) from None
    return llguidance


@lru_cache(maxsize=2)
def _vocabulary(tokenizer: Vocabulary, eos: int) -> LLTokenizer:
    library = _llguidance()
    n = tokenizer.vocab_size

    class Tokens:
        """The vocabulary as llguidance wants it. Special tokens match no text."""

        eos_token_id = eos
        bos_token_id = None
        tokens = [tokenizer.token_bytes(i) for i in range(n)]  # noqa: RUF012
        special_token_ids = [i for i in range(n) if tokenizer.is_special(i)]  # noqa: RUF012

        def __call__(self, text: str | bytes) -> list[int]:
            return tokenizer.encode(text)

    result: LLTokenizer = library.LLTokenizer(
        library.TokenizerWrapper(Tokens()), n_vocab=n, eos_token=eos
    )
    return result


@lru_cache(maxsize=32)
def _prototype(tokenizer: Vocabulary, eos: int, grammar: str) -> LLMatcher:
    library, vocabulary = _llguidance(), _vocabulary(tokenizer, eos)
    with _no_panic(InvalidArgumentError):
        matcher: LLMatcher = library.LLMatcher(vocabulary, grammar, log_level=0)
        first = matcher.deep_copy()
        if not matcher.is_error():
            first.compute_bitmask()  # where a schema fails that nothing can satisfy
        if first.is_error():
            raise InvalidArgumentError(f"structured output: {_first_line(first.get_error())}")
    return matcher


def _compiled(tokenizer: Vocabulary, markers: Markers, grammar: str) -> LLMatcher:
    return _prototype(tokenizer, markers.eos, grammar)


def _begun(matcher: LLMatcher, tokenizer: Vocabulary, last: Sequence[Message]) -> LLMatcher:
    """After what the prompt itself says of the answer."""
    if not last or not last[0].prefix or not last[0].content:
        return matcher
    matcher = matcher.deep_copy()
    if not matcher.consume_tokens(tokenizer.encode(last[0].content)):
        raise InvalidArgumentError(
            "structured output: the answer cannot begin with the text of the last message"
        )
    return matcher


def _check(conversation: Conversation) -> None:
    """Names the schema that is wrong; the whole grammar would only say where in itself."""
    if conversation.response_schema is not None:
        _check_schema("response schema", conversation.response_schema)
    for tool in conversation.tools:
        if tool.strict:
            _check_schema(f"tool {tool.name!r}: parameters", tool.parameters)


def _check_schema(subject: str, schema: Mapping[str, Any]) -> None:
    library = _llguidance()
    try:
        check_numbers(schema)
        with _no_panic(ValueError):
            grammar = library.LLMatcher.grammar_from_json_schema(dict(schema))
            failed, messages = library.LLMatcher.validate_grammar_with_warnings(grammar)
    except (ValueError, TypeError) as error:
        raise InvalidArgumentError(f"{subject}: {error}") from None
    if failed:
        raise InvalidArgumentError(f"{subject}: {_first_line(messages[0])}")


@contextmanager
def _no_panic(kind: type[Exception]) -> Iterator[None]:
    """What llguidance did not expect is an error like others; a panic of Rust would end threads.

    Raises:
        Exception: of this kind.
    """
    try:
        yield
    except Exception:
        raise
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise kind("the schema is beyond what can be enforced") from None


def _first_line(message: str) -> str:
    return message.strip().split("\n")[0]
