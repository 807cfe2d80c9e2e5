"""The errors of grebe.

One tree: whatever the engine or this package raises on purpose is a :class:`GrebeError`, and most
are also the built-in exception that a caller would expect. Messages name the subject, what is wrong
with the value and what would be right; the attributes carry the same facts for programs.

Example:
    >>> import grebe
    >>> try:
    ...     grebe.Model.load("no-such-file.gguf")
    ... except grebe.StorageError as error:
    ...     print(type(error).__mro__[2].__name__, error.path)
    OSError no-such-file.gguf
"""

from __future__ import annotations

# This file imports nothing: src/errors.cpp looks these classes up while the package is still being
# imported.

__all__ = [
    "BackendError",
    "BackendUnavailableError",
    "CancelledError",
    "ContextOverflowError",
    "FormatError",
    "GrebeError",
    "InvalidArgumentError",
    "OutOfMemoryError",
    "StorageError",
    "UnsupportedModelError",
]


class GrebeError(Exception):
    """Root of all errors of grebe."""


class InvalidArgumentError(GrebeError, ValueError):
    """A caller's value, shape or dtype."""


class ContextOverflowError(GrebeError, ValueError):
    """Prompt and budget exceed the session's context.

    Attributes:
        n_prompt: tokens that were to be in the context.
        n_ctx: tokens that fit.
    """

    def __init__(self, message: str, n_prompt: int = 0, n_ctx: int = 0) -> None:
        super().__init__(message)
        self.n_prompt = n_prompt
        self.n_ctx = n_ctx


class FormatError(GrebeError, ValueError):
    """A file lies: a length past the end, a bad magic, a damaged snapshot.

    Attributes:
        path: the file.
        offset: where in it, in bytes.
    """

    def __init__(self, message: str, path: str = "", offset: int = 0) -> None:
        super().__init__(message)
        self.path = path
        self.offset = offset


class UnsupportedModelError(GrebeError, ValueError):
    """A sound file of another model or quantization.

    Attributes:
        key: the metadata key or tensor that tells.
        found: what the file has.
        expected: what this build reads.
    """

    def __init__(self, message: str, key: str = "", found: str = "", expected: str = "") -> None:
        super().__init__(message)
        self.key = key
        self.found = found
        self.expected = expected


class BackendUnavailableError(GrebeError, RuntimeError):
    """The backend is not in this build, or the machine has no such device.

    Attributes:
        name: the backend or instruction set that was asked for.
    """

    def __init__(self, message: str, name: str = "") -> None:
        super().__init__(message)
        self.name = name


class BackendError(GrebeError, RuntimeError):
    """A fault while an operation ran: a device error, or numbers that are not finite.

    Attributes:
        op: the operation.
    """

    def __init__(self, message: str, op: str = "") -> None:
        super().__init__(message)
        self.op = op


class OutOfMemoryError(GrebeError, MemoryError):
    """An allocation that did not fit.

    Attributes:
        bytes: its size; 0 when unknown.
    """

    def __init__(self, message: str, bytes: int = 0) -> None:
        super().__init__(message)
        self.bytes = bytes


class StorageError(GrebeError, OSError):
    """A file could not be read or written. ``errno`` and ``filename`` are those of OSError.

    Attributes:
        path: the file.
    """

    def __init__(self, message: str, path: str = "", errno: int | None = None) -> None:
        super().__init__(message)
        self.path = path
        self.filename = path or None
        self.errno = errno

    def __reduce__(self) -> tuple[type[StorageError], tuple[object, ...]]:
        return type(self), (self.args[0], self.path, self.errno)

    def __str__(self) -> str:
        """The message alone: it already names the file and the reason."""
        return str(self.args[0])


class CancelledError(GrebeError):
    """The caller asked for the work to stop; state is as the interrupted call documents."""
