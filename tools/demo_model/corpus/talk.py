"""Small talk: jokes, verses, names, and questions that a model of this size cannot answer."""

from __future__ import annotations

from random import Random

from corpus.words import ALLW, ANIMALS, COLORS, CREATURES, FOODS, PLACES, any_name, phrases

Question = tuple[str, str, str]

UNKNOWN = [
    "Translate {w} into {language}.",
    "How do you say {w} in {language}?",
    "Why is the {w} {color}?",
    "Why do {animal}s like {food}?",
    "Who invented the {w}?",
    "When was the first {w} made?",
    "How much does a {w} cost?",
    "What do you think about {w}?",
    "Explain how a {w} works.",
    "Write an essay about {w}.",
    "Who is {n}?",
    "Where does {n} live?",
    "What is the best {w} in the world?",
    "Can you help me with my {w}?",
    "What will happen tomorrow in the {place}?",
]
LANGUAGES = ["French", "German", "Spanish", "Italian", "Latin", "Chinese", "Turkish", "Dutch"]

JOKES = [
    "Why did the clock go to school? It wanted to be on time.",
    "What did the big cup say to the small cup? You are too young to hold tea.",
    "Why was the book so warm? It had a jacket.",
    "Why did the {animal} sit on the letter? It wanted to be delivered.",
    "What is the favorite day of a {animal}? The day with {food}.",
    "Why did the lamp laugh? It had a bright idea.",
    "Why did the {animal} take a ladder to the kitchen? It heard that the {food} was on the top.",
    "What do you call a {animal} in the rain? A wet {animal}.",
]

# Couplets about a thing; a verse takes one of each.
COUPLETS = (
    [
        "The {w} is old, the {w} is dear,\nit waits for me when night is near.",
        "I saw the {w} at break of day,\nit made me stop along the way.",
        "Oh {w}, oh {w}, so {color} and bright,\nyou shine for me in the morning light.",
        "There is a {w} beside the sea,\nit sings a quiet song to me.",
    ],
    [
        "The wind may blow, the rain may fall,\nthe {w} does not mind at all.",
        "And when the winter brings the snow,\nthe {w} still has a gentle glow.",
        "The children come, the children play,\nand no one wants to go away.",
        'A little {animal} came to see,\nand said, "This {w} belongs to me."',
    ],
    [
        "So sleep, my {w}, the day is done,\ntomorrow brings another sun.",
        "And if you ask me what is true:\nthe {w} was made for me and you.",
        "I close my eyes, I hear it still,\nthe {w} beyond the quiet hill.",
    ],
)


def _fill(r: Random, text: str, w: str) -> str:
    return text.format(
        w=w,
        n=any_name(r),
        animal=r.choice(ANIMALS),
        food=r.choice(FOODS),
        color=r.choice(COLORS),
        place=r.choice(PLACES),
        language=r.choice(LANGUAGES),
    )


def m_unknown(r: Random) -> Question:
    return (
        _fill(r, r.choice(UNKNOWN), r.choice(ALLW)),
        "I do not know this.",
        "I do not know that. I am a very small model. I can tell stories, do small sums, make lists and call tools.",
    )


def m_ask_name(r: Random) -> Question:
    kind, name = r.choice(ANIMALS + CREATURES), any_name(r)
    q = r.choice(phrases("What is a good name for a|Find a name for my|Give me a name for a"))
    return (
        f"{q} {kind}{'?' if q[0] == 'W' else '.'}",
        "Any short name will do.",
        f"{name} is a good name.",
    )


def m_joke(r: Random) -> Question:
    q = r.choice(
        phrases("Tell me a joke.|Do you know a joke?|Make me laugh.|Another joke, please.")
    )
    return q, "A short joke will do.", _fill(r, r.choice(JOKES), "")


def m_poem(r: Random) -> Question:
    w = r.choice(ALLW + PLACES)
    ask = r.choice(
        phrases(
            "Write a poem about the|Write a short poem about the|Tell me a poem about the|A poem about the|Please write a poem about a"
        )
    )
    lines = [_fill(r, r.choice(part), w) for part in COUPLETS]
    return f"{ask} {w}.", f"A short poem about the {w}.", "\n".join(lines)
