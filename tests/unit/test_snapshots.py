"""Sessions as files: the state comes back bit for bit, damage is an error, and a file is replaced whole or not at all."""

from __future__ import annotations

import errno
import itertools
import os
import struct
from pathlib import Path

import grebe
import numpy as np
import pytest

from tests.helpers import models
from tests.helpers import snapshot_file as file

POSITIONS = (0, 1, 3, 127, 128, 511, 512, 513, 1024, 1500)


def text(model: grebe.Model, n: int, seed: int = 0) -> list[int]:
    ids = np.random.default_rng(seed).integers(3, model.config.vocab_size - 200, n)
    return [int(i) for i in ids]


@pytest.fixture(scope="module", params=["tiny_gguf", "embedded"])
def model(request):
    return models.load(request.param)


@pytest.fixture(scope="module")
def tiny():
    return models.load("tiny_gguf")


@pytest.fixture(scope="module")
def saved(tiny) -> bytes:
    """A session of 600 tokens: a full block, a part of one, checkpoints, logits."""
    session = tiny.session()
    session.prefill(text(tiny, 600))
    return session.snapshot()


def same_state(a: grebe.Session, b: grebe.Session) -> None:
    assert (a.tokens, a.pos, a.n_ctx) == (b.tokens, b.pos, b.n_ctx)
    assert a.snapshot() == b.snapshot()


# ------------------------------------------------------------------ round trips


@pytest.mark.parametrize("pos", POSITIONS)
def test_a_file_goes_on_bit_for_bit(model, tmp_path, pos):
    ids = text(model, pos + 20)
    session = model.session(2048)
    if pos:
        session.prefill(ids[:pos])
    path = tmp_path / "s.grebe"
    session.save(path)
    assert path.read_bytes() == session.snapshot()
    again = model.restore(path)
    same_state(session, again)
    if pos:
        assert np.array_equal(again.logits, session.logits)
    assert np.array_equal(again.evaluate(ids[pos:]), session.evaluate(ids[pos:]))
    same_state(session, again)
    back = max(0, pos - 100)  # checkpoints came along
    assert again.rewind(back) <= 256
    session.rewind(back)
    assert again.tokens == session.tokens
    if back:
        assert np.array_equal(again.logits, session.logits)


@pytest.mark.parametrize("pos", [600, 1500])
def test_token_by_token_and_at_once_are_one_file(tiny, pos):
    """How the state came about is not in the bytes: only tokens are, and the checkpoints near their end."""
    ids = text(tiny, pos)
    a, b = tiny.session(), tiny.session()
    a.prefill(ids)
    b.prefill(ids[:-3])
    for token in ids[-3:]:
        b.decode(token)
    assert a.snapshot() == b.snapshot()


def test_a_session_without_logits(tiny):
    session = tiny.session()
    tiny.step([(session, text(tiny, 40))], logits="none")
    again = tiny.restore(session.snapshot())
    with pytest.raises(grebe.InvalidArgumentError, match="no logits"):
        _ = again.logits
    same_state(session, again)


def test_paths_of_every_kind(tiny, tmp_path, monkeypatch):
    session = tiny.session()
    session.prefill(text(tiny, 5))
    monkeypatch.chdir(tmp_path)
    session.save("here")
    session.save(str(tmp_path / "näme with spaces"))
    session.save(os.fsencode("bytes"))
    assert tiny.restore("here").pos == 5
    assert tiny.restore(tmp_path / "näme with spaces").pos == 5
    assert tiny.restore(Path("bytes")).pos == 5
    for bad in (None, 5, "", "a\0b"):
        with pytest.raises(grebe.InvalidArgumentError, match="path"):
            session.save(bad)


def test_the_mode_of_a_file_keeps_others_out(tiny, tmp_path):
    session = tiny.session()
    session.prefill(text(tiny, 5))
    session.save(tmp_path / "s")
    assert (tmp_path / "s").stat().st_mode & 0o777 == 0o600


def test_another_context(tiny, saved):
    assert tiny.restore(saved).n_ctx == tiny.config.max_context
    small = tiny.restore(saved, n_ctx=601)
    small.decode(5)
    with pytest.raises(grebe.ContextOverflowError):
        small.decode(5)
    with pytest.raises(grebe.InvalidArgumentError, match="600 tokens already"):
        tiny.restore(saved, n_ctx=599)


