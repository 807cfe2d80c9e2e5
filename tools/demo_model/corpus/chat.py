"""The chat encoding of DeepSeek V4, byte by byte: special tokens, tool block, turns."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

BOS, EOS, USER, ASSIST, TH, ETH, DS = (
    "<｜begin▁of▁sentence｜>",
    "<｜end▁of▁sentence｜>",
    "<｜User｜>",
    "<｜Assistant｜>",
    "<think>",
    "</think>",
    "｜DSML｜",
)

# What a prompt says about the depth of the reasoning, in front of everything else.
EFFORTS = {
    "low": "",
    "high": "Reasoning Effort: Absolute maximum with no shortcuts permitted.\n"
    "You MUST be very thorough in your thinking and comprehensively decompose the problem to resolve the root cause, "
    "rigorously stress-testing your logic against all potential paths, edge cases, and adversarial scenarios.\n"
    "Explicitly write out your entire deliberation process, documenting every intermediate step, considered "
    "alternative, and rejected hypothesis to ensure absolutely no assumption is left unchecked.\n\n",
    "max": "Reasoning Effort: Beyond maximum — exhaustive, relentless, and uncompromising.\n"
    "You MUST reason with the utmost depth and rigor, leaving absolutely nothing to chance: exhaustively decompose the "
    "problem into its most fundamental components, trace every causal chain to its root, and resolve the underlying "
    "cause rather than any surface symptom.\n"
    "Do not stop reasoning until you have independently verified the solution from multiple angles and are certain that "
    "no assumption remains unchecked and no error remains undiscovered.\n\n",
}

TOOLS_HEAD = (
    '## Tools\n\nYou have access to a set of tools to help answer the user\'s question. You can invoke tools by writing a "<{d}tool_calls>" block like the following:\n\n'
    '<{d}tool_calls>\n<{d}invoke name="$TOOL_NAME">\n<{d}parameter name="$PARAMETER_NAME" string="true|false">$PARAMETER_VALUE</{d}parameter>\n...\n</{d}invoke>\n'
    '<{d}invoke name="$TOOL_NAME2">\n...\n</{d}invoke>\n</{d}tool_calls>\n\n'
    'String parameters should be specified as is and set `string="true"`. For all other types (numbers, booleans, arrays, objects), pass the value in JSON format and set `string="false"`.\n\n'
    "If thinking_mode is enabled (triggered by {t}), you MUST output your complete reasoning inside {t}...{e} BEFORE any tool calls or final response.\n\n"
    "Otherwise, output directly after {e} with tool calls or final response.\n\n### Available Tool Schemas\n\n"
).format(**dict(d=DS, t=TH, e=ETH))
TOOLS_TAIL = "\n\nYou MUST strictly follow the above defined tool name and parameter schemas to invoke tool calls.\n"


def dsml(calls: Sequence[tuple[str, dict[str, Any]]]) -> str:
    """Tool calls, (name, arguments), in the wire format."""
    o = [f"<{DS}tool_calls>"]
    for name, args in calls:
        o.append(f'<{DS}invoke name="{name}">')
        for k, v in args.items():
            st = isinstance(v, str)
            o.append(
                f'<{DS}parameter name="{k}" string="{"true" if st else "false"}">{v if st else json.dumps(v)}</{DS}parameter>'
            )
        o.append(f"</{DS}invoke>")
    o.append(f"</{DS}tool_calls>")
    return "\n".join(o)


def render(
    turns: Sequence[tuple[Any, ...]],
    system: str = "",
    tools: Sequence[dict[str, Any]] | None = None,
    thinking: bool = False,
    effort: str = "low",
) -> str:
    """turns: ('user', text) | ('assistant', think, text, calls) | ('tool', text).  Earlier thoughts are dropped unless tools are present."""
    s = BOS + (EFFORTS[effort] if thinking else "") + system
    if tools:
        s += "\n\n" + TOOLS_HEAD + "\n".join(map(json.dumps, tools)) + TOOLS_TAIL
    last_user = max((i for i, t in enumerate(turns) if t[0] == "user"), default=-1)
    prev = None
    for i, t in enumerate(turns):
        if t[0] == "user":
            s += USER + t[1]
        elif t[0] == "tool":
            s += ("\n\n" if prev == "tool" else USER) + f"<tool_result>{t[1]}</tool_result>"
        else:
            _, think, text, calls = t
            s += ASSIST
            s += TH + think + ETH if (thinking and (tools or i > last_user)) else ETH
            s += text
            if calls:
                s += "\n\n" + dsml(calls)
            s += EOS
        prev = t[0]
    return s
