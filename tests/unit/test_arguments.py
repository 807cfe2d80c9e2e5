"""Values of a wrong type or range: refused by name, value and what is right, with the session unchanged."""

from __future__ import annotations

import copy
import dataclasses
import os
import pickle

import grebe
import numpy as np
import pytest

PROMPT = [0, 2383, 692, 262]


@pytest.fixture(scope="module")
def model():
    with grebe.Model.load(n_threads=1) as model:
        yield model


@pytest.fixture
def session(model):
    with model.session(n_ctx=64) as session:
        session.prefill(PROMPT)
        yield session


# ------------------------------------------------------------------ scalars


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": -1}, "seed is -1; an integer of at least 0|seed is -1; an integer from 0"),
        (
            {"seed": 2**64},
            "seed is 18446744073709551616; an integer from 0 to 18446744073709551615",
        ),
        ({"seed": 10**5000}, "seed is 16610 bits long; an integer from 0"),
        ({"seed": True}, r"seed is True \(bool\)"),
        ({"temperature": "1"}, r"temperature is '1' \(str\); a number is expected"),
        ({"temperature": None}, r"temperature is None \(NoneType\)"),
        ({"top_p": 1j}, r"top_p is 1j \(complex\)"),
        ({"min_p": False}, r"min_p is False \(bool\)"),
        ({"top_k": 1.5}, r"top_k is 1.5 \(float\); an integer of at least 0"),
        ({"top_k": 10**30}, "top_k is 10+; an integer from 0"),
        ({"top_logprobs": 1001}, "top_logprobs is 1001; an integer from 0 to 1000"),
        ({"logit_bias": [1]}, r"logit_bias is \[1\] \(list\); a mapping"),
        ({"logit_bias": {"a": 1.0}}, "logit_bias key is 'a'"),
        ({"logit_bias": {1: "a"}}, r"logit_bias\[1\] is 'a'"),
        ({"mask": 3}, r"mask is 3 \(int\); a callable or None"),
    ],
)
def test_sampling_types(options, message):
    with pytest.raises(grebe.InvalidArgumentError, match=message):
        grebe.Sampling(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backend": None}, r"backend is None \(NoneType\); a str"),
        ({"isa": 3}, "isa is 3"),
        ({"n_threads": "2"}, r"n_threads is '2' \(str\); an integer from 1"),
        ({"n_threads": True}, "n_threads is True"),
        ({"n_threads": 0}, "n_threads is 0"),
        ({"prefill_chunk": 0}, "prefill_chunk is 0; an integer from 1 to 4096"),
        ({"kernels": b"fast"}, "kernels is b'fast'"),
        ({"kv_rounding": 1}, "kv_rounding is 1"),
    ],
)
def test_load_options(options, message):
    with pytest.raises(grebe.InvalidArgumentError, match=message):
        grebe.Model.load(**options)


@pytest.mark.parametrize("n_ctx", [True, "4", 1.0, 10**30, 0, np.bool_(True)])
def test_n_ctx(model, n_ctx):
    with pytest.raises(
        grebe.InvalidArgumentError, match=r"n_ctx is .*an integer from 1 to 1048576"
    ):
        model.session(n_ctx=n_ctx)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_tokens": "3"}, r"max_tokens is '3' \(str\); an integer of at least 1"),
        ({"max_tokens": 1.5}, "max_tokens is 1.5"),
        ({"max_tokens": float("nan")}, "max_tokens is nan"),
        ({"max_tokens": True}, "max_tokens is True"),
        ({"sampling": {"seed": 1}}, r"sampling is \{'seed': 1\} \(dict\); a grebe.Sampling"),
        ({"on_progress": 3}, "on_progress is 3"),
        ({"stop": 3}, "stop is 3"),
        ({"stop": b"ab"}, "stop is b'ab'"),
    ],
)
def test_generation_options(session, options, message):
    with pytest.raises(grebe.InvalidArgumentError, match=message):
        session.generate(PROMPT, **options)
    assert session.tokens == PROMPT


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: s.prefill(None), r"tokens is None \(NoneType\); a sequence"),
        (lambda s: s.prefill({1, 2}), r"tokens is \{1, 2\} \(set\); a sequence"),
        (lambda s: s.prefill(frozenset({1})), "tokens is frozenset"),
        (lambda s: s.prefill({1: 2}), r"tokens is \{1: 2\} \(dict\); a sequence"),
        (lambda s: s.prefill([1], on_progress=3), "on_progress is 3"),
        (lambda s: s.evaluate(None), "tokens is None"),
        (lambda s: s.decode(None), r"token is None \(NoneType\); token ids are"),
        (lambda s: s.rewind(1.0), r"pos is 1.0 \(float\); an integer from 0 to 4"),
        (lambda s: s.rewind(True), "pos is True"),
        (lambda s: s.rewind(5), "pos is 5; an integer from 0 to 4"),
        (lambda s: s.rewind(10**30), "pos is 10+; an integer"),
        (lambda s: s.model.step([("a", [1])]), r"inputs\[0\]\[0\] is 'a' \(str\); a grebe.Session"),
        (lambda s: s.model.step([(s,)]), r"inputs\[0\] is .*; a pair"),
        (lambda s: s.model.step([s]), r"inputs\[0\] is .*; a pair"),
        (lambda s: s.model.step([(s, None)]), r"inputs\[0\].tokens is None"),
        (lambda s: s.model.step([(s, [1])], logits=3), "logits is 3"),
        (lambda s: s.model.restore(None), "snapshot is None"),
        (lambda s: s.model.tokenizer.decode(None), "tokens is None"),
    ],
)
def test_calls(session, call, message):
    with pytest.raises(grebe.InvalidArgumentError, match=message):
        call(session)
    assert session.tokens == PROMPT


