"""Long texts with hidden facts, and texts to copy: what only works with a memory of the whole context."""

from __future__ import annotations

from random import Random
from typing import Any

from corpus.stories import story
from corpus.words import ALLW, CATS, COLORS, PLACES, any_name


class Filler:
    def __init__(self, paras: list[str]) -> None:
        self.p = paras

    def text(self, r: Random, nchar: int) -> list[str]:
        o, n = [], 0
        if self.p and r.random() < 0.8:
            i = r.randrange(len(self.p))
            while n < nchar:
                t = self.p[i % len(self.p)]
                o.append(t)
                n += len(t)
                i += 1
        else:
            while n < nchar:
                t = story(r)[1]
                o.append(t)
                n += len(t)
        return o


def recall(
    r: Random, fill: Filler, nchar: int, nfact: int | None = None
) -> tuple[list[tuple[Any, ...]], list[tuple[str, str]]]:
    """chat turns with facts hidden in a long text; -> turns, list of (question, answer)."""
    paras = fill.text(r, nchar)
    facts, seen = [], set()
    for _ in range(nfact or r.randrange(1, 9)):
        k = r.randrange(4)
        if k == 0:
            a, b = r.choice(COLORS), r.choice(PLACES)
            key, v = f"the code of the {a} {b}", str(r.randrange(1000, 10000))
        elif k == 1:
            key, v = f"the secret word of {any_name(r)}", r.choice(ALLW)
        elif k == 2:
            key, v = (
                f"the favorite {r.choice(['fruit', 'animal', 'color'])} of {any_name(r)}",
                "",
            )
            v = r.choice(CATS[key.split()[2]])
        else:
            key, v = (
                f"the phone number of {any_name(r)}",
                f"{r.randrange(100, 1000)}-{r.randrange(100, 1000)}",
            )
        if key in seen:
            continue
        seen.add(key)
        facts.append((key, v))
        paras.insert(
            r.randrange(len(paras) + 1),
            r.choice(["Note: {k} is {v}.", "Remember this: {k} is {v}.", "{K} is {v}."]).format(
                k=key, K=key[0].upper() + key[1:], v=v
            ),
        )
    qa = [(f"What is {k}?", f"{k[0].upper() + k[1:]} is {v}.") for k, v in facts]
    r.shuffle(qa)
    head = r.choice(
        [
            "Read this text:\n\n",
            "Here is a long text. Some facts are hidden in it.\n\n",
            "Text:\n\n",
            "",
        ]
    )
    turns = [
        ("user", head + "\n\n".join(paras) + "\n\n" + qa[0][0]),
        ("assistant", f"The text says: {qa[0][1]}", qa[0][1], None),
    ]
    for q, a in qa[1:]:
        turns += [("user", q), ("assistant", f"The text says: {a}", a, None)]
    return turns, qa


def copytask(r: Random, fill: Filler) -> tuple[str, str, str]:
    if r.random() < 0.5:
        t = " ".join(r.choice(ALLW) for _ in range(r.randrange(5, 90)))
    else:
        t = fill.text(r, 200)[0][: r.randrange(80, 900)].rsplit(" ", 1)[0]
    return (
        r.choice(
            [
                "Repeat this text exactly:\n\n",
                "Copy the following text:\n\n",
                "Say this again, word for word:\n\n",
            ]
        )
        + t,
        "",
        t,
    )
