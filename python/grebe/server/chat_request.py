"""A body of Chat Completions as a neutral request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..chat.messages import Conversation, Effort, Message, Tool
from .chat_messages import chat_messages
from .errors import invalid
from .openai_options import sampling_options, session_hint, stop_list
from .option_checks import token_limit, unknown_function
from .requests import ChatRequest
from .schemas import ChatBody, decode
from .tools import check_names, effort, make_tool

__all__ = ["chat_request"]

NO_JSON = (
    "Prompt must contain the word 'json' in some form to use 'response_format' of type "
    "'json_object'."
)


def chat_request(
    data: bytes,
    headers: Mapping[str, str] | None = None,
    *,
    default_model: str = "",
    thinking_default: bool = True,
) -> ChatRequest:
    """A request of ``POST /v1/chat/completions``.

    Args:
        data: the body.
        headers: in which clients name their session.
        default_model: where the body names none.
        thinking_default: whether a request thinks that says nothing of it.

    Raises:
        ApiError: whatever is wrong with it.
    """
    body, ignored = decode(data, ChatBody)
    _refuse(body)
    tools = _tools(body)
    thinking, depth = _thinking(body, thinking_default)
    messages, unmatched = chat_messages(body.messages)
    if tools and messages[-1].prefix:
        raise invalid("Function call should not be used with prefix", "tools")
    allowed, forced = _choice(body, tools)
    if forced not in (None, "any") and not thinking:
        tools = tuple(tool for tool in tools if tool.name == forced)
    schema, json_object = _format(body, messages)
    logprobs = None
    if body.top_logprobs is not None:
        if not body.logprobs:
            raise invalid(
                "Invalid top_logprobs and logprobs value, logprobs must be set to true if "
                "top_logprobs is used.",
                "top_logprobs",
            )
        if not 0 <= body.top_logprobs <= 20:
            raise invalid(
                "Invalid top_logprobs value, the valid range of top_logprobs is [0, 20].",
                "top_logprobs",
            )
    if body.logprobs:
        logprobs = body.top_logprobs or 0
    limit = token_limit(body.max_tokens, "max_tokens")
    other = token_limit(body.max_completion_tokens, "max_completion_tokens")
    return ChatRequest(
        api="chat",
        conversation=Conversation(
            messages=messages,
            tools=tools,
            thinking=thinking,
            effort=depth,
            response_schema=schema,
            json_object=json_object,
            forced=None if thinking else forced,
        ),
        model=body.model or default_model,
        sampling=sampling_options(body, logprobs),
        max_tokens=limit if limit is not None else other,
        stop=stop_list(body.stop),
        stream=bool(body.stream),
        include_usage=bool(body.stream_options and body.stream_options.include_usage),
        tools_allowed=allowed,
        forced_by_mask=forced if thinking else None,
        parallel_tool_calls=body.parallel_tool_calls is not False,
        unmatched=unmatched,
        session_hint=session_hint(headers or {}, body.prompt_cache_key),
        ignored=ignored,
    )


def _refuse(body: ChatBody) -> None:
    """What would change the answer and is not done here."""
    if body.functions or body.function_call not in (None, "none", "auto"):
        name = "functions" if body.functions else "function_call"
        raise invalid(f"{name} is not supported; use tools and tool_choice", name)
    if body.audio is not None:
        raise invalid("audio is not supported: this model writes text only", "audio")
    if any(kind != "text" for kind in body.modalities or ()):
        raise invalid("modalities: this model writes text only", "modalities")


def _thinking(body: ChatBody, default: bool) -> tuple[bool, Effort]:
    """Whether to think, and how much. ``thinking`` decides; then an effort of "none"."""
    word = effort(body.reasoning_effort, "reasoning_effort")
    switch = None if body.thinking is None else body.thinking.type
    if switch not in (None, "enabled", "adaptive", "disabled"):
        raise invalid(
            f"thinking.type is '{switch[:40]}'; enabled or disabled is expected", "thinking.type"
        )
    if switch is not None:
        thinking = switch != "disabled"
    else:
        thinking = default if word is None else word != "none"
    return thinking, "high" if word is None or word == "none" else word


def _tools(body: ChatBody) -> tuple[Tool, ...]:
    tools = tuple(
        make_tool(
            tool.function.name,
            tool.function.description,
            tool.function.parameters,
            strict=bool(tool.function.strict),
            deferred=bool(tool.defer_loading),
            param=f"tools[{i}].function.name",
        )
        for i, tool in enumerate(body.tools or ())
        if tool.type == "function" and tool.function is not None
    )
    check_names(tools)
    return tools


def _choice(body: ChatBody, tools: Sequence[Tool]) -> tuple[bool, str | None]:
    """Whether tools may be called, and which must be."""
    choice = body.tool_choice
    if choice is None or choice == "auto":
        return True, None
    if choice == "none":
        return False, None
    if choice == "required":
        if not tools:
            raise invalid("tool_choice is 'required', but there are no tools", "tool_choice")
        return True, "any"
    if isinstance(choice, str) or choice.type != "function" or choice.function is None:
        word = choice if isinstance(choice, str) else choice.type
        raise invalid(
            f"tool_choice is '{word[:40]}'; none, auto, required or a function is expected",
            "tool_choice",
        )
    name = choice.function.name
    if name not in (tool.name for tool in tools):
        raise unknown_function(name[:64])
    return True, name


def _format(
    body: ChatBody, messages: Sequence[Message]
) -> tuple[Mapping[str, object] | None, bool]:
    """The schema of the answer, and whether it must be an object."""
    asked = body.response_format
    if asked is None or asked.type == "text":
        return None, False
    if asked.type == "json_object":
        if not any("json" in message.content.lower() for message in messages):
            raise invalid(NO_JSON, "response_format")
        return None, True
    if asked.type != "json_schema":
        raise invalid(
            f"response_format.type is '{asked.type[:40]}'; text, json_object or json_schema is "
            "expected",
            "response_format.type",
        )
    if asked.json_schema is None or asked.json_schema.schema is None:
        path = "response_format.json_schema" + (".schema" if asked.json_schema else "")
        raise invalid(f"Missing required parameter: '{path}'.", path, "missing_required_parameter")
    return asked.json_schema.schema, False
