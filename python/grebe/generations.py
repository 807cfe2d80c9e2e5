"""Which checkpoint a file holds: the prompts that it was trained with differ."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .chat.messages import Generation

__all__ = ["generation_of"]


def generation_of(path: Path) -> Generation:
    """By the names under which files are published.

    Example:
        >>> generation_of(Path("DeepSeek-V4-Flash-IQ2XXS-chat-v2-imatrix.gguf"))
        'may'
        >>> generation_of(Path("flash.gguf"))
        '0731'
    """
    name = path.name.lower()
    return "may" if re.search(r"chat-v2|imatrix", name) and "0731" not in name else "0731"
