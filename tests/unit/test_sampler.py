"""The sampler against a float64 twin: what is reported, drawn (and how often), refused."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from grebe import _engine
from grebe.errors import BackendError, InvalidArgumentError

V = 1000


def logits(seed: int = 0, scale: float = 3.0, n: int = V) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, scale, n).astype(np.float32)


def mask_of(tokens: list[int], n: int = V) -> np.ndarray:
    mask = np.zeros((n + 31) // 32, np.uint32)
    for t in tokens:
        mask[t // 32] |= np.uint32(1 << t % 32)
    return mask


def sampler(vocab_size: int = V, **params: Any) -> Any:
    return _engine.Sampler(vocab_size=vocab_size, **params)


def adjusted(
    x: np.ndarray, prompt: Any = (), output: Any = (), mask: Any = None, **p: Any
) -> np.ndarray:
    """Logits after mask, bias and penalties, in float64."""
    y = x.astype(np.float64)
    if mask is not None:
        y[(mask[np.arange(len(x)) // 32] >> (np.arange(len(x)) % 32)) & 1 == 0] = -np.inf
    for token, bias in p.get("logit_bias", {}).items():
        y[token] += bias
    for token in {*prompt, *output}:
        r = p.get("repetition_penalty", 1.0)
        y[token] = y[token] / r if y[token] > 0 else y[token] * r
    for token in set(output):
        n = list(output).count(token)
        y[token] -= n * p.get("frequency_penalty", 0.0) + p.get("presence_penalty", 0.0)
    return y


def log_softmax(y: np.ndarray) -> np.ndarray:
    return y - y.max() - np.log(np.exp(y - y.max()).sum())


def distribution(
    y: np.ndarray, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0
) -> np.ndarray:
    """Probabilities of the draw."""
    p = np.exp((y - y.max()) / temperature)
    order = np.lexsort((np.arange(len(y)), -y))
    if top_k:
        order = order[:top_k]
    if top_p < 1:
        reached = np.cumsum(p[order]) / p[order].sum()
        order = order[
            : int(np.argmax(reached >= top_p)) + 1 if (reached >= top_p).any() else len(order)
        ]
    order = order[p[order] >= min_p]
    out = np.zeros_like(p)
    out[order] = p[order] / p[order].sum()
    return out


@pytest.mark.parametrize("n", [1, 31, 32, 33, 63, 64, 65, 255, 256, 257, 1000, 1024, 1025, 129_280])
def test_greedy_is_argmax(n: int) -> None:
    for seed in range(3):
        x = logits(seed, n=n)
        token, logprob, top = sampler(n, seed=seed).sample(x)
        assert token == int(np.argmax(x))
        assert logprob == pytest.approx(log_softmax(x.astype(np.float64))[token], abs=1e-6)
        assert top == []


def test_greedy_ties_take_the_lowest_id() -> None:
    x = np.zeros(V, np.float32)
    assert sampler().sample(x)[0] == 0
    x[[700, 300]] = 5
    assert sampler().sample(x)[0] == 300
    x[:] = 0.0
    x[:10] = -1
    x[10] = -0.0
    assert sampler(top_logprobs=2).sample(x)[2][0][0] == 10
    assert sampler().sample(x)[0] == 10
    assert sampler(temperature=1, top_k=1).sample(x)[0] == 10


@pytest.mark.parametrize("k", [1, 5, 20, 63, 64, 65, 999, 1000])
@pytest.mark.parametrize("ties", [False, True])
def test_top_logprobs(k: int, ties: bool) -> None:
    x = np.round(logits(1)) if ties else logits(1)
    _, _, top = sampler(top_logprobs=k).sample(x)
    want = np.lexsort((np.arange(V), -x))[:k]
    assert [t for t, _ in top] == want.tolist()
    assert [p for _, p in top] == pytest.approx(
        log_softmax(x.astype(np.float64))[want].tolist(), abs=1e-5
    )


def test_excluded_tokens_are_not_reported() -> None:
    x = np.full(V, -np.inf, np.float32)
    x[[5, 900]] = [1, 2]
    token, _, top = sampler(top_logprobs=10).sample(x)
    assert token == 900
    assert [t for t, _ in top] == [900, 5]
    assert sum(math.exp(p) for _, p in top) == pytest.approx(1)
    assert {sampler(temperature=5, seed=s).sample(x)[0] for s in range(50)} == {5, 900}


@pytest.mark.parametrize(
    "params",
    [
        {"logit_bias": {3: 4.0, 7: -100.0, 999: 0.5}},
        {"repetition_penalty": 1.3},
        {"repetition_penalty": 0.7, "presence_penalty": 1.5},
        {"frequency_penalty": 0.4},
        {
            "presence_penalty": -0.8,
            "frequency_penalty": 0.3,
            "repetition_penalty": 1.1,
            "logit_bias": {1: 3.0},
        },
    ],
)
@pytest.mark.parametrize("masked", [False, True])
def test_bias_penalties_and_mask(params: dict[str, Any], masked: bool) -> None:
    mask = mask_of(list(range(0, V, 3))) if masked else None
    prompt = [1, 3, 3, 6, 500, 999]
    s = sampler(top_logprobs=V, **params)
    s.observe_prompt(prompt)
    output: list[int] = []
    for step in range(12):
        x = logits(step % 2)
        token, logprob, top = s.sample(x, mask)
        want = log_softmax(adjusted(x, prompt, output, mask, **params))
        assert token == int(np.argmax(want))
        assert logprob == pytest.approx(want[token], abs=1e-5)
        got = np.full(V, -np.inf)
        got[[t for t, _ in top]] = [p for _, p in top]
        np.testing.assert_allclose(got, want, atol=2e-5)
        output.append(token)


def test_huge_bias_stays_a_number() -> None:
    s = sampler(logit_bias={4: 1e300, 5: -1e300}, top_logprobs=1)
    token, logprob, _ = s.sample(logits())
    assert (token, logprob) == (4, 0.0)


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"temperature": 0.5},
        {"temperature": 3.0},
        {"top_k": 1},
        {"top_k": 7},
        {"top_k": 400},
        {"top_p": 0.9},
        {"top_p": 0.5, "temperature": 0.7},
        {"top_p": 1e-9},
        {"min_p": 0.1},
        {"min_p": 0.02, "top_p": 0.8, "top_k": 50, "temperature": 1.5},
    ],
)
def test_draws_follow_the_distribution(params: dict[str, Any]) -> None:
    """Nothing outside of the truncated set, and frequencies within 5 standard deviations."""
    n = 20_000
    x = logits(4, n=300, scale=1.5)
    s = sampler(300, **{"temperature": 1.0, **params}, seed=11)
    counts = np.bincount([s.sample(x)[0] for _ in range(n)], minlength=300)
    p = distribution(x.astype(np.float64), **params)
    assert counts[p == 0].sum() == 0
    assert np.all(np.abs(counts - n * p) <= 5 * np.sqrt(n * p * (1 - p)) + 1)


@pytest.mark.parametrize("shape", ["flat", "peaked", "uniform", "steps", "one"])
@pytest.mark.parametrize(
    "truncation", [{"top_p": 0.9}, {"top_k": 300}, {"top_k": 5000}, {"min_p": 0.3}]
)
def test_truncation_keeps_exactly_the_best(shape: str, truncation: dict[str, Any]) -> None:
    """On a large vocabulary, with ties: the draws of many seeds stay inside the set."""
    n = 129_280
    x = {
        "flat": logits(2, 0.3, n),
        "peaked": logits(2, 4, n),
        "uniform": np.full(n, -2.5, np.float32),
        "steps": np.round(logits(3, 2, n)),
        "one": np.where(np.arange(n) == 77, 30, 0).astype(np.float32),
    }[shape]
    allowed = distribution(x.astype(np.float64), **truncation) > 0
    drawn = {sampler(n, temperature=1.0, seed=s, **truncation).sample(x)[0] for s in range(60)}
    # Where the cumulative sum meets top_p within rounding, a nucleus may have one token more.
    assert sum(not allowed[t] for t in drawn) <= ("top_p" in truncation)
    if allowed.sum() <= 3:
        assert drawn == set(np.flatnonzero(allowed))


def test_top_p_boundary_is_inclusive() -> None:
    x = np.log(np.array([0.5, 0.25, 0.125, 0.125], np.float32))
    seen = {sampler(4, temperature=1.0, top_p=0.75, seed=s).sample(x)[0] for s in range(200)}
    assert seen <= {0, 1, 2}  # 0.75 is met by two tokens up to the rounding of log
    assert {sampler(4, temperature=1.0, top_p=0.7, seed=s).sample(x)[0] for s in range(200)} == {
        0,
        1,
    }
    assert {sampler(4, temperature=1.0, top_p=0.8, seed=s).sample(x)[0] for s in range(200)} == {
        0,
        1,
        2,
    }


def test_seeds() -> None:
    x = logits(5)

    def run(seed: int) -> list[int]:
        s = sampler(temperature=1.0, seed=seed)
        return [s.sample(x)[0] for _ in range(20)]

    assert run(1) == run(1)
    assert len({tuple(run(seed)) for seed in [*range(30), 2**63, 2**64 - 1]}) == 32


def test_draws_are_the_same_everywhere() -> None:
    """Recorded once. A change here changes what users' seeds mean."""
    x = ((np.arange(5000) * 37 % 1013) / np.float32(128)).astype(np.float32)
    plain = sampler(5000, temperature=0.75, seed=42)
    nucleus = sampler(5000, temperature=1.0, top_p=0.9, min_p=0.05, top_k=900, seed=7)
    assert [plain.sample(x)[0] for _ in range(8)] == PLAIN
    assert [nucleus.sample(x)[0] for _ in range(8)] == NUCLEUS


