"""The wire types of Chat Completions, Completions and the tokenizer's routes.

Fields that are not listed are ignored and reported by :func:`decode`; a wrong type of one that is
listed is an error that names it. Every field of the APIs that would change the answer is listed, to
be honoured or refused by the module that reads it.
"""

from __future__ import annotations

import json
from typing import Any, TypeVar

import msgspec

from .errors import ApiError, invalid

__all__ = [
    "ChatBody",
    "CompletionBody",
    "ContentPart",
    "DetokenizeBody",
    "MessageBody",
    "SampledBody",
    "TokenizeBody",
    "convert",
    "decode",
    "parse_json",
]

T = TypeVar("T", bound=msgspec.Struct)


class FunctionBody(msgspec.Struct, kw_only=True):
    """A function of a declared tool."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ToolBody(msgspec.Struct, kw_only=True):
    """A declared tool; types other than "function" are ignored."""

    type: str = "function"
    function: FunctionBody | None = None
    defer_loading: bool | None = None


class CalledBody(msgspec.Struct, kw_only=True):
    """What an earlier call called."""

    name: str
    arguments: str | dict[str, Any] | None = ""


class CallBody(msgspec.Struct, kw_only=True):
    """An earlier call."""

    id: str | None = None
    type: str | None = "function"
    function: CalledBody | None = None
    custom: dict[str, Any] | None = None


class ContentPart(msgspec.Struct, kw_only=True):
    """A part of a message's content."""

    type: str = "text"
    text: Any = None
    refusal: Any = None


class MessageBody(msgspec.Struct, kw_only=True):
    """A message of any role. ``name`` is not shown to the model, as in DeepSeek's API."""

    role: str
    content: str | list[str | ContentPart] | None = None
    name: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    tool_calls: list[CallBody] | None = None
    tool_call_id: str | None = None
    prefix: bool | None = None
    audio: dict[str, Any] | None = None


class StreamOptions(msgspec.Struct, kw_only=True):
    """Options of a stream."""

    include_usage: bool | None = None


class JsonSchemaBody(msgspec.Struct, kw_only=True):
    """The schema of an answer."""

    name: str | None = None
    description: str | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None


class ResponseFormat(msgspec.Struct, kw_only=True):
    """What an answer must look like."""

    type: str
    json_schema: JsonSchemaBody | None = None


class ThinkingBody(msgspec.Struct, kw_only=True):
    """DeepSeek's switch."""

    type: str


class NamedFunction(msgspec.Struct, kw_only=True):
    """The function of a tool_choice."""

    name: str


class ToolChoiceBody(msgspec.Struct, kw_only=True):
    """A tool_choice that is more than a word."""

    type: str = "function"
    function: NamedFunction | None = None


class SampledBody(msgspec.Struct, kw_only=True):
    """What Chat and Completions have in common."""

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    max_tokens: int | None = None
    n: int | None = None
    user: str | None = None


class ChatBody(SampledBody, kw_only=True):
    """``POST /v1/chat/completions``."""

    messages: list[MessageBody]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    reasoning_effort: str | None = None
    thinking: ThinkingBody | None = None
    response_format: ResponseFormat | None = None
    tools: list[ToolBody] | None = None
    tool_choice: str | ToolChoiceBody | None = None
    parallel_tool_calls: bool | None = None
    functions: list[Any] | None = None
    function_call: Any = None
    modalities: list[str] | None = None
    audio: dict[str, Any] | None = None
    prompt_cache_key: str | None = None
    # Known and without effect on the answer:
    store: bool | None = None
    metadata: dict[str, Any] | None = None
    service_tier: str | None = None
    prediction: Any = None
    verbosity: str | None = None
    safety_identifier: str | None = None
    prompt_cache_retention: str | None = None


class CompletionBody(SampledBody, kw_only=True):
    """``POST /v1/completions``."""

    prompt: str | list[str | int | list[int]] | None = None
    suffix: str | None = None
    echo: bool | None = None
    logprobs: int | None = None
    best_of: int | None = None


class TokenizeBody(msgspec.Struct, kw_only=True):
    """``POST /tokenize``: text, or a conversation as Chat takes it."""

    content: str | None = None
    prompt: str | None = None
    text: str | None = None
    messages: list[MessageBody] | None = None
    add_special: bool | None = None
    add_special_tokens: bool | None = None
    parse_special: bool | None = None
    with_pieces: bool | None = None


class DetokenizeBody(msgspec.Struct, kw_only=True):
    """``POST /detokenize``."""

    tokens: list[int]


def parse_json(data: bytes) -> Any:
    """JSON as Python objects. Half a surrogate pair, which clients make by cutting text, is U+FFFD.

    Raises:
        ApiError: it is not JSON.
    """
    try:
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        if rb"\u" not in data:
            raise invalid(f"the body is not JSON: {error}") from None
    except RecursionError:
        raise invalid("the body is nested too deeply") from None
    try:
        value = json.loads(data, parse_constant=_no_constant)
        text = json.dumps(value, ensure_ascii=False)
        whole = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        return msgspec.json.decode(whole)
    except (ValueError, RecursionError) as error:
        raise invalid(f"the body is not JSON: {error}") from None


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def decode(data: bytes, kind: type[T]) -> tuple[T, tuple[str, ...]]:
    """A body, and the names of the fields in it that nobody reads.

    Raises:
        ApiError: not JSON, no object, a field that is missing or of another type.
    """
    value = parse_json(data)
    if not isinstance(value, dict):
        raise invalid("the body must be a JSON object")
    return convert(value, kind), tuple(_unread(value, kind))


def convert(value: Any, kind: type[T]) -> T:
    """A decoded value as a wire type.

    Raises:
        ApiError: it names the field.
    """
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise _invalid_field(str(error)) from None
    except RecursionError:
        raise invalid("the body is nested too deeply") from None


def _invalid_field(message: str) -> ApiError:
    """An error that names the field: msgspec says "Expected `int`, got `str` - at `$.n`"."""
    what, _, where = message.partition(" - at `")
    path = where.rstrip("`").removeprefix("$").removeprefix(".")
    if what.startswith("Object missing required field `"):
        field = what.removeprefix("Object missing required field `").rstrip("`")
        path = f"{path}.{field}" if path else field
        return invalid(f"Missing required parameter: '{path}'.", path, "missing_required_parameter")
    if not path:
        return invalid(what)
    return invalid(f"Invalid type for '{path}': {what[:1].lower()}{what[1:]}.", path)


def _unread(value: dict[str, Any], kind: type[msgspec.Struct]) -> list[str]:
    """Fields of the body, and of its messages, that the wire types do not list."""
    names = [str(key) for key in value if key not in kind.__struct_fields__]
    messages = value.get("messages")
    if isinstance(messages, list):
        inner = {
            f"messages[].{key}"
            for message in messages
            if isinstance(message, dict)
            for key in message
            if key not in MessageBody.__struct_fields__
        }
        names += sorted(inner)
    return [name[:80] for name in names[:32]]
