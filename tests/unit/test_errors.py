"""The tree of errors: two bases, attributes, messages, and that each crosses from C++ as its own class."""

from __future__ import annotations

import errno
import pickle

import grebe
import pytest
from grebe import errors

BASES = {
    "InvalidArgumentError": ValueError,
    "ContextOverflowError": ValueError,
    "FormatError": ValueError,
    "UnsupportedModelError": ValueError,
    "BackendUnavailableError": RuntimeError,
    "BackendError": RuntimeError,
    "OutOfMemoryError": MemoryError,
    "StorageError": OSError,
    "CancelledError": Exception,
}


@pytest.mark.parametrize(("name", "base"), BASES.items())
def test_two_bases(name, base):
    error = getattr(errors, name)
    assert issubclass(error, errors.GrebeError)
    assert issubclass(error, base)
    assert getattr(grebe, name) is error
    assert str(error("what is wrong")) == "what is wrong"


def test_the_list_is_complete():
    classes = {n for n, c in vars(errors).items() if isinstance(c, type)}
    assert classes == set(errors.__all__) == {"GrebeError", *BASES}


@pytest.mark.parametrize(
    ("error", "attributes"),
    [
        (errors.ContextOverflowError("m", 7, 4), {"n_prompt": 7, "n_ctx": 4}),
        (errors.FormatError("m", "a.gguf", 12), {"path": "a.gguf", "offset": 12}),
        (
            errors.UnsupportedModelError("m", "k", "f", "e"),
            {"key": "k", "found": "f", "expected": "e"},
        ),
        (errors.BackendUnavailableError("m", "metal"), {"name": "metal"}),
        (errors.BackendError("m", "matmul"), {"op": "matmul"}),
        (errors.OutOfMemoryError("m", 99), {"bytes": 99}),
        (
            errors.StorageError("m", "a", errno.ENOSPC),
            {"path": "a", "filename": "a", "errno": errno.ENOSPC},
        ),
    ],
)
def test_attributes_survive_a_pickle(error, attributes):
    for copy in (error, pickle.loads(pickle.dumps(error))):
        assert str(copy) == "m"
        for name, value in attributes.items():
            assert getattr(copy, name) == value


def test_a_missing_file():
    with pytest.raises(grebe.StorageError) as caught:
        grebe.Model.load("no-such-file.gguf")
    assert caught.value.errno == errno.ENOENT
    assert caught.value.path == "no-such-file.gguf"
    assert "no-such-file.gguf" in str(caught.value)


def test_not_a_gguf_file(tmp_path):
    path = tmp_path / "words.gguf"
    path.write_bytes(b"these are words, not weights" * 10)
    with pytest.raises(grebe.FormatError) as caught:
        grebe.Model.load(path)
    assert caught.value.path == str(path)
    assert caught.value.offset == 0
    with pytest.raises(grebe.FormatError):
        grebe.inspect(path)


def test_another_architecture(tmp_path):
    # GGUF version 3, no tensors, one key: general.architecture = "llama".
    def text(s):
        return len(s).to_bytes(8, "little") + s

    path = tmp_path / "other.gguf"
    path.write_bytes(
        b"GGUF" + (3).to_bytes(4, "little") + bytes(8) + (1).to_bytes(8, "little")
        + text(b"general.architecture") + (8).to_bytes(4, "little") + text(b"llama") + bytes(64)
    )  # fmt: skip
    with pytest.raises(grebe.UnsupportedModelError) as caught:
        grebe.Model.load(path)
    assert caught.value.found == "llama"
    assert "llama" in str(caught.value)
    info = grebe.inspect(path)  # a sound file of another model can still be looked at
    assert info.config is None
    assert "llama" in info.problem
    assert not any(b.available for b in info.backends)


@pytest.mark.parametrize("options", [{"backend": "abacus"}, {"isa": "abacus"}])
def test_a_backend_that_is_not_there(options):
    with pytest.raises(grebe.BackendUnavailableError, match="abacus") as caught:
        grebe.Model.load(**options)
    assert "abacus" in caught.value.name


@pytest.mark.parametrize(
    "options",
    [
        {"n_threads": 0},
        {"n_threads": 5000},
        {"kv_rounding": "some"},
        {"kernels": "quick"},
        {"prefill_chunk": 0},
    ],
)
def test_load_options_are_checked(options):
    with pytest.raises(grebe.InvalidArgumentError, match=next(iter(options))):
        grebe.Model.load(**options)


def test_damaged_and_foreign_snapshots():
    with grebe.Model.load() as model, model.session() as s:
        s.prefill([1, 2, 3])
        snapshot = s.snapshot()
        for bad in (b"", snapshot[:-1], b"x" + snapshot[1:], snapshot + b"x", snapshot[:40]):
            with pytest.raises(grebe.FormatError):
                model.restore(bad)
        flipped = bytearray(snapshot)
        flipped[len(flipped) // 2] ^= 1
        with pytest.raises(grebe.FormatError):
            model.restore(flipped)
        assert model.restore(memoryview(snapshot)).tokens == [1, 2, 3]


def test_names_that_are_no_utf8_still_make_a_message(tmp_path):
    path = tmp_path / "x.gguf"
    path.write_bytes(b"\xff\xfe\xfd\xfc" + bytes(100))
    with pytest.raises(grebe.FormatError):
        grebe.Model.load(path)
