"""From the body of /v1/responses to the neutral request."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..chat.messages import Conversation, Message, Tool
from .errors import invalid
from .openai_options import session_hint
from .option_checks import check_sampling, token_limit, unknown_function
from .requests import ChatRequest, SamplingOptions
from .responses_items import ItemReader
from .responses_schemas import ResponsesBody
from .responses_tools import ToolNames, declared_tools
from .tools import effort

__all__ = ["Asked", "responses_request"]

_SESSION_HEADERS = ("session-id", "thread-id")


@dataclass(frozen=True, slots=True)
class Asked:
    """A request of this API.

    Attributes:
        chat: the neutral one.
        echo: fields of the request that the response repeats.
        names: of the tools.
        items: of this request's input alone, for the store.
        sealed: the reasoning goes out as ``encrypted_content`` too.
        store: the response is kept.
        background: the client asks for it later.
    """

    chat: ChatRequest
    echo: dict[str, Any]
    names: ToolNames
    items: list[dict[str, Any]]
    sealed: bool
    store: bool
    background: bool


def responses_request(
    body: ResponsesBody,
    *,
    headers: Mapping[str, str],
    ignored: Sequence[str] = (),
    thinking_default: bool | None = None,
    default_model: str = "",
    history: Sequence[Mapping[str, Any]] = (),
    find: Callable[[str], Mapping[str, Any] | None] | None = None,
) -> Asked:
    """The request that a body asks for.

    Args:
        body: of the request.
        headers: of the request, for the name of the session.
        ignored: fields that were not understood.
        thinking_default: of a body without an effort; None: on.
        default_model: the name to give back where the client gave none.
        history: items of the responses before, oldest first.
        find: an item of a stored response, by its id.

    Raises:
        ApiError: 400.
    """
    for name in ("conversation", "prompt"):
        if getattr(body, name) is not None:
            raise invalid(f"{name} is not supported: send the input itself", name)
    items = _items(body)
    if not items and not history and body.input is not None:
        raise invalid("Input items array must not be empty", "input")
    if not items and not history and not body.instructions:
        raise invalid("Either input or instructions must be provided", "input")
    reasoning = body.reasoning or {}
    level = effort(_word(reasoning.get("effort"), "reasoning.effort"), "reasoning.effort")
    thinking = level != "none" if level is not None else thinking_default is not False
    tools, names = declared_tools(body.tools or ())
    tools, forced, allowed = _choice(body.tool_choice, tools, names, thinking)
    reader = ItemReader(names, find)
    reader.read(history)
    reader.read(items)
    messages = reader.finish()
    if body.instructions:
        messages.insert(0, Message("system", body.instructions))
    schema, json_object = _form(body, messages)
    check_sampling(body.temperature, body.top_p)
    include = body.include or []
    logprobs = _logprobs(body, include)
    chat = ChatRequest(
        api="responses",
        conversation=Conversation(
            tuple(messages),
            tools=tools,
            thinking=thinking,
            effort="high" if level in (None, "none") else level,  # type: ignore[arg-type]
            response_schema=schema,
            json_object=json_object,
            forced=None if thinking else forced,
        ),
        model=body.model or default_model,
        sampling=SamplingOptions(
            temperature=body.temperature, top_p=body.top_p, top_logprobs=logprobs
        ),
        max_tokens=token_limit(body.max_output_tokens, "max_output_tokens"),
        stream=bool(body.stream),
        tools_allowed=allowed,
        parallel_tool_calls=body.parallel_tool_calls is not False,
        forced_by_mask=forced if thinking else None,
        unmatched=tuple(reader.unmatched),
        session_hint=_session(headers, body),
        ignored=(*ignored, *names.dropped, *reader.ignored),
    )
    return Asked(
        chat,
        _echo(body),
        names,
        items,
        sealed="reasoning.encrypted_content" in include,
        store=body.store is not False,
        background=bool(body.background),
    )


def _items(body: ResponsesBody) -> list[dict[str, Any]]:
    if isinstance(body.input, str):
        return [{"type": "message", "role": "user", "content": body.input}]
    return body.input or []


def _word(value: Any, param: str) -> str | None:
    if value is not None and not isinstance(value, str):
        raise invalid(f"Invalid type for '{param}': expected `str`.", param)
    return value


def _choice(
    choice: str | Mapping[str, Any] | None,
    tools: tuple[Tool, ...],
    names: ToolNames,
    thinking: bool,
) -> tuple[tuple[Tool, ...], str | None, bool]:
    """The tools that are shown, what must be called, and whether anything may be."""
    if isinstance(choice, str) and choice not in ("auto", "none", "required"):
        raise invalid(
            f"tool_choice is '{choice[:40]}'; auto, none, required or an object is expected",
            "tool_choice",
        )
    if not tools or choice in (None, "auto"):
        return tools, None, True
    if choice == "none":
        return tools, None, False
    if choice == "required":
        return tools, "any", True
    assert isinstance(choice, Mapping)
    kind = choice.get("type")
    if kind == "allowed_tools":
        listed = choice.get("tools")
        wanted = {
            names.shown(tool.get("namespace"), str(tool.get("name")))
            for tool in (listed if isinstance(listed, list) else ())
            if isinstance(tool, Mapping)
        }
        few = tuple(tool for tool in tools if tool.name in wanted)
        return few, "any" if choice.get("mode") == "required" and few else None, True
    if kind not in ("function", "custom"):
        return tools, None, True  # a tool that OpenAI's servers would run
    shown = names.shown(choice.get("namespace"), str(choice.get("name")))
    named = tuple(tool for tool in tools if tool.name == shown)
    if not named:
        raise unknown_function(shown)
    # Without reasoning the prompt opens the call, and shows the one tool that it can be.
    return tools if thinking else named, shown, True


def _form(
    body: ResponsesBody, messages: Sequence[Message]
) -> tuple[Mapping[str, Any] | None, bool]:
    """The schema of the answer, and whether it is to be any JSON object."""
    form = (body.text or {}).get("format")
    if not isinstance(form, Mapping) or form.get("type", "text") == "text":
        return None, False
    if form["type"] == "json_schema":
        schema = form.get("schema")
        if not isinstance(schema, Mapping):
            raise invalid("a JSON schema is expected", "text.format.schema")
        return schema, False
    if form["type"] != "json_object":
        raise invalid(
            f"text.format.type is '{str(form['type'])[:40]}'; text, json_schema or json_object is "
            "expected",
            "text.format.type",
        )
    if not any("json" in message.content.lower() for message in messages):
        raise invalid(
            "Response input messages must contain the word 'json' in some form to use "
            "'text.format' of type 'json_object'.",
            "input",
        )
    return None, True


def _logprobs(body: ResponsesBody, include: Sequence[str]) -> int | None:
    if body.top_logprobs is not None and not 0 <= body.top_logprobs <= 20:
        raise invalid(
            "Invalid top_logprobs value, the valid range of top_logprobs is [0, 20].",
            "top_logprobs",
        )
    if "message.output_text.logprobs" in include or body.top_logprobs:
        return body.top_logprobs or 0
    return None


def _session(headers: Mapping[str, str], body: ResponsesBody) -> str | None:
    found = session_hint(headers, body.prompt_cache_key)
    if found is not None:
        return found
    return next((headers[name][:256] for name in _SESSION_HEADERS if headers.get(name)), None)


def _echo(body: ResponsesBody) -> dict[str, Any]:
    reasoning = body.reasoning or {}
    text = dict(body.text or {})
    text.setdefault("format", {"type": "text"})
    return {
        "background": bool(body.background),
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "max_tool_calls": body.max_tool_calls,
        "metadata": body.metadata or {},
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": body.previous_response_id,
        "prompt_cache_key": body.prompt_cache_key,
        "reasoning": {
            "effort": reasoning.get("effort"),
            "summary": reasoning.get("summary"),
        },
        "safety_identifier": body.safety_identifier,
        "service_tier": "default",
        "store": body.store is not False,
        "temperature": 1.0 if body.temperature is None else body.temperature,
        "text": text,
        "tool_choice": "auto" if body.tool_choice is None else body.tool_choice,
        "tools": body.tools or [],
        "top_logprobs": body.top_logprobs or 0,
        "top_p": 1.0 if body.top_p is None else body.top_p,
        "truncation": "disabled",
        "user": body.user,
    }
