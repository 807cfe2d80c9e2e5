"""Names and checksums: BLAKE3 against its authors' package, CRC-32C against published values and its own definition."""

from __future__ import annotations

import random

import blake3
import numpy as np
import pytest
from grebe import _engine
from grebe.errors import InvalidArgumentError
from hypothesis import given
from hypothesis import strategies as st

# Around a block of 64 bytes, a chunk of 1024, and trees of every shape up to 7 chunks; then larger ones.
LENGTHS = [
    *range(0, 3),
    *(64 * k + d for k in (1, 2, 15) for d in (-1, 0, 1)),
    *(1024 * k + d for k in range(1, 9) for d in (-1, 0, 1)),
    *(16384, 31744, 65536 + 1, 99_999, 102_400, 102_401),
]


def data(n: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(n)


@pytest.mark.parametrize("n", LENGTHS)
def test_blake3_equals_its_authors(n: int):
    x = data(n, n)
    assert _engine.blake3(x) == blake3.blake3(x).digest()


def test_blake3_of_nothing_and_of_three_letters():
    assert _engine.blake3(b"").hex().startswith("af1349b9f5f9a1a6a0404dea36dcc949")
    assert _engine.blake3(b"abc").hex().startswith("6437b3ac38465133ffb63b75273a8db5")


@given(st.integers(0, 20_000), st.lists(st.integers(0, 20_000), max_size=12))
def test_blake3_does_not_depend_on_cuts(n: int, cuts: list[int]):
    x = data(n, 1)
    cuts = sorted(c for c in cuts if c <= n)
    assert _engine.blake3(x, cuts) == blake3.blake3(x).digest()


@pytest.mark.parametrize("step", [1, 63, 64, 65, 1000, 1024, 1025])
def test_blake3_of_equal_pieces(step: int):
    x = data(10_000)
    assert _engine.blake3(x, list(range(0, len(x), step))) == blake3.blake3(x).digest()


def test_blake3_cuts_must_ascend():
    with pytest.raises(InvalidArgumentError, match="cuts"):
        _engine.blake3(b"abc", [2, 1])
    with pytest.raises(InvalidArgumentError, match="cuts"):
        _engine.blake3(b"abc", [4])


def crc_by_bit(x: bytes, crc: int = 0) -> int:
    """The definition: one bit after another."""
    crc ^= 0xFFFFFFFF
    for byte in x:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


@pytest.mark.parametrize("portable", [False, True])
@pytest.mark.parametrize(
    ("x", "value"),
    [
        (b"", 0),
        (b"123456789", 0xE3069283),
        (bytes(32), 0x8A9136AA),  # [RFC 3720 B.4] from here on
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(range(31, -1, -1)), 0x113FDB5C),
    ],
)
def test_crc32c_of_published_examples(x: bytes, value: int, portable: bool):
    assert _engine.crc32c(x, portable=portable) == value


@pytest.mark.parametrize("n", [*range(0, 40), 191, 192, 193, 300, 6143, 6145])
def test_crc32c_is_its_definition(n: int):
    x = data(n, n)
    assert _engine.crc32c(x) == crc_by_bit(x)
    assert _engine.crc32c(x, 0xDEADBEEF) == crc_by_bit(x, 0xDEADBEEF)


def test_crc32c_at_every_length_and_alignment():
    x = np.frombuffer(data(700), np.uint8)
    for n in range(301):
        for begin in range(0, 301, 1 if n % 50 in (0, 1, 49) else 13):
            piece = x[begin : begin + n]
            assert _engine.crc32c(piece, n) == _engine.crc32c(piece, n, portable=True), (n, begin)


# Three streams of at most 2 KB: one piece up to 6 KB, the shortest piece 192 bytes.
@pytest.mark.parametrize("n", [4700, 6143, 6144, 6145, 6335, 6336, 6337, 12_288 + 200, 1 << 20])
def test_crc32c_of_long_data(n: int):
    x = np.frombuffer(data(n + 8, 2), np.uint8)
    for begin in range(9):
        piece = x[begin : begin + n]
        assert _engine.crc32c(piece) == _engine.crc32c(piece, portable=True), begin


@given(st.integers(0, 20_000), st.lists(st.integers(0, 20_000), max_size=5))
def test_crc32c_continues(n: int, cuts: list[int]):
    x = data(n, 3)
    crc, begin = 0, 0
    for cut in [*sorted(c for c in cuts if c <= n), n]:
        crc = _engine.crc32c(x[begin:cut], crc)
        begin = cut
    assert crc == _engine.crc32c(x, portable=True)


def test_crc32c_sees_each_flipped_bit():
    """A page of rows: no single bit of it may change without the checksum."""
    x = bytearray(data(4700, 4))
    good = _engine.crc32c(bytes(x))
    for bit in range(0, 8 * len(x), 37):
        x[bit // 8] ^= 1 << bit % 8
        assert _engine.crc32c(bytes(x)) != good
        x[bit // 8] ^= 1 << bit % 8
