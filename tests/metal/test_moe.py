"""Routed and shared experts against the CPU backend."""

from __future__ import annotations

import numpy as np
import pytest

from tests.helpers.weights import BLOCKS, TYPES, random_weight

# In float32, of the largest output: three products in a row of up to 300 terms, and a nonlinearity
# with values up to the clamp.
TOLERANCE = 2e-5
HALF_TOLERANCE = 5e-3  # tiles and h in halves

# Routed gate and up, routed down, shared gate and up, shared down. The first is the mix of the
# published Flash files.
MIXES = [
    ("IQ2_XXS", "Q2_K", "Q8_0", "Q8_0"),
    ("MXFP4", "MXFP4", "F8_E4M3", "F8_E4M3"),
    ("Q4_K", "Q6_K", "F16", "Q5_K"),
    ("IQ3_XXS", "Q3_K", "BF16", "IQ2_S"),
    ("F32", "F32", "F32", "F32"),
]
N = [1, 2, 3, 8, 9, 33]


class Experts:
    """Weights of a layer's experts; sizes are the smallest that the types can have, or ragged."""

    def __init__(self, rng, types, n_experts: int = 8, shared_ff: int | None = None, up: str = ""):
        gate, down, shared_gate, shared_down = types
        blocks = [BLOCKS[t][0] for t in types]
        self.n_experts = n_experts
        self.hidden = 70 if max(blocks[0], blocks[2]) == 1 else 256
        self.ff = 51 if blocks[1] == 1 else 256
        self.shared_ff = shared_ff or (51 if blocks[3] == 1 else 256)
        self.weights = {
            "gate": self.scaled(rng, gate, self.ff, self.hidden, n_experts),
            "up": self.scaled(rng, up or gate, self.ff, self.hidden, n_experts),
            "down": self.scaled(rng, down, self.hidden, self.ff, n_experts),
        }
        if shared_ff != 0:
            self.weights |= {
                "shared_gate": self.scaled(rng, shared_gate, self.shared_ff, self.hidden),
                "shared_up": self.scaled(rng, shared_gate, self.shared_ff, self.hidden),
                "shared_down": self.scaled(rng, shared_down, self.hidden, self.shared_ff),
            }

    @staticmethod
    def scaled(rng, dtype, n_out, n_in, n_experts=1):
        return random_weight(rng, dtype, n_out, n_in, n_experts).tuple

    def run(self, ops, x, experts, weights, clamp=10.0, shared_clamp=7.0):
        return ops.moe(
            self.weights,
            self.n_experts,
            self.ff,
            x,
            experts,
            weights,
            clamp,
            shared_clamp,
            self.shared_ff if "shared_gate" in self.weights else 0,
        )

    def run_routed(self, ops, logits, bias, n_used, x, tid2eid=None, tokens=None):
        shared_ff = self.shared_ff if "shared_gate" in self.weights else 0
        args = (logits, bias, n_used, 1.5, self.weights, self.ff, x, 10.0, 7.0, shared_ff)
        return ops.route_moe(*args, tid2eid, tokens)


def inputs(rng, e: Experts, n: int, n_used: int = 3):
    x = 0.3 * rng.standard_normal((n, e.hidden)).astype(np.float32)
    experts = np.array([rng.permutation(e.n_experts)[:n_used] for _ in range(n)], np.int32)
    return x, experts, rng.uniform(0.1, 1, (n, n_used)).astype(np.float32)


def expect_close(got, expected, tolerance=TOLERANCE) -> None:
    assert np.isfinite(expected).all()
    assert np.abs(got - expected).max() <= tolerance * np.abs(expected).max()


@pytest.mark.parametrize("n", N)
@pytest.mark.parametrize("types", MIXES, ids="-".join)
def test_moe(metal, cpu, types, n: int) -> None:
    rng = np.random.default_rng(n)
    e = Experts(rng, types)
    x, experts, weights = inputs(rng, e, n)
    expect_close(e.run(metal, x, experts, weights), e.run(cpu, x, experts, weights))


