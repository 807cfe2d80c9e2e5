"""Where a block of tool calls begins."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from .dsml import WRAPPERS
from .inband import DSML
from .markers import BAR

__all__ = ["WAIT", "Opener", "opener"]


@dataclass(frozen=True, slots=True)
class Opener:
    """What opened a block.

    Attributes:
        end: where the block's own text begins.
        prefix: what its tags have after ``<``.
        wrapped: whether a tag around the calls was read.
    """

    end: int
    prefix: str = DSML
    wrapped: bool = True


#: More text is needed to tell.
WAIT = Opener(-1)

_INVOKE = 'invoke name="'
_HALF = f"DSML{BAR}"  # the marker as ordinary text, without its first bar
_MAX_SPACE = 64
# Wrapper without the marker -> the prefixes that its calls may have.
_SPELT = {f"<{_HALF}{name}>": (_HALF, "") for name in WRAPPERS} | {"<tool_calls>": ("",)}


def opener(text: str, i: int, names: Iterable[str] | None) -> Opener | None:
    """What the ``<`` at ``text[i]`` opens; None if it is only text.

    Args:
        text: in-band.
        i: of the ``<``.
        names: of the declared tools, where tags may lack the marker; None: they may not.
    """
    marker = text[i + 1 : i + 2]
    if not marker:
        return WAIT
    if marker == DSML:
        return _marked(text, i)
    return None if names is None else _unmarked(text, i, names)


def _marked(text: str, i: int) -> Opener | None:
    after = i + 2
    for name in WRAPPERS:
        if (found := _literal(f"{name}>", text, after)) is not None:
            return Opener(after + len(name) + 1) if found else WAIT
    if (found := _literal(_INVOKE, text, after)) is not None:
        return Opener(i, wrapped=False) if found else WAIT
    return None


def _unmarked(text: str, i: int, names: Iterable[str]) -> Opener | None:
    """A wrapper without the marker must hold a call of a tool that there is."""
    wait = False
    for wrapper, prefixes in _SPELT.items():
        if not (found := _literal(wrapper, text, i)):
            wait |= found is False
            continue
        call = i + len(wrapper)
        limit = min(len(text), call + _MAX_SPACE)
        while call < limit and text[call].isspace():
            call += 1
        for prefix in prefixes:
            tag = f"<{prefix}{_INVOKE}"
            if not (found := _literal(tag, text, call)):
                wait |= found is False
                continue
            for name in names:
                found = _literal(f'{name}"', text, call + len(tag))
                if found:
                    return Opener(call, prefix)
                wait |= found is False
    return WAIT if wait else None


def _literal(literal: str, text: str, at: int) -> bool | None:
    """Whether it stands there: True, False if more text is needed to tell, None if it does not."""
    if text.startswith(literal, at):
        return True
    rest = text[at : at + len(literal)]
    return False if len(rest) < len(literal) and literal.startswith(rest) else None
