"""Tokens of preprocessed C++, as flat lists, and the few questions that the rewriter asks of them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from .source import LINE_MARKER
from .tools import CompileError

_TOKEN = re.compile(
    r"""(?P<marker>^[ \t]*\#[^\n]*\n)
      | (?P<space>\s+)
      | (?P<string>"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*')
      | (?P<number>\.?[0-9](?:[eEpP][+-]|[0-9A-Za-z_.'])*)
      | (?P<name>[A-Za-z_]\w*)
      | (?P<operator>::|->\*|->|\+\+|--|<<=|>>=|<=|>=|==|!=|&&|\|\||[-+*/%&|^]=|<<|\.\.\.|[^\s\w])""",
    re.X | re.M,
)
OPENERS = {"(": ")", "[": "]", "{": "}"}
CLOSERS = {")", "]", "}"}


@dataclass(slots=True)
class Token:
    """``kind`` is marker, space, string, number, name or operator."""

    kind: str
    text: str

    @property
    def blank(self) -> bool:
        return self.kind in ("space", "marker")


def tokenize(text: str) -> list[Token]:
    return [Token(m.lastgroup or "", m.group()) for m in _TOKEN.finditer(text)]


def joined(tokens: Sequence[Token]) -> str:
    return "".join(token.text for token in tokens)


def next_at(tokens: Sequence[Token], i: int) -> int:
    """First index >= i that is not blank; len(tokens) if there is none."""
    while i < len(tokens) and tokens[i].blank:
        i += 1
    return i


def previous_at(tokens: Sequence[Token], i: int) -> int:
    """Last index <= i that is not blank; -1 if there is none."""
    while i >= 0 and tokens[i].blank:
        i -= 1
    return i


def text_at(tokens: Sequence[Token], i: int) -> str:
    """Text of the first token at or after i that is not blank; '' past the end."""
    i = next_at(tokens, i)
    return tokens[i].text if i < len(tokens) else ""


def closer(tokens: Sequence[Token], i: int) -> int:
    """Index of the bracket that closes tokens[i]."""
    depth = 0
    for j in range(i, len(tokens)):
        if tokens[j].text in OPENERS:
            depth += 1
        elif tokens[j].text in CLOSERS:
            depth -= 1
            if depth == 0:
                return j
    raise CompileError(f"{location(tokens, i)}: error: '{tokens[i].text}' is not closed")


def angle_closer(tokens: Sequence[Token], i: int) -> int:
    """Index of the '>' that closes the '<' at i, or -1 if it is a comparison."""
    depth = 0
    j = i
    while j < len(tokens):
        text = tokens[j].text
        if text in (";", "{"):
            return -1
        if text in OPENERS:
            j = closer(tokens, j)
        elif text == "<":
            depth += 1
        elif text == ">":
            depth -= 1
            if depth == 0:
                return j
        j += 1
    return -1


def skip_to(tokens: Sequence[Token], i: int, stops: Sequence[str]) -> int:
    """First index >= i outside brackets whose text is one of ``stops``; len(tokens) if none."""
    while i < len(tokens) and tokens[i].text not in stops:
        i = closer(tokens, i) + 1 if tokens[i].text in OPENERS else i + 1
    return i


def split(tokens: Sequence[Token], separator: str = ",") -> list[list[Token]]:
    """Parts between separators that are outside brackets and template arguments."""
    parts: list[list[Token]] = [[]]
    depth = i = 0
    while i < len(tokens):
        text = tokens[i].text
        if text in OPENERS:
            end = closer(tokens, i)
            parts[-1] += tokens[i : end + 1]
            i = end + 1
            continue
        depth = max(0, depth + (text == "<") - (text == ">"))
        if text == separator and depth == 0:
            parts.append([])
        else:
            parts[-1].append(tokens[i])
        i += 1
    return parts


def starts_attribute(tokens: Sequence[Token], i: int) -> bool:
    """Whether [[ stands at i."""
    return tokens[i].text == "[" and i + 1 < len(tokens) and tokens[i + 1].text == "["


def attribute_texts(tokens: Sequence[Token], i: int) -> tuple[list[str], int]:
    """Texts of the attributes of the [[...]] at i, and the index after it."""
    end = closer(tokens, i)
    return [joined(part).strip() for part in split(tokens[i + 2 : end - 1])], end + 1


def without_attributes(tokens: Sequence[Token]) -> tuple[list[Token], list[str]]:
    """The tokens without [[...]], and the texts of the attributes."""
    kept: list[Token] = []
    attributes: list[str] = []
    i = 0
    while i < len(tokens):
        if starts_attribute(tokens, i):
            texts, i = attribute_texts(tokens, i)
            attributes += texts
        else:
            kept.append(tokens[i])
            i += 1
    return kept, attributes


def location(tokens: Sequence[Token], i: int) -> str:
    """file:line of token i, from the line marker before it."""
    lines = 0
    for j in range(i - 1, -1, -1):
        marker = LINE_MARKER.match(tokens[j].text.lstrip()) if tokens[j].kind == "marker" else None
        if marker:
            return f"{marker.group(2)}:{int(marker.group(1)) + lines}"
        lines += tokens[j].text.count("\n")
    return "?"
