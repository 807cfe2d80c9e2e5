"""``grebe chat`` as a person has it before them."""

from __future__ import annotations

import re
import subprocess
import sys
import time

import pytest

from tests.helpers.terminal import Terminal

PROMPT = r"\n> $"
# Wild enough to write on for a second or more.
LONG = ("--temperature", "2", "--seed", "1", "-n", "100000")


@pytest.fixture
def terminal():
    with Terminal("chat", "--think", "off", "--temperature", "0", "-n", "24") as running:
        running.wait(r"> $")
        yield running


def say(terminal: Terminal, line: str) -> str:
    """What is shown until the next prompt, without the line itself."""
    terminal.type(f"{line}\r")
    shown = terminal.wait(PROMPT)
    return shown.replace(line, "", 1).removesuffix("\n> ").strip()


def numbers(stats: str) -> list[int]:
    """Tokens: of the prompt, known of them, written."""
    return [int(n) for n in re.findall(r"(\d+) (?:tokens of|of them|written)", stats)]


def test_a_conversation(terminal):
    first = say(terminal, "Once upon a time")
    assert len(first) > 10
    assert numbers(say(terminal, "/stats"))[1:] == [0, 24]
    assert say(terminal, "/retry") == first
    assert say(terminal, "And then?")
    n_prompt, known, _ = numbers(say(terminal, "/stats"))
    assert 24 < known < n_prompt < known + 20
    say(terminal, "/undo")
    say(terminal, "/new")
    assert say(terminal, "/undo") == "nothing was asked yet"
    assert "/think LEVEL" in say(terminal, "/help")
    assert "/think LEVEL" in say(terminal, "/nonsense")
    assert say(terminal, "") == ""
    terminal.type("/quit\r")
    assert terminal.end() == 0
    assert "Traceback" not in terminal.text


def test_lines_that_go_on(terminal):
    terminal.type("Once upon\\\r")
    terminal.wait(r"  $")
    assert say(terminal, "a time")
    terminal.type("\x04")
    assert terminal.end() == 0


def test_ctrl_c_stops_an_answer_and_the_conversation_goes_on():
    with Terminal("chat", "--think", "off", *LONG) as terminal:
        terminal.wait(r"> $")
        terminal.type("Tell me a story\r")
        terminal.wait(r"story\s+\S[^\n]{40}")
        terminal.type("\x03")
        assert "[stopped]" in terminal.wait(PROMPT)
        n = numbers(say(terminal, "/stats"))[2]
        assert n > 5
        terminal.type("Another\r")
        terminal.wait(r"Another\s+\S[^\n]{40}")
        terminal.type("\x03")
        terminal.wait(PROMPT)
        n_prompt, known = numbers(say(terminal, "/stats"))[:2]
        assert n < known < n_prompt < known + 20  # what was stopped is part of it
        time.sleep(0.3)  # it listens a moment after its prompt
        terminal.type("\x03")
        assert "Ctrl-D leaves" in terminal.wait(r"leaves\s+> $")
        terminal.type("/quit\r")
        assert terminal.end() == 0
        assert "Traceback" not in terminal.text


def test_thinking_is_dim():
    with Terminal(
        "chat", "--think", "high", "--temperature", "1", "--seed", "2", "-n", "40"
    ) as terminal:
        terminal.wait(r"> $")
        say(terminal, "Hello")
        assert b"\x1b[2m" in terminal._raw
        assert say(terminal, "/think off") == ""
        before = terminal._raw
        say(terminal, "Hello")
        assert b"\x1b[2m" not in terminal._raw[len(before) :]
        terminal.type("\x04")
        assert terminal.end() == 0


def test_a_conversation_that_is_too_long():
    with Terminal("chat", "--think", "off", "--n-ctx", "64", "-n", "8") as terminal:
        terminal.wait(r"> $")
        assert "/new begins again" in say(terminal, "word " * 80)
        assert say(terminal, "Hello")
        terminal.type("/exit\r")
        assert terminal.end() == 0


def test_questions_from_a_pipe():
    done = subprocess.run(
        [sys.executable, "-m", "grebe", "chat", "--think", "off", "--temperature", "0", "-n", "8"],
        input="Once upon a time\nOnce upon a time\n/new\nOnce upon a time\n",
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    answers = [block for block in done.stdout.split("\n\n") if block.strip()]
    assert len(answers) == 3
    assert answers[0] == answers[2]
    assert "\x1b" not in done.stdout
