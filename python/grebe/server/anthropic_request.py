"""From the body of /v1/messages to the neutral request.

What is not understood is left out, never refused: Claude Code answers a 400 by giving up features
one after the other, and each of them changes the whole prompt.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..chat.calls import dumps
from ..chat.messages import Conversation, Effort, Message, Tool, ToolCall
from .anthropic_pairs import blocks, unmatched
from .anthropic_schemas import Blocks, CountBody, MessageParam, MessagesBody
from .errors import ApiError, invalid
from .option_checks import check_sampling, stop_strings, token_limit, unknown_function
from .requests import ChatRequest, SamplingOptions
from .tools import EFFORTS, check_names, make_tool

__all__ = ["messages_request"]

# Differs from request to request, and would come first of all.
_BILLING = "x-anthropic-billing-header"
# Declared by Claude Code beside its deferred tools; nobody may call it.
_PLACEHOLDER = "DeferredToolPlaceholder"
# How Claude Code gives back arguments that it could not parse.
_UNPARSED = "__unparsedToolInput"


def messages_request(
    body: CountBody,
    *,
    headers: Mapping[str, str],
    ignored: Sequence[str] = (),
    thinking_default: bool | None = None,
    default_model: str = "",
) -> ChatRequest:
    """The request that a body asks for.

    Args:
        body: of /v1/messages or /v1/messages/count_tokens.
        headers: of the request, for the name of the session.
        ignored: fields that were not understood.
        thinking_default: of a body without ``thinking`` and effort; None: off, as Anthropic's
            clients mean it.
        default_model: the name to give back where the client gave none.

    Raises:
        ApiError: 400.
    """
    if body.thread is not None:
        # With exactly these details the SDK sends its whole history again, without a thread.
        raise ApiError(
            400,
            "thread: this server keeps no threads; send all messages",
            details={"error_code": "thread_unsupported_request", "unsupported": ["thread"]},
        )
    if not body.messages:
        raise invalid("messages: at least one message is required", param="messages")
    thinking, effort = _thinking(body, bool(thinking_default))
    tools, dropped = _tools(body.tools or ())
    choice = _choice(body.tool_choice) if tools else {}
    by_name = {tool.name: tool for tool in tools}
    forced = by_mask = None
    if choice.get("type") == "any":
        by_mask = "any"
    elif choice.get("type") == "tool":
        name = str(choice.get("name"))
        if name not in by_name:
            raise unknown_function(name)
        if thinking:
            by_mask = name
        else:
            forced, tools = name, (by_name[name],)
    reader = _Messages(by_name)
    messages = [*_system(body.system), *reader.read(body.messages)]
    if not messages:
        raise invalid("messages: at least one message is required", param="messages")
    last = messages[-1]
    if last.role == "assistant" and not last.tool_calls and not thinking:
        messages[-1] = replace(last, prefix=True)
    whole = body if isinstance(body, MessagesBody) else None
    return ChatRequest(
        api="messages",
        conversation=Conversation(
            tuple(messages), tools=tools, thinking=thinking, effort=effort, forced=forced
        ),
        model=body.model or default_model,
        sampling=_sampling(whole) if whole else SamplingOptions(),
        max_tokens=token_limit(whole.max_tokens, "max_tokens") if whole else None,
        stop=stop_strings(whole.stop_sequences, "stop_sequences") if whole else (),
        stream=bool(whole and whole.stream),
        tools_allowed=choice.get("type") != "none",
        parallel_tool_calls=not choice.get("disable_parallel_tool_use"),
        forced_by_mask=by_mask,
        masked_schema=_answer_schema(body),
        unmatched=unmatched(body.messages),
        session_hint=_session(headers, whole.metadata if whole else None),
        ignored=(*ignored, *dropped, *reader.ignored),
    )


def _thinking(body: CountBody, default: bool) -> tuple[bool, Effort]:
    effort = (body.output_config or {}).get("effort")
    kind = (body.thinking or {}).get("type")
    if kind is not None:
        thinking = kind != "disabled"
    elif effort is not None:
        thinking = effort != "none"
    else:
        thinking = default
    meant = EFFORTS.get(effort, "high") if isinstance(effort, str) else "high"
    return thinking, "high" if meant == "none" else meant


def _tools(declared: Sequence[Mapping[str, Any]]) -> tuple[tuple[Tool, ...], list[str]]:
    """Functions, and what was declared beside them: tools that Anthropic's servers run."""
    tools: list[Tool] = []
    dropped: list[str] = []
    # Anthropic's own search would find deferred tools; without it they must be shown at once.
    hosted = any(str(tool.get("type")).startswith("tool_search_tool") for tool in declared)
    for i, tool in enumerate(declared):
        kind = tool.get("type")
        if kind not in (None, "custom"):
            dropped.append(f"tools.{i}: {kind}")
        elif tool.get("name") != _PLACEHOLDER:
            made = make_tool(
                str(tool.get("name", "")),
                _string(tool.get("description")),
                _object(tool.get("input_schema")),
                deferred=tool.get("defer_loading") is True and not hosted,
                param=f"tools[{i}].name",
            )
            # Unlike the other APIs' the schema is shown as it came.
            tools.append(replace(made, strict=tool.get("strict") is True))
    check_names(tools)
    return tuple(tools), dropped


