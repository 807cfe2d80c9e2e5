"""Exact replay: what the model said comes back to it as the tokens that it sampled.

A client sends a turn back as JSON that it has parsed and written anew. Encoding that text gives
other tokens than were sampled, and everything from there on would have to be read again. So turns
are remembered, found by the ids of their calls or, without calls, by what was said before and the
answer, and put into the next prompt as they were. Where the client changed something that the model
should see, the message is encoded from its text instead, and the log says why.
"""

from __future__ import annotations

import hashlib
import logging
import sys
import threading
from array import array
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from .deltas import EndReason
from .encode import Encoded
from .equivalence import same_arguments
from .markers import Markers
from .messages import Conversation, Generation, Message, ToolCall
from .parts import alphanumerics
from .prompt import Body
from .records import Record, chains, digest
from .replay_index import Index
from .replay_writer import Writer
from .sampled import Tokenizer, sampled_body

__all__ = ["ReplayTable", "Splices", "Turn"]

_log = logging.getLogger("grebe.replay")


class Turn(Protocol):
    """What the parser made of the sampled tokens, and the client received."""

    @property
    def reasoning(self) -> str | None:
        """The reasoning."""

    @property
    def content(self) -> str:
        """The answer."""

    @property
    def calls(self) -> Sequence[ToolCall]:
        """Complete calls, with ids."""

    @property
    def partial_call(self) -> object | None:
        """A call that was cut."""


