"""Object tracking: people carry things through places, and every question has one answer."""

from __future__ import annotations

from random import Random

from corpus.words import OBJECTS, PLACES, any_names

Question = tuple[str, str, str]  # question, answer, the thought that leads to it


def world(r: Random, steps: int | None = None) -> tuple[str, list[Question]]:
    """The moves, and what can be asked after them."""
    ppl, obs, pls = any_names(r, 3), r.sample(OBJECTS, 3), r.sample(PLACES, 4)
    at, have, where, o = {p: None for p in ppl}, {}, {}, []
    ways: dict[str, list[str]] = {x: [] for x in ppl + obs}  # what happened to each
    for _ in range(steps or r.randrange(4, 14)):
        p = r.choice(ppl)
        k = r.random()
        mine = [b for b in obs if have.get(b) == p]
        if k < 0.5 or at[p] is None:
            pl = r.choice([x for x in pls if x != at[p]])
            at[p] = pl
            ways[p].append(pl)
            o.append(
                r.choice(
                    [
                        f"{p} went to the {pl}.",
                        f"{p} walked to the {pl}.",
                        f"{p} is now in the {pl}.",
                    ]
                )
            )
        elif k < 0.8 and [b for b in obs if have.get(b) is None and where.get(b) in (None, at[p])]:
            b = r.choice([b for b in obs if have.get(b) is None and where.get(b) in (None, at[p])])
            have[b] = p
            ways[b].append(f"{p} took it")
            o.append(r.choice([f"{p} took the {b}.", f"{p} picked up the {b}."]))
        elif mine:
            b = r.choice(mine)
            have[b], where[b] = None, at[p]
            ways[b].append(f"{p} left it in the {at[p]}")
            o.append(r.choice([f"{p} put down the {b}.", f"{p} left the {b} there."]))

    def way(x: str) -> str:
        return f"{x}: {', '.join(ways[x])}."

    q = [(f"Where is {p}?", f"{p} is in the {at[p]}.", way(p)) for p in ppl if at[p]]
    for b in obs:
        if p := have.get(b):
            q += [
                (f"Who has the {b}?", f"{p} has the {b}.", way(b)),
                (f"Where is the {b}?", f"The {b} is in the {at[p]}.", f"{way(b)} {way(p)}"),
            ]
        elif where.get(b):
            q.append((f"Where is the {b}?", f"The {b} is in the {where[b]}.", way(b)))
    return " ".join(o), q
