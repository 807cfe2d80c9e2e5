"""Rules of Metal that upstream clang does not know, checked on tokens."""

from __future__ import annotations

from dataclasses import dataclass, field

from .source import LINE_MARKER
from .tokens import Token, next_at, previous_at, tokenize

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


@dataclass
class _Function:
    where: str
    calls: set[str] = field(default_factory=set)


def token_errors(preprocessed: str) -> list[str]:
    """Forbidden words, namespace std, and recursion through functions that are not templates."""
    tokens = tokenize(preprocessed)
    errors: list[str] = []
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
