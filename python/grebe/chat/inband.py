"""Sampled tokens as one text in which the markers are characters of their own.

UTF-8 never decodes to the half of a surrogate pair, so these characters cannot be forged by text:
whoever searches for them matches tokens, not spellings.
"""

from __future__ import annotations

import codecs
import re
from typing import Protocol

from .markers import SPELLINGS, Markers

__all__ = ["DSML", "THINK", "THINK_END", "Bytes", "InbandDecoder", "inband", "spelled"]

DSML = "\ud800"
THINK = "\ud801"
THINK_END = "\ud802"

_SPELLED = {
    DSML: SPELLINGS["dsml"],
    THINK: SPELLINGS["think"],
    THINK_END: SPELLINGS["think_end"],
}
_MARKER = re.compile("[\ud800-\ud802]")
_SURROGATE = re.compile("[\ud800-\udfff]")


class Bytes(Protocol):
    """What is asked of ``grebe.Tokenizer`` here."""

    def token_bytes(self, id: int, /) -> bytes:
        """Bytes of one token."""


class InbandDecoder:
    """Decodes tokens one by one; a character that a token's end cuts waits for the rest."""

    def __init__(self, markers: Markers, tokenizer: Bytes) -> None:
        self._marker = {
            markers.dsml: DSML,
            markers.think: THINK,
            markers.think_end: THINK_END,
        }
        self._bytes = tokenizer.token_bytes
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode

    def push(self, token: int) -> str:
        """Text that became complete with this token."""
        marker = self._marker.get(token)
        if marker is None:
            return self._decode(self._bytes(token))
        return self._decode(b"", True) + marker

    def finish(self) -> str:
        """U+FFFD for a character that the model itself left incomplete."""
        return self._decode(b"", True)


def inband(text: str) -> str:
    """Text from elsewhere, in which spellings are to count as markers."""
    text = _SURROGATE.sub("\ufffd", text)
    for marker, spelling in _SPELLED.items():
        text = text.replace(spelling, marker)
    return text


def spelled(text: str) -> str:
    """Markers as a reader sees them."""
    if text.isascii() or not _MARKER.search(text):
        return text
    return _MARKER.sub(lambda match: _SPELLED[match[0]], text)
