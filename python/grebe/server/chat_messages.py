"""The messages of Chat Completions as those of a conversation."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from ..chat.messages import Message, ToolCall
from .errors import ApiError, invalid
from .requests import Unmatched
from .schemas import ContentPart, MessageBody

__all__ = ["chat_messages"]

UNANSWERED = (
    "An assistant message with 'tool_calls' must be followed by tool messages responding to each "
    "'tool_call_id'"
)
ORPHAN = "Messages with role 'tool' must be a response to a preceding message with 'tool_calls'"
UNSUPPORTED_IMAGE = "[Unsupported Image]"
_IMAGES = ("image_url", "image", "input_image", "file", "input_file")
_AUDIO = ("input_audio", "audio")


def chat_messages(
    bodies: Sequence[MessageBody],
) -> tuple[tuple[Message, ...], tuple[Unmatched, ...]]:
    """The messages, and the calls and results among them that do not match.

    Raises:
        ApiError: a message that cannot be rendered.
    """
    if not bodies:
        raise invalid("Empty input messages", "messages")
    messages: list[Message] = []
    unmatched: list[Unmatched] = []
    open_calls: dict[str, str] = {}  # id -> path, of the newest calls, until they are answered
    for i, body in enumerate(bodies):
        path = f"messages[{i}]"
        if body.role in ("tool", "function"):
            # Without an id, results come in the order of the calls.
            call_id = body.tool_call_id or next(iter(open_calls), "")
            if open_calls.pop(call_id, None) is None:
                unmatched.append(Unmatched(call_id, _orphan(call_id, path, bool(open_calls))))
            messages.append(Message("tool", _text(body, path), tool_call_id=call_id))
            continue
        unmatched += _unanswered(open_calls)
        open_calls = {}
        if body.role == "assistant":
            message = _assistant(body, i, last=i == len(bodies) - 1)
            for n, call in enumerate(message.tool_calls):
                assert call.id is not None
                if call.id in open_calls:
                    raise invalid(
                        f"Duplicate value for 'tool_call_id' of {call.id} in message[{i}]",
                        f"{path}.tool_calls[{n}].id",
                    )
                open_calls[call.id] = f"{path}.tool_calls[{n}].id={call.id}"
            messages.append(message)
            continue
        if body.role in ("system", "developer"):
            messages.append(Message("system", _text(body, path)))
        elif body.role == "latest_reminder":
            messages.append(Message("latest_reminder", _text(body, path)))
        else:  # a role of tomorrow is better read than refused
            messages.append(Message("user", _text(body, path)))
    unmatched += _unanswered(open_calls)
    return tuple(messages), tuple(unmatched)


def _assistant(body: MessageBody, i: int, last: bool) -> Message:
    path = f"messages[{i}]"
    if body.prefix and not last:
        raise _prefix_elsewhere(path)
    if body.tool_calls is not None and not body.tool_calls:
        body.tool_calls = None
    reasoning = body.reasoning_content if body.reasoning_content is not None else body.reasoning
    if body.content is None and not body.tool_calls and body.refusal is None and not reasoning:
        raise invalid("Invalid assistant message: content or tool_calls must be set", path)
    calls: list[ToolCall] = []
    for n, call in enumerate(body.tool_calls or ()):
        if call.function is None:
            where = f"{path}.tool_calls[{n}].function"
            raise invalid(f"Missing required parameter: '{where}'.", where)
        arguments = call.function.arguments or ""
        if not isinstance(arguments, str):
            arguments = json.dumps(arguments, ensure_ascii=False)
        # Without an id a result finds its call by position alone.
        calls.append(ToolCall(call.function.name, arguments, call.id or f"{i}.{n}"))
    return Message(
        "assistant",
        _text(body, path),
        reasoning=reasoning,
        tool_calls=tuple(calls),
        prefix=bool(body.prefix),
    )


def _text(body: MessageBody, path: str) -> str:
    """The content as one text: parts become paragraphs, what is not text is named."""
    content = body.content
    if content is None:
        return body.refusal or ""
    if isinstance(content, str):
        return content
    return "\n\n".join(
        part if isinstance(part, str) else _part(part, f"{path}.content[{i}]")
        for i, part in enumerate(content)
    )


def _part(part: ContentPart, path: str) -> str:
    if isinstance(part.text, str):
        return part.text
    if part.type in ("text", "input_text", "output_text"):
        raise invalid(f"Invalid type for '{path}.text': expected `str`.", f"{path}.text")
    if isinstance(part.refusal, str):
        return part.refusal
    if part.type in _IMAGES:
        return UNSUPPORTED_IMAGE
    return "[Unsupported Audio]" if part.type in _AUDIO else f"[Unsupported {part.type[:40]}]"


def _orphan(call_id: str, path: str, others_open: bool) -> ApiError:
    if others_open:
        message = f"{UNANSWERED}, The following tool_call_ids did not have response messages: "
        return invalid(message + call_id, f"{path}.tool_call_id")
    return invalid(ORPHAN, f"{path}.tool_call_id={call_id}")


def _unanswered(open_calls: Mapping[str, str]) -> list[Unmatched]:
    message = f"{UNANSWERED}. (insufficient tool messages following tool_calls message)"
    return [Unmatched(call_id, invalid(message, path)) for call_id, path in open_calls.items()]


def _prefix_elsewhere(path: str) -> ApiError:
    return invalid(
        "Invalid completion message: prefix set true with message which is not final message or "
        "message role is not assistant",
        f"{path}.prefix",
    )
