"""What an answer must look like, as a grammar in the language of llguidance (Lark with additions).

A number in ``<[..]>`` is one special token. Only the bytes between them are laid down, never how
they are cut into tokens: the model has its own habits.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..errors import InvalidArgumentError
from .arguments import admitted_types
from .markers import Markers
from .messages import Conversation, Tool
from .prompt import Start

__all__ = [
    "GrammarWriter",
    "answer_grammar",
    "block_grammar",
    "check_numbers",
    "needs_answer",
    "needs_block",
]

# Enough for an indented document; without a limit a model may write blanks for ever.
_SPACE = r"[ \t\r\n]{0,40}"
# Text up to the next "</", the shortest. The marker or more text comes after it.
_HEAD = """%llguidance {"no_forcing": true}
text[lazy]: /(.|\\n)*<\\//
"""
# Words of a string's schema that text between tags could break.
_CONSTRAINTS = frozenset(
    {"pattern", "format", "minLength", "maxLength", "enum", "const", "allOf", "anyOf", "oneOf"}
    | {"not", "$ref", "if", "contentEncoding", "contentMediaType"}
)

# A schema with one of these and without properties has them elsewhere.
_REFERENCES = frozenset({"$ref", "allOf", "anyOf", "oneOf", "patternProperties"})
LEAST_NUMBER = -(2**62)
_ANY_KEY = r'''"parameter name=\"" /[^"]+/ "\" string="'''


def needs_answer(conversation: Conversation) -> bool:
    """Whether the whole answer has a form, from its first token on."""
    return bool(
        conversation.forced or conversation.json_object or conversation.response_schema is not None
    )


def needs_block(conversation: Conversation) -> bool:
    """Whether only the calls have a form, if there are any."""
    return any(tool.strict for tool in _tools(conversation))


def answer_grammar(conversation: Conversation, markers: Markers, start: Start) -> str:
    """The grammar of everything after the reasoning.

    Args:
        conversation: with ``forced``, ``json_object`` or ``response_schema``.
        markers: ids.
        start: "block" when the prompt opened the block already.

    Raises:
        InvalidArgumentError: no such tool.
    """
    writer = GrammarWriter(markers)
    tools = _tools(conversation)
    if conversation.forced:
        named = conversation.forced != "any"
        if named:
            tools = [tool for tool in tools if tool.name == conversation.forced]
        if not tools:
            raise InvalidArgumentError(
                f"tool_choice: no tool is named {conversation.forced!r}"
                if named
                else "tool_choice: a call is required, but no tools are declared"
            )
        calls = writer.calls(tools, one=named)
        return writer.grammar(calls if start == "block" else writer.block(calls))
    schema = conversation.response_schema
    forms = [writer.json({"type": "object"} if schema is None else schema)]
    if tools:
        forms.append(writer.block(writer.calls(tools)))
    return writer.grammar(" | ".join(forms))


def block_grammar(conversation: Conversation, markers: Markers) -> str:
    """The grammar of a block after its ``<`` and its marker."""
    writer = GrammarWriter(markers)
    return writer.grammar('"tool_calls>\\n" ' + writer.calls(_tools(conversation)))


class GrammarWriter:
    """Collects rules. Methods return what refers to them."""

    def __init__(self, markers: Markers) -> None:
        self._dsml = f"<[{markers.dsml}]>"
        self._rules: list[str] = []

    def grammar(self, start: str) -> str:
        """The whole text."""
        return _HEAD + "\n".join([*self._rules, f"start: {start}", ""])

    def json(self, schema: Mapping[str, Any], *, lenient: bool = False) -> str:
        """Any JSON value of a schema; lenient: pass over what cannot be enforced.

        Raises:
            InvalidArgumentError: see :func:`check_numbers`.
        """
        try:
            check_numbers(schema)
        except InvalidArgumentError:
            if not lenient:
                raise
            schema = {}
        options = {"whitespace_pattern": _SPACE, "lenient": lenient}
        return self._rule(f"%json {json.dumps({**schema, 'x-guidance': options})}")

    def block(self, calls: str) -> str:
        """The calls in their wrapper."""
        return self._rule(f'"\\n\\n<" {self._dsml} "tool_calls>\\n" {calls}')

    def calls(self, tools: Sequence[Tool], *, one: bool = False) -> str:
        """Calls of some of the tools and the end of the wrapper."""
        any_of = self._rule(" | ".join(self._call(tool) for tool in tools))
        return self._rule(f'{any_of}{"" if one else "+"} "</" {self._dsml} "tool_calls>"')

    def _call(self, tool: Tool) -> str:
        head = _quoted(f'invoke name="{tool.name}">\n')
        return self._rule(
            f'"<" {self._dsml} {head} {self._parameters(tool)} "</" {self._dsml} "invoke>\\n"'
        )

    def _parameters(self, tool: Tool) -> str:
        """Strict: in the order of the schema, all that are required. Else any of them, at will."""
        root = tool.parameters
        properties = root.get("properties")
        known = properties if isinstance(properties, Mapping) else {}
        if tool.strict and not known and not _REFERENCES.isdisjoint(root):
            raise InvalidArgumentError(
                f"tool {tool.name!r}: a strict tool must list the properties of its arguments"
            )
        rules = {}
        for key in known:
            head = _quoted(f'parameter name="{key}" string=')
            rules[key] = self._parameter(head, key, root, lenient=not tool.strict)
        if tool.strict:
            required = root.get("required")
            needed = set(required) if isinstance(required, list) else set()
            parts = [rule if key in needed else f"{rule}?" for key, rule in rules.items()]
            return " ".join(parts) if needed & set(rules) else " ".join([*parts, '"\\n"?'])
        free = root.get("additionalProperties", not known)
        choices = [*rules.values()]
        if free is not False:
            choices.append(self._parameter(_ANY_KEY, "", root, lenient=True))
        return f'("\\n"? | ({" | ".join(choices)})+)' if choices else '"\\n"?'

    def _parameter(self, head: str, key: str, root: Mapping[str, Any], *, lenient: bool) -> str:
        close = f'{self._dsml} "parameter>\\n"'
        schema = _property(root, key)
        forms = []
        if (words := _words(schema)) is not None:
            texts = " | ".join(_quoted(f"{word}</") for word in words)
            forms.append(f'"\\"true\\">" ({texts}) {close}')
        else:
            types = admitted_types(root, key)
            if "string" in types and _any_text(schema):
                forms.append(f'"\\"true\\">" text+ {close}')
            if types != {"string"} or not forms:
                rest = _without_text(schema) if forms else schema
                forms.append(
                    f'"\\"false\\">" {self.json(_closed(rest, root), lenient=lenient)} "</" {close}'
                )
        return self._rule(f'"<" {self._dsml} {head} ({" | ".join(forms)})')

    def _rule(self, body: str) -> str:
        name = f"r{len(self._rules)}"
        self._rules.append(f"{name}: {body}")
        return name


def check_numbers(schema: Any) -> None:
    """Refuses numbers at which llguidance 1.9 never ends: it negates 64-bit integers.

    Raises:
        InvalidArgumentError: there is one.
    """
    inner = [schema]
    while inner:
        value = inner.pop()
        if isinstance(value, Mapping):
            inner += value.values()
        elif isinstance(value, (list, tuple)):
            inner += value
        elif isinstance(value, (int, float)) and value <= LEAST_NUMBER:
            raise InvalidArgumentError(
                f"the schema has the number {value:g}, which cannot be enforced; more than "
                f"{LEAST_NUMBER} is expected"
            )


def _tools(conversation: Conversation) -> list[Tool]:
    of_messages = (tool for message in conversation.messages for tool in message.tools)
    return [*conversation.tools, *of_messages]


def _property(root: Mapping[str, Any], key: str) -> Any:
    properties = root.get("properties")
    known = properties if isinstance(properties, Mapping) else {}
    return known[key] if key in known else root.get("additionalProperties", True)


def _words(schema: Any) -> list[str] | None:
    """The texts that a schema lists, if it lists nothing else."""
    if not isinstance(schema, Mapping):
        return None
    words = schema["enum"] if isinstance(schema.get("enum"), list) else None
    if "const" in schema:
        words = [schema["const"]]
    if not words or not all(isinstance(word, str) for word in words):
        return None
    return words if set(schema) <= {"enum", "const", "type", "description", "title"} else None


def _any_text(schema: Any) -> bool:
    """Whether every text is valid, so that it need not be written as JSON."""
    if not isinstance(schema, Mapping):
        return True
    for word in ("anyOf", "oneOf"):
        branches = schema.get(word)
        if isinstance(branches, list) and set(schema) <= {word, "description", "title", "default"}:
            return any(map(_any_text_branch, branches))
    return _CONSTRAINTS.isdisjoint(schema)


def _any_text_branch(schema: Any) -> bool:
    names = schema.get("type") if isinstance(schema, Mapping) else None
    return (names == "string" or (isinstance(names, list) and "string" in names)) and _any_text(
        schema
    )


def _without_text(schema: Any) -> Any:
    """A schema that some texts follow, for the values that are none."""
    if not isinstance(schema, Mapping):
        return {"type": ["number", "boolean", "null", "object", "array"]}
    if isinstance(schema.get("type"), list):
        return {**schema, "type": [name for name in schema["type"] if name != "string"]}
    for word in ("anyOf", "oneOf"):
        if isinstance(branches := schema.get(word), list):
            others = [b for b in branches if not _any_text_branch(b)]
            return {**schema, word: others} if others else schema
    return {**schema, "type": ["number", "boolean", "null", "object", "array"]}


def _closed(schema: Any, root: Mapping[str, Any]) -> Mapping[str, Any]:
    """A schema with the definitions that it may refer to."""
    if not isinstance(schema, Mapping):
        return {}
    definitions: Iterable[str] = ("$defs", "definitions")
    return {**{name: root[name] for name in definitions if name in root}, **schema}


def _quoted(text: str) -> str:
    """A literal of the grammar."""
    return json.dumps(text, ensure_ascii=False)