def test_numpy_scalars_are_numbers(model):
    sampling = grebe.Sampling(
        temperature=np.float32(0.5), top_k=np.int64(3), seed=np.uint64(2**64 - 1)
    )
    assert (sampling.temperature, sampling.top_k, sampling.seed) == (0.5, 3, 2**64 - 1)
    assert len(model.complete(PROMPT, max_tokens=np.int16(2), sampling=sampling).tokens) == 2


# ------------------------------------------------------------------ Sampling as a value


def test_sampling_is_a_value():
    bias = {3: 1.0, 1: -2.0}
    sampling = grebe.Sampling(temperature=0.5, logit_bias=bias, seed=1)
    same = grebe.Sampling(temperature=0.5, logit_bias={1: -2.0, 3: 1.0}, seed=1)
    bias[3] = 9.0
    assert sampling.logit_bias == {3: 1.0, 1: -2.0}
    for other in (same, pickle.loads(pickle.dumps(sampling)), copy.deepcopy(sampling)):
        assert other == sampling
        assert hash(other) == hash(sampling)
    assert dataclasses.asdict(grebe.Sampling())["logit_bias"] == {}
    assert dataclasses.replace(sampling, seed=2) != sampling


# ------------------------------------------------------------------ paths


@pytest.mark.parametrize("open_", [grebe.Model.load, grebe.Tokenizer.from_file, grebe.inspect])
def test_paths(open_, tmp_path):
    for bad in ("", b"", "a\0b", "\ud800x", 5):
        with pytest.raises(grebe.InvalidArgumentError, match=r"path is .*the name of a file"):
            open_(bad)
    with pytest.raises(grebe.FormatError, match="not a regular file"):
        open_(tmp_path)
    for missing in ("no-such-file", b"no-such-file", tmp_path / "no"):
        with pytest.raises(grebe.StorageError, match="cannot open: No such file"):
            open_(missing)


def test_a_tokenizer_file_is_a_regular_file_of_some_size(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)  # opened for reading, it would wait for a writer
    with pytest.raises(grebe.FormatError, match="not a regular file"):
        grebe.Tokenizer.from_file(pipe)
    big = tmp_path / "tokenizer.json"
    with big.open("wb") as stream:
        stream.truncate((256 << 20) + 1)  # sparse
    with pytest.raises(grebe.FormatError, match="larger than"):
        grebe.Tokenizer.from_file(big)


def test_tokenizer_takes_bytearrays_and_arrays(model):
    tokenizer = model.tokenizer
    ids = tokenizer.encode(bytearray(b"Once upon"))
    assert ids == tokenizer.encode("Once upon")
    assert tokenizer.decode(np.array(ids)) == "Once upon"


@pytest.mark.parametrize("how", [copy.copy, copy.deepcopy, pickle.dumps])
def test_handles_are_not_copied(model, session, how):
    for handle in (model, session, session.generate(PROMPT)):
        with pytest.raises(TypeError, match="cannot be copied or pickled"):
            how(handle)
