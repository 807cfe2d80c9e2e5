"""grebe runs DeepSeek V4 Flash from a GGUF file.

Example:
    >>> import grebe
    >>> with grebe.Model.load() as model:  # no path: the small model inside the package
    ...     completion = model.complete("Once upon a time", max_tokens=8)
    >>> completion.finish_reason
    'length'
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import errors
from ._engine import Tokenizer
from ._engine import version as __version__
from .cache import Cache, CacheStats
from .config import ModelConfig, Sampling
from .errors import (
    BackendError,
    BackendUnavailableError,
    CancelledError,
    ContextOverflowError,
    FormatError,
    GrebeError,
    InvalidArgumentError,
    OutOfMemoryError,
    StorageError,
    UnsupportedModelError,
)
from .events import Completion, Event, TokenLogprob, Usage
from .generate import Generation
from .model import Model
from .session import Session

if TYPE_CHECKING:
    from .fileinfo import FileInfo, inspect
    from .server.app import make_app
    from .server.run import Server, serve

__all__ = [
    "BackendError",
    "BackendUnavailableError",
    "Cache",
    "CacheStats",
    "CancelledError",
    "Completion",
    "ContextOverflowError",
    "Event",
    "FileInfo",
    "FormatError",
    "Generation",
    "GrebeError",
    "InvalidArgumentError",
    "Model",
    "ModelConfig",
    "OutOfMemoryError",
    "Sampling",
    "Server",
    "Session",
    "StorageError",
    "TokenLogprob",
    "Tokenizer",
    "UnsupportedModelError",
    "Usage",
    "__version__",
    "errors",
    "inspect",
    "make_app",
    "serve",
]


# Not needed to run a model: loaded on first use.
_LAZY = {
    "FileInfo": "fileinfo",
    "inspect": "fileinfo",
    "Server": "server.run",
    "serve": "server.run",
    "make_app": "server.app",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        from importlib import import_module

        return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'grebe' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
