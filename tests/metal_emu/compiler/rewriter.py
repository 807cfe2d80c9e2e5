"""Rewrites preprocessed Metal text into C++ that clang accepts.

Only what plain clang cannot take is touched: attributes (buffer and threadgroup indices, built-in
inputs, host names, function constants), the words for address spaces, unsuffixed and half literals,
constructor calls and casts of vectors, threadgroup variables, explicit instantiations of kernels.
Line breaks are kept, so that diagnostics name the right line. ``exec`` text ends with a table of
the kernels and function constants (include/emu/abi.h).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from .tokens import (
    OPENERS,
    Token,
    angle_closer,
    attribute_texts,
    closer,
    joined,
    location,
    next_at,
    previous_at,
    skip_to,
    split,
    starts_attribute,
    text_at,
    tokenize,
    without_attributes,
)
from .tools import CompileError

Mode = Literal["exec", "lint"]

# In the order of msl_input in include/emu/abi.h.
_INPUTS = [
    "thread_position_in_grid",
    "threadgroup_position_in_grid",
    "thread_position_in_threadgroup",
    "threads_per_threadgroup",
    "threadgroups_per_grid",
    "threads_per_grid",
    "thread_index_in_threadgroup",
    "thread_index_in_simdgroup",
    "simdgroup_index_in_threadgroup",
    "simdgroups_per_threadgroup",
    "threads_per_simdgroup",
    "dispatch_threads_per_threadgroup",
    "dispatch_simdgroups_per_threadgroup",
    "grid_origin",
    "grid_size",
    "thread_execution_width",
    "quadgroup_index_in_threadgroup",
    "thread_index_in_quadgroup",
]
_ELEMENTS = ["float", "half", "bfloat", "char", "uchar", "short", "ushort"]
_ELEMENTS += ["int", "uint", "long", "ulong", "bool"]
_VECTORS = {f"{element}{n}" for element in _ELEMENTS for n in "234"}
_ADDRESS_SPACES = {
    "exec": {
        "device": "",
        "constant": "const",
        "threadgroup": "",
        "thread": "",
        "kernel": "MSL_KERNEL",
    },
    "lint": {
        "device": "__global",
        "constant": "__constant",
        "threadgroup": "__local",
        "thread": "__private",
        "kernel": "",
    },
}
# Before T(...) these make it a constructor call all the same.
_STATEMENT_WORDS = {"return", "case", "else", "do"}


@dataclass
class _Kernel:
    """What the attributes of a kernel say."""

    #: (kind, writable, index) in the terms of msl_param; index may be a C++ expression.
    params: list[tuple[str, bool, str]]
    max_threads: str = "0"


@dataclass
class Rewritten:
    """The text, and what was found wrong on the way (lint mode; exec mode raises)."""

    text: str
    errors: list[str] = field(default_factory=list)


def rewrite(preprocessed: str, mode: Mode) -> Rewritten:
    """Rewrites a whole library."""
    rewriter = _Rewriter(mode)
    text = joined(rewriter.top_level(tokenize(preprocessed)))
    if mode == "exec":
        text += rewriter.tables()
    return Rewritten(text, rewriter.errors)


class _Rewriter:
    def __init__(self, mode: Mode) -> None:
        self.mode = mode
        self.errors: list[str] = []
        self.kernels: dict[str, _Kernel] = {}
        #: (name for the host, C++ expression naming the function)
        self.entries: list[tuple[str, str]] = []
        #: name -> index expression, or None for a constant derived from others
        self.function_constants: dict[str, str | None] = {}
        self.n_threadgroup_variables = 0

    def refuse(self, where: str, message: str) -> None:
        text = f"{where}: error: {message}"
        if self.mode == "exec":
            raise CompileError(text)
        self.errors.append(text)

    # ---- declarations ----

    def top_level(self, tokens: list[Token]) -> list[Token]:
        """Walks the declarations of the library and of its namespaces."""
        out: list[Token] = []
        pending: list[str] = []  # attributes of the declaration being read
        parameters: list[str] = []  # its template type parameters
        in_template = False
        i = 0
        while i < len(tokens):
            token = tokens[i]
            if starts_attribute(tokens, i):
                texts, i = attribute_texts(tokens, i)
                pending += texts
            elif token.text == "template" and text_at(tokens, i + 1) != "<":
                end = skip_to(tokens, i, ";")
                if not self._instantiation(tokens[i + 1 : end], pending):
                    out += self.rewrite(tokens[i : end + 1])
                else:
                    out += [t for t in tokens[i:end] if t.kind == "marker" or "\n" in t.text]
                pending = []
                i = end + 1
            elif token.text == "template":
                begin = next_at(tokens, i + 1)
                end = angle_closer(tokens, begin)
                parameters = _type_parameters(tokens[begin + 1 : end])
                in_template = True
                out += self.rewrite(tokens[i : end + 1])
                i = end + 1
            elif token.text == "kernel" or (token.text == "void" and "kernel" in pending):
                text, i = self._kernel(tokens, i, pending, parameters, in_template)
                out += text
                pending, parameters, in_template = [], [], False
            elif token.text == "constant" and (found := self._constant(tokens, i)):
                text, i = found
                out += text
                pending = []
            elif token.text == "{":
                if _opens_namespace(out):
                    out.append(token)
                    i += 1
                else:
                    end = closer(tokens, i)
                    out += self.rewrite(tokens[i : end + 1], parameters)
                    i = end + 1
                pending, parameters, in_template = [], [], False
            elif token.text == "(":
                end = closer(tokens, i)
                out += self.rewrite(tokens[i : end + 1], parameters)
                i = end + 1
            else:
                if token.text == ";":
                    pending, parameters, in_template = [], [], False
                out += self.rewrite([token], parameters)
                i += 1
        return out

    def _instantiation(self, tokens: Sequence[Token], pending: Sequence[str]) -> bool:
        """An explicit instantiation becomes an entry if it is one of a kernel."""
        body, attributes = without_attributes(tokens)
        attributes += pending
        host_name = _host_name(attributes)
        names = [token.text for token in body if token.kind == "name"]
        if host_name is None and "kernel" not in [*names, *attributes]:
            return False
        function = ""
        i = 0
        while i < len(body):  # the last template-id outside the parameter list
            if body[i].text == "(":
                i = closer(body, i) + 1
                continue
            if body[i].kind == "name" and body[i].text != "decltype":
                begin = next_at(body, i + 1)
                end = -1
                if begin < len(body) and body[begin].text == "<":
                    end = angle_closer(body, begin)
                if end > 0:
                    function = joined(self.rewrite(body[i : end + 1])).strip()
                    i = end + 1
                    continue
            i += 1
        self.entries.append((host_name or function, function))
        return True

    def _kernel(
        self,
        tokens: list[Token],
        i: int,
        pending: list[str],
        template_parameters: list[str],
        in_template: bool,
    ) -> tuple[list[Token], int]:
        """A kernel's definition or declaration; returns its text and the index after it."""
        where = location(tokens, i)
        head: list[Token] = []
        attributes = list(pending)
        while tokens[i].text != "(":
            if starts_attribute(tokens, i):
                texts, i = attribute_texts(tokens, i)
                attributes += texts
            else:
                head.append(tokens[i])
                i += 1
        name = head[previous_at(head, len(head) - 1)].text
        end = closer(tokens, i)
        params, kernel = self._params(tokens[i + 1 : end], where)
        for attribute in attributes:
            if m := re.match(r"max_total_threads_per_threadgroup\s*\((.*)\)$", attribute, re.S):
                kernel.max_threads = m.group(1)
        self.kernels[name] = kernel
        if not in_template:
            self.entries.append((_host_name(attributes) or name, name))
        out = self.rewrite([*head, tokens[i]], template_parameters)
        out += [*self.rewrite(params, template_parameters), tokens[end]]
        begin = next_at(tokens, end + 1)
        if text_at(tokens, begin) != "{":
            return out, end + 1
        out += tokens[end + 1 : begin]
        end = closer(tokens, begin)
        out += self.rewrite(tokens[begin : end + 1], template_parameters, in_kernel=True)
        return out, end + 1

    def _params(self, tokens: list[Token], where: str) -> tuple[list[Token], _Kernel]:
        """A kernel's parameters without attributes, and where each argument comes from."""
        kernel = _Kernel([])
        if all(token.blank for token in tokens):
            return tokens, kernel
        out: list[Token] = []
        for i, part in enumerate(split(tokens)):
            rest, attributes = without_attributes(part)
            out += [*([Token("operator", ",")] if i else []), *rest]
            names = {token.text for token in rest if token.kind == "name"}
            writable = not names & {"const", "constant"} and any(t.text in "*&" for t in rest)
            for attribute in attributes:
                if m := re.match(r"(buffer|threadgroup)\s*\((.*)\)$", attribute, re.S):
                    kind = "kMslBuffer" if m.group(1) == "buffer" else "kMslThreadgroup"
                    kernel.params.append((kind, writable, m.group(2)))
                    break
                if attribute in _INPUTS:
                    kernel.params.append(("kMslInput", False, str(_INPUTS.index(attribute))))
                    break
            else:
                at = location(tokens, tokens.index(rest[next_at(rest, 0)]))
                shown = " ".join(joined(part).split())
                self.refuse(at if at != "?" else where, f"parameter without attribute: {shown}")
        return out, kernel

    def _constant(self, tokens: list[Token], i: int) -> tuple[list[Token], int] | None:
        """A function constant, or a program-scope constant derived from one."""
        end = skip_to(tokens, i, (";", "{", "=", "("))
        if end == len(tokens):
            return None
        declaration, attributes = without_attributes(tokens[i:end])
        last = previous_at(declaration, len(declaration) - 1)
        name = declaration[last].text
        c_type = joined(declaration[1:last]).replace("const ", " ").strip()
        breaks = [t for t in tokens[i:end] if t.kind == "marker" or "\n" in t.text]
        for attribute in attributes:
            if m := re.match(r"function_constant\s*\((.*)\)$", attribute, re.S):
                self.function_constants[name] = m.group(1)
                text = f"static {c_type} {name};"
                if self.mode == "lint":
                    text = f"__constant {c_type} {name} = {{}};"
                return [*breaks, *tokenize(text)], end + 1
        if tokens[end].text != "=":
            return None
        after = skip_to(tokens, end, ";")
        value = tokens[end + 1 : after]
        if not any(t.kind == "name" and t.text in self.function_constants for t in value):
            return None
        self.function_constants[name] = None
        if self.mode == "lint":
            return [*breaks, *tokenize(f"__constant {c_type} {name} = {{}};")], after + 1
        text = f"static {c_type} {name}; static void msl_init_{name}() {{ {name} = ("
        return [*breaks, *tokenize(text), *self.rewrite(value), *tokenize("); }")], after + 1

    # ---- any run of tokens ----

    def rewrite(
        self,
        tokens: Sequence[Token],
        template_parameters: Sequence[str] = (),
        in_kernel: bool = False,
    ) -> list[Token]:
        """Rewrites an expression, a parameter list or a body."""
        spaces = _ADDRESS_SPACES[self.mode]
        made = {*_VECTORS, *template_parameters}
        out: list[Token] = []
        i = 0
        while i < len(tokens):
            token = tokens[i]
            if starts_attribute(tokens, i):
                end = closer(tokens, i) + 1
                out += [t for t in tokens[i:end] if "\n" in t.text]
                i = end
                continue
            if token.text == "threadgroup" and in_kernel and _starts_statement(out):
                end = skip_to(tokens, i, (";", "="))
                declaration = tokens[i + 1 : end]
                if text_at(tokens, end) == ";" and not _has_pointer(declaration):
                    out += self._threadgroup_variables(declaration, template_parameters)
                    i = end + 1
                    continue
            if token.text == "is_function_constant_defined":
                begin = next_at(tokens, i + 1)
                end = closer(tokens, begin)
                name = joined(tokens[begin + 1 : end]).strip()
                index = self.function_constants.get(name) or "0"
                out += tokenize(f"msl_constant_defined({index})")
                i = end + 1
                continue
            if token.kind == "name" and token.text in spaces:
                out.append(Token("name", spaces[token.text]))
                i += 1
                continue
            if token.text in made and _calls_constructor(tokens, i):
                out += tokenize(f"msl_make<{token.text}>")
                i += 1
                continue
            if token.text == "(" and (end := _vector_cast(tokens, i, made)):
                name = next_at(tokens, i + 1)
                operand = closer(tokens, i) + 1
                out += tokenize(f"msl_make<{tokens[name].text}>(")
                out += self.rewrite(tokens[operand:end], template_parameters, in_kernel)
                out.append(Token("operator", ")"))
                i = end
                continue
            if token.kind == "number":
                out += _literal(token)
                i += 1
                continue
            out.append(token)
            i += 1
        return out

    def _threadgroup_variables(
        self, tokens: Sequence[Token], template_parameters: Sequence[str]
    ) -> list[Token]:
        """`threadgroup float a[4], b;` in a kernel: references to memory that lanes share."""
        text = ""
        base = ""
        for i, part in enumerate(split(self.rewrite(tokens, template_parameters))):
            dimensions = skip_to(part, 0, ("[",)) if any(t.text == "[" for t in part) else len(part)
            at = previous_at(part, dimensions - 1)
            if i == 0:
                base = joined(part[:at]).strip()
            self.n_threadgroup_variables += 1
            slot = self.n_threadgroup_variables
            kind = f"msl_threadgroup_{slot}"
            space, call = "", f"msl_threadgroup_alloc({slot}, sizeof({kind}), alignof({kind}))"
            if self.mode == "lint":
                space, call = "__local", f"msl_threadgroup_alloc({slot})"
            text += f"typedef {base} {kind} {joined(part[dimensions:])}; "
            text += f"{space} {kind} &{part[at].text} = *({space} {kind} *){call};"
        return tokenize(text)

    # ---- the end of an exec text ----

    def tables(self) -> str:
        """The kernels, the function constants and the library's header."""
        text = ['\n#line 1 "<kernel table>"\n']
        kernels = []
        for i, (host_name, function) in enumerate(self.entries):
            name = re.match(r"\w*", function)
            kernel = self.kernels.get(name.group() if name else "")
            if kernel is None:
                raise CompileError(f"error: {host_name}: instantiation of an unknown kernel")
            params = [
                f"{{{kind}, {int(writable)}, (unsigned short)({index})}}"
                for kind, writable, index in kernel.params
            ] or ["{kMslInput, 0, 0}"]
            text.append(f"static constexpr msl_param msl_params_{i}[] = {{{', '.join(params)}}};\n")
            text.append(
                f"static void msl_run_{i}(msl_context* c) {{ msl_call<msl_params_{i}>(&{function}, c); }}\n"
            )
            kernels.append(
                f'{{"{host_name}", &msl_run_{i}, msl_params_{i}, {len(kernel.params)}, {kernel.max_threads}}}'
            )
        given = {n: index for n, index in self.function_constants.items() if index is not None}
        constants = [f'{{{index}, &{n}, sizeof({n}), "{n}"}}' for n, index in given.items()]
        derived = [
            f"&msl_init_{n}" for n, index in self.function_constants.items() if index is None
        ]
        text.append(_array("msl_kernel", "msl_kernels", kernels))
        text.append(_array("msl_function_constant", "msl_constants", constants))
        text.append(_array("void (*", "msl_initialisers", derived))
        text.append(
            "msl_library __msl_library = {kMslAbiVersion, MSL_CHECKED, "
            f"msl_kernels, {len(kernels)}, msl_constants, {len(constants)}, "
            f"msl_initialisers, {len(derived)}, nullptr}};\n"
        )
        return "".join(text)


