"""The tokenizer on a small vocabulary: what each method promises, and what it refuses."""

from __future__ import annotations

import json
import random
import threading
from pathlib import Path
from typing import Any

import pytest
from grebe import _engine
from grebe.errors import FormatError, InvalidArgumentError, StorageError, UnsupportedModelError

Tokenizer = _engine.Tokenizer
MERGES = [("h", "e"), ("l", "l"), ("he", "ll"), ("hell", "o"), ("Ġ", "a"), ("a", "a"), ("ä", "¸")]
SPECIALS = {"<s>": 3, "</s>": 3, "<s><t>": 3, "<think>": 4, "[unused]": 5}
BOS, EOS, LONG, THINK, UNUSED = range(263, 268)


def byte_alphabet() -> list[str]:
    """GPT-2's printable character of each byte."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(0x100, 0x200))
    return [chr(b if b in printable else next(others)) for b in range(256)]


def arrays() -> tuple[list[str], list[int], list[tuple[str, str]]]:
    tokens = [*byte_alphabet(), *(a + b for a, b in MERGES), *SPECIALS]
    return tokens, [1] * (256 + len(MERGES)) + list(SPECIALS.values()), MERGES


@pytest.fixture(scope="module")
def tok() -> Any:
    return Tokenizer.from_spec(*arrays(), bos=BOS, eos=EOS)


def test_sizes(tok: Any) -> None:
    assert (tok.vocab_size, len(tok), tok.bos, tok.eos) == (268, 268, BOS, EOS)
    assert repr(tok) == "Tokenizer(vocab_size=268)"


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("", []),
        ("hello", [259]),
        ("hell", [258]),
        ("aaa", [261, 97]),
        ("b a", [98, 260]),
        ("中", [262, 0xAD]),
        (b"\xff\xfe", [0xFF, 0xFE]),
        (b"\xe4\xb8", [262]),
        ("<s>", [60, 115, 62]),
        ("[unused]", list(b"[unused]")),
    ],
)
def test_encode_content(tok: Any, text: str | bytes, ids: list[int]) -> None:
    assert tok.encode(text) == ids


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("<s>", [BOS]),
        ("hello<s>hello", [259, BOS, 259]),
        ("<s><t><s>", [LONG, BOS]),
        ("<<think><thin", [60, THINK, *b"<thin"]),
        ("[unused]", [UNUSED]),
        ("<s>" * 3, [BOS] * 3),
    ],
)
def test_encode_special(tok: Any, text: str, ids: list[int]) -> None:
    assert tok.encode(text, allow_special=True) == ids
    assert tok.decode(ids) == text


def test_decode_replaces_what_is_not_utf8(tok: Any) -> None:
    ids = [*b"a\xff\xe4\xb8", BOS]
    assert tok.decode_bytes(ids) == b"a\xff\xe4\xb8<s>"
    assert tok.decode(ids) == "a\ufffd\ufffd<s>"


def test_token_bytes_find_is_special(tok: Any) -> None:
    assert tok.token_bytes(260) == b" a"
    assert tok.token_bytes(THINK) == b"<think>"
    assert [tok.find(t) for t in (" a", "hello", b"\xff", "<think>", "Ġa", "")] == [
        260, 259, 255, THINK, None, None,
    ]  # fmt: skip
    assert [i for i in range(len(tok)) if tok.is_special(i)] == [BOS, EOS, LONG, THINK, UNUSED]


@pytest.mark.parametrize("bad", [-1, 268])
def test_ids_out_of_range(tok: Any, bad: int) -> None:
    for call in (tok.token_bytes, tok.is_special, tok.stream().push):
        with pytest.raises(InvalidArgumentError, match=rf"{bad}.*267"):
            call(bad)
    for call in (tok.decode, tok.decode_bytes):
        with pytest.raises(InvalidArgumentError, match=rf"{bad}.*267"):
            call([bad])


def test_text_of_another_type(tok: Any) -> None:
    for text in (None, 3, ["a"], memoryview(b"a")):
        with pytest.raises((InvalidArgumentError, TypeError)):
            tok.encode(text)


def test_surrogates(tok: Any) -> None:
    """JSON can put halves of a pair into a str; a request must not fail for it."""
    assert tok.encode("\ud83d\ude00") == list("😀".encode())
    assert tok.encode("a\ud83d") == [97, *"\ufffd".encode()]


def test_stream(tok: Any) -> None:
    stream = tok.stream()
    assert [stream.push(i) for i in [97, 262, 0xAD, 0xFF, 98, 262]] == [
        "a",
        "",
        "中",
        "\ufffd",
        "b",
        "",
    ]
    assert stream.finish() == "\ufffd"
    assert stream.finish() == ""
    assert stream.push(97) == "a"


def test_stream_equals_decode() -> None:
    tok = Tokenizer.from_spec(*arrays(), bos=BOS, eos=EOS)
    r = random.Random(1)
    starts = [
        0x61,
        0xC3,
        0xA9,
        0xE4,
        0xB8,
        0xAD,
        0xED,
        0xA0,
        0xF0,
        0x9F,
        0x98,
        0x80,
        0xF4,
        0x90,
        0xC0,
        0xE0,
    ]
    for _ in range(3000):
        ids = [
            r.choice(starts) if r.random() < 0.9 else r.randrange(268)
            for _ in range(r.randrange(12))
        ]
        stream = tok.stream()
        text = "".join(stream.push(i) for i in ids) + stream.finish()
        data = b"".join(tok.token_bytes(i) for i in ids)
        assert text == tok.decode(ids) == data.decode("utf-8", "replace")
        assert tok.decode_bytes(ids) == data


def test_round_trip_of_any_bytes(tok: Any) -> None:
    r = random.Random(2)
    for n in [1, 2, 50, 97, 1000]:
        for _ in range(50):
            data = r.randbytes(n)
            assert tok.decode_bytes(tok.encode(data)) == data
            assert tok.decode_bytes(tok.encode(data, allow_special=True)) == data


def test_long_pieces(tok: Any) -> None:
    """Both merge algorithms; time grows with the length of a piece, not with its square."""
    for n in (95, 96, 97, 98, 1_000_000):
        assert tok.encode("a" * n) == [261] * (n // 2) + [97] * (n % 2)
    assert tok.encode("hello" * 100_000) == [259] * 100_000
    assert tok.encode("<" * 300_000, allow_special=True) == [60] * 300_000


def test_threads(tok: Any) -> None:
    text = "hello a " * 20_000
    want = tok.encode(text)
    results: list[bool] = []
    threads = [
        threading.Thread(target=lambda: results.append(tok.encode(text) == want)) for _ in range(4)
    ]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert results == [True] * 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, y, m: y.pop(), "267 entries"),
        (lambda t, y, m: (t.clear(), y.clear()), "is empty"),
        (lambda t, y, m: y.__setitem__(0, 9), "expected 1 to 6"),
        (lambda t, y, m: m.append(("zz", "a")), "needs 'zz'"),
        (lambda t, y, m: m.append(("a", "b")), "needs 'ab'"),
        (lambda t, y, m: m.append(("<s>", "a")), "needs '<s>'"),
        (lambda t, y, m: m.append(("", "a")), "needs ''"),
    ],
)
def test_bad_arrays(change: Any, message: str) -> None:
    tokens, types, merges = arrays()
    merges = list(merges)
    change(tokens, types, merges)
    with pytest.raises(FormatError, match=message):
        Tokenizer.from_spec(tokens, types, merges, bos=BOS, eos=EOS)


def test_bad_bos() -> None:
    with pytest.raises(FormatError, match="eos id is 268"):
        Tokenizer.from_spec(*arrays(), bos=BOS, eos=268)


def test_vocabulary_without_a_byte() -> None:
    tokens, types, merges = arrays()
    tokens[ord("q")] = "qqq"
    tok = Tokenizer.from_spec(tokens, types, merges, bos=BOS, eos=EOS)
    assert tok.encode("hello") == [259]
    with pytest.raises(InvalidArgumentError, match="no token for byte 113"):
        tok.encode("aqa")


# --- tokenizer.json


def tokenizer_json() -> dict[str, Any]:
    from grebe import _tokenizer_json

    tokens, _, merges = arrays()
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    n = 256 + len(MERGES)
    split = {"type": "Split", "behavior": "Isolated", "invert": False}
    return {
        "normalizer": {"type": "Sequence", "normalizers": []},
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                *({**split, "pattern": {"Regex": regex}} for regex in _tokenizer_json.SPLITS),
                {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
            ],
        },
        "model": {
            "type": "BPE",
            "vocab": {t: i for i, t in enumerate(tokens[:n])},
            "merges": [f"{a} {b}" for a, b in merges],
        },
        "added_tokens": [
            {"id": n + i, "content": t, "special": kind == 3, **flags}
            for i, (t, kind) in enumerate(SPECIALS.items())
        ],
    }


def write(path: Path, data: Any) -> Path:
    path.write_text(json.dumps(data), encoding="utf-8")
    return path


def test_from_file(tmp_path: Path) -> None:
    data = tokenizer_json()
    tok = Tokenizer.from_file(write(tmp_path / "tokenizer.json", data))
    assert tok.encode("hello<s>[unused]", allow_special=True) == [259, BOS, UNUSED]
    assert tok.is_special(THINK)
    data["model"]["merges"] = [m.split() for m in data["model"]["merges"]]
    data["added_tokens"][-1]["id"] += 5  # a hole in the ids
    tok = Tokenizer.from_file(str(write(tmp_path / "newer.json", data)))
    assert (len(tok), tok.token_bytes(268), tok.find("[unused]")) == (273, b"", 272)


def test_from_file_refuses(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    with pytest.raises(StorageError):
        Tokenizer.from_file(path)
    for text in (b"", b"{", b"[]", b"{}", b"\xff", b'{"model": 3}', b"[" * 100_000):
        path.write_bytes(text)
        with pytest.raises((FormatError, UnsupportedModelError)):
            Tokenizer.from_file(path)

    def refused(error: type[Exception], message: str, change: Any) -> None:
        data = tokenizer_json()
        change(data)
        with pytest.raises(error, match=message):
            Tokenizer.from_file(write(path, data))

    def set_in(*keys: Any) -> Any:
        *way, last, value = keys

        def change(data: Any) -> None:
            for key in way:
                data = data[key]
            data[last] = value

        return change

    other = UnsupportedModelError
    steps = ("pre_tokenizer", "pretokenizers")
    refused(other, "Unigram", set_in("model", "type", "Unigram"))
    refused(other, "ignore_merges", set_in("model", "ignore_merges", True))
    refused(other, "pattern", set_in(*steps, 1, "pattern", {"Regex": r"\d"}))
    refused(other, "Removed", set_in(*steps, 0, "behavior", "Removed"))
    refused(other, "lstrip", set_in("added_tokens", 0, "lstrip", True))
    refused(other, "normalizer", set_in("normalizer", "normalizers", [{"type": "NFC"}]))
    refused(FormatError, "needs 'zz'", set_in("model", "merges", ["zz a"]))
    refused(FormatError, "ids for", set_in("added_tokens", 0, "id", 10**9))
    refused(FormatError, "tokenizer.json", set_in("added_tokens", 0, "id", -5))
    refused(FormatError, "tokenizer.json", set_in("model", "merges", ["a"]))
    refused(FormatError, "tokenizer.json", set_in("model", "vocab", {"a": "b"}))
