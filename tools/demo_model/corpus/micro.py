"""Questions with one short answer: arithmetic, spelling, facts, lists, small talk.

Every generator returns (question, thought, answer); an empty thought means that none is needed.
"""

from __future__ import annotations

import json
from random import Random

from corpus.talk import m_ask_name, m_joke, m_poem, m_unknown
from corpus.words import (
    ALLW,
    CAPITALS,
    CATS,
    DAYS,
    DEFS,
    HASCOL,
    ME,
    MONTHS,
    NAMES,
    OBJECTS,
    OPP,
    PAST,
    PLURAL,
    SIDES,
    SIZE,
    SOUND,
    YOUNG,
    phrases,
    with_article,
    words_num,
)

Question = tuple[str, str, str]


def m_add(r: Random) -> Question:
    a, b = r.randrange(1, r.choice([10, 100, 1000])), r.randrange(1, r.choice([10, 100, 1000]))
    q = r.choice(
        [
            "What is {a} + {b}?",
            "Add {a} and {b}.",
            "{a} + {b} = ?",
            "How much is {a} plus {b}?",
            "Please compute {a} + {b}.",
            "Calculate {a}+{b}",
        ]
    ).format(a=a, b=b)
    _parts, x, y, _p, c, col = [], a, b, 1, 0, []
    while x or y or c:
        d = x % 10 + y % 10 + c
        col.append(f"{x % 10} + {y % 10}" + (f" + {c}" if c else "") + f" = {d}")
        c, x, y = d // 10, x // 10, y // 10
    return (
        q,
        "Add the digits from the right: " + ", ".join(col) + f". So the sum is {a + b}.",
        f"{a} + {b} = {a + b}.",
    )


def m_sub(r: Random) -> Question:
    a, b = sorted([r.randrange(1, 200), r.randrange(1, 200)], reverse=True)
    return (
        r.choice(
            ["What is {a} - {b}?", "Subtract {b} from {a}.", "How much is {a} minus {b}?"]
        ).format(a=a, b=b),
        f"{a} - {b // 10 * 10} = {a - b // 10 * 10}, then - {b % 10} = {a - b}.",
        f"{a} - {b} = {a - b}.",
    )


def m_mul(r: Random) -> Question:
    a, b = r.randrange(2, 13), r.randrange(2, 13)
    return (
        r.choice(["What is {a} times {b}?", "What is {a} * {b}?", "Multiply {a} by {b}."]).format(
            a=a, b=b
        ),
        f"{a} times {b} is {a * b}.",
        f"{a} * {b} = {a * b}.",
    )


def m_cmp(r: Random) -> Question:
    a, b = r.sample(range(1, 1000), 2)
    return (
        f"Which number is larger, {a} or {b}?",
        f"Compare {a} and {b}.",
        f"{max(a, b)} is larger than {min(a, b)}.",
    )


def m_even(r: Random) -> Question:
    a = r.randrange(1, 500)
    e = "even" if a % 2 == 0 else "odd"
    return (
        f"Is {a} even or odd?",
        f"The last digit of {a} is {a % 10}, so it is {e}.",
        f"{a} is {e}.",
    )


def m_seq(r: Random) -> Question:
    a, d = r.randrange(0, 50), r.randrange(1, 11)
    s = [a + i * d for i in range(5)]
    return (
        "What comes next? " + ", ".join(map(str, s[:4])),
        f"Each number is {d} more than the one before. {s[3]} + {d} = {s[4]}.",
        f"{s[4]}",
    )


def m_spell(r: Random) -> Question:
    w = r.choice(ALLW)
    return (
        r.choice([f'Spell the word "{w}".', f"How do you spell {w}?"]),
        f"The letters of {w} are " + ", ".join(w) + ".",
        "-".join(w.upper()),
    )


def m_count(r: Random) -> Question:
    w = r.choice(ALLW)
    return (
        r.choice([f'How many letters are in the word "{w}"?', f"Count the letters in {w}."]),
        " ".join(f"{i + 1}:{c}" for i, c in enumerate(w)),
        f'The word "{w}" has {len(w)} letters.',
    )


def m_rev(r: Random) -> Question:
    w = r.choice([x for x in ALLW if len(x) < 7])
    return (
        f'Reverse the word "{w}".',
        ", ".join(w) + " reversed is " + ", ".join(w[::-1]) + ".",
        w[::-1],
    )


