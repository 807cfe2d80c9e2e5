"""Rules of Metal that upstream clang does not know, checked on tokens."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from .source import LINE_MARKER
from .tokens import Token, location, next_at, previous_at, starts_attribute, tokenize

_FORBIDDEN = {
    "goto",
    "virtual",
    "dynamic_cast",
    "typeid",
    "try",
    "catch",
    "thread_local",
    "asm",
}

# A kernel declares all of these that it takes as scalars, or all as vectors of one size. Indices
# (thread_index_in_threadgroup and the like) are always scalars.
_POSITIONS = {
    "thread_position_in_grid",
    "threadgroup_position_in_grid",
    "thread_position_in_threadgroup",
    "threads_per_threadgroup",
    "threads_per_grid",
    "threadgroups_per_grid",
}


@dataclass
class _Function:
    where: str
    calls: set[str] = field(default_factory=set)


def token_errors(preprocessed: str) -> list[str]:
    """Forbidden words, namespace std, recursion through functions that are not templates, and
    positions of mixed sizes.
    """
    tokens = tokenize(preprocessed)
    errors = _position_errors(tokens)
    functions: dict[str, _Function] = {}
    current: _Function | None = None
    in_template = False
    name, line, depth = "?", 0, 0
    for i, token in enumerate(tokens):
        if token.kind == "marker":
            if marker := LINE_MARKER.match(token.text.lstrip()):
                name, line = marker.group(2), int(marker.group(1)) - 1
            line += 1
            continue
        if depth == 0 and token.text == "template":
            in_template = True
        elif depth == 0 and token.text == ";":
            in_template = False
        elif token.text == "{":
            if depth == 0 and not in_template and (defined := _function_name(tokens, i)):
                current = functions.setdefault(defined, _Function(f"{name}:{line}"))
            depth += 1
        elif token.text == "}":
            depth -= 1
            if depth == 0:
                current, in_template = None, False
        if token.text in _FORBIDDEN:
            errors.append(f"{name}:{line}: error: {token.text} is not allowed in MSL")
        following = next_at(tokens, i + 1)
        if following < len(tokens) and token.kind == "name":
            if token.text == "std" and tokens[following].text == "::":
                errors.append(f"{name}:{line}: error: namespace std does not exist in MSL")
            if current is not None and tokens[following].text == "(":
                current.calls.add(token.text)
        line += token.text.count("\n")
    errors += [
        f"{function.where}: error: recursive call of '{called}' is not allowed in MSL"
        for called, function in functions.items()
        if _reaches(functions, called, called, set())
    ]
    return errors


def _position_errors(tokens: list[Token]) -> list[str]:
    errors: list[str] = []
    opened: list[int] = []  # parentheses
    first: dict[int, tuple[str, str]] = {}  # by parameter list: attribute and size of its first
    for i, token in enumerate(tokens):
        if token.text == "(":
            opened.append(i)
        elif token.text == ")" and opened:
            opened.pop()
        if not opened or not starts_attribute(tokens, i):
            continue
        attribute = tokens[next_at(tokens, i + 2)].text
        name = previous_at(tokens, i - 1)
        declared = re.fullmatch(r"[a-z]+([234]?)", tokens[previous_at(tokens, name - 1)].text)
        if attribute not in _POSITIONS or not declared:
            continue
        other, size = first.setdefault(opened[-1], (attribute, declared.group(1)))
        if size != declared.group(1):
            where, what = location(tokens, i), "must have as many components as"
            errors.append(f"{where}: error: {attribute} {what} {other}")
    return errors


def _function_name(tokens: list[Token], brace: int) -> str | None:
    """Name of the function whose body opens at ``brace``, if one does."""
    i = previous_at(tokens, brace - 1)
    if i >= 0 and tokens[i].text in ("const", "noexcept"):
        i = previous_at(tokens, i - 1)
    if i < 0 or tokens[i].text != ")":
        return None
    depth = 0
    while i >= 0:
        depth += (tokens[i].text == ")") - (tokens[i].text == "(")
        if depth == 0:
            break
        i -= 1
    i = previous_at(tokens, i - 1)
    return tokens[i].text if i >= 0 and tokens[i].kind == "name" else None


def _reaches(functions: dict[str, _Function], origin: str, name: str, seen: set[str]) -> bool:
    for called in functions[name].calls if name in functions else ():
        if called == origin:
            return True
        if called in functions and called not in seen:
            seen.add(called)
            if _reaches(functions, origin, called, seen):
                return True
    return False