@pytest.mark.parametrize("n", [2, 10])
@pytest.mark.parametrize("dtype", TYPES)
def test_each_type(metal, cpu, dtype: str, n: int) -> None:
    rng = np.random.default_rng(n)
    e = Experts(rng, (dtype,) * 4, n_experts=3)
    x, experts, weights = inputs(rng, e, n, 2)
    expect_close(e.run(metal, x, experts, weights), e.run(cpu, x, experts, weights))


@pytest.mark.parametrize("n", [1, 3, 8, 9, 33])
@pytest.mark.parametrize("types", [MIXES[0], MIXES[4]], ids="-".join)
def test_in_any_order_and_checked(checked, cpu, types, n: int) -> None:
    rng = np.random.default_rng(n)
    e = Experts(rng, types, n_experts=5)
    x, experts, weights = inputs(rng, e, n)
    expect_close(e.run(checked, x, experts, weights), e.run(cpu, x, experts, weights))


@pytest.mark.parametrize("n", [2, 8, 20])
def test_other_shapes(metal, cpu, n: int) -> None:
    rng = np.random.default_rng(n)
    cases = [
        (Experts(rng, MIXES[4], shared_ff=0), 1),  # no shared expert
        (Experts(rng, MIXES[4], shared_ff=117), 2),  # a wider one
        (Experts(rng, MIXES[2], up="IQ2_XXS"), 2),  # gate and up of two types
        (Experts(rng, MIXES[3], up="IQ2_XXS"), 2),  # both with a grid
        (Experts(rng, MIXES[4], n_experts=1), 1),
        (Experts(rng, MIXES[4], n_experts=9), 9),  # all used
    ]
    for e, n_used in cases:
        x, experts, weights = inputs(rng, e, n, n_used)
        expect_close(e.run(metal, x, experts, weights), e.run(cpu, x, experts, weights))
    e = Experts(rng, MIXES[4])
    x, experts, weights = inputs(rng, e, n, 2)
    for clamp, shared_clamp in ((0.0, 0.0), (0.05, 0.1)):
        got, expected = (e.run(o, x, experts, weights, clamp, shared_clamp) for o in (metal, cpu))
        expect_close(got, expected)