def m_first(r: Random) -> Question:
    w, f = r.choice(ALLW), r.random() < 0.5
    return (
        f'What is the {"first" if f else "last"} letter of "{w}"?',
        "-".join(w),
        f'The {"first" if f else "last"} letter of "{w}" is {w[0 if f else -1].upper()}.',
    )


def m_upper(r: Random) -> Question:
    w = " ".join(r.sample(ALLW, r.randrange(1, 4)))
    return f'Write "{w}" in capital letters.', "", w.upper()


def m_fact(r: Random) -> Question:
    k = r.randrange(9)
    if k == 0:
        c = r.choice(sorted(CAPITALS))
        if r.random() < 0.25:
            return (
                f"{CAPITALS[c]} is the capital of which country?",
                f"{CAPITALS[c]} is in {c}.",
                f"{CAPITALS[c]} is the capital of {c}.",
            )
        return (
            r.choice(
                [
                    "What is the capital of {c}?",
                    "Tell me the capital of {c}.",
                    "Which city is the capital of {c}?",
                ]
            ).format(c=c),
            f"The capital of {c} is {CAPITALS[c]}.",
            f"The capital of {c} is {CAPITALS[c]}.",
        )
    if k == 1:
        w = r.choice(sorted(OPP))
        return (
            r.choice([f"What is the opposite of {w}?", f'Give me the opposite of "{w}".']),
            "",
            f"The opposite of {w} is {OPP[w]}.",
        )
    if k == 2:
        w = r.choice(sorted(PLURAL))
        return f"What is the plural of {w}?", "", f"The plural of {w} is {PLURAL[w]}."
    if k == 3:
        w = r.choice(sorted(PAST))
        return f"What is the past tense of {w}?", "", f"The past tense of {w} is {PAST[w]}."
    if k == 4:
        w = r.choice(sorted(SOUND))
        return (
            f"What sound does {with_article(w)} make?",
            "",
            f'{with_article(w).capitalize()} says "{SOUND[w]}".',
        )
    if k == 5:
        w = r.choice(sorted(YOUNG))
        return (
            f"What is a young {w} called?",
            "",
            f"A young {w} is called {with_article(YOUNG[w])}.",
        )
    if k == 6:
        w = r.choice(sorted(HASCOL))
        return f"What color is {w}?", "", f"{w[0].upper() + w[1:]} is {HASCOL[w]}."
    if k == 7:
        w = r.choice(sorted(SIDES))
        return (
            f"How many sides does {with_article(w)} have?",
            "",
            f"{with_article(w).capitalize()} has {SIDES[w]} sides.",
        )
    w = r.choice(sorted(DEFS))
    return (
        r.choice(
            ["What is {w}?", "Explain what {w} is.", "Tell me what {w} is.", "Can you explain {w}?"]
        ).format(
            w=w
            if w in ("rain", "snow", "bread", "ice", "wind", "winter", "summer")
            else ("the " + w if w in ("moon", "sun") else with_article(w))
        ),
        "",
        DEFS[w],
    )


def m_cal(r: Random) -> Question:
    S, n = (DAYS, "day") if r.random() < 0.5 else (MONTHS, "month")
    i, a = r.randrange(len(S)), r.random() < 0.5
    return (
        f"Which {n} comes {'after' if a else 'before'} {S[i]}?",
        "",
        f"{S[(i + (1 if a else -1)) % len(S)]} comes {'after' if a else 'before'} {S[i]}.",
    )


def m_sort(r: Random) -> Question:
    if r.random() < 0.5:
        s = r.sample(range(1, 100), r.randrange(3, 7))
        return (
            "Sort these numbers: " + ", ".join(map(str, s)),
            "The smallest is " + str(min(s)) + " and the largest is " + str(max(s)) + ".",
            ", ".join(map(str, sorted(s))),
        )
    s = r.sample(ALLW, r.randrange(3, 6))
    return (
        "Sort these words by the alphabet: " + ", ".join(s),
        "First letters: " + ", ".join(sorted(x[0] for x in s)) + ".",
        ", ".join(sorted(s)),
    )


def m_cat(r: Random) -> Question:
    c = r.choice(sorted(CATS))
    w = r.choice(CATS[c])
    oth = r.sample([x for k in sorted(CATS) if k != c for x in CATS[k] if x not in CATS[c]], 3)
    s = [*oth, w]
    r.shuffle(s)
    return f"Which of these is {with_article(c)}: " + ", ".join(s) + "?", "", f"The {c} is {w}."


