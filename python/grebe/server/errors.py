"""Errors that become an HTTP response, and their shapes in the two vendors' APIs.

Whatever is wrong with a request is an :class:`ApiError` before the first byte goes out.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from typing import Any, Literal

from ..errors import (
    BackendError,
    ContextOverflowError,
    GrebeError,
    InvalidArgumentError,
    OutOfMemoryError,
    StorageError,
)
from .jobs import EngineFailed, Loading, QueueFull

__all__ = [
    "ApiError",
    "ContextExceeded",
    "Kind",
    "anthropic_error_body",
    "api_error",
    "error_headers",
    "invalid",
    "openai_error_body",
]

#: What kind of error it is, in Anthropic's words; OpenAI's are derived.
Kind = Literal[
    "invalid_request_error",
    "authentication_error",
    "permission_error",
    "not_found_error",
    "request_too_large",
    "rate_limit_error",
    "api_error",
    "overloaded_error",
    "timeout_error",
]

_OPENAI_TYPES: dict[str, str] = {
    "permission_error": "invalid_request_error",
    "not_found_error": "invalid_request_error",
    "request_too_large": "invalid_request_error",
    "api_error": "server_error",
    "overloaded_error": "server_error",
    "timeout_error": "server_error",
}

# Seconds until a client may ask again while the model loads: long enough not to be a nuisance.
_LOADING_RETRY_S = 5


class ApiError(Exception):
    """An HTTP error, the same for all APIs until it is written.

    Attributes:
        status: of the response.
        kind: decides the error's type in each API.
        param: which parameter is at fault, as a path: ``messages[2].content``.
        code: OpenAI's machine-readable code.
        retry_after: seconds, for the header.
        details: Anthropic's ``error.details``.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: Kind = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.kind = status, message, kind
        self.param, self.code = param, code
        self.retry_after, self.details = retry_after, details


class ContextExceeded(ApiError):
    """The prompt does not fit. Clients recognise it by its text, which each API words its own way.

    Attributes:
        n_prompt: tokens of the prompt.
        n_ctx: tokens that fit, one of the answer included.
    """

    def __init__(self, n_prompt: int, n_ctx: int) -> None:
        super().__init__(
            400,
            f"This model's maximum context length is {n_ctx} tokens. However, your messages "
            f"resulted in {n_prompt} tokens. Please reduce the length of the messages.",
            param="messages",
            code="context_length_exceeded",
        )
        self.n_prompt, self.n_ctx = n_prompt, n_ctx


def invalid(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """A 400 that names the parameter."""
    return ApiError(400, message, param=param, code=code)


def api_error(error: BaseException) -> ApiError:
    """What an exception of the engine, of the queue or of this package is over HTTP."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, QueueFull):
        return ApiError(429, str(error), kind="rate_limit_error", retry_after=error.retry_after_s)
    if isinstance(error, Loading):
        message = str(error) or "the model is not ready"
        return ApiError(503, message, kind="overloaded_error", retry_after=_LOADING_RETRY_S)
    if isinstance(error, ContextOverflowError):
        return ContextExceeded(error.n_prompt, error.n_ctx)
    if isinstance(error, InvalidArgumentError):
        return ApiError(400, str(error))
    if isinstance(error, OutOfMemoryError) or (
        isinstance(error, StorageError) and error.errno == errno.ENOSPC
    ):
        return ApiError(503, str(error), kind="overloaded_error", retry_after=_LOADING_RETRY_S)
    if isinstance(error, (EngineFailed, BackendError, GrebeError)):
        return ApiError(500, str(error) or "the engine failed", kind="api_error")
    return ApiError(500, "internal error", kind="api_error")


def openai_error_body(error: ApiError) -> dict[str, Any]:
    """``{"error": {message, type, param, code}}``, of Chat, Completions, Responses and models."""
    return {
        "error": {
            "message": error.message,
            "type": _OPENAI_TYPES.get(error.kind, error.kind),
            "param": error.param,
            "code": error.code,
        }
    }


def anthropic_error_body(error: ApiError, request_id: str | None = None) -> dict[str, Any]:
    """``{"type": "error", "error": {type, message}}``, of Messages."""
    message = error.message
    if isinstance(error, ContextExceeded):
        # Claude Code compacts on this text, and on no other.
        message = f"prompt is too long: {error.n_prompt} tokens > {error.n_ctx} maximum"
    elif error.param is not None and not _speaks_of(message, error.param):
        message = f"{error.param}: {message}"
    inner: dict[str, Any] = {"type": error.kind, "message": message}
    if error.details is not None:
        inner["details"] = dict(error.details)
    return {"type": "error", "error": inner, "request_id": request_id}


def _speaks_of(message: str, param: str) -> bool:
    """Whether a message names a parameter; those of DeepSeek's server may be short for it."""
    return param in message or param.split("_")[0].rstrip("s") in message.lower()


def error_headers(error: ApiError) -> dict[str, str]:
    """Headers of the response: clients give up at once on a 429 without Retry-After."""
    return {} if error.retry_after is None else {"retry-after": str(error.retry_after)}
