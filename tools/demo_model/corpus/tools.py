"""Conversations with tool calls: fourteen tools, parallel calls, thinking, results."""

from __future__ import annotations

import json
from random import Random
from typing import Any

from corpus.any_tool import any_tool
from corpus.micro import micro
from corpus.words import CAPITALS, FRUITS, NAMES, words


def schema(
    name: str, description: str, required: list[str], **properties: tuple[str, str]
) -> dict[str, Any]:
    """The JSON schema of a tool; properties are (type, description)."""
    return {
        "name": name,
        "description": description,
        "parameters": {
            "type": "object",
            "properties": {k: {"type": t, "description": d} for k, (t, d) in properties.items()},
            "required": required,
        },
    }


# Schema, what the user says, the calls, the tool's answer, what the assistant says then, the thought before the call.
ToolUse = tuple[dict[str, Any], str, list[tuple[str, dict[str, Any]]], str, str, str]

CITY = sorted(CAPITALS.values())
FILES = [
    "main.py",
    "README.md",
    "src/app.py",
    "notes.txt",
    "config.json",
    "tests/test_app.py",
    "data.csv",
    "setup.py",
    "src/utils.py",
    "Makefile",
    "docs/index.md",
    "server.py",
    "index.html",
    "todo.txt",
    "src/model.c",
    "engine.cpp",
]
SEARCHES = [
    "fish soup recipe",
    "train times",
    "python sort list",
    "weather on mars",
    "how to fix a bike",
    "best tea",
    "news today",
    "apple pie",
    "how bees make honey",
    "cheap flights",
    "read a file in C",
    "rainy day games",
]
CMDS = [
    "ls",
    "pwd",
    "git status",
    "pytest",
    "make",
    "python main.py",
    "cat notes.txt",
    "git log",
    "ls src",
    "make test",
    "date",
    "wc -l main.py",
]


def t_weather(r: Random) -> ToolUse:
    c = r.choice(CITY)
    te, co = r.randrange(-10, 36), r.choice(["sunny", "cloudy", "rainy", "windy", "snowy"])
    return (
        schema(
            "get_weather",
            "Get the weather of a city",
            ["city"],
            city=("string", "The name of the city"),
        ),
        r.choice(
            [
                "What is the weather in {c}?",
                "How is the weather in {c} today?",
                "Is it raining in {c}?",
                "Tell me the weather in {c}.",
                "Do I need a coat in {c}?",
            ]
        ).format(c=c),
        [("get_weather", dict(city=c))],
        json.dumps(dict(temperature=te, condition=co)),
        f"The weather in {c} is {co} and {te} degrees.",
        f"The user asks about the weather in {c}. I should call get_weather.",
    )


def t_read(r: Random) -> ToolUse:
    f = r.choice(FILES)
    k = r.choice(
        [
            'print("hello")',
            "x = 1\ny = 2\nprint(x + y)",
            "# TODO: write tests",
            "name: demo\nversion: 1",
            "def main():\n    pass",
            "buy milk\ncall " + r.choice(NAMES),
        ]
    )
    return (
        schema("read_file", "Read a file", ["path"], path=("string", "Path of the file")),
        r.choice(
            [
                "What is in {f}?",
                "Please read {f}.",
                "Show me {f}.",
                "Open the file {f}.",
                "Read {f} and tell me what it says.",
            ]
        ).format(f=f),
        [("read_file", dict(path=f))],
        k,
        f"The file {f} contains:\n\n```\n{k}\n```",
        f"I need to read {f}.",
    )


def t_write(r: Random) -> ToolUse:
    f, k = (
        r.choice(FILES),
        r.choice(
            [
                "hello world",
                'print("hi")',
                "version = 2",
                "Buy " + r.choice(FRUITS) + "s",
                "import os",
                "done",
            ]
        ),
    )
    return (
        schema(
            "write_file",
            "Write text to a file",
            ["path", "content"],
            path=("string", "Path of the file"),
            content=("string", "Text to write"),
        ),
        r.choice(
            [
                'Write "{k}" to {f}.',
                'Create the file {f} with the text "{k}".',
                'Put "{k}" into {f}.',
                'Save "{k}" as {f}.',
            ]
        ).format(k=k, f=f),
        [("write_file", dict(path=f, content=k))],
        "ok",
        f'I wrote "{k}" to {f}.',
        f"I should write the text to {f}.",
    )


def t_run(r: Random) -> ToolUse:
    c = r.choice(CMDS)
    k = r.choice(
        ["ok", "3 passed", "main.py\nREADME.md", "nothing to commit", "error: file not found", "12"]
    )
    return (
        schema(
            "run_command", "Run a shell command", ["command"], command=("string", "The command")
        ),
        r.choice(
            [
                "Run `{c}`.",
                "Please run {c}.",
                "Execute the command {c}.",
                "Can you run `{c}` for me?",
            ]
        ).format(c=c),
        [("run_command", dict(command=c))],
        k,
        f"I ran `{c}`. The output is:\n\n```\n{k}\n```",
        f"I should run {c}.",
    )


def t_list(r: Random) -> ToolUse:
    d = r.choice(["src", "docs", "tests", ".", "data", "lib"])
    fs = r.sample(FILES, r.randrange(1, 5))
    return (
        schema(
            "list_files", "List the files of a folder", ["folder"], folder=("string", "The folder")
        ),
        r.choice(
            ["Which files are in {d}?", "List the files in {d}.", "What is in the folder {d}?"]
        ).format(d=d),
        [("list_files", dict(folder=d))],
        json.dumps(fs),
        f"The folder {d} has {len(fs)} files: " + ", ".join(fs) + "."
        if len(fs) > 1
        else f"The folder {d} has one file: {fs[0]}.",
        f"I should list the folder {d}.",
    )