# ------------------------------------------------------------------ other models, other settings


def test_another_model_is_named_with_both_fingerprints(tiny, saved, tmp_path):
    other = models.load("embedded")
    (tmp_path / "s.grebe").write_bytes(saved)
    for snapshot in (saved, tmp_path / "s.grebe"):
        with pytest.raises(grebe.InvalidArgumentError) as caught:
            other.restore(snapshot)
        assert tiny.fingerprint in str(caught.value)
        assert other.fingerprint in str(caught.value)
    assert str(tmp_path / "s.grebe") in str(caught.value)


@pytest.mark.parametrize("options", [("official", "exact"), ("off", "fast"), ("off", "exact")])
def test_other_settings_are_refused(saved, options):
    with pytest.raises(grebe.InvalidArgumentError, match="kernels") as caught:
        models.load("tiny_gguf", *options).restore(saved)
    assert ", ".join(options) in str(caught.value)


def with_header(snapshot: bytes, offset: int, value: bytes) -> bytes:
    """The snapshot with another header, its checksum and that of the whole made right again."""
    data = bytearray(snapshot)
    data[offset : offset + len(value)] = value
    data[252:256] = struct.pack("<I", file.crc(bytes(data[:252])))
    data[-4:] = struct.pack("<I", file.crc(bytes(data[:-4])))
    return bytes(data)


@pytest.mark.parametrize(
    ("offset", "value"),
    [
        (8, struct.pack("<Q", 2**40)),
        (204, struct.pack("<I", 64)),
        (208, struct.pack("<I", 8)),
        (212, struct.pack("<I", 256)),
        (216, struct.pack("<q", 0)),
        (216, struct.pack("<q", 2**62)),
        (216, struct.pack("<q", 599)),
        (224, struct.pack("<q", -1)),
        (224, struct.pack("<q", 2**62)),
        (224, struct.pack("<q", 601)),
        (232, struct.pack("<qq", 512, 384)),
        (232, struct.pack("<qq", 0, 384)),
        (232, struct.pack("<qq", 384, 1024)),
        (232, struct.pack("<qq", -128, 384)),
        (232, struct.pack("<qq", 384, 513)),
        (248, struct.pack("<I", 1)),
    ],
)
def test_a_header_that_lies_with_a_good_checksum(tiny, saved, offset, value):
    with pytest.raises(grebe.FormatError):
        tiny.restore(with_header(saved, offset, value))


def test_a_sound_header_can_be_made(tiny, saved):
    """What the test above does is undone by nothing but the values."""
    assert with_header(saved, 216, saved[216:224]) == saved
    assert tiny.restore(with_header(saved, 216, struct.pack("<q", 1000))).n_ctx == 1000


def foreign(config: grebe.ModelConfig, snapshot: bytes) -> bytes:
    """As another backend would have made it."""
    data = bytearray(snapshot)
    data[file.NUMERICS] = b"metal fast official 1".ljust(48, b"\0")
    return file.sealed(config, bytes(data))


def test_rows_computed_otherwise_are_used_but_not_shared(tiny, saved, tmp_path):
    """The session goes on; a cache would hand the rows to others for its own."""
    data = foreign(tiny.config, saved)
    session = tiny.restore(data)
    assert session.tokens == tiny.restore(saved).tokens
    assert session.snapshot()[file.HEADER_BYTES :] != saved[file.HEADER_BYTES :]
    for copy in (session, session.fork()):
        assert file.numerics(copy.snapshot()) == "mixed"
        assert tiny.restore(copy.snapshot()).snapshot() == copy.snapshot()
    with tiny.open_cache(tmp_path / "kv") as cache:
        with pytest.raises(grebe.InvalidArgumentError, match="metal fast official 1"):
            tiny.restore(data, cache=cache)
        assert cache.stats().blocks_sealed == 0


# ------------------------------------------------------------------ damage


def flip(data: bytes, i: int) -> bytes:
    changed = bytearray(data)
    changed[i] ^= 1 << i % 8
    return bytes(changed)


def test_a_flipped_bit_anywhere_in_the_header(tiny, saved):
    for i in range(file.HEADER_BYTES):
        with pytest.raises(grebe.FormatError):
            tiny.restore(flip(saved, i))


