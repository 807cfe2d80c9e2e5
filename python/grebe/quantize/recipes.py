"""Which type each tensor gets: named recipes and rules of one's own.

A rule is a pattern and a type; the last one that matches decides. Patterns are those of file names
(``*``, ``?``, ``[0-9]``) and are held against the GGUF name with and without ``blk.N.`` and
``.weight``.

Example:
    >>> rules = (*recipe("q2", 43), parse_rule("blk.4?.attn_q_b=q6_k"))
    >>> [choose(rules, f"blk.{i}.attn_q_b.weight") for i in (39, 40)]
    ['Q8_0', 'Q6_K']
"""

from __future__ import annotations

import re
from fnmatch import fnmatchcase

from ..errors import InvalidArgumentError

__all__ = ["RECIPES", "TYPES", "choose", "fitting", "parse_rule", "recipe"]

# type -> (number in the file, weights and bytes of a block)
TYPES: dict[str, tuple[int, int, int]] = {
    "F32": (0, 1, 4), "F16": (1, 1, 2), "BF16": (30, 1, 2), "Q8_0": (8, 32, 34),
    "Q2_K": (10, 256, 84), "Q4_K": (12, 256, 144), "Q5_K": (13, 256, 176),
    "Q6_K": (14, 256, 210), "IQ2_XXS": (16, 256, 66),
    "IQ3_XXS": (18, 256, 98), "IQ2_S": (22, 256, 82), "I8": (24, 1, 1), "I32": (26, 1, 4),
    "MXFP4": (39, 32, 17),
}  # fmt: skip
KEEP = "KEEP"  # FP8, FP4, BF16 and F32 as they are in the checkpoint
CHOICES = (*(t for t in TYPES if t not in ("I8", "I32")), KEEP)

Rule = tuple[str, str]

# The types of the published files, routed experts apart: small matrices that steer (streams,
# compressors, indexer, router) stay F16.
DENSE: tuple[Rule, ...] = (
    ("*", "Q8_0"),
    ("token_embd", "F16"),
    ("*hc_*fn", "F16"),
    ("*_compressor_*", "F16"),
    ("indexer.*", "F16"),
    ("ffn_gate_inp", "F16"),
)
Q2_EXPERTS: tuple[Rule, ...] = (
    ("ffn_gate_exps", "IQ2_XXS"),
    ("ffn_up_exps", "IQ2_XXS"),
    ("ffn_down_exps", "Q2_K"),
)
# Half of the bytes that a token reads are attention projections.
FAST_DENSE: tuple[Rule, ...] = (
    ("attn_q_a", "Q6_K"),
    ("attn_kv", "Q6_K"),
    ("attn_q_b", "Q4_K"),
    ("attn_output_[ab]", "Q4_K"),
    ("ffn_*_shexp", "Q6_K"),
    ("output", "Q6_K"),
)
RECIPES: dict[str, str] = {
    "q2": "experts IQ2_XXS (gate, up) and Q2_K (down), the rest Q8_0 and F16",
    "q2-q4": "as q2, experts of the last six layers Q4_K",
    "q2-fast": "as q2, attention projections Q4_K and Q6_K",
    "q4": "experts Q4_K",
    "q8": "all matrices Q8_0",
    "mxfp4": "experts MXFP4, exact for FP4 checkpoints; the rest Q8_0 and F16",
    "native": "nothing is rounded: FP8, FP4, BF16 and F32 as in the checkpoint",
    "bf16": "all matrices BF16",
    "f32": "everything F32",
}
LAST_LAYERS = 6  # of q2-q4


def recipe(name: str, n_layers: int) -> tuple[Rule, ...]:
    """The rules of a recipe for a model of n_layers."""
    everywhere = {"q8": "Q8_0", "native": KEEP, "bf16": "BF16", "f32": "F32"}
    if name in everywhere:
        return (("*", everywhere[name]),)
    if name not in RECIPES:
        known = ", ".join(RECIPES)
        raise InvalidArgumentError(f"recipe {name!r} is unknown; there are {known}")
    experts = {"q4": "Q4_K", "mxfp4": "MXFP4"}
    if name in experts:
        return (*DENSE, ("ffn_*_exps", experts[name]))
    rules = (*DENSE, *Q2_EXPERTS)
    if name == "q2-q4":
        last = range(max(0, n_layers - LAST_LAYERS), n_layers)
        rules += tuple((f"blk.{i}.ffn_*_exps", "Q4_K") for i in last)
    if name == "q2-fast":
        rules += FAST_DENSE
    return rules


def parse_rule(text: str) -> Rule:
    """``PATTERN=TYPE`` of the command line."""
    pattern, sign, dtype = text.rpartition("=")
    if not sign or not pattern or dtype.upper() not in CHOICES:
        known = ", ".join(c.lower() for c in CHOICES)
        raise InvalidArgumentError(f"{text!r} is not PATTERN=TYPE with a type of {known}")
    return pattern, dtype.upper()


def choose(rules: tuple[Rule, ...], name: str) -> str:
    """The type of the last rule that matches a GGUF name."""
    short = name.removesuffix(".weight")
    in_layer = re.sub(r"^(blk|mtp)\.\d+\.", "", short)
    found = "F16"
    for pattern, dtype in rules:
        if any(fnmatchcase(form, pattern) for form in (name, short, in_layer)):
            found = dtype
    return found


def fitting(dtype: str, n_in: int) -> str:
    """The type itself, or the next larger one whose blocks divide rows of n_in.

    Example:
        >>> fitting("Q2_K", 512), fitting("Q2_K", 96), fitting("Q2_K", 40)
        ('Q2_K', 'Q8_0', 'F16')
    """
    if dtype == KEEP or n_in % TYPES[dtype][1] == 0:
        return dtype
    return "Q8_0" if n_in % 32 == 0 else "F16"