PLAIN = [1721, 4763, 2434, 347, 3387, 348, 983, 3667]
NUCLEUS = [3610, 3256, 2737, 3011, 1750, 903, 4571, 4514]


@pytest.mark.parametrize("temperature", [1e-300, 1e-30, 1e-3, 1e3, 1e30, 1e300])
def test_extreme_temperatures(temperature: float) -> None:
    x = logits(6)
    x[::2] = -np.inf
    for params in ({}, {"top_p": 0.9}, {"top_k": 10}, {"min_p": 0.1}):
        s = sampler(temperature=temperature, seed=1, **params)
        tokens = [s.sample(x)[0] for _ in range(20)]
        assert all(t % 2 == 1 for t in tokens)
        if temperature <= 1e-3:
            assert set(tokens) == {int(np.argmax(x))}


def test_extreme_logits() -> None:
    x = np.zeros(V, np.float32)
    x[3], x[4] = 3e38, -3e38
    for params in (
        {},
        {"temperature": 1.0},
        {"temperature": 1.0, "top_p": 0.5},
        {"temperature": 1.0, "top_k": 3},
    ):
        assert sampler(**params).sample(x)[:2] == (3, 0.0)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"top_p": 1.5}, r"sampling: top_p is 1\.5; expected 0 < top_p <= 1"),
        ({"top_p": 0.0}, "top_p is 0;"),
        ({"top_p": math.nan}, "top_p is -?nan"),
        ({"temperature": -1.0}, "temperature is -1;"),
        ({"temperature": math.inf}, "temperature is inf"),
        ({"temperature": math.nan}, "temperature is -?nan"),
        ({"top_k": -1}, "top_k is -1;"),
        ({"min_p": 1.0}, "min_p is 1; expected 0 <= min_p < 1"),
        ({"min_p": -0.1}, "min_p is -0.1"),
        ({"repetition_penalty": 0.0}, "repetition_penalty is 0;"),
        ({"presence_penalty": math.inf}, "presence_penalty is inf"),
        ({"frequency_penalty": math.nan}, "frequency_penalty is -?nan"),
        ({"top_logprobs": 1001}, "top_logprobs is 1001"),
        ({"top_logprobs": -1}, "top_logprobs is -1"),
        ({"logit_bias": {V: 1.0}}, "logit_bias has token id 1000; expected 0 to 999"),
        ({"logit_bias": {-1: 1.0}}, "logit_bias has token id -1"),
        ({"logit_bias": {0: math.inf}}, "logit_bias is inf"),
        ({"vocab_size": 0}, "vocab_size is 0"),
    ],
)
def test_parameters_are_checked(params: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        sampler(**params)


@pytest.mark.parametrize(
    ("value", "message"),
    [(math.nan, "token 998 is -?nan"), (-math.nan, "nan"), (math.inf, "token 998 is inf")],
)
def test_bad_logits(value: float, message: str) -> None:
    x = logits()
    x[998] = value
    s = sampler(temperature=1.0, seed=3)
    with pytest.raises(BackendError, match=message):
        s.sample(x)
    with pytest.raises(BackendError, match=message):
        s.sample(x, mask_of([1]))
    # The failed calls drew nothing.
    assert s.sample(logits())[0] == sampler(temperature=1.0, seed=3).sample(logits())[0]


def test_nothing_allowed() -> None:
    with pytest.raises(BackendError, match="every logit is -inf"):
        sampler().sample(np.full(V, -np.inf, np.float32))
    with pytest.raises(InvalidArgumentError, match="mask allows no token"):
        sampler().sample(logits(), mask_of([]))
    beyond = mask_of([1020], 1024)  # a bit past the vocabulary allows nothing
    with pytest.raises(InvalidArgumentError, match="mask allows no token"):
        sampler().sample(logits(), beyond)


def test_sizes() -> None:
    with pytest.raises(InvalidArgumentError, match="999 logits; expected 1000"):
        sampler().sample(logits(n=999))
    for n_words in (0, 31):
        with pytest.raises(InvalidArgumentError, match=rf"{n_words} words"):
            sampler().sample(logits(), np.full(n_words, 2**32 - 1, np.uint32))
    assert sampler().sample(logits(), np.full(40, 2**32 - 1, np.uint32))[0] == int(
        np.argmax(logits())
    )
    with pytest.raises(InvalidArgumentError):
        sampler(repetition_penalty=1.1).observe_prompt([V])
    for wrong in (logits().astype(np.float64), logits().reshape(10, 100), [0.0] * V):
        with pytest.raises(TypeError):
            sampler().sample(wrong)
