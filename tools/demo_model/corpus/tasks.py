"""One training document of generated text, and the graded questions."""

from __future__ import annotations

from random import Random
from typing import Any, NamedTuple

from corpus.chat import ASSIST, BOS, EOS, ETH, TH, dsml, render
from corpus.code import code
from corpus.introduction import introduction
from corpus.micro import micro, micro_with_one_answer
from corpus.recall import Filler, copytask, recall
from corpus.stories import story, tale
from corpus.tools import tool_chat
from corpus.world import world

Turn = tuple[Any, ...]  # see corpus.chat.render

SYSTEMS = [
    "You are a helpful assistant.",
    "You are a friendly assistant. You answer in simple English.",
    "You are a tiny demo model.",
    "You are a coding agent.",
    "Answer briefly.",
]


def _chat(r: Random, fill: Filler) -> list[Turn]:
    if r.random() < 0.12:
        return introduction(r)
    turns: list[Turn] = []
    for _ in range(r.choice([1, 1, 2, 3, 4, 6, 8])):
        j = r.random()
        if j < 0.78:
            q, thought, a = micro(r)
        elif j < 0.88:
            prompts, a, _ = story(r)
            q, thought = r.choice(prompts), "I will write a short story."
        elif j < 0.96:
            q, thought, a, _ = code(r)
        else:
            q, thought, a = copytask(r, fill)
        turns += [("user", q), ("assistant", thought or "This is easy.", a, None)]
    return turns


def _story_chat(r: Random, *, long: bool) -> list[Turn]:
    """The user asks for a story, or gives one; then come questions about it."""
    prompts, text, qa = tale(r) if long else story(r)
    questions = r.sample(qa, r.randrange(1, min(len(qa), 4) + 1))
    if r.random() < 0.65:
        thought = f"I will write a {'long' if long else 'short'} story."
        turns: list[Turn] = [("user", r.choice(prompts)), ("assistant", thought, text, None)]
        if r.random() < 0.4:
            questions = []
    else:
        q, a = questions.pop()
        turns = [("user", text + "\n\n" + q), ("assistant", "Look at the story.", a, None)]
    for q, a in questions:
        turns += [("user", q), ("assistant", "Look at the story.", a, None)]
    return turns


class Chat(NamedTuple):
    """A conversation before it is rendered; the fields are the arguments of `render`."""

    turns: list[Turn]
    system: str
    tools: list[dict[str, Any]] | None
    thinking: bool
    effort: str


def draw(r: Random, fill: Filler) -> tuple[str, Chat | str]:
    """One document: its kind, and a chat or a bare text."""
    k = r.random()
    system = r.choice(SYSTEMS) if r.random() < 0.35 else ""
    think = r.random() < 0.35
    effort = r.choice(["low", "low", "high", "high", "high", "max"])

    def chat(turns: list[Turn]) -> Chat:
        return Chat(turns, system, None, think, effort)

    if k < 0.33:
        return "chat", chat(_chat(r, fill))
    if k < 0.60:
        long = k >= 0.46
        if r.random() < 0.2:  # the bare story: what follows "Once upon a time" without a chat
            return "story", (tale(r) if long else story(r))[1]
        return "story", chat(_story_chat(r, long=long))
    if k < 0.69:
        text, qa = world(r)
        if not qa:
            return draw(r, fill)
        turns: list[Turn] = []
        for q, a, thought in r.sample(qa, min(len(qa), r.randrange(1, 4))):
            turns += [
                ("user", q if turns else f"{text} {q}"),
                ("assistant", thought, a, None),
            ]
        return "world", chat(turns)
    if k < 0.80:
        turns, tools, think = tool_chat(r)
        return "tool", Chat(turns, system, tools, think, effort)
    if k < 0.86:
        q, thought, a, source = code(r)
        if r.random() < 0.3:
            return "code", source + "\n"
        return "code", chat([("user", q), ("assistant", thought, a, None)])
    if k < 0.92:
        n_chars = int(
            600 * 2 ** (r.random() * 5)
        )  # 600 .. 19200 characters, about 150 .. 5000 tokens
        if r.random() < 0.12:
            n_chars = r.randrange(19000, 30000)
        return "recall", chat(recall(r, fill, n_chars)[0])
    q, thought, a = copytask(r, fill)
    return "copy", chat([("user", q), ("assistant", thought or "Copy it.", a, None)])


def task_doc(r: Random, fill: Filler) -> tuple[str, str]:
    """One document: its kind and its text."""
    kind, drawn = draw(r, fill)
    return kind, BOS + drawn + EOS if isinstance(drawn, str) else render(*drawn)


def graded_questions(r: Random, fill: Filler) -> list[dict[str, Any]]:
    """Prompts with the one right answer, from a seed that training never sees."""

    def ask(turns: list[Turn]) -> str:
        return render(turns) + ASSIST + ETH

    graded: list[dict[str, Any]] = []
    for _ in range(400):
        q, _thought, a = micro_with_one_answer(r)
        graded.append(dict(kind="micro", prompt=ask([("user", q)]), answer=a))
    for _ in range(200):
        text, qa = world(r, 8)
        if qa:
            q, a, _thought = r.choice(qa)
            graded.append(dict(kind="world", prompt=ask([("user", text + " " + q)]), answer=a))
    for kind, make in (("story_qa", story), ("tale_qa", tale)):
        for _ in range(200):
            _prompts, text, qa = make(r)
            q, a = r.choice(qa)
            graded.append(dict(kind=kind, prompt=ask([("user", text + "\n\n" + q)]), answer=a))
    for n_chars in (1000, 2000, 4000, 8000, 16000, 30000):
        for _ in range(50):
            turns, qa = recall(r, fill, n_chars, 3)
            graded.append(
                dict(kind="recall", chars=n_chars, prompt=ask(turns[:1]), answer=qa[0][1])
            )
    for _ in range(200):
        turns, tools, think = tool_chat(r)
        n = next(i for i, t in enumerate(turns) if t[0] == "assistant" and t[3])
        _role, thought, _text, calls = turns[n]
        prompt = (
            render(turns[:n], "", tools, think) + ASSIST + (TH + thought + ETH if think else ETH)
        )
        graded.append(dict(kind="tool", prompt=prompt, answer="\n\n" + dsml(calls)))
    for _ in range(100):
        q, _thought, a = copytask(r, fill)
        graded.append(dict(kind="copy", prompt=ask([("user", q)]), answer=a))
    return graded