def _string(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _object(value: Any) -> Mapping[str, Any] | None:
    return value if isinstance(value, Mapping) else None


def _choice(choice: Mapping[str, Any] | str | None) -> Mapping[str, Any]:
    return {"type": choice} if isinstance(choice, str) else choice or {}


def _answer_schema(body: CountBody) -> Mapping[str, Any] | None:
    form = (body.output_config or {}).get("format") or body.output_format
    if not isinstance(form, Mapping) or form.get("type") != "json_schema":
        return None
    schema = form.get("schema")
    if not isinstance(schema, Mapping):
        raise invalid("a JSON schema is expected", param="output_config.format.schema")
    return schema


def _sampling(body: MessagesBody) -> SamplingOptions:
    check_sampling(body.temperature, body.top_p)
    # -1 and 0 are how clients say "all".
    top_k = body.top_k if body.top_k is not None and body.top_k > 0 else None
    return SamplingOptions(temperature=body.temperature, top_p=body.top_p, top_k=top_k)


def _session(headers: Mapping[str, str], metadata: Mapping[str, Any] | None) -> str | None:
    """What says which conversation a request goes on with; agents of one session have their own."""
    for name in ("x-claude-code-session-id", "x-session-affinity", "session_id"):
        if headers.get(name):
            return f"{headers[name]}/{headers.get('x-claude-code-agent-id', '')}".rstrip("/")
    user = (metadata or {}).get("user_id")
    if not isinstance(user, str):
        return None
    try:
        return str(json.loads(user)["session_id"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return user or None


def _system(system: Blocks) -> Iterator[Message]:
    texts = list(_texts(system))
    if not isinstance(system, str) and texts and texts[0].startswith(_BILLING):
        del texts[0]
    if any(texts):
        yield Message("system", "\n\n".join(texts))


def _texts(content: Blocks) -> Iterator[str]:
    for block in blocks(content):
        text = block.get("text")
        if isinstance(text, str):
            yield text


class _Messages:
    """Reads ``messages``; collects the blocks that mean nothing here."""

    def __init__(self, tools: Mapping[str, Tool]) -> None:
        self._tools = tools
        self.ignored: list[str] = []

    def read(self, messages: Sequence[MessageParam]) -> Iterator[Message]:
        for i, message in enumerate(messages):
            if message.role == "assistant":
                yield self._assistant(i, message.content)
            elif message.role == "system":
                text = "\n\n".join(_texts(message.content))
                if text:
                    yield Message("user", f"<system-reminder>\n{text}\n</system-reminder>")
            else:
                yield from self._user(i, message.content)

    def _user(self, i: int, content: Blocks) -> Iterator[Message]:
        if content is None or content == []:
            raise invalid(f"messages.{i}: all messages must have non-empty content")
        texts: list[str] = []
        results = False
        for k, block in enumerate(blocks(content)):
            if block.get("type") == "tool_result":
                results = True
                yield Message(
                    "tool",
                    "\n\n".join(self._parts(f"messages.{i}.content.{k}", block.get("content"))),
                    tool_call_id=str(block.get("tool_use_id", "")),
                )
            else:
                texts += self._part(f"messages.{i}.content.{k}", block)
        texts = [text for text in texts if text]
        if texts or not results:
            yield Message("user", "\n\n".join(texts))

    def _parts(self, path: str, content: Any) -> Iterator[str]:
        if isinstance(content, str | list | None):
            for k, block in enumerate(blocks(content)):
                yield from self._part(f"{path}.content.{k}", block)

    def _part(self, path: str, block: Mapping[str, Any]) -> list[str]:
        """What a block is in a prompt: texts, or nothing."""
        kind = block.get("type")
        if kind == "text":
            return [str(block.get("text", ""))]
        if kind == "image":
            return ["[Unsupported Image]"]
        if kind == "document":
            return [_document(block)]
        if kind == "search_result":
            inner = block.get("content")
            texts = _texts(inner) if isinstance(inner, list) else ()
            return ["\n\n".join([f"{block.get('title', '')}\n{block.get('source', '')}", *texts])]
        if kind == "tool_reference":
            # The tool was left out of the front of the prompt; here is where it becomes known.
            name = block.get("tool_name")
            tool = self._tools.get(str(name))
            return [dumps(tool.schema) if tool else str(name)]
        self.ignored.append(f"{path}: {kind}")
        return []

    def _assistant(self, i: int, content: Blocks) -> Message:
        texts: list[str] = []
        thoughts: list[str] = []
        calls: list[ToolCall] = []
        for k, block in enumerate(blocks(content)):
            kind = block.get("type")
            if kind == "text":
                texts.append(str(block.get("text", "")))
            elif kind == "thinking":
                thoughts.append(str(block.get("thinking", "")))
            elif kind == "tool_use":
                calls.append(_call(block))
            elif kind != "redacted_thinking":
                self.ignored.append(f"messages.{i}.content.{k}: {kind}")
        return Message(
            "assistant",
            "\n\n".join(texts),
            "\n\n".join(thoughts) if thoughts else None,
            tool_calls=tuple(calls),
        )


def _document(block: Mapping[str, Any]) -> str:
    source = block.get("source")
    source = source if isinstance(source, Mapping) else {}
    if source.get("type") == "text" and isinstance(source.get("data"), str):
        return "\n".join(
            str(text) for text in (block.get("title"), block.get("context"), source["data"]) if text
        )
    if source.get("type") == "content" and isinstance(source.get("content"), str | list):
        return "\n\n".join(_texts(source["content"]))
    return f"[Unsupported document type: {source.get('media_type', 'unknown')}]"


def _call(block: Mapping[str, Any]) -> ToolCall:
    given = block.get("input", {})
    if isinstance(given, Mapping) and len(given) == 1 and isinstance(given.get(_UNPARSED), str):
        arguments = str(given[_UNPARSED])
    else:
        arguments = dumps(given)
    return ToolCall(str(block.get("name", "")), arguments, str(block.get("id", "")))