@pytest.mark.parametrize("n_experts", [2, 300])
def test_crowded_and_empty_experts(metal, cpu, n_experts: int) -> None:
    """Every tile of the prefill: full and ragged ones of 16, 32 and 64 tokens, and no tokens at all."""
    rng = np.random.default_rng(n_experts)
    e = Experts(rng, MIXES[4], n_experts=n_experts)
    for n in (9, 40, 150):
        x, experts, weights = inputs(rng, e, n, 2)
        experts[: n // 2] = [1, 0]
        expect_close(e.run(metal, x, experts, weights), e.run(cpu, x, experts, weights))


def test_wide_outputs_in_slabs(metal, cpu) -> None:
    """More down results than are kept at a time: 44,000 rows of 130 columns are made in two slabs."""
    rng = np.random.default_rng(3)
    e = Experts(rng, MIXES[4], n_experts=2, shared_ff=0)
    e.hidden, e.ff = 130, 2
    for name, n_out, n_in in (("gate", 2, 130), ("up", 2, 130), ("down", 130, 2)):
        e.weights[name] = e.scaled(rng, "F32", n_out, n_in, 2)
    n = 22000
    x = np.tile(0.3 * rng.standard_normal((100, e.hidden)).astype(np.float32), (n // 100, 1))
    experts = np.tile(np.array([[0, 1]], np.int32), (n, 1))
    weights = np.ones((n, 2), np.float32)
    expect_close(e.run(metal, x, experts, weights), e.run(cpu, x, experts, weights))


@pytest.mark.parametrize("n", [3, 12, 70])
def test_half_precision_tiles(metal_fast, cpu, n: int) -> None:
    rng = np.random.default_rng(n)
    for types in (MIXES[0], MIXES[1]):
        e = Experts(rng, types)
        x, experts, weights = inputs(rng, e, n)
        got, expected = e.run(metal_fast, x, experts, weights), e.run(cpu, x, experts, weights)
        expect_close(got, expected, HALF_TOLERANCE)


@pytest.mark.parametrize("clamp", [0.0, 1000.0])
def test_half_precision_tiles_without_a_close_clamp(metal_fast, cpu, clamp: float) -> None:
    """What gate and up make then does not fit halves."""
    rng = np.random.default_rng(1)
    e = Experts(rng, MIXES[1])
    x, experts, weights = inputs(rng, e, 12)
    x *= 3e4
    got, expected = (e.run(o, x, experts, weights, clamp, clamp) for o in (metal_fast, cpu))
    if clamp == 0:
        assert np.abs(expected).max() > 1e6
    expect_close(got, expected, HALF_TOLERANCE)


def test_half_precision_tiles_of_large_inputs(metal_fast) -> None:
    """Numbers above the halves count as the largest half."""
    rng = np.random.default_rng(1)
    e = Experts(rng, MIXES[1])
    x, experts, weights = inputs(rng, e, 12)
    x[3, 7], x[4, 8], x[5, 9] = 1e6, -1e30, np.inf
    large, largest = x.copy(), x.copy()
    largest[3, 7], largest[4, 8] = 65504, -65504
    got, expected = (e.run(metal_fast, v, experts, weights) for v in (large, largest))
    np.testing.assert_array_equal(np.delete(got, 5, 0), np.delete(expected, 5, 0))
    assert np.isfinite(np.delete(got, 5, 0)).all() and not np.isfinite(got[5]).all()


@pytest.mark.parametrize("n", [1, 5, 8, 11])
@pytest.mark.parametrize("n_experts", [5, 40, 600])
def test_route_on_the_way(checked, cpu, n_experts: int, n: int) -> None:
    """Up to eight tokens of up to 512 experts are routed by the kernel that needs to know."""
    rng = np.random.default_rng(n)
    e = Experts(rng, ("F32",) * 4, n_experts=n_experts)
    x, _, _ = inputs(rng, e, n)
    logits = (3 * rng.standard_normal((n, n_experts))).astype(np.float32)
    bias = rng.standard_normal(n_experts).astype(np.float32)
    got, experts, weights = e.run_routed(checked, logits, bias, 4, x)
    expected, cpu_experts, cpu_weights = e.run_routed(cpu, logits, bias, 4, x)
    assert np.array_equal(experts, cpu_experts)
    assert np.allclose(weights, cpu_weights, rtol=3e-6)
    expect_close(got, expected)

    table = rng.integers(0, n_experts, (7, 3), dtype=np.int32)
    tokens = rng.integers(0, 7, n, dtype=np.int32)
    got, experts, _ = e.run_routed(checked, logits, None, 3, x, table, tokens)
    expected, cpu_experts, _ = e.run_routed(cpu, logits, None, 3, x, table, tokens)
    assert np.array_equal(experts, cpu_experts)
    expect_close(got, expected)


def test_dispatches_of_a_token(metal, fake) -> None:
    """Routing, gate, up and SwiGLU; then down: two."""
    rng = np.random.default_rng(1)
    e = Experts(rng, MIXES[0])
    for n in (1, 8):
        x, _, _ = inputs(rng, e, n)
        before = fake["dispatches"]
        e.run_routed(metal, rng.standard_normal((n, 8), np.float32), np.zeros(8, np.float32), 2, x)
        assert fake["dispatches"] - before == 2


@pytest.mark.parametrize("n", [2, 10])
def test_what_is_not_finite_goes_through(metal, n: int) -> None:
    rng = np.random.default_rng(n)
    e = Experts(rng, ("F32",) * 4, n_experts=6)
    x, _, _ = inputs(rng, e, n)
    good = rng.standard_normal((n, 6)).astype(np.float32)
    bias = np.zeros(6, np.float32)
    for bad in (np.nan, np.inf, -np.inf):
        for where in (np.s_[1], np.s_[1, 2]):
            logits = good.copy()
            logits[where] = bad
            y, experts, weights = e.run_routed(metal, logits, bias, 4, x)
            assert ((experts >= 0) & (experts < 6)).all()
            assert all(len(set(row)) == 4 for row in experts.tolist())
            assert np.isfinite(np.delete(y, 1, axis=0)).all()
            if not np.isfinite(weights[1]).all():
                assert not np.isfinite(y[1]).any()
    _, experts, weights = inputs(rng, e, n)
    x[1, 5] = np.nan
    y = e.run(metal, x, experts, weights)
    assert np.isnan(y[1]).all() and np.isfinite(np.delete(y, 1, axis=0)).all()
