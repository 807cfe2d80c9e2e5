"""Hyper-connections (metal/hyper_connection.metal) against the reference in float64 and the CPU backend."""

from types import SimpleNamespace

import numpy as np
import pytest
from grebe import _engine
from grebe.doctor import random_weight

from tests.helpers import reference

# Streams, channels: Flash's streams; a ragged last chunk; one channel more and less than a vector;
# every number of streams that changes the reductions.
SHAPES = [(4, 64), (4, 200), (3, 70), (1, 33), (2, 1), (8, 65), (5, 132)]
ROWS = [1, 2, 5, 9, 33]
EPS = 1e-6

# Sums of some hundred products in float32; 20 normalisations of numbers near one.
TOLERANCE = dict(rtol=2e-5, atol=4e-6)


def floats(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


class Case:
    """Streams of a step, weights of one hyper-connection, and what the sublayer before left."""

    def __init__(self, n, s, d, dtype="F32", head=False, seed=0, eps=EPS):
        rng = np.random.default_rng([n, s, d, seed])
        mixes = s if head else (2 + s) * s
        self.X = floats(rng, n, s, d)
        self.y, self.post, self.comb = floats(rng, n, d), floats(rng, n, s), floats(rng, n, s, s)
        fn = random_weight(rng, dtype, mixes, s * d)
        # Mixes of about one, whatever the type's numbers are.
        fn_values = _engine.dequantize(dtype, fn, mixes, s * d).astype(np.float64)
        size = np.sqrt((fn_values**2).mean() * s * d) or 1.0
        scale = rng.uniform(0.5, 1.5, 1 if head else 3) / size
        self.base, self.norm = floats(rng, mixes), floats(rng, d)
        self.scale = scale.astype(np.float32)
        self.fn_values = fn_values
        self.weights = (fn, self.base, self.scale, self.norm)
        self.options = dict(eps=eps, dtype=dtype)

    def expected_post(self):
        return reference.hc_post(
            *(a.astype(np.float64) for a in (self.X, self.y, self.post, self.comb))
        )

    def expected_pre(self, X):
        cfg = SimpleNamespace(n=X.shape[1], eps=EPS, hc_eps=EPS, sink_iters=20)
        X = X.astype(np.float64)
        x, post, comb = reference.hc_pre(
            cfg, X, self.fn_values, self.scale.astype(np.float64), self.base.astype(np.float64)
        )
        return reference.rmsnorm(x, EPS, self.norm.astype(np.float64)), post, comb


def expect_close(got, expected):
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, **TOLERANCE)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("n", ROWS)
def test_hc_pre(metal, cpu, n, shape):
    case = Case(n, *shape)
    got = metal.hc_pre(case.X, *case.weights, **case.options)
    expect_close(got, case.expected_pre(case.X))
    expect_close(got, cpu.hc_pre(case.X, *case.weights, **case.options))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("n", ROWS)
def test_hc_post(metal, cpu, n, shape):
    case = Case(n, *shape)
    got = metal.hc_post(case.X, case.y, case.post, case.comb)
    expect_close([got], [case.expected_post()])
    expect_close([got], [cpu.hc_post(case.X, case.y, case.post, case.comb)])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("n", ROWS)
def test_hc_post_and_hc_pre_together(metal, cpu, n, shape):
    case = Case(n, *shape)
    before = (case.X, case.y, case.post, case.comb)
    X, *rest = metal.hc_post_pre(*before, *case.weights, **case.options)
    expect_close([X], [case.expected_post()])
    expect_close(rest, case.expected_pre(X))
    expect_close([X, *rest], cpu.hc_post_pre(*before, *case.weights, **case.options))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_hc_head(metal, cpu, shape):
    case = Case(7, *shape, head=True)
    for rows in ([6], [2, 0, 2], [0, 1, 2, 3, 4, 5, 6, 6, 6]):
        arguments = (case.X, *case.weights, np.array(rows, np.int32))
        got = metal.hc_head(*arguments, **case.options)
        cfg = SimpleNamespace(n=shape[0], eps=EPS, hc_eps=EPS)
        x = reference.hc_head(
            cfg,
            case.X[rows].astype(np.float64),
            case.fn_values,
            case.scale.astype(np.float64),
            case.base.astype(np.float64),
        )
        expect_close([got], [reference.rmsnorm(x, EPS, case.norm.astype(np.float64))])
        expect_close([got], [cpu.hc_head(*arguments, **case.options)])


