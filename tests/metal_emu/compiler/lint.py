"""What Apple's compiler would refuse, as near as a stock clang can tell.

The rewritten text is C++ for OpenCL with the generic address space turned off: pointers without
address space mean thread memory, methods cannot be called on objects of another space, and double,
recursion, exceptions, new, virtual and variable-length arrays are refused, as in Metal.
"""

from __future__ import annotations

import re
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from .execute import WARNINGS
from .rewriter import rewrite
from .rules import token_errors
from .source import LINE_MARKER, Source
from .tools import INCLUDE, CompileError, clang, run

_OPTIONS = [
    "-x", "clcpp", "-cl-std=clc++2021", "-cl-no-stdinc", "-target", "x86_64-linux-gnu",
    "-fsyntax-only", "-ferror-limit=0", "-DMSL_LINT", *WARNINGS,
]  # fmt: skip
# Honoured only behind -Xclang. Function pointers: template arguments may be functions.
_EXTENSIONS = (
    "-cl-ext=+cl_khr_fp16,-cl_khr_fp64,-__opencl_c_fp64,-__opencl_c_device_enqueue,"
    "-__opencl_c_pipes,-__opencl_c_program_scope_global_variables,+__cl_clang_function_pointers"
)
_NO_GENERIC = _EXTENSIONS + ",-__opencl_c_generic_address_space"

# Without the generic address space clang cannot copy a struct out of device, constant or
# threadgroup memory, nor assign {...}, nor pick a function template by its address; Apple's
# compiler can.
_GAP = re.compile(
    r"error: (no matching constructor for initialization of|no viable overloaded '='"
    r"|reference to overloaded function could not be resolved"
    r"|binding reference of type '__private \w+' to value of type 'void' changes address space)"
)
_LOCATION = re.compile(r"(.*?):(\d+):\d+$")
_DECLARATION = re.compile(
    r"-(ParmVar|Var|Field|Function|Typedef|TypeAlias)Decl |-CStyleCastExpr |-CXXStaticCastExpr "
)


def lint(source: Source) -> list[str]:
    """Findings, one ``file:line: error: text`` each; none if the library is clean.

    Raises:
        CompileError: the preprocessor or the compiler itself failed.
    """
    preprocessed = source.preprocess()
    findings = token_errors(preprocessed)
    rewritten = rewrite(preprocessed, "lint")
    findings += rewritten.errors
    text = f'#include "{INCLUDE}/emu/metal.h"\n{rewritten.text}'
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(2) as pool:
        file = Path(folder, "kernels.clcpp")
        file.write_text(text, encoding="utf-8")
        command = [*clang(), *_OPTIONS, "-Xclang"]
        plain = pool.submit(run, [*command, _NO_GENERIC, file])
        dump = pool.submit(run, [*command, _EXTENSIONS, "-Xclang", "-ast-dump", file])
        errors = _compiler_errors(plain.result().stderr)
        if plain.result().returncode and not errors:
            raise CompileError(f"the lint compiler failed: {plain.result().stderr[:2000]}")
        findings += [error for error in errors if error]
        findings += _unqualified_pointers(dump.result().stdout, _lines(preprocessed))
    return list(dict.fromkeys(findings))


def _compiler_errors(stderr: str) -> list[str]:
    """Clang's errors with their notes; '' for one of the known gap."""
    blocks: list[list[str]] = []
    for line in stderr.splitlines():
        if re.match(r"\S.*: (error|warning|fatal error): ", line):
            blocks.append([line])
        elif blocks:
            blocks[-1].append(line)
    errors = []
    for head, *notes in blocks:
        if "error" not in head:
            continue
        copies = any("implicit copy" in note or "implicit move" in note for note in notes)
        if _GAP.search(head) and (copies or "overloaded function" in head or "'void'" in head):
            errors.append("")
        else:
            context = notes[:2] + [note for note in notes[2:] if "requested here" in note]
            errors.append("\n".join([head, *context]))
    return errors


def _lines(preprocessed: str) -> dict[tuple[str, int], str]:
    """The text of every line that the user wrote."""
    lines: dict[tuple[str, int], str] = {}
    name, number = "", 0
    for text in preprocessed.splitlines():
        if marker := LINE_MARKER.match(text):
            name, number = marker.group(2), int(marker.group(1))
        else:
            lines[name, number] = text
            number += 1
    return lines


def _unqualified_pointers(dump: str, lines: dict[tuple[str, int], str]) -> list[str]:
    """Pointers and references that became generic: the user gave them no address space."""
    findings: dict[tuple[str, int], str] = {}
    name, number = "", 0
    for node in dump.splitlines():
        if where := re.search(r"<([^>]*)>", node):
            for part in where.group(1).split(", "):  # each part names only what changed
                if m := _LOCATION.match(part):
                    name, number = (m.group(1) if m.group(1) != "line" else name), int(m.group(2))
            if m := re.match(r".*?> (?:line:(\d+):\d+|(\S+?):(\d+):\d+) ", node):
                if m.group(1):
                    number = int(m.group(1))
                elif m.group(2) != "col":
                    name, number = m.group(2), int(m.group(3))
        if "__generic" not in node or " implicit " in node or not _DECLARATION.search(node):
            continue
        line = lines.get((name, number), "")
        c_type = re.search(r"'([^']*__generic[^']*)'", node)
        if not c_type or ("*" not in line and "&" not in line):
            continue  # members that clang adds
        declared = re.search(r"(\w+) '[^']*__generic", node)
        if "ParmVarDecl" in node and declared:
            array = rf"\b{declared.group(1)}\s*\[[^\]]*\]\s*[,)]"
            if re.search(array, line):
                continue  # an array parameter is thread memory, as in C
        if "FunctionDecl" in node and not re.match(r"[^(]*__generic[^(]*\(", c_type.group(1)):
            continue  # the parameters are nodes of their own
        text = f"pointer or reference without address space: {c_type.group(1)}"
        findings.setdefault((name, number), f"{name}:{number}: error: {text}")
    return list(findings.values())
