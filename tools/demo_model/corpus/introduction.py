"""The user says who they are and asks later what was said."""

from __future__ import annotations

from random import Random
from typing import Any

from corpus.micro import micro
from corpus.words import ANIMALS, COLORS, FOODS, any_name

Turn = tuple[Any, ...]  # see corpus.chat.render


def introduction(r: Random) -> list[Turn]:
    """The user says who they are, talks of something else, and asks what was said."""
    name, food, animal, color = any_name(r), r.choice(FOODS), r.choice(ANIMALS), r.choice(COLORS)
    pet = any_name(r)
    facts = [
        (
            [f"My name is {name}.", f"I am {name}.", f"Call me {name}."],
            ["What is my name?", "Who am I?", "Do you know my name?"],
            f"Your name is {name}.",
        ),
        (
            [f"I like {food}.", f"My favorite food is {food}."],
            ["What do I like to eat?", "What is my favorite food?"],
            f"You like {food}.",
        ),
        (
            [f"I have a {animal} called {pet}.", f"My {animal} is called {pet}."],
            [f"What is the name of my {animal}?", "What is my pet called?"],
            f"Your {animal} is called {pet}.",
        ),
        (
            [f"My favorite color is {color}.", f"I like {color} best."],
            ["What is my favorite color?", "Which color do I like?"],
            f"Your favorite color is {color}.",
        ),
    ]
    told = [facts[0]] * (r.random() < 0.7)
    told += r.sample(facts[1:], r.randrange(0 if told else 1, 3))
    said = " ".join(r.choice(f[0]) for f in told)
    look = "The user told me before."
    if r.random() < 0.3:
        _, questions, answer = r.choice(told)
        return [("user", f"{said} {r.choice(questions)}"), ("assistant", look, answer, None)]
    greeting = f"Nice to meet you, {name}!" if told[0] is facts[0] else "Thank you for telling me."
    turns: list[Turn] = [("user", said), ("assistant", "This is easy.", greeting, None)]
    for _ in range(r.randrange(3)):
        q, thought, a = micro(r)
        turns += [("user", q), ("assistant", thought or "This is easy.", a, None)]
    for _, questions, answer in r.sample(told, r.randrange(1, len(told) + 1)):
        turns += [("user", r.choice(questions)), ("assistant", look, answer, None)]
    return turns