def _array(element: str, name: str, items: Sequence[str]) -> str:
    """A static array; one unused element where there are no items."""
    declarator = f"const {name}[])()" if element.endswith("(*") else f"{name}[]"
    prefix = "static " if element.endswith("(*") else "static const "
    return f"{prefix}{element} {declarator} = {{{', '.join(items) or '{}'}}};\n"


def _host_name(attributes: Sequence[str]) -> str | None:
    for attribute in attributes:
        if m := re.match(r'host_name\s*\(\s*((?:"[^"]*"\s*)+)\)$', attribute, re.S):
            return "".join(re.findall(r'"([^"]*)"', m.group(1)))
    return None


def _type_parameters(tokens: Sequence[Token]) -> list[str]:
    names = []
    for part in split(tokens):
        words = [token.text for token in part if token.kind == "name"]
        if len(words) > 1 and words[0] in ("typename", "class"):
            names.append(words[1])
    return names


def _opens_namespace(before: Sequence[Token]) -> bool:
    return re.search(r"\bnamespace\b[^;{}()]*$", joined(before[-12:])) is not None


def _starts_statement(before: Sequence[Token]) -> bool:
    i = previous_at(before, len(before) - 1)
    return i >= 0 and before[i].text in ("{", "}", ";")


def _has_pointer(declaration: Sequence[Token]) -> bool:
    """Whether * or & stands outside brackets and template arguments."""
    i = 0
    while i < len(declaration):
        if declaration[i].text in OPENERS:
            # The parentheses of a reference to an array: (&tile)[8]
            if declaration[i].text == "(":
                return True
            i = closer(declaration, i) + 1
            continue
        if declaration[i].text == "<" and (end := angle_closer(declaration, i)) > 0:
            i = end + 1
            continue
        if declaration[i].text in ("*", "&"):
            return True
        i += 1
    return False


