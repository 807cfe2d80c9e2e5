"""Answers and streamed events as the official SDKs' types have them, no required field left out.

The SDKs themselves build objects without looking; pydantic's strict validation looks.
"""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
from anthropic.types import Message, RawMessageStreamEvent
from grebe.server.run import Server
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from tests.helpers.live import asking, serving

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
CALL = {"name": "add", "arguments": {"a": 2}}
PATCH = {"name": "apply_patch", "arguments": {"input": "*** A\n"}}
REPLIES: dict[str, Any] = {
    "tools": {"steps": [{"reasoning": "Hm.", "content": "Wait.", "tool_calls": [CALL, PATCH]}]},
    "plain": {"steps": [{"reasoning": "Hm.", "content": "one END two"}]},
    "long": {"steps": [{"reasoning": "Hm. " * 160}]},
    "empty": {"steps": [{"content": ""}]},
}
THINKING = {"type": "enabled", "budget_tokens": 1024}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving(REPLIES) as running:
        yield running


def post(server: Server, path: str, body: dict[str, Any]) -> str:
    headers = {"content-type": "application/json"}
    request = urllib.request.Request(server.url + path, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return str(answer.read().decode())


def check(server: Server, path: str, body: dict[str, Any], whole: Any, event: Any) -> Any:
    """The answer, after it and the events of the same as a stream were looked at."""
    answer = json.loads(post(server, path, body))
    TypeAdapter(whole).validate_python(answer, strict=True)
    lines = post(server, path, {**body, "stream": True}).splitlines()
    data = [line[6:] for line in lines if line.startswith("data: ")]
    events = [json.loads(text) for text in data if text != "[DONE]"]
    assert events
    known = TypeAdapter(event)
    for one in events:
        if one.get("type") != "ping":  # of the wire, not of the types
            known.validate_python(one, strict=True)
    return answer


@pytest.mark.parametrize("key", REPLIES)
def test_chat(server: Server, key: str):
    tools = [
        {"type": "function", "function": {"name": name, "parameters": SCHEMA}}
        for name in ("add", "apply_patch")
    ]
    body = {
        "model": "m",
        "messages": [{"role": "user", "content": asking(key)}],
        "tools": tools,
        "stop": ["END"],
        "max_tokens": 150,
        "logprobs": True,
        "top_logprobs": 2,
    }
    answer = check(server, "/v1/chat/completions", body, ChatCompletion, ChatCompletionChunk)
    reasons = {"tools": "tool_calls", "long": "length"}
    assert answer["choices"][0]["finish_reason"] == reasons.get(key, "stop")


@pytest.mark.parametrize("key", REPLIES)
def test_messages(server: Server, key: str):
    body = {
        "model": "m",
        "messages": [{"role": "user", "content": asking(key)}],
        "tools": [{"name": name, "input_schema": SCHEMA} for name in ("add", "apply_patch")],
        "thinking": THINKING,
        "stop_sequences": ["END"],
        "max_tokens": 150,
    }
    answer = check(server, "/v1/messages", body, Message, RawMessageStreamEvent)
    reasons = {"tools": "tool_use", "long": "max_tokens", "plain": "stop_sequence"}
    assert answer["stop_reason"] == reasons.get(key, "end_turn")
    assert answer["stop_sequence"] == ("END" if key == "plain" else None)


@pytest.mark.parametrize("key", REPLIES)
def test_responses(server: Server, key: str):
    body = {
        "model": "m",
        "input": asking(key),
        "tools": [
            {"type": "function", "name": "add", "parameters": SCHEMA, "strict": False},
            {"type": "custom", "name": "apply_patch"},
        ],
        "max_output_tokens": 150,
        "top_logprobs": 2,
        "include": ["reasoning.encrypted_content", "message.output_text.logprobs"],
    }
    answer = check(server, "/v1/responses", body, Response, ResponseStreamEvent)
    assert answer["status"] == ("incomplete" if key == "long" else "completed")
