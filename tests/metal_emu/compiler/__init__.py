"""Compiles Metal Shading Language with stock clang.

The text is preprocessed (line markers are kept, so every message names the .metal file and line),
rewritten token by token into C++ that plain clang accepts, and compiled: to a library that the
runtime executes (execute.py), or through a stricter front end for its diagnostics (lint.py).
"""

from .execute import compile_library
from .lint import lint
from .source import Source
from .tools import CompileError

__all__ = ["CompileError", "Source", "compile_library", "lint"]
