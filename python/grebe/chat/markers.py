"""The tokens that structure a prompt: their names here, their spellings, their ids.

A marker is one id. Its spelling in anybody's text is only text; the encoder sees to that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from ..errors import UnsupportedModelError

__all__ = ["BAR", "DSML", "SPELLINGS", "TASKS", "Markers", "Vocabulary"]

#: U+FF5C, the bar in most spellings.
BAR = "\uff5c"
DSML = f"{BAR}DSML{BAR}"

#: Quick instructions: the model answers them with few tokens.
TASKS = ("action", "query", "authority", "domain", "title", "extracted_url", "read_url")

#: Name -> spelling. U+2581 stands for the blank in the oldest of them.
SPELLINGS: dict[str, str] = {
    "bos": f"<{BAR}begin\u2581of\u2581sentence{BAR}>",
    "eos": f"<{BAR}end\u2581of\u2581sentence{BAR}>",
    "user": f"<{BAR}User{BAR}>",
    "assistant": f"<{BAR}Assistant{BAR}>",
    "think": "<think>",
    "think_end": "</think>",
    "dsml": DSML,
    "latest_reminder": f"<{BAR}latest_reminder{BAR}>",
    "fim_hole": f"<{BAR}fim\u2581hole{BAR}>",
    "fim_begin": f"<{BAR}fim\u2581begin{BAR}>",
    "fim_end": f"<{BAR}fim\u2581end{BAR}>",
    **{name: f"<{BAR}{name}{BAR}>" for name in TASKS},
}


class Vocabulary(Protocol):
    """What is asked of ``grebe.Tokenizer`` here."""

    def find(self, text: str | bytes, /) -> int | None:
        """Id of the token with exactly this text."""

    def is_special(self, id: int, /) -> bool:
        """Whether no ordinary text gives this token."""


@dataclass(frozen=True, slots=True)
class Markers:
    """Ids of the markers in one vocabulary. The names are those of :data:`SPELLINGS`."""

    bos: int
    eos: int
    user: int
    assistant: int
    think: int
    think_end: int
    dsml: int
    latest_reminder: int
    fim_hole: int
    fim_begin: int
    fim_end: int
    tasks: Mapping[str, int]
    ids: Mapping[str, int]

    @staticmethod
    def of(tokenizer: Vocabulary) -> Markers:
        """The markers of a tokenizer.

        Raises:
            UnsupportedModelError: it lacks one, or has it as a piece of ordinary text.

        Example:
            >>> import grebe
            >>> Markers.of(grebe.Model.load().tokenizer).dsml
            8151
        """
        ids: dict[str, int] = {}
        for name, spelling in SPELLINGS.items():
            found = tokenizer.find(spelling)
            if found is None or not tokenizer.is_special(found):
                raise UnsupportedModelError(
                    f"tokenizer: no special token {spelling!r}, which the chat protocol needs",
                    "tokenizer.ggml.tokens",
                    "none" if found is None else f"ordinary token {found}",
                    spelling,
                )
            ids[name] = found
        tasks = {name: ids[name] for name in TASKS}
        single = {name: id for name, id in ids.items() if name not in tasks}
        return Markers(**single, tasks=tasks, ids=ids)
