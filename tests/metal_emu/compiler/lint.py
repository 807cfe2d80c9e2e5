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

# What clang cannot do without the generic address space, and Apple's compiler can.
_GAPS = [
    # Copy a struct out of device, constant or threadgroup memory.
    re.compile(
        r"error: (no matching constructor for initialization of|no viable overloaded '=')"
        r"(?s:.*)implicit (copy|move)"
    ),
    # Pick a function template by its address.
    re.compile(r"error: reference to overloaded function could not be resolved"),
    # Assign {...} to a struct.
    re.compile(r"error: binding reference of type '__private \w+' to value of type 'void'"),
    # Call a method of a temporary, or convert one.
    re.compile(
        r"error: cannot initialize object parameter of type '(?:const )?__private (\S+)' "
        r"with an expression of type '\1'"
    ),
    re.compile(r"error: no matching conversion for functional-style cast from 'simd_vote'"),
]
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
    """Clang's errors with their notes; '' for one of the known gaps."""
    blocks: list[list[str]] = []
    for line in stderr.splitlines():
        if re.match(r"\S.*: (error|warning|fatal error): ", line):
            blocks.append([line])
        elif blocks and not line.startswith("In file included from"):
            blocks[-1].append(line)
    errors = []
    for block in blocks:
        if "error" not in block[0]:
            continue
        if any(gap.search("\n".join(block)) for gap in _GAPS):
            errors.append("")
            continue
        head, *notes = block
        calls = [note for note in notes if "requested here" in note]
        if head.startswith(str(INCLUDE)):
            # Inside the stand-in for metal_stdlib: the line that the user wrote is in a note.
            where = next((note for note in calls if not note.startswith(str(INCLUDE))), None)
            if where is None:
                continue  # follows from the error before
            errors.append(f"{where.split(': note:')[0]}: error:{head.split(' error:')[1]}")
        else:
            errors.append("\n".join([head, *notes[:2], *calls]))
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
