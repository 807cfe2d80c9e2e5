"""What is remembered of a turn of the model."""

from __future__ import annotations

import hashlib
import json
import struct
import sys
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

from .messages import Conversation, Message, ToolCall
from .parts import alphanumerics

__all__ = ["Record", "chains", "digest"]


def digest(text: str | None) -> str:
    """Of a text but for white space around it; 128 bits."""
    data = (text or "").strip().encode("utf-8", "surrogatepass")
    return hashlib.blake2b(data, digest_size=16).hexdigest()


@dataclass(frozen=True, slots=True)
class Record:
    """A turn, as sampled and as the client got it.

    Texts are kept as digests only: they are compared, and the tokens hold them anyway.

    Attributes:
        owner: digest of who got it.
        chain: digest of the messages before it.
        content: digest of the answer.
        reasoning: digest of the reasoning.
        calls: as the client got them.
        thinking: whether the tokens begin in the reasoning.
        mode: effort and generation, of the prompt it answered.
        ids: all tokens between the header and the end marker.
    """

    owner: str
    chain: str
    content: str
    reasoning: str
    calls: tuple[ToolCall, ...]
    thinking: bool
    mode: str
    ids: array[int]

    def pack(self) -> bytes:
        """As bytes."""
        calls = [[call.id, call.name, call.arguments] for call in self.calls]
        fields = [self.owner, self.chain, self.content, self.reasoning]
        head = json.dumps([*fields, calls, self.thinking, self.mode]).encode()
        ids = array("I", self.ids)
        if sys.byteorder == "big":
            ids.byteswap()
        return struct.pack("<I", len(head)) + head + ids.tobytes()

    @staticmethod
    def unpack(data: bytes) -> Record:
        """From :meth:`pack`.

        Raises:
            ValueError: the bytes are of something else.
        """
        try:
            (n,) = struct.unpack_from("<I", data)
            owner, chain, content, reasoning, calls, thinking, mode = json.loads(data[4 : 4 + n])
            ids = array("I")
            ids.frombytes(data[4 + n :])
            if sys.byteorder == "big":
                ids.byteswap()
            made = tuple(ToolCall(name, arguments, id) for id, name, arguments in calls)
        except (struct.error, TypeError) as error:
            raise ValueError(str(error)) from None
        # Most records have these two in common.
        owner, mode = sys.intern(str(owner)), sys.intern(str(mode))
        return Record(owner, chain, content, reasoning, made, bool(thinking), mode, ids)


def chains(conversation: Conversation) -> list[str]:
    """For each message a digest of all before it, and one of the whole at the end.

    It says what a conversation is about, not how a client writes it down: reasoning, arguments and
    white space around texts are left out.
    """
    state = hashlib.blake2b(digest_size=16)
    result = [state.hexdigest()]
    for message in conversation.messages:
        for field in _fields(message):
            data = field.encode("utf-8", "surrogatepass")
            state.update(struct.pack("<Q", len(data)))
            state.update(data)
        result.append(state.hexdigest())
    return result


def _fields(message: Message) -> Sequence[str]:
    calls = [alphanumerics(call.id or "") or call.name for call in message.tool_calls]
    result = alphanumerics(message.tool_call_id or "")
    return [message.role, message.content.strip(), result, str(len(calls)), *calls]