def m_list(r: Random) -> Question:
    c, n = r.choice(sorted(CATS)), r.randrange(2, 6)
    start = r.randrange(len(CATS[c]))  # in a fixed order: greedy decoding then repeats nothing
    s = [CATS[c][(start + i) % len(CATS[c])] for i in range(n)]
    return (
        r.choice(
            [
                f"Name {words_num(n)} {c}s.",
                f"Give me {words_num(n)} {c}s.",
                f"Give me a list of {n} {c}s.",
                f"List {n} {c}s.",
            ]
        ),
        "",
        "\n".join(f"{i + 1}. {x}" for i, x in enumerate(s)),
    )


def m_size(r: Random) -> Question:
    a, b = r.sample(range(len(SIZE)), 2)
    return (
        f"Is {with_article(SIZE[a])} bigger than {with_article(SIZE[b])}?",
        "",
        f"{'Yes' if a > b else 'No'}, {with_article(SIZE[a])} is {'bigger' if a > b else 'smaller'} than {with_article(SIZE[b])}.",
    )


def m_json(r: Random) -> Question:
    n, a, c = r.choice(NAMES), r.randrange(3, 90), r.choice(sorted(CAPITALS.values()))
    return (
        r.choice(
            [
                "Write JSON with the name {n}, the age {a} and the city {c}.",
                "Make a JSON object: name is {n}, age is {a}, city is {c}.",
                "{n} is {a} years old and lives in {c}. Give this as JSON.",
            ]
        ).format(n=n, a=a, c=c),
        "",
        json.dumps(dict(name=n, age=a, city=c)),
    )


def m_word(r: Random) -> Question:
    n, o, k = r.choice(NAMES), r.choice(OBJECTS), r.randrange(2, 20)
    g, gone = r.randrange(1, 20), r.randrange(1, k)
    if r.random() < 0.5:
        return (
            f"{n} has {k} {o}s and gets {g} more. How many {o}s does {n} have now?",
            f"{k} + {g} = {k + g}.",
            f"{n} has {k + g} {o}s now.",
        )
    return (
        f"{n} has {k} {o}s and gives away {gone}. How many {o}s are left?",
        f"{k} - {gone} = {k - gone}.",
        f"{n} has {k - gone} {o}s left.",
    )


def m_small(r: Random) -> Question:
    q, a = r.choice(
        [
            (
                phrases(
                    "Hello!|Hi!|Hey there|Good morning!|Hello, how are you?|Hi, how are you today?"
                ),
                phrases(
                    "Hello! How can I help you?|Hi! What can I do for you?|Hello! I am well, thank you. How can I help?"
                ),
            ),
            (
                phrases(
                    "Who are you?|What are you?|What is your name?|Tell me about yourself.|What can you do?|Are you a robot?"
                ),
                [ME],
            ),
            (
                phrases("Thank you!|Thanks!|Thank you very much.|Great, thanks."),
                phrases("You are welcome!|You are welcome. Is there anything else?|Happy to help!"),
            ),
            (
                phrases("Goodbye!|Bye!|See you later.|Good night!"),
                phrases("Goodbye! Have a nice day.|Bye! See you soon.|Good night! Sleep well."),
            ),
            (
                phrases("How old are you?|When were you made?"),
                ["I am a computer program, so I do not have an age."],
            ),
            (
                phrases("Do you like music?|Do you like books?|Do you have friends?"),
                ["I am only a small program, but I like to talk with you."],
            ),
        ]
    )
    return r.choice(q), "", r.choice(a)


MICRO = [
    (m_add, 4),
    (m_sub, 2),
    (m_mul, 2),
    (m_cmp, 1),
    (m_even, 1),
    (m_seq, 1),
    (m_spell, 1),
    (m_count, 1),
    (m_rev, 1),
    (m_first, 1),
    (m_upper, 1),
    (m_fact, 7),
    (m_cal, 1),
    (m_sort, 1),
    (m_cat, 1),
    (m_list, 2),
    (m_size, 1),
    (m_json, 1),
    (m_word, 2),
    (m_small, 3),
    (m_unknown, 2),
    (m_ask_name, 1),
    (m_joke, 1),
    (m_poem, 2),
]
MW = [w for _, w in MICRO]


def micro(r: Random) -> Question:
    """A question of any kind, frequent kinds more often."""
    return r.choices(MICRO, MW)[0][0](r)


def micro_with_one_answer(r: Random) -> Question:
    """As micro, without the kinds that have many right answers."""
    while True:
        kind = r.choices(MICRO, MW)[0][0]
        if kind not in (m_small, m_list, m_ask_name, m_joke, m_poem):
            return kind(r)