def _calls_constructor(tokens: Sequence[Token], i: int) -> bool:
    """Whether the type name at i is followed by arguments, not by a declarator."""
    begin = next_at(tokens, i + 1)
    if begin >= len(tokens) or tokens[begin].text != "(" or text_at(tokens, begin + 1) in "*&":
        return False
    before = previous_at(tokens, i - 1)
    if before < 0:
        return True
    if tokens[before].kind == "name":
        return tokens[before].text in _STATEMENT_WORDS
    return tokens[before].text not in (".", "->", "::")


def _vector_cast(tokens: Sequence[Token], i: int, types: set[str]) -> int:
    """The end of `(float4)operand` at i, or 0. In Metal the cast converts; in clang it cannot."""
    name = next_at(tokens, i + 1)
    if name >= len(tokens) or tokens[name].text not in types or text_at(tokens, name + 1) != ")":
        return 0
    before = previous_at(tokens, i - 1)
    if before >= 0:
        token = tokens[before]
        if token.text in (")", "]", ">") or (
            token.kind == "name" and token.text not in _STATEMENT_WORDS
        ):
            return 0
    return _operand_end(tokens, closer(tokens, i) + 1)


def _operand_end(tokens: Sequence[Token], i: int) -> int:
    """The end of the cast-expression that starts at i, or 0."""
    i = next_at(tokens, i)
    while i < len(tokens) and tokens[i].text in ("-", "+", "!", "~", "*", "&"):
        i = next_at(tokens, i + 1)
    if i >= len(tokens):
        return 0
    if tokens[i].kind == "number":
        return i + 1
    if tokens[i].text == "(":
        i = closer(tokens, i) + 1
    elif tokens[i].kind == "name":
        i += 1
        while text_at(tokens, i) == "::":
            i = next_at(tokens, next_at(tokens, i) + 1) + 1
        if i < len(tokens) and tokens[i].text == "<":
            end = angle_closer(tokens, i)
            if end > 0 and text_at(tokens, end + 1) == "(":
                i = end + 1
    else:
        return 0
    while (j := next_at(tokens, i)) < len(tokens):
        if tokens[j].text in ("(", "["):
            i = closer(tokens, j) + 1
        elif tokens[j].text in (".", "->"):
            i = next_at(tokens, j + 1) + 1
        elif tokens[j].text in ("++", "--"):
            i = j + 1
        else:
            break
    return i


def _literal(token: Token) -> list[Token]:
    """Literals without suffix are float, not double; h makes them half."""
    text = token.text
    is_hex = text.lower().startswith("0x")
    if not is_hex and text[-1] in "hH":
        return tokenize(f"((half){text[:-1]}f)")
    floating = re.search(r"[pP.]" if is_hex else r"[.eE]", text)
    # f is a digit in hexadecimal, but not after the exponent.
    suffixed = re.search(r"[pP][^fFlL]*[fFlL]$" if is_hex else r"[fFlL]$", text)
    if floating and not suffixed:
        return [Token("number", text + "f")]
    return [token]