# Not FP8: its scales are a tensor of their own, which BackendOps does not take here.
@pytest.mark.parametrize("dtype", [t for t in _engine.dtypes() if t != "F8_E4M3"])
@pytest.mark.parametrize("n", [1, 3])
def test_types_of_fn(metal, cpu, n, dtype):
    # Two chunks; three, the last ragged; and channels that are no multiple of 16, where the type's
    # blocks allow them.
    coarse = "_K" in dtype or dtype.startswith("IQ")
    for d in (128, 192) if coarse else (128, 144, 264):
        case = Case(n, 4, d, dtype)
        before = (case.X, case.y, case.post, case.comb)
        X, *rest = metal.hc_post_pre(*before, *case.weights, **case.options)
        expect_close([X], [case.expected_post()])
        expect_close(rest, case.expected_pre(X))


def test_flash(metal, cpu):
    case = Case(2, 4, 4096, "F16")
    before = (case.X, case.y, case.post, case.comb)
    got = metal.hc_post_pre(*before, *case.weights, **case.options)
    expect_close(got, cpu.hc_post_pre(*before, *case.weights, **case.options))


def test_tokens_do_not_depend_on_company(metal):
    case = Case(9, 4, 200)
    together = metal.hc_pre(case.X, *case.weights, **case.options)
    alone = metal.hc_pre(case.X[4:5], *case.weights, **case.options)
    for a, b in zip(together, alone, strict=True):
        np.testing.assert_array_equal(a[4:5], b)


@pytest.mark.parametrize("n", [1, 5])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_stays_so(metal, n, value):
    case = Case(n, 4, 64)
    case.X[0, 1, 5] = value
    for got in metal.hc_pre(case.X, *case.weights, **case.options):
        assert not np.isfinite(got[0]).all()
        assert np.isfinite(got[1:]).all()


@pytest.mark.parametrize("s", [3, 5, 6, 7])
def test_no_epsilon(metal, cpu, s):
    """Lanes without a stream must not divide zeros by zeros and pass on what comes out."""
    case = Case(2, s, 64, eps=0.0)
    got = metal.hc_pre(case.X, *case.weights, **case.options)
    assert all(np.isfinite(a).all() for a in got)
    expect_close(got, cpu.hc_pre(case.X, *case.weights, **case.options))


@pytest.mark.parametrize("iterations", [0, 1, 2])
def test_few_iterations(metal, cpu, iterations):
    case = Case(2, 4, 64)
    arguments = (case.X, *case.weights, iterations)
    expect_close(metal.hc_pre(*arguments, **case.options), cpu.hc_pre(*arguments, **case.options))


@pytest.mark.parametrize("n", [1, 3, 9])
@pytest.mark.parametrize("dtype", ["F16", "Q8_0"])
def test_any_order_of_execution(checked, cpu, n, dtype):
    for shape in [(4, 72), (2, 80)]:
        case = Case(n, *shape, dtype)
        before = (case.X, case.y, case.post, case.comb)
        got = checked.hc_post_pre(*before, *case.weights, **case.options)
        expect_close(got, cpu.hc_post_pre(*before, *case.weights, **case.options))
        got = checked.hc_post(*before)
        expect_close([got], [case.expected_post()])
    head = Case(4, 3, 70, head=True)
    arguments = (head.X, *head.weights, np.array([3, 1], np.int32))
    expect_close(
        [checked.hc_head(*arguments, **head.options)], [cpu.hc_head(*arguments, **head.options)]
    )
