"""A Metal library's text, from a file or from memory, and its preprocessing."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path

from .tools import INCLUDE, CompileError, clang, run

_PREPROCESS = [
    "-E", "-x", "c++", "-std=c++17", "-undef", "-nostdinc", "-nostdinc++", "-Wno-builtin-macro-redefined",
    "-Wno-pragma-once-outside-header",
    "-D__cplusplus=201703L", "-D__METAL__=1", "-D__METAL_VERSION__=310", "-D__METAL_MACOS__=1",
    "-DMETAL_FUNC=inline __attribute__((always_inline))", "-DMETAL_CONST=constant",
    f"-isystem{INCLUDE / 'system'}",
]  # fmt: skip

# Markers that clang -E leaves: # line "file" flags
LINE_MARKER = re.compile(r'#\s+(\d+)\s+"([^"]*)"')


@dataclass(frozen=True)
class Source:
    """The text of one library."""

    text: str
    #: How messages call it, unless #line directives in the text say otherwise.
    name: str
    #: Where its quoted includes are looked for.
    folder: Path | None = None

    @classmethod
    def read(cls, name: str | Path) -> Source:
        """Reads a file; ``-`` is standard input. Names are relative to the working folder."""
        if str(name) == "-":
            return cls(sys.stdin.read(), "<stdin>", Path.cwd())
        path = Path(name).resolve()
        shown = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
        return cls(path.read_text(encoding="utf-8"), str(shown), shown.parent)

    def preprocess(self) -> str:
        """The text after the preprocessor, with line markers."""
        folder = [f"-I{self.folder}"] if self.folder is not None else []
        result = run([*clang(), *_PREPROCESS, *folder, "-"], f'#line 1 "{self.name}"\n{self.text}')
        if result.returncode:
            raise CompileError(result.stderr)
        # Unrolling is for the device; the pragma's arguments may be macros, which -E leaves alone.
        return re.sub(
            r"^[ \t]*#[ \t]*pragma[ \t]+(unroll|clang[ \t]+loop|METAL)[^\n]*$",
            "",
            result.stdout,
            flags=re.M,
        )
