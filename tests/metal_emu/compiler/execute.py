"""Compiles a library for the runtime."""

from __future__ import annotations

import hashlib
import re
import tempfile
from pathlib import Path

from .rewriter import rewrite
from .source import Source
from .tokens import location, tokenize
from .tools import (
    INCLUDE,
    CompileError,
    cache_folder,
    cxx,
    fingerprint,
    linker,
    run,
    target,
    written_whole,
)

# Clang refuses or comments on much that is right in Metal.
WARNINGS = ["-Wno-everything"]

_OPTIONS = [
    "-x", "c++", "-std=c++17", "-DMSL_EXEC", "-fPIC", "-nostdinc", "-nostdinc++", "-fno-exceptions",
    "-fno-rtti", "-fno-strict-aliasing", "-fno-math-errno", "-fno-stack-protector",
    "-fvisibility=hidden", "-fno-threadsafe-statics",
    # Any function may have a barrier in it: clang must not copy a call of it into two branches,
    # since lanes would then wait apart.
    "-fconvergent-functions",
    # Nor may the code generator, which knows nothing of this, copy or merge their ends.
    "-mllvm", "-enable-tail-merge=false", "-mllvm", "-disable-tail-duplicate",
    "-mllvm", "-disable-early-taildup", "-mllvm", "-tail-dup-placement=false",
    # The place of a call is its return address.
    "-fno-optimize-sibling-calls",
    # a * b + c is fused, as on the device, but by the front end, so that all optimisation levels give
    # the same bits. half is rounded after every operation.
    "-ffp-contract=on", "-Xclang", "-ffloat16-excess-precision=none",
    # Line tables for the messages, in the version that the runtime reads (which alone would mean
    # full debug information, at twice the time: the order matters).
    "-gdwarf-4", "-gline-tables-only",
    *WARNINGS,
]  # fmt: skip
_PLAIN = ["-O2", "-DMSL_CHECKED=0"]
_CHECKED = [
    "-O1", "-DMSL_CHECKED=1", "-fsanitize=thread",
    # The pass has no callback for accesses wider than 16 bytes (_refuse_wide_vectors).
    "-fno-vectorize", "-fno-slp-vectorize",
    "-mllvm", "-tsan-instrument-func-entry-exit=0",
    # x += 1 reads x, which may never have been written.
    "-mllvm", "-tsan-instrument-read-before-write=1",
]  # fmt: skip


def compile_library(source: Source, race: bool = False, output: Path | None = None) -> Path:
    """Compiles a library, or finds it in the cache.

    Args:
        source: the Metal text.
        race: check every memory access.
        output: also put the library here.

    Returns:
        The library: ``output``, or its place in the cache.

    Raises:
        CompileError: what the compiler said, by .metal line.
    """
    preprocessed = source.preprocess()
    options = [*_OPTIONS, *(_CHECKED if race else _PLAIN)]
    key = hashlib.sha256("\0".join([fingerprint(), *options, preprocessed]).encode()).hexdigest()
    library = cache_folder() / f"kernels-{key[:24]}.so"
    if not library.exists():
        with written_whole(library) as path:
            _compile(preprocessed, options, race, path)
    if output is None:
        return library
    with written_whole(output) as path:
        path.write_bytes(library.read_bytes())
    return output


def _compile(preprocessed: str, options: list[str], race: bool, output: Path) -> None:
    text = f'#include "{INCLUDE}/emu/metal.h"\n#include "{INCLUDE}/emu/entry.h"\n'
    if race:
        _refuse_wide_vectors(preprocessed)
        text += f'#include "{INCLUDE}/emu/checked.h"\n'
    text += rewrite(preprocessed, "exec").text
    with tempfile.TemporaryDirectory() as folder:
        code = Path(folder, "kernels.o")
        result = run([*cxx(), *target(), *options, "-c", "-", "-o", code], text)
        if result.returncode:
            raise CompileError(result.stderr)
        result = run([*linker(), code, _libm(Path(folder)), "-o", output])
        if result.returncode:
            raise CompileError(result.stderr)


def _refuse_wide_vectors(preprocessed: str) -> None:
    """Vectors of 32 bytes: the checker would not see them, and nobody would know."""
    if not re.search(r"\bu?long[34]\b", preprocessed):
        return
    tokens = tokenize(preprocessed)
    for i, token in enumerate(tokens):
        if token.text in ("long3", "long4", "ulong3", "ulong4"):
            where = location(tokens, i)
            raise CompileError(f"{where}: error: the checker cannot see {token.text}: use long2")


def _libm(folder: Path) -> Path:
    """An empty library by the name of libm: makes the loader bring the real one."""
    empty, library = folder / "empty.o", folder / "libm.so.6"
    named = "-soname" if linker()[-2] == "ld.lld" else "-Wl,-soname"
    soname = [named, "libm.so.6"] if named == "-soname" else [f"{named},libm.so.6"]
    for command in (
        [*cxx(), *target(), "-x", "c", "-fPIC", "-c", "-", "-o", empty],
        [*linker(), *soname, empty, "-o", library],
    ):
        result = run(command, "")
        if result.returncode:
            raise CompileError(result.stderr)
    return library
