"""Norms (metal/norm.metal) against the reference in float64 and the CPU backend."""

import numpy as np
import pytest
from grebe import _engine

from tests.helpers import reference

ROWS = [1, 2, 5, 9, 33]
EPS = 1e-6
TOLERANCE = dict(rtol=3e-6, atol=1e-6)  # sums of up to 5,000 squares in float32


def floats(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


def angles(n, half):
    cos, sin = _engine.rope_table(np.arange(n, dtype=np.int64) * 37, False)
    return np.ascontiguousarray(cos[:, :half]), np.ascontiguousarray(sin[:, :half])


def rotated(x, cos, sin):
    if cos.shape[1] == 0:
        return x
    tail = x[..., -2 * cos.shape[1] :]
    even, odd = tail[..., 0::2], tail[..., 1::2]
    cos, sin = cos[:, None].astype(np.float64), sin[:, None].astype(np.float64)
    turned = np.stack([even * cos - odd * sin, even * sin + odd * cos], -1)
    return np.concatenate([x[..., : -2 * cos.shape[2]], turned.reshape(tail.shape)], -1)


@pytest.mark.parametrize("width", [1, 31, 64, 100, 1024, 4096, 5003])
@pytest.mark.parametrize("n", [1, 9, 12])  # few rows wait for the product that follows
def test_rms_norm(metal, cpu, n, width):
    rng = np.random.default_rng([n, width])
    x, weight = floats(rng, n, width), floats(rng, width)
    got = metal.rms_norm(x, weight, EPS)
    np.testing.assert_allclose(
        got, reference.rmsnorm(x.astype(np.float64), EPS, weight), **TOLERANCE
    )
    np.testing.assert_allclose(got, cpu.rms_norm(x, weight, EPS), **TOLERANCE)


@pytest.mark.parametrize(
    ("heads", "head_dim", "half"),
    [(64, 512, 32), (3, 96, 16), (1, 80, 8), (9, 128, 32), (5, 64, 0)],
)
@pytest.mark.parametrize("n", ROWS)
def test_q_norm_rope(metal, cpu, n, heads, head_dim, half):
    if n == 33 and heads == 64:
        heads = 7
    rng = np.random.default_rng([n, heads, head_dim])
    q, (cos, sin) = floats(rng, n, heads, head_dim), angles(n, half)
    got = metal.q_norm_rope(q, cos, sin, EPS)
    expected = rotated(reference.rmsnorm(q.astype(np.float64), EPS), cos, sin)
    np.testing.assert_allclose(got, expected, **TOLERANCE)
    np.testing.assert_allclose(got, cpu.q_norm_rope(q, cos, sin, EPS), **TOLERANCE)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_stays_so(metal, value):
    rng = np.random.default_rng(0)
    x = floats(rng, 9, 64)
    x[3, 7] = value
    got = metal.rms_norm(x, np.ones(64, np.float32))
    assert np.isnan(got[3, 7])
    assert np.isfinite(np.delete(got, 3, 0)).all()
    q, (cos, sin) = floats(rng, 2, 3, 96), angles(2, 16)
    q[1, 2, 90] = value
    got = metal.q_norm_rope(q, cos, sin)
    assert np.isnan(got[1, 2, 90])
    assert np.isfinite(got[0]).all() and np.isfinite(got[1, :2]).all()


def test_zeros(metal):
    assert not metal.rms_norm(np.zeros((9, 32), np.float32), np.ones(32, np.float32)).any()


@pytest.mark.parametrize("n", [1, 3, 9])
def test_any_order_of_execution(checked, cpu, n):
    rng = np.random.default_rng(n)
    for width in (1, 45, 300):
        x, weight = floats(rng, n, width), floats(rng, width)
        np.testing.assert_allclose(
            checked.rms_norm(x, weight), cpu.rms_norm(x, weight), **TOLERANCE
        )
    for heads, head_dim, half in [(3, 96, 16), (9, 80, 8)]:
        q, (cos, sin) = floats(rng, n, heads, head_dim), angles(n, half)
        np.testing.assert_allclose(
            checked.q_norm_rope(q, cos, sin), cpu.q_norm_rope(q, cos, sin), **TOLERANCE
        )