class ReplayTable:
    """Remembers turns. Thread-safe.

    Args:
        tokenizer: of the model; records of another one are never used.
        markers: its markers.
        directory: where records survive a restart; None: nowhere.
        budget_bytes: of all records together; those not used for longest are forgotten first.

    Example:
        >>> import grebe
        >>> tokenizer = grebe.Model.load().tokenizer
        >>> table = ReplayTable(tokenizer, Markers.of(tokenizer))
        >>> table.knows("somebody", "call_1")
        False
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        markers: Markers,
        directory: Path | None = None,
        *,
        budget_bytes: int = 128 << 20,
    ) -> None:
        self._tokenizer, self._markers = tokenizer, markers
        self._lock = threading.RLock()
        self._index = Index(budget_bytes)
        self._outcomes: Counter[str] = Counter()
        self._told: OrderedDict[tuple[int, str], None] = OrderedDict()
        self._writer: Writer | None = None
        if directory is not None:
            mark = _fingerprint(tokenizer, markers)
            path = Path(directory) / f"replay-{mark.hex()[:16]}.log"
            self._writer = Writer(path, mark, self._lock, self._live)
            self._writer.open(self._load)

    def splices(
        self, conversation: Conversation, owner: str, *, generation: Generation = "0731"
    ) -> Splices:
        """What to give to ``encode`` for a prompt of this conversation.

        Args:
            conversation: that is to be rendered.
            owner: who asks; only what was sent to the same owner is put in.
            generation: of the checkpoint.
        """
        return Splices(self, conversation, _owner(owner), _mode(conversation, generation))

    def record(
        self,
        owner: str,
        conversation: Conversation,
        prompt: Encoded,
        sampled: Sequence[int],
        turn: Turn,
        reason: EndReason,
        *,
        generation: Generation = "0731",
    ) -> bool:
        """Remembers a turn.

        Args:
            owner: who received it.
            conversation: that it answers.
            prompt: what it was sampled after.
            sampled: all tokens of it; with or without the end marker.
            turn: what the owner received of it.
            reason: why the output ended.
            generation: of the checkpoint.

        Returns:
            Whether it can be replayed. A turn that was cut in a call cannot: the tokens hold more
            than the owner received.
        """
        if turn.partial_call is not None or any(not call.id for call in turn.calls):
            return False
        before = conversation.messages
        reasoning, content = turn.reasoning or "", turn.content
        if before and before[-1].role == "assistant" and before[-1].prefix:
            opened, before = before[-1], before[:-1]
            reasoning = (opened.reasoning or "") + reasoning if conversation.thinking else reasoning
            content = opened.content + content
            if opened.tool_calls:
                return False
        ids = sampled_body(
            [*prompt.ids[prompt.turn :], *sampled],
            self._tokenizer,
            self._markers,
            reasoning=reasoning if conversation.thinking else None,
            content=content,
            has_calls=bool(turn.calls),
            reason=reason,
        )
        if ids is None:
            return False
        record = Record(
            sys.intern(_owner(owner)),
            chains(conversation)[len(before)],
            digest(content),
            digest(reasoning),
            tuple(turn.calls),
            conversation.thinking,
            sys.intern(_mode(conversation, generation)),
            array("I", ids),
        )
        payload = record.pack()
        with self._lock:
            if not self._index.add(record, len(payload)):
                return False
            if self._writer is not None:
                self._writer.append(payload, self._index.n_bytes)
        return True

    def knows(self, owner: str, call_id: str) -> bool:
        """Whether a call with this id was sent to this owner, and is remembered."""
        with self._lock:
            return self._index.knows(_owner(owner), call_id)

    def stats(self) -> dict[str, Any]:
        """Numbers for metrics: sizes, and what became of assistant messages, by reason."""
        with self._lock:
            return {
                "records": len(self._index),
                "bytes": self._index.n_bytes,
                "outcomes": dict(self._outcomes),
                **({} if self._writer is None else self._writer.stats()),
            }

    def flush(self) -> None:
        """Waits until everything is on the disk, if there is one and it takes it."""
        if self._writer is not None:
            self._writer.flush()

    def close(self) -> None:
        """Flushes and closes the file; the table goes on in memory."""
        if self._writer is not None:
            self._writer.close()

    def _find(
        self, owner: str, chain: str, mode: str, message: Message
    ) -> list[tuple[int, Record]]:
        """Candidates, the best first."""
        with self._lock:
            found = self._index.find(owner, chain, message)
        return sorted(found, key=lambda entry: entry[1].mode != mode)

    def _used(self, number: int) -> None:
        with self._lock:
            self._outcomes["replayed"] += 1
            self._index.touch(number)

    def _refused(self, message: int, number: int, reason: str) -> None:
        with self._lock:
            self._outcomes[reason] += 1
            again = (number, reason) in self._told
            self._told[number, reason] = None
            if len(self._told) > 4096:
                self._told.popitem(last=False)
        # An edit stays in the conversation and would be told with every request.
        level = logging.DEBUG if again or number < 0 else logging.INFO
        _log.log(level, "message %d is encoded anew: %s", message, reason)

    def _load(self, payload: bytes) -> None:
        try:
            record = Record.unpack(payload)
        except ValueError:
            return
        if max(record.ids, default=0) < self._tokenizer.vocab_size:
            self._index.add(record, len(payload))

    def _live(self) -> list[Record]:
        with self._lock:
            return self._index.records()


class Splices:
    """The remembered tokens for one rendering; see ``encode.Splices``."""

    def __init__(self, table: ReplayTable, talk: Conversation, owner: str, mode: str) -> None:
        self._table, self._talk, self._owner, self._mode = table, talk, owner, mode
        self._chains: list[str] | None = None

    def ids(self, body: Body) -> Sequence[int] | None:
        """All tokens of a message, end marker included; None when it has to be encoded."""
        message = self._talk.messages[body.message]
        if self._chains is None:
            self._chains = chains(self._talk)
        chain = self._chains[body.message]
        reason, number = "not remembered", -1
        for number, record in self._table._find(self._owner, chain, self._mode, message):
            found = self._difference(record, message, reasoned=body.reasoned)
            if found is None:
                ids = self._fitted(record, reasoned=body.reasoned)
                if ids is not None:
                    self._table._used(number)
                    return ids
                found = "its reasoning was never closed"
            reason = found
        self._table._refused(body.message, number, reason)
        return None

    def _fitted(self, record: Record, *, reasoned: bool) -> Sequence[int] | None:
        """The tokens with or without the reasoning, as the place wants them."""
        markers, ids = self._table._markers, record.ids
        tail = array("I", [markers.eos])
        if record.thinking and not reasoned:
            if markers.think_end not in ids:
                return None
            return ids[ids.index(markers.think_end) + 1 :] + tail
        if reasoned and not record.thinking:
            return array("I", [markers.think_end]) + ids + tail
        return ids + tail

    def _difference(self, record: Record, message: Message, *, reasoned: bool) -> str | None:
        """What a client changed, None for nothing that the model should see."""
        if len(record.calls) != len(message.tool_calls):
            return "calls are missing or new"
        for ours, theirs in zip(record.calls, message.tool_calls, strict=True):
            if alphanumerics(ours.id or "") != alphanumerics(theirs.id or ""):
                return "calls of several turns"
            if ours.name != theirs.name:
                return "another name of a call"
            if not same_arguments(ours.arguments, theirs.arguments, self._schema(ours.name)):
                return "other arguments of a call"
        if digest(message.content) != record.content:
            return "another answer"
        given = (message.reasoning or "").strip()
        if reasoned and given and digest(given) != record.reasoning:
            # When an answer breaks off and is asked for again, some keep the reasoning of both.
            last = self._reasoning(record)
            if not last or not given.endswith(last):
                return "another reasoning"
        return None

    def _schema(self, name: str) -> Mapping[str, Any] | None:
        """Of a tool's parameters."""
        return next((tool.parameters for tool in self._talk.tools if tool.name == name), None)

    def _reasoning(self, record: Record) -> str:
        """That was sampled; empty without one."""
        end = self._table._markers.think_end
        if not record.thinking or end not in record.ids:
            return ""
        return self._table._tokenizer.decode(record.ids[: record.ids.index(end)]).strip()


def _mode(conversation: Conversation, generation: Generation) -> str:
    return f"{conversation.effort if conversation.thinking else 'none'} {generation}"


def _owner(owner: str) -> str:
    return hashlib.blake2b(owner.encode(), digest_size=16, person=b"grebe owner").hexdigest()


def _fingerprint(tokenizer: Tokenizer, markers: Markers) -> bytes:
    """Of the vocabulary: ids mean nothing in another one."""
    state = hashlib.blake2b(digest_size=16)
    state.update(repr(sorted(markers.ids.items())).encode())
    state.update(tokenizer.decode_bytes(range(tokenizer.vocab_size)))
    return state.digest()
