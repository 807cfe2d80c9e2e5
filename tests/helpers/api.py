"""Requests of all APIs, converted and prepared without an engine."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from grebe.server.anthropic_request import messages_request
from grebe.server.anthropic_schemas import MessagesBody
from grebe.server.chat_request import chat_request
from grebe.server.prompting import Prepared, Replay, ToolSections, prepare
from grebe.server.requests import ChatRequest
from grebe.server.responses_request import responses_request
from grebe.server.responses_schemas import ResponsesBody
from grebe.server.schemas import decode

from tests.helpers.chat import real_markers, real_tokenizer


def ask(api: str, body: Any, headers: Mapping[str, str] | None = None) -> ChatRequest:
    """The neutral request of a body."""
    data = json.dumps(body).encode()
    if api == "chat":
        return chat_request(data, headers)
    if api == "messages":
        messages, ignored = decode(data, MessagesBody)
        return messages_request(messages, headers=headers or {}, ignored=ignored)
    responses, ignored = decode(data, ResponsesBody)
    return responses_request(responses, headers=headers or {}, ignored=ignored).chat


def prepared(
    request: ChatRequest, sections: ToolSections | None = None, replay: Replay | None = None
) -> Prepared:
    """What the engine would get, with the real vocabulary."""
    return prepare(
        request,
        "",
        real_tokenizer(),
        real_markers(),
        generation="0731",
        replay=replay,
        sections=sections or ToolSections(),
    )
