"""A conversation with a model in this process: what was said, and the answer as it is made."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .chat.deltas import ContentDelta, Delta, ReasoningDelta
from .chat.encode import TextCache, encode
from .chat.markers import Markers
from .chat.messages import Conversation, Effort, Generation, Message
from .chat.parser import OutputParser
from .chat.render import render
from .config import Sampling

if TYPE_CHECKING:
    from .chat.prompt import Body
    from .events import Usage
    from .model import Model
    from .session import Session

__all__ = ["ChatSession"]


@dataclass
class _Remembered:
    """Tokens of our own answers, so that they are never read again."""

    markers: Markers
    answers: dict[int, tuple[list[int], bool]] = field(default_factory=dict)  # with reasoning?

    def ids(self, body: Body) -> Sequence[int] | None:
        ids, reasoned = self.answers.get(body.message, (None, False))
        if ids is None or body.reasoned or not reasoned:
            return ids
        return ids[ids.index(self.markers.think_end) + 1 :]


class ChatSession:
    """Messages and the engine's session that has read them.

    Args:
        model: that answers.
        session: of the model, taken over.
        system: text at the start; "" for none.
        generation: which checkpoint the prompt is for.

    Example:
        >>> import grebe
        >>> model = grebe.Model.load()
        >>> chat = ChatSession(model, model.session(512))
        >>> deltas = list(chat.ask("Hello", max_tokens=4))
        >>> chat.usage.completion_tokens <= 4, len(chat.messages)
        (True, 2)
    """

    def __init__(
        self, model: Model, session: Session, *, system: str = "", generation: Generation = "0731"
    ) -> None:
        self._session, self._generation = session, generation
        self._markers = Markers.of(model.tokenizer)
        self._tokenizer, self._texts = model.tokenizer, TextCache(model.tokenizer)
        self._system = system
        self.thinking = True
        self.effort: Effort = "high"
        self.usage: Usage | None = None
        self.clear()

    def clear(self) -> None:
        """Forgets what was said."""
        self.messages = [Message("system", self._system)] if self._system else []
        self._remembered = _Remembered(self._markers)

    def take_back(self) -> str | None:
        """Forgets the last question and its answer, and returns the question."""
        for i in range(len(self.messages) - 1, -1, -1):
            if self.messages[i].role == "user":
                question = self.messages[i].content
                del self.messages[i:]
                self._remembered.answers = {
                    k: v for k, v in self._remembered.answers.items() if k < i
                }
                return question
        return None

    def ask(
        self,
        text: str,
        *,
        max_tokens: int | None = None,
        sampling: Sampling | None = None,
        on_progress: Callable[[int, int], object] | None = None,
    ) -> Generator[Delta, None, None]:
        """The answer to a message, piece by piece.

        It joins the conversation when the iterator ends, is closed, or raises KeyboardInterrupt,
        as far as it has come.

        Raises:
            ContextOverflowError: the conversation is too long.
        """
        self.messages.append(Message("user", text))
        talk = Conversation(tuple(self.messages), thinking=self.thinking, effort=self.effort)
        prompt = render(talk, generation=self._generation)
        encoded = encode(prompt, self._texts, self._markers, self._remembered)
        parser = OutputParser(
            self._markers, self._tokenizer, (), thinking=self.thinking, start=prompt.start
        )
        try:
            running = self._session.generate(
                encoded.ids,
                max_tokens=max_tokens,
                sampling=sampling,
                on_progress=on_progress,
            )
        except BaseException:
            self.messages.pop()
            raise
        whole = False
        try:
            with running:
                for event in running:
                    sunk = parser.feed(event.token)
                    yield from sunk.deltas
                    if sunk.end is not None:
                        whole = True
                        break
                yield from parser.finish("stop" if whole else "length")
        finally:
            self.usage = running.usage
            parser.finish("cancelled")
            turn = parser.turn
            tokens = running.tokens
            if whole and tokens[-1] != self._markers.eos:
                pass  # a marker that has no place here ended it
            elif not self.thinking or self._markers.think_end in tokens:
                eos = [] if whole else [self._markers.eos]  # cut, and complete in what follows
                answer = [*tokens, *eos]
                self._remembered.answers[len(self.messages)] = answer, self.thinking
            self.messages.append(
                Message("assistant", turn.content, reasoning=turn.reasoning or None)
            )


def pieces(deltas: Iterable[Delta]) -> Iterator[tuple[bool, str]]:
    """Texts of an answer, each with whether it is reasoning."""
    for delta in deltas:
        if isinstance(delta, ReasoningDelta | ContentDelta):
            yield isinstance(delta, ReasoningDelta), delta.text
