"""The fixed texts of prompts. The model was trained on these bytes.

Origin: DeepSeek, MIT licence (model repository; package deepseek-recipe 0.2.0). Their SHA-256 are
in tests/vectors/chat/constants.json.
"""

from __future__ import annotations

from .markers import DSML
from .messages import Effort, Generation

__all__ = [
    "BLOCK_CLOSE",
    "BLOCK_OPEN",
    "JSON_OBJECT",
    "RESPONSE_HEAD",
    "TOOLS_HEAD",
    "TOOLS_TAIL",
    "effort_prefix",
]

_EFFORT_HIGH = (
    "Reasoning Effort: Absolute maximum with no shortcuts permitted.\n"
    "You MUST be very thorough in your thinking and comprehensively decompose the problem to "
    "resolve the root cause, rigorously stress-testing your logic against all potential "
    "paths, edge cases, and adversarial scenarios.\n"
    "Explicitly write out your entire deliberation process, documenting every intermediate "
    "step, considered alternative, and rejected hypothesis to ensure absolutely no "
    "assumption is left unchecked.\n\n"
)
_EFFORT_MAX = (
    "Reasoning Effort: Beyond maximum — exhaustive, relentless, and uncompromising.\n"
    "You MUST reason with the utmost depth and rigor, leaving absolutely nothing to chance: "
    "exhaustively decompose the problem into its most fundamental components, trace every "
    "causal chain to its root, and resolve the underlying cause rather than any surface "
    "symptom.\n"
    "Do not stop reasoning until you have independently verified the solution from multiple "
    "angles and are certain that no assumption remains unchecked and no error remains "
    "undiscovered.\n\n"
)

#: The checkpoints of April and May call "max" what those of 0731 call "high"; what they call
#: "high" has no text. A prompt with the wrong one asks for another depth than the caller did.
_EFFORT: dict[Generation, dict[Effort, str]] = {
    "0731": {"low": "", "high": _EFFORT_HIGH, "max": _EFFORT_MAX},
    "may": {"low": "", "high": "", "max": _EFFORT_HIGH},
}


def effort_prefix(generation: Generation, effort: Effort) -> str:
    """What stands between the start of the text and the first message, when the model thinks."""
    return _EFFORT[generation][effort]


#: Before the schemas, of which each has a line. Spellings of markers in it are markers.
TOOLS_HEAD = (
    "## Tools\n\n"
    "You have access to a set of tools to help answer the user's question. You can invoke "
    f'tools by writing a "<{DSML}tool_calls>" block like the following:\n\n'
    f"<{DSML}tool_calls>\n"
    f'<{DSML}invoke name="$TOOL_NAME">\n'
    f'<{DSML}parameter name="$PARAMETER_NAME" '
    f'string="true|false">$PARAMETER_VALUE</{DSML}parameter>\n'
    "...\n"
    f"</{DSML}invoke>\n"
    f'<{DSML}invoke name="$TOOL_NAME2">\n'
    "...\n"
    f"</{DSML}invoke>\n"
    f"</{DSML}tool_calls>\n\n"
    'String parameters should be specified as is and set `string="true"`. For all other '
    "types (numbers, booleans, arrays, objects), pass the value in JSON format and set "
    '`string="false"`.\n\n'
    "If thinking_mode is enabled (triggered by <think>), you MUST output your complete "
    "reasoning inside <think>...</think> BEFORE any tool calls or final response.\n\n"
    "Otherwise, output directly after </think> with tool calls or final response.\n\n"
    "### Available Tool Schemas\n\n"
)
TOOLS_TAIL = (
    "\n\n"
    "You MUST strictly follow the above defined tool name and parameter schemas to invoke "
    "tool calls.\n"
)
#: Before the schema of the answer.
RESPONSE_HEAD = (
    "## Response Format:\n\nYou MUST strictly adhere to the following schema to reply:\n"
)
#: When any JSON object will do.
JSON_OBJECT = (
    "You are a helpful assistant designed to output JSON.\n"
    "## Response Format:\n\n"
    "Reply with JSON object ONLY."
)

#: Around the calls of a turn; the line feeds before belong to the block.
BLOCK_OPEN = f"\n\n<{DSML}tool_calls>\n"
BLOCK_CLOSE = f"\n</{DSML}tool_calls>"
