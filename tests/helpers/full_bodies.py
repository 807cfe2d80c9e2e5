"""Bodies that use much of an API at once, as clients send them."""

from __future__ import annotations

from typing import Any

_SCHEMA = {
    "type": "object",
    "properties": {"path": {"type": "string"}, "n": {"type": "integer", "enum": [1, 2]}},
    "required": ["path"],
    "additionalProperties": False,
}
_CHAT: dict[str, Any] = {
    "model": "m",
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Read a"}, "and b"], "name": "me"},
        {
            "role": "assistant",
            "content": None,
            "reasoning_content": "I shall.",
            "tool_calls": [
                {
                    "id": "c1",
                    "type": "function",
                    "function": {"name": "read", "arguments": '{"path": "a"}'},
                },
                {
                    "id": "c2",
                    "type": "function",
                    "function": {"name": "read", "arguments": {"path": "b"}},
                },
            ],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "A"},
        {"role": "tool", "tool_call_id": "c2", "content": [{"type": "text", "text": "B"}]},
        {"role": "assistant", "content": "Done."},
        {"role": "developer", "content": "Hurry."},
        {"role": "user", "content": "And now?"},
    ],
    "tools": [
        {
            "type": "function",
            "function": {
                "name": "read",
                "description": "Reads",
                "parameters": _SCHEMA,
                "strict": True,
            },
        },
        {"type": "custom", "custom": {"name": "x"}},
    ],
    "tool_choice": {"type": "function", "function": {"name": "read"}},
    "parallel_tool_calls": False,
    "thinking": {"type": "enabled"},
    "reasoning_effort": "high",
    "temperature": 0.5,
    "top_p": 0.9,
    "top_k": 5,
    "min_p": 0.1,
    "presence_penalty": 0.5,
    "frequency_penalty": -0.5,
    "logit_bias": {"5": 1},
    "seed": 7,
    "stop": ["x"],
    "max_tokens": 9,
    "stream": True,
    "stream_options": {"include_usage": True},
    "logprobs": True,
    "top_logprobs": 3,
}
_MESSAGES: dict[str, Any] = {
    "model": "m",
    "max_tokens": 9,
    "system": [
        {"type": "text", "text": "x-anthropic-billing-header: a"},
        {"type": "text", "text": "Be brief."},
    ],
    "messages": [
        {
            "role": "user",
            "content": [{"type": "text", "text": "Read a", "cache_control": {"type": "ephemeral"}}],
        },
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "I shall.", "signature": "s"},
                {"type": "redacted_thinking", "data": "x"},
                {"type": "text", "text": "Reading."},
                {"type": "tool_use", "id": "t1", "name": "read", "input": {"path": "a", "n": 1}},
            ],
        },
        {
            "role": "user",
            "content": [
                {
                    "type": "tool_result",
                    "tool_use_id": "t1",
                    "is_error": False,
                    "content": [
                        {"type": "text", "text": "A"},
                        {
                            "type": "image",
                            "source": {"type": "base64", "media_type": "image/png", "data": "aaaa"},
                        },
                        {"type": "tool_reference", "tool_name": "late"},
                    ],
                },
                {
                    "type": "document",
                    "title": "d",
                    "source": {"type": "text", "media_type": "text/plain", "data": "x"},
                },
                {
                    "type": "search_result",
                    "title": "s",
                    "source": "u",
                    "content": [{"type": "text", "text": "y"}],
                },
            ],
        },
        {"role": "system", "content": "Hurry."},
        {"role": "user", "content": "And now?"},
    ],
    "tools": [
        {"name": "read", "description": "Reads", "input_schema": _SCHEMA, "strict": True},
        {"name": "late", "input_schema": {"type": "object"}, "defer_loading": True},
        {"type": "web_search_20250305", "name": "web_search"},
    ],
    "tool_choice": {"type": "tool", "name": "read", "disable_parallel_tool_use": True},
    "thinking": {"type": "enabled", "budget_tokens": 2000},
    "output_config": {"effort": "low"},
    "metadata": {"user_id": '{"session_id": "s"}'},
    "stop_sequences": ["x"],
    "temperature": 1,
    "top_p": 0.9,
    "top_k": 4,
    "stream": True,
}
_RESPONSES: dict[str, Any] = {
    "model": "m",
    "instructions": "Be brief.",
    "input": [
        {
            "type": "message",
            "role": "developer",
            "content": [{"type": "input_text", "text": "Hurry."}],
        },
        {
            "role": "user",
            "content": [
                {"type": "input_text", "text": "Read a"},
                {"type": "input_image", "image_url": "x"},
            ],
        },
        {
            "type": "reasoning",
            "id": "rs_1",
            "summary": [{"type": "summary_text", "text": "s"}],
            "content": [{"type": "reasoning_text", "text": "I shall."}],
            "encrypted_content": None,
        },
        {
            "type": "function_call",
            "id": "fc_1",
            "call_id": "c1",
            "name": "read",
            "arguments": '{"path": "a"}',
        },
        {"type": "custom_tool_call", "call_id": "c2", "name": "patch", "input": "x"},
        {"type": "function_call_output", "call_id": "c1", "output": "A"},
        {
            "type": "custom_tool_call_output",
            "call_id": "c2",
            "output": [{"type": "input_text", "text": "B"}],
        },
        {
            "type": "message",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "Done."}],
        },
        {"role": "user", "content": "And now?"},
    ],
    "tools": [
        {"type": "function", "name": "read", "parameters": _SCHEMA, "strict": False},
        {
            "type": "custom",
            "name": "patch",
            "format": {"type": "grammar", "syntax": "lark", "definition": "x"},
        },
        {
            "type": "namespace",
            "name": "n",
            "tools": [{"type": "function", "name": "f", "parameters": {}}],
        },
        {"type": "web_search"},
    ],
    "tool_choice": {
        "type": "allowed_tools",
        "mode": "auto",
        "tools": [{"type": "function", "name": "read"}],
    },
    "parallel_tool_calls": False,
    "reasoning": {"effort": "medium", "summary": "auto"},
    "text": {"format": {"type": "text"}, "verbosity": "low"},
    "include": ["reasoning.encrypted_content"],
    "max_output_tokens": 9,
    "temperature": 1,
    "top_logprobs": 2,
    "metadata": {"a": "b"},
    "prompt_cache_key": "k",
    "store": True,
    "stream": True,
}
_COUNT = {key: _MESSAGES[key] for key in ("messages", "system", "tools", "tool_choice", "thinking")}
_COMPLETION = {
    "prompt": [5, 6, 7],
    "echo": True,
    "logprobs": 2,
    "max_tokens": 3,
    "stop": ["x", "y"],
    "temperature": 0.5,
    "seed": 3,
    "logit_bias": {"7": -100},
    "repetition_penalty": 1.1,
}
FULL: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": _CHAT,
    "/v1/completions": _COMPLETION,
    "/v1/messages": _MESSAGES,
    "/v1/messages/count_tokens": _COUNT,
    "/v1/responses": _RESPONSES,
    "/v1/responses/input_tokens": _RESPONSES,
    "/tokenize": {"messages": _CHAT["messages"], "with_pieces": True, "add_special": True},
    "/detokenize": {"tokens": [5, 6, 0, 700]},
}
