"""The router (metal/route.metal) against the reference in float64 and the CPU backend."""

import numpy as np
import pytest

from tests.helpers import reference

# Experts, used: Flash; tiny; not a multiple of a SIMD-group; all of them; the most that stay in
# registers and one more.
SHAPES = [(256, 6), (8, 2), (33, 3), (5, 5), (1, 1), (512, 8), (513, 64)]
ROWS = [1, 2, 5, 9, 33]
TOLERANCE = dict(rtol=2e-6, atol=1e-7)


def floats(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


def score(logits):
    return np.sqrt(reference.softplus(np.asarray(logits, np.float64)))


def expect_choice(got, logits, bias, n_used, scale):
    """The experts are the best but for what rounding decides, and the weights theirs."""
    experts, weights = got
    biased = score(logits) + bias
    for row, chosen in zip(biased, experts, strict=True):
        assert len(set(chosen.tolist())) == n_used
        assert (np.diff(row[chosen]) <= 1e-6).all()
        assert row[chosen].min() >= np.sort(row)[-n_used] - 1e-6
    picked = np.take_along_axis(score(logits), experts, 1)
    expected = picked / picked.sum(1, keepdims=True) * scale
    np.testing.assert_allclose(weights, expected, **TOLERANCE)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("n", ROWS)
def test_route(metal, cpu, n, shape):
    n_experts, n_used = shape
    rng = np.random.default_rng([n, n_experts])
    logits, bias = 4 * floats(rng, n, n_experts), floats(rng, n_experts)
    got = metal.route(logits, bias, n_used, 1.5)
    expect_choice(got, logits, bias, n_used, 1.5)
    expected = cpu.route(logits, bias, n_used, 1.5)
    assert (got[0] == expected[0]).mean() > 0.99
    same = (got[0] == expected[0]).all(1)
    np.testing.assert_allclose(got[1][same], expected[1][same], **TOLERANCE)


@pytest.mark.parametrize("n", ROWS)
def test_by_token(metal, cpu, n):
    rng = np.random.default_rng(n)
    logits = floats(rng, n, 40)
    tid2eid = rng.integers(0, 40, (17, 6), dtype=np.int32)
    tokens = rng.integers(0, 17, n, dtype=np.int32)
    experts, weights = metal.route(logits, None, 6, 2.5, tid2eid, tokens)
    expected, expected_weights = cpu.route(logits, None, 6, 2.5, tid2eid, tokens)
    np.testing.assert_array_equal(experts, expected)
    np.testing.assert_allclose(weights, expected_weights, **TOLERANCE)


@pytest.mark.parametrize("n_experts", [7, 64, 600])
def test_ties_go_to_the_lowest(metal, n_experts):
    logits = np.zeros((2, n_experts), np.float32)
    logits[1, 3] = logits[1, n_experts - 1] = 1
    experts, _ = metal.route(logits, np.zeros(n_experts, np.float32), 4, 1.0)
    assert experts.tolist() == [[0, 1, 2, 3], [3, n_experts - 1, 0, 1]]


def test_extremes(metal):
    """Scores keep their digits where the exponential is tiny or past float32."""
    logits = np.array([[-80, -40, -15, -1, 0, 1, 15, 40, 90, 1e4, -1e4]], np.float32)
    expect_choice(
        metal.route(logits, np.zeros(11, np.float32), 11, 1.0), logits, np.zeros(11), 11, 1.0
    )


@pytest.mark.parametrize("n_experts", [40, 600])
def test_what_is_not_finite(metal, n_experts):
    """Indices are experts whatever the logits are, and a chosen NaN shows in the weights."""
    logits = np.zeros((4, n_experts), np.float32)
    bias = np.zeros(n_experts, np.float32)
    logits[0] = np.nan
    logits[1, 5] = np.inf
    logits[2, 5] = np.nan
    logits[3] = -np.inf
    experts, weights = metal.route(logits, bias, 6, 1.0)
    assert ((experts >= 0) & (experts < n_experts)).all()
    assert all(len(set(row.tolist())) == 6 for row in experts)
    assert np.isnan(weights[0]).all()
    assert experts[1, 0] == 5 and np.isnan(weights[1, 0])
    assert 5 not in experts[2] and np.isfinite(weights[2]).all()
    assert np.isnan(weights[3]).all()


@pytest.mark.parametrize("n", [1, 3, 9])
def test_any_order_of_execution(checked, n):
    rng = np.random.default_rng(n)
    for n_experts, n_used in [(7, 3), (45, 6), (520, 4)]:
        logits, bias = floats(rng, n, n_experts), floats(rng, n_experts)
        got = checked.route(logits, bias, n_used, 1.5)
        expect_choice(got, logits, bias, n_used, 1.5)
