"""Object tracking: people carry things through places, and every question has one answer."""

from __future__ import annotations

from random import Random

from corpus.words import OBJECTS, PLACES, any_names


def world(r: Random, steps: int | None = None) -> tuple[str, list[tuple[str, str]]]:
    """people carry objects through places; every question has one answer."""
    ppl, obs, pls = any_names(r, 3), r.sample(OBJECTS, 3), r.sample(PLACES, 4)
    at, have, where, o = {p: None for p in ppl}, {}, {}, []
    for _ in range(steps or r.randrange(4, 14)):
        p = r.choice(ppl)
        k = r.random()
        mine = [b for b in obs if have.get(b) == p]
        if k < 0.5 or at[p] is None:
            pl = r.choice([x for x in pls if x != at[p]])
            at[p] = pl
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
            o.append(r.choice([f"{p} took the {b}.", f"{p} picked up the {b}."]))
        elif mine:
            b = r.choice(mine)
            have[b], where[b] = None, at[p]
            o.append(r.choice([f"{p} put down the {b}.", f"{p} left the {b} there."]))
    q = [(f"Where is {p}?", f"{p} is in the {at[p]}.") for p in ppl if at[p]]
    for b in obs:
        if have.get(b):
            q += [
                (f"Who has the {b}?", f"{have[b]} has the {b}."),
                (f"Where is the {b}?", f"The {b} is in the {at[have[b]]}."),
            ]
        elif where.get(b):
            q.append((f"Where is the {b}?", f"The {b} is in the {where[b]}."))
    return " ".join(o), q