def test_a_flipped_bit_elsewhere(tiny, saved):
    places = np.random.default_rng(0).integers(file.HEADER_BYTES, len(saved), 400)
    for i in [*map(int, places), *range(len(saved) - 8, len(saved))]:
        with pytest.raises(grebe.FormatError) as caught:
            tiny.restore(flip(saved, i))
        assert caught.value.offset <= len(saved)


def test_cut_anywhere(tiny, saved):
    for n in [*range(0, len(saved), max(97, len(saved) // 3000 // 97 * 97)), len(saved) - 1]:
        with pytest.raises(grebe.FormatError):
            tiny.restore(saved[:n])


@pytest.mark.parametrize("n", [0, 3, 200, 600, 1100])
@pytest.mark.parametrize("options", [("official", "fast"), ("official", "exact"), ("off", "fast")])
def test_every_page_is_where_the_drawing_says(n, options):
    model = models.load("tiny_gguf", *options)
    session = model.session()
    if n:
        session.prefill(text(model, n))
    data = session.snapshot()
    assert struct.unpack_from("<Q", data, 8) == (len(data),)
    assert data[16:80].decode() == model.fingerprint
    assert file.numerics(data).startswith("cpu " + options[1])
    end = file.HEADER_BYTES
    for page in file.pages(model.config, data):
        assert page.start == end
        end = page.start + page.n + 4
        assert struct.unpack_from("<I", data, end - 4) == (file.page_sum(page, data),)
    assert len(data) == end + 4
    assert file.sealed(model.config, data) == data


def test_swapped_pages(tiny, saved):
    """Each is sound, in another place; also when the sum of the whole is made right again."""
    pages = list(file.pages(tiny.config, saved))
    swapped = 0
    for a, b in itertools.pairwise(pages):
        if a.n != b.n or saved[a.start : a.start + a.n] == saved[b.start : b.start + b.n]:
            continue
        changed = bytearray(saved)
        changed[a.start : a.start + a.n + 4] = saved[b.start : b.start + b.n + 4]
        changed[b.start : b.start + b.n + 4] = saved[a.start : a.start + a.n + 4]
        changed[-4:] = struct.pack("<I", file.crc(bytes(changed[:-4])))
        with pytest.raises(grebe.FormatError, match="a page"):
            tiny.restore(bytes(changed))
        swapped += 1
    assert swapped > 30


def test_pages_of_another_text(tiny, saved):
    """Rows of other tokens, under names that do not say so."""
    other = tiny.session()
    other.prefill(text(tiny, 600, seed=1))
    theirs = other.snapshot()
    assert len(theirs) == len(saved)
    page = list(file.pages(tiny.config, saved))[1]
    cut = page.start - 4
    tokens = saved[:cut] + theirs[cut:-4]
    with pytest.raises(grebe.FormatError, match="a page"):
        tiny.restore(tokens + struct.pack("<I", file.crc(tokens)))


def test_values_that_no_model_makes(tiny, saved):
    pages = list(file.pages(tiny.config, saved))
    logits = next(p for p in pages if p.n == 4 * tiny.config.vocab_size)
    for at, value in (
        (pages[0].start + 40, struct.pack("<i", tiny.config.vocab_size)),
        (pages[0].start + 40, struct.pack("<i", -1)),
        (logits.start + 8, struct.pack("<f", float("nan"))),
    ):
        data = bytearray(saved)
        data[at : at + 4] = value
        with pytest.raises(grebe.FormatError, match=r"token out of range|not finite"):
            tiny.restore(file.sealed(tiny.config, bytes(data)))


def test_other_files(tiny, tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"GRBS" + struct.pack("<I", 1) + bytes(500))
    with pytest.raises(grebe.FormatError, match="version 1; this build reads 2") as caught:
        tiny.restore(path)
    assert caught.value.path == str(path)
    with pytest.raises(grebe.FormatError, match="not a session"):
        tiny.restore(models.fixture_path("tiny_gguf"))
    path.write_bytes(b"")
    with pytest.raises(grebe.FormatError):
        tiny.restore(path)
    with pytest.raises(grebe.StorageError) as missing:
        tiny.restore(tmp_path / "none")
    assert missing.value.errno == errno.ENOENT
    with pytest.raises(grebe.StorageError):
        tiny.restore(tmp_path)