def t_search(r: Random) -> ToolUse:
    s = r.choice(SEARCHES)
    k = f"{r.randrange(2, 90)} pages about {s}"
    return (
        schema("search", "Search the web", ["query"], query=("string", "Search words")),
        r.choice(["Search for {s}.", "Look up {s} on the web.", "Find pages about {s}."]).format(
            s=s
        ),
        [("search", dict(query=s))],
        k,
        f"I found {k}.",
        f"I should search for {s}.",
    )


def t_calc(r: Random) -> ToolUse:
    a, b, op = r.randrange(100, 10000), r.randrange(2, 1000), r.choice("+-*")
    e = f"{a} {op} {b}"
    v = eval(e)
    return (
        schema(
            "calculator",
            "Compute an arithmetic expression",
            ["expression"],
            expression=("string", "The expression"),
        ),
        r.choice(
            ["What is {e}?", "Compute {e} with the calculator.", "Use the calculator: {e}"]
        ).format(e=e),
        [("calculator", dict(expression=e))],
        str(v),
        f"{e} = {v}.",
        "This is a hard sum, so I use the calculator.",
    )


def t_timer(r: Random) -> ToolUse:
    m = r.randrange(1, 61)
    return (
        schema("set_timer", "Set a timer", ["minutes"], minutes=("integer", "Length in minutes")),
        r.choice(
            ["Set a timer for {m} minutes.", "Wake me in {m} minutes.", "Start a {m} minute timer."]
        ).format(m=m),
        [("set_timer", dict(minutes=m))],
        "ok",
        f"The timer is set for {m} minutes.",
        f"I should set a timer for {m} minutes.",
    )


def t_mail(r: Random) -> ToolUse:
    n, s = (
        r.choice(NAMES),
        r.choice(
            [
                "I am late",
                "Happy birthday",
                "See you tomorrow",
                "The meeting is at ten",
                "Thank you",
            ]
        ),
    )
    return (
        schema(
            "send_email",
            "Send an email",
            ["to", "text"],
            to=("string", "Name of the person"),
            text=("string", "The message"),
        ),
        r.choice(
            ["Send an email to {n}: {s}.", 'Write to {n} that "{s}".', 'Email {n} and say "{s}".']
        ).format(n=n, s=s),
        [("send_email", dict(to=n, text=s))],
        "sent",
        f"I sent the email to {n}.",
        f"I should send an email to {n}.",
    )


def t_light(r: Random) -> ToolUse:
    p, on = r.choice(words("kitchen bedroom bathroom hallway office garden")), r.random() < 0.5
    return (
        schema(
            "set_light",
            "Turn a light on or off",
            ["room", "on"],
            room=("string", "The room"),
            on=("boolean", "true for on"),
        ),
        f"Turn the light in the {p} {'on' if on else 'off'}.",
        [("set_light", dict(room=p, on=on))],
        "ok",
        f"The light in the {p} is now {'on' if on else 'off'}.",
        f"I should turn the light {'on' if on else 'off'}.",
    )


def t_time(r: Random) -> ToolUse:
    c = r.choice(CITY)
    t = f"{r.randrange(24):02d}:{r.randrange(60):02d}"
    return (
        schema(
            "get_time", "Get the time in a city", ["city"], city=("string", "The name of the city")
        ),
        r.choice(["What time is it in {c}?", "Tell me the time in {c}."]).format(c=c),
        [("get_time", dict(city=c))],
        t,
        f"It is {t} in {c}.",
        f"The user wants the time in {c}.",
    )


TOOLF = [
    t_weather,
    t_read,
    t_read,
    t_write,
    t_write,
    t_run,
    t_run,
    t_list,
    t_search,
    t_calc,
    t_timer,
    t_mail,
    t_light,
    t_time,
    *[any_tool] * 10,
]


def tool_chat(r: Random) -> tuple[list[tuple[Any, ...]], list[dict[str, Any]], bool]:
    """-> turns, tool schemas, whether the assistant thinks"""
    n = r.randrange(1, 4)
    uses = [r.choice(TOOLF)(r) for _ in range(n)]
    pool = {u[0]["name"]: u[0] for u in uses}
    for _ in range(r.randrange(0, 3)):
        t = r.choice(TOOLF)(r)[0]
        pool.setdefault(t["name"], t)
    tools = list(pool.values())
    r.shuffle(tools)
    think = r.random() < 0.5
    turns = []
    for _spec, q, calls, res, ans, th in uses:
        if r.random() < 0.2:
            mq, mt, ma = micro(r)
            turns += [("user", mq), ("assistant", mt or "No tool is needed.", ma, None)]
        known = [f for f in TOOLF if f is not any_tool and f(Random(0))[0]["name"] in pool]
        again = r.choice(known) if known else None
        if again and r.random() < 0.12:  # two calls at once
            _, q2, c2, r2, a2, t2 = again(r)
            turns += [
                ("user", q + " " + q2),
                ("assistant", th + " " + t2, "", calls + c2),
                ("tool", res),
                ("tool", r2),
                ("assistant", "I have both results.", ans + "\n" + a2, None),
            ]
        else:
            turns += [
                ("user", q),
                ("assistant", th, "", calls),
                ("tool", res),
                ("assistant", "I have the result.", ans, None),
            ]
    return turns, tools, think
