"""What comes back from a client is put into the prompt as the tokens that were sampled."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from grebe.chat.encode import Encoded, encode
from grebe.chat.equivalence import same_arguments
from grebe.chat.markers import Markers
from grebe.chat.messages import Conversation, Message, Tool, ToolCall
from grebe.chat.render import render
from grebe.chat.replay import ReplayTable

from tests.helpers.chat import nano_tokenizer

TOKENIZER = nano_tokenizer()
MARKERS = Markers.of(TOKENIZER)
TOOLS = (Tool({"name": "run", "description": "", "parameters": {"type": "object"}}),)


@dataclass(frozen=True)
class Turn:
    reasoning: str | None = None
    content: str = ""
    calls: tuple[ToolCall, ...] = ()
    partial_call: object | None = None

    def message(self, **changes: Any) -> Message:
        said = Message("assistant", self.content, self.reasoning, self.calls)
        return replace(said, **changes)


def spelled(text: str) -> list[int]:
    """Ids of a text, letter by letter: never what the encoder would make of it."""
    return [id for letter in text for id in TOKENIZER.encode(letter)]


def output(turn: Turn, *, thinking: bool = True, end: bool = True) -> list[int]:
    """A turn as a model might sample it."""
    ids = [*spelled(turn.reasoning or ""), MARKERS.think_end] if thinking else []
    ids += spelled(turn.content)
    if turn.calls:
        ids += TOKENIZER.encode("\n\n<｜DSML｜tool_calls>\n", allow_special=True)
        for call in turn.calls:
            ids += TOKENIZER.encode(f'<｜DSML｜invoke name="{call.name}">\n', allow_special=True)
            ids += spelled(call.arguments)
            ids += TOKENIZER.encode("</｜DSML｜invoke>\n", allow_special=True)
        ids += TOKENIZER.encode("</｜DSML｜tool_calls>", allow_special=True)
    return [*ids, MARKERS.eos] if end else ids


def table(directory: Path | None = None, **options: Any) -> ReplayTable:
    return ReplayTable(TOKENIZER, MARKERS, directory, **options)


def prompt(talk: Conversation, replay: ReplayTable | None = None, owner: str = "me") -> Encoded:
    splices = None if replay is None else replay.splices(talk, owner)
    return encode(render(talk), TOKENIZER, MARKERS, splices)


def told(replay: ReplayTable, talk: Conversation, turn: Turn, reason: Any = "stop") -> list[int]:
    """Records a turn after a conversation; returns what the engine holds then."""
    before = prompt(talk, replay)
    sampled = output(turn, thinking=talk.thinking, end=reason in ("stop", "tool_calls"))
    assert replay.record("me", talk, before, sampled, turn, reason)
    return before.ids + sampled


def ask(*messages: Message, **options: Any) -> Conversation:
    return Conversation((Message("user", "Go."), *messages), **{"tools": TOOLS, **options})


def then(talk: Conversation, *messages: Message) -> Conversation:
    return replace(talk, messages=(*talk.messages, *messages))


CALLS = Turn(
    "Look first. ",
    "Running.\n",
    (
        ToolCall(
            "run", '{"command": "cd /src && ls -l", "n": 5000.0, "e": "\\u00e9"}', "call_01_aB3"
        ),
        ToolCall(
            "run", '{"text": "a  \\nb\\t", "deep": {"x": [1, true], "y": null}}', "call_02_cD4"
        ),
    ),
)
RESULTS = (
    Message("tool", "one", tool_call_id="call_01_aB3"),
    Message("tool", "two", tool_call_id="call_02_cD4"),
)


def changed(arguments: str) -> Turn:
    first = replace(CALLS.calls[0], arguments=arguments)
    return replace(CALLS, calls=(first, CALLS.calls[1]))


def test_calls_come_back_exactly():
    replay, talk = table(), ask()
    live = told(replay, talk, CALLS, "tool_calls")
    again = prompt(then(talk, CALLS.message(), *RESULTS), replay)
    assert again.ids[: len(live)] == live
    assert again.n_replayed == 1
    canonical = prompt(then(talk, CALLS.message(), *RESULTS))
    assert canonical.ids[: len(live)] != live
    assert TOKENIZER.decode(canonical.ids[: canonical.turn]).endswith("<think>")


def rewritten(turn: Turn) -> Message:
    """By a client that parses arguments, tidies them up and takes out marks of ids."""
    calls = []
    for call in turn.calls:
        value = json.loads(call.arguments)
        if "command" in value:
            value = {"n": 5000, "e": value["e"], "command": "ls -l"}
        else:
            value = {"deep": {"y": None, "x": [1, True]}, "text": "a\nb"}
        text = json.dumps(value, separators=(",", ":"))
        calls.append(ToolCall(call.name, text, (call.id or "").replace("_", "")))
    return Message("assistant", turn.content.strip(), None, tuple(calls))


def test_what_clients_do_to_calls_is_no_change():
    replay, talk = table(), ask()
    live = told(replay, talk, CALLS, "tool_calls")
    again = prompt(then(talk, rewritten(CALLS), *RESULTS), replay)
    assert again.ids[: len(live)] == live


@pytest.mark.parametrize(
    ("edit", "why"),
    [
        (changed('{"command": "cd /src && ls -a", "n": 5000, "e": "é"}').message(), "arguments"),
        (changed('{"command": "cd /etc && ls -l", "n": 5000, "e": "é"}').message(), "arguments"),
        (changed('{"command": "cd /src && ls -l", "n": 5001, "e": "é"}').message(), "arguments"),
        (changed('{"command": "cd /src && ls -l", "n": "5000", "e": "é"}').message(), "arguments"),
        (changed('{"command": "cd /src && ls -l", "n": 5000}').message(), "arguments"),
        (changed('{"command": "cd /src && ls -l').message(), "arguments"),
        (CALLS.message(content="Walking."), "answer"),
        (CALLS.message(reasoning="Look later."), "reasoning"),
        (CALLS.message(tool_calls=CALLS.calls[:1]), "missing"),
        (CALLS.message(tool_calls=CALLS.calls[::-1]), "several"),
        (CALLS.message(tool_calls=(replace(CALLS.calls[0], name="ruin"), CALLS.calls[1])), "name"),
    ],
)
def test_an_edit_is_shown_to_the_model(edit: Message, why: str, caplog: pytest.LogCaptureFixture):
    replay, talk = table(), ask()
    told(replay, talk, CALLS, "tool_calls")
    after = then(talk, edit, *RESULTS)
    with caplog.at_level(logging.INFO, "grebe.replay"):
        assert prompt(after, replay).ids == prompt(after).ids
        assert prompt(after, replay).n_replayed == 0
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("message 1 is encoded anew: ")
    assert why in caplog.messages[0]


def test_other_owners_get_nothing():
    replay, talk = table(), ask()
    told(replay, talk, CALLS, "tool_calls")
    after = then(talk, CALLS.message(), *RESULTS)
    assert prompt(after, replay, "you").n_replayed == 0
    assert replay.knows("me", "call01aB3")
    assert not replay.knows("you", "call_01_aB3")
    assert not replay.knows("me", "call_99")


def test_turns_without_calls_are_found_by_what_was_said():
    replay, talk = table(), ask()
    said = Turn("Hm.", "Done, as you see.")
    live = told(replay, talk, said)
    assert (
        prompt(then(talk, said.message(), Message("user", "More")), replay).ids[: len(live)] == live
    )
    bare = said.message(reasoning=None, content="Done, as you see.\n")
    assert prompt(then(talk, bare, Message("user", "More")), replay).ids[: len(live)] == live
    elsewhere = Conversation((Message("user", "Stop."),), TOOLS)
    assert prompt(then(elsewhere, said.message(), Message("user", "x")), replay).n_replayed == 0


def test_a_session_grows_by_what_is_new():
    replay, talk = table(), ask()
    for i in range(4):
        calls = tuple(replace(c, id=f"call_{i}_{j}") for j, c in enumerate(CALLS.calls))
        live = told(replay, talk, replace(CALLS, calls=calls), "tool_calls")
        results = [Message("tool", f"r{i}", tool_call_id=c.id) for c in calls]
        talk = then(talk, rewritten(replace(CALLS, calls=calls)), *reversed(results))
        assert prompt(talk, replay).ids[: len(live)] == live
        said = Turn(f"Thought {i}.", f"Step {i} is done.")
        live = told(replay, talk, said)
        talk = then(talk, said.message(), Message("user", "Next."))
        assert prompt(talk, replay).ids[: len(live)] == live
    assert prompt(talk, replay).n_replayed == 8


def test_twins_are_told_apart_by_their_reasoning():
    replay, talk = table(), ask()
    one, two = Turn("By one way.", "42"), Turn("By another way.", "42")
    lives = [told(replay, talk, one), told(replay, talk, two)]
    for turn, live in zip((one, two), lives, strict=True):
        again = prompt(then(talk, turn.message(), Message("user", "?")), replay)
        assert again.ids[: len(live)] == live
    latest = prompt(then(talk, two.message(reasoning=None), Message("user", "?")), replay)
    assert latest.ids[: len(lives[1])] == lives[1]


def test_dropped_reasoning_leaves_the_sampled_answer():
    replay, talk = table(), ask(tools=())
    said = Turn("Hm.", "Done, as you see.")
    told(replay, talk, said)
    again = prompt(then(talk, said.message(), Message("user", "More")), replay)
    text = TOKENIZER.decode(again.ids)
    assert "Hm." not in text
    answer = [MARKERS.assistant, MARKERS.think_end, *spelled(said.content), MARKERS.eos]
    assert any(again.ids[i : i + len(answer)] == answer for i in range(len(again.ids)))


def test_turns_change_between_thinking_and_not():
    replay, plain = table(), ask(thinking=False)
    said = Turn(None, "Done, as you see.")
    told(replay, plain, said)
    thinks = replace(then(plain, said.message(), Message("user", "More")), thinking=True)
    again = prompt(thinks, replay)
    assert again.n_replayed == 1
    assert TOKENIZER.decode(again.ids) == render(thinks).text
    replay, talk = table(), ask()
    told(replay, talk, replace(said, reasoning="Hm."))
    plain = replace(then(talk, said.message(), Message("user", "More")), thinking=False)
    assert prompt(plain, replay).n_replayed == 1
    assert TOKENIZER.decode(prompt(plain, replay).ids) == render(plain).text


@pytest.mark.parametrize("reason", ["length", "context", "cancelled"])
def test_turns_that_were_cut(reason: Any):
    replay, talk = table(), ask()
    said = Turn("Hm.", "It is ab")
    live = told(replay, talk, said, reason)
    again = prompt(then(talk, said.message(), Message("user", "Go on")), replay)
    assert again.ids[: len(live) + 1] == [*live, MARKERS.eos]
    # In the reasoning.
    before = prompt(talk, replay)
    sampled = spelled("I thin")
    assert replay.record("me", talk, before, sampled, Turn("I thin"), reason)
    again = prompt(then(talk, Turn("I thin").message(), Message("user", "Go on")), replay)
    live = [*before.ids, *sampled, MARKERS.think_end, MARKERS.eos]
    assert again.ids[: len(live)] == live


def test_stray_markers_in_a_turn_that_was_cut_are_replayed():
    replay, talk = table(), ask(thinking=False)
    before = prompt(talk)
    sampled = [*spelled("It"), MARKERS.think, *spelled("is"), MARKERS.think_end, *spelled(" ab")]
    said = Turn(None, "It<think>is ab")
    assert replay.record("me", talk, before, sampled, said, "length")
    again = prompt(then(talk, said.message(), Message("user", "Go on")), replay)
    live = [*before.ids, *sampled, MARKERS.eos]
    assert again.ids[: len(live)] == live
    # A block that was opened is more than the owner received.
    sampled += TOKENIZER.encode("\n\n<｜DSML｜tool_calls>", allow_special=True)
    assert not replay.record("me", talk, before, sampled, said, "length")


def test_a_stop_string_is_cut_off_between_tokens():
    replay, talk = table(), ask()
    before = prompt(talk)
    sampled = [*spelled("Hm."), MARKERS.think_end, *spelled("One.END")]
    assert replay.record("me", talk, before, sampled, Turn("Hm.", "One."), "stop_string")
    again = prompt(then(talk, Turn("Hm.", "One.").message(), Message("user", "x")), replay)
    live = [*before.ids, *sampled[:-3], MARKERS.eos]
    assert again.ids[: len(live)] == live
    assert len(TOKENIZER.encode(" the")) == 1
    sampled = [*spelled("Hm."), MARKERS.think_end, *TOKENIZER.encode(" the")]
    assert not replay.record("me", talk, before, sampled, Turn("Hm.", " t"), "stop_string")


def test_a_call_that_was_cut_is_not_remembered():
    replay, talk = table(), ask()
    cut = replace(CALLS, calls=(), partial_call="x")
    assert not replay.record("me", talk, prompt(talk), output(CALLS), cut, "length")
    assert not replay.record("me", talk, prompt(talk), output(CALLS, end=False), CALLS, "length")


def test_prefixes_and_opened_blocks_are_part_of_the_turn():
    replay, talk = table(), ask(Message("assistant", "There", prefix=True), thinking=False)
    before = prompt(talk)
    sampled = [*spelled(" are 212."), MARKERS.eos]
    assert replay.record("me", talk, before, sampled, Turn(None, " are 212."), "stop")
    back = ask(Message("assistant", "There are 212."), Message("user", "x"), thinking=False)
    live = before.ids + sampled
    assert prompt(back, replay).ids[: len(live)] == live

    talk = ask(thinking=False, forced="any")
    before = prompt(talk)
    one = Turn(None, "", CALLS.calls[:1])
    opener = TOKENIZER.encode("\n\n<｜DSML｜tool_calls>\n", allow_special=True)
    sampled = output(one, thinking=False)[len(opener) :]
    assert replay.record("me", talk, before, sampled, one, "tool_calls")
    live = before.ids + sampled
    back = replace(then(talk, one.message(), RESULTS[0]), forced=None)
    assert prompt(back, replay).ids[: len(live)] == live


def test_a_restart_keeps_everything(tmp_path: Path):
    replay, talk = table(tmp_path), ask()
    live = told(replay, talk, CALLS, "tool_calls")
    after = then(talk, CALLS.message(), *RESULTS)
    said = Turn("Hm.", "Done.")
    further = told(replay, after, said)
    # As after a kill: nothing is closed. The lock is the process's.
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in tmp_path.glob("*.log"):
        (copy / file.name).write_bytes(file.read_bytes())
        assert file.stat().st_mode & 0o777 == 0o600
    replay.close()
    for directory in (copy, tmp_path):
        restarted = table(directory)
        assert prompt(after, restarted).ids[: len(live)] == live
        done = then(after, said.message(), Message("user", "x"))
        assert prompt(done, restarted).ids[: len(further)] == further
        assert restarted.knows("me", "call_02_cD4")
        restarted.close()


def test_the_budget_holds():
    replay = table(budget_bytes=20_000)
    for i in range(200):
        talk = ask(Message("user", f"question {i}"))
        told(replay, talk, Turn("Hm.", f"Answer {i}"))
        assert replay.stats()["bytes"] <= 20_000
    assert 10 < replay.stats()["records"] < 40
    last = then(ask(Message("user", "question 199")), Turn("Hm.", "Answer 199").message())
    assert prompt(then(last, Message("user", "x")), replay).n_replayed == 1
    first = then(ask(Message("user", "question 0")), Turn("Hm.", "Answer 0").message())
    assert prompt(then(first, Message("user", "x")), replay).n_replayed == 0
    assert not table(budget_bytes=100).record(
        "me", ask(), prompt(ask()), output(CALLS), CALLS, "tool_calls"
    )


@pytest.mark.parametrize(
    ("sampled", "returned", "same"),
    [
        ('{"a": 1.0}', '{"a":1}', True),
        ('{"a": 1e5}', '{"a":100000}', True),
        ('{"a": 12345678901234567890}', '{"a":12345678901234567891}', False),
        ('{"a": 9007199254740993}', '{"a":9007199254740992.0}', False),
        ('{"a": true}', '{"a":1}', False),
        ('{"a": 0}', '{"a":false}', False),
        ('{"a": null}', "{}", False),
        ('{"a": 1, "b": 2}', '{"b":2,"a":1}', True),
        ('{"a": [1, 2]}', '{"a":[2,1]}', False),
        ('{"a": "x \\ny\\t\\r\\nz  "}', '{"a":"x\\ny\\r\\nz"}', True),
        ('{"a": "x\\n"}', '{"a":"x"}', False),
        ('{"a": " x"}', '{"a":"x"}', False),
        ('{"c": "cd \'/a b\' && make"}', '{"c":"make"}', True),
        ('{"c": "cd /a\\\\ b && make"}', '{"c":"make"}', True),
        ('{"c": "make"}', '{"c":"cd /a && make"}', False),
        ('{"c": "cd /a && cd /b && make"}', '{"c":"make"}', False),
        ('{"c": "cd /a; rm x && make"}', '{"c":"make"}', False),
        ('{"c": "cd $(reboot) && make"}', '{"c":"make"}', False),
        ('{"c": "cd `reboot` && make"}', '{"c":"make"}', False),
        ('{"c": "echo; cd /a && make"}', '{"c":"make"}', False),
        ("{}", "", False),
        ('{"a":' + "[" * 5000 + "]" * 5000 + "}", '{"a" :' + "[" * 5000 + "]" * 5000 + "}", False),
    ],
)
def test_equivalence_of_arguments(sampled: str, returned: str, same: bool):
    assert same_arguments(sampled, returned) is same


@pytest.mark.parametrize(
    ("sampled", "returned", "same"),
    [
        ('{"s": "x"}', '{"all":false,"s":"x"}', True),
        ('{"s": "x"}', '{"all":true,"s":"x"}', False),
        ('{"s": "x"}', '{"all":0,"s":"x"}', False),
        ('{"s": "x", "all": true}', '{"all":false,"s":"x"}', False),
        ('{"s": "x", "all": false}', '{"s":"x"}', False),
        ('{"s": "x"}', '{"other":null,"s":"x"}', False),
        ('{"s": "x"}', '{"unknown":1,"s":"x"}', False),
        ('{"edits": [{"old": "a"}]}', '{"edits":[{"old":"a","n":1}]}', True),
        ('{"edits": [{"old": "a"}]}', '{"edits":[{"old":"a","n":2}]}', False),
        ('{"odd": {"a": 1}}', '{"odd":{"a":1,"b":2}}', False),
    ],
)
def test_what_a_schema_has_a_default_for_may_be_added(sampled: str, returned: str, same: bool):
    edit = {"properties": {"old": {"type": "string"}, "n": {"default": 1}}}
    schema = {
        "properties": {
            "s": {"type": "string"},
            "all": {"type": "boolean", "default": False},
            "other": {"type": "string"},
            "edits": {"type": "array", "items": edit},
            "odd": {"properties": [1]},
        }
    }
    assert same_arguments(sampled, returned, schema) is same
    if same:
        assert not same_arguments(sampled, returned)


def test_a_call_with_a_default_added_comes_back_exactly():
    parameters = {"type": "object", "properties": {"all": {"default": False}}}
    tools = (Tool({"name": "run", "description": "", "parameters": parameters}),)
    replay, talk = table(), ask(tools=tools)
    live = told(replay, talk, CALLS, "tool_calls")
    back = changed(CALLS.calls[0].arguments[:-1] + ', "all": false}')
    assert prompt(then(talk, back.message(), *RESULTS), replay).ids[: len(live)] == live
    back = changed(CALLS.calls[0].arguments[:-1] + ', "all": true}')
    assert prompt(then(talk, back.message(), *RESULTS), replay).n_replayed == 0


def test_reasoning_of_an_attempt_that_broke_off_before_the_right_one():
    replay, talk = table(), ask()
    live = told(replay, talk, CALLS, "tool_calls")
    back = CALLS.message(reasoning=f"Look fi{CALLS.reasoning}")
    assert prompt(then(talk, back, *RESULTS), replay).ids[: len(live)] == live
    back = CALLS.message(reasoning=f"{CALLS.reasoning} No.")
    assert prompt(then(talk, back, *RESULTS), replay).n_replayed == 0
