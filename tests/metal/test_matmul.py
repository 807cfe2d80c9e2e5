"""Products with weights of every type, and the embedding, against the CPU backend."""

from pathlib import Path

import numpy as np
import pytest

from tests.helpers.weights import BLOCKS, TYPES, RandomWeight, floats_of, random_weight
from tools.make_metal_tables import SOURCE, metal_tables

# In float32, of the sum of |w| |x|: sums of up to 1,280 terms in any order stay far below it, a wrong
# weight or a lost term does not.
TOLERANCE = 2e-6
# Tiles of halves: both factors are rounded to 11 bits.
HALF_TOLERANCE = 1.5e-3


def widths(dtype: str) -> list[int]:
    """Rows shorter than a step of the kernels, ragged, and longer."""
    block = BLOCKS[dtype][0]
    return [5, 70, 1024 + 37] if block == 1 else [block, 1024 + 3 * block % 1024 // block * block]


def multiply(ops, w: RandomWeight, x: np.ndarray) -> np.ndarray:
    return ops.matmul(w.data, w.dtype, w.n_out, w.n_in, x, w.scale)


def vectors(rng, n: int, width: int) -> np.ndarray:
    return rng.standard_normal((n, width)).astype(np.float32)


def expect_close(got, cpu, w: RandomWeight, x: np.ndarray, tolerance: float = TOLERANCE) -> None:
    expected = multiply(cpu, w, x)
    scale = np.abs(x).astype(np.float64) @ np.abs(floats_of(cpu, w)).T.astype(np.float64)
    error = np.abs(got.astype(np.float64) - expected) / (scale + 1e-30)
    assert error.max() <= tolerance, (w.dtype, w.n_out, w.n_in, len(x))


def test_the_grids_are_those_of_the_cpu() -> None:
    text = metal_tables(SOURCE.read_text())
    assert (Path(__file__).parents[2] / "metal/tables.h").read_text() == text


@pytest.mark.parametrize("dtype", TYPES)
def test_embed(metal, cpu, dtype: str) -> None:
    rng = np.random.default_rng(1)
    for n_in in widths(dtype):
        w = random_weight(rng, dtype, 140, n_in)
        tokens = np.array([139, 0, 3, 128], np.int32)
        args = (w.data, dtype, w.n_out, n_in, tokens, 3, w.scale)
        assert np.array_equal(metal.embed(*args), cpu.embed(*args))  # the very floats


@pytest.mark.parametrize("n", [1, 2, 3, 8, 9, 33])
@pytest.mark.parametrize("dtype", TYPES)
def test_matmul(metal, cpu, dtype: str, n: int) -> None:
    rng = np.random.default_rng(n)
    for n_in in widths(dtype):
        for n_out in (1, 7, 33):
            w, x = random_weight(rng, dtype, n_out, n_in), vectors(rng, n, n_in)
            expect_close(multiply(metal, w, x), cpu, w, x)


@pytest.mark.parametrize("dtype", TYPES)
def test_in_any_order_and_checked(checked, cpu, dtype: str) -> None:
    rng = np.random.default_rng(2)
    n_in = max(BLOCKS[dtype][0], 70 if BLOCKS[dtype][0] == 1 else 64)
    for n, n_out in ((1, 1), (1, 7), (2, 5), (3, 7), (7, 3), (9, 5), (33, 33)):
        w, x = random_weight(rng, dtype, n_out, n_in), vectors(rng, n, n_in)
        expect_close(multiply(checked, w, x), cpu, w, x)


@pytest.mark.parametrize("n", [3, 9, 20, 70])
@pytest.mark.parametrize("dtype", ["F16", "BF16", "Q8_0", "Q2_K", "IQ2_XXS", "MXFP4", "F8_E4M3"])
def test_half_precision_tiles(metal_fast, cpu, dtype: str, n: int) -> None:
    rng = np.random.default_rng(n)
    w, x = random_weight(rng, dtype, 130, 512), vectors(rng, n, 512)
    got = multiply(metal_fast, w, x)
    in_float = n <= 8 or dtype in ("F32", "F16", "BF16")
    expect_close(got, cpu, w, x, TOLERANCE if in_float else HALF_TOLERANCE)


@pytest.mark.parametrize("n", [1, 2, 5])
def test_many_rows(metal, cpu, n: int) -> None:
    """Enough for four rows a SIMD-group, and tiles of scales below the first."""
    rng = np.random.default_rng(n)
    for dtype in ("Q8_0", "F8_E4M3", "IQ3_XXS"):
        w, x = random_weight(rng, dtype, 2050, 256), vectors(rng, n, 256)
        expect_close(multiply(metal, w, x), cpu, w, x)


def bundle(ops, weights: list[RandomWeight], x, norm=None) -> list[np.ndarray]:
    items = [
        (w.data, w.dtype, w.n_out) if w.scale is None else (w.data, w.dtype, w.n_out, w.scale)
        for w in weights
    ]
    return ops.matmul_bundle(items, x, norm)


@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("n", [1, 2, 4, 8, 10])
def test_bundle(checked, cpu, n: int, normed: bool) -> None:
    """Products of one x share dispatches: up to eight of up to two types; the norm is done on the way."""
    rng = np.random.default_rng(n)
    types = ["Q8_0", "F16", "F16", "Q8_0", "IQ2_XXS", "IQ3_XXS", "IQ2_XXS", "F32", *["F16"] * 10]
    weights = [random_weight(rng, t, 1 + 5 * i % 17, 256) for i, t in enumerate(types)]
    x, norm = vectors(rng, n, 256), vectors(rng, 1, 256)[0] if normed else None
    got = bundle(checked, weights, x, norm)
    expected = bundle(cpu, weights, x, norm)
    for w, a, b in zip(weights, got, expected, strict=True):
        size = np.abs(b).max() + np.abs(floats_of(cpu, w)).max() * 256**0.5
        assert np.abs(a - b).max() <= 3e-6 * size, w.dtype


def test_dispatches_of_a_bundle(metal, fake) -> None:
    """Of up to eight products and two types; the groups of the output projection are one product."""
    rng = np.random.default_rng(6)
    for types, n_dispatches in (
        (["Q8_0"] * 8, 1),
        (["Q8_0", "F16"] * 4, 1),
        (["Q8_0"] * 9, 2),
        (["Q8_0", "F16", "F32"], 2),
    ):
        weights = [random_weight(rng, t, 3, 64) for t in types]
        before = fake["dispatches"]
        bundle(metal, weights, vectors(rng, 2, 64), vectors(rng, 1, 64)[0])
        assert fake["dispatches"] - before == n_dispatches, types
    w = random_weight(rng, "Q8_0", 24, 64)
    for n in (1, 9):
        before = fake["dispatches"]
        metal.matmul_grouped(w.data, "Q8_0", 8, 3, vectors(rng, n, 512))
        assert fake["dispatches"] - before == 1


def test_norm_of_ragged_rows(metal, cpu) -> None:
    rng = np.random.default_rng(5)
    for n_in in (3, 37, 70, 1061):
        w = random_weight(rng, "F32", 9, n_in)
        x, norm = vectors(rng, 3, n_in) * 100, vectors(rng, 1, n_in)[0]
        (got,), (expected,) = (bundle(ops, [w], x, norm) for ops in (metal, cpu))
        assert np.allclose(got, expected, rtol=1e-5, atol=1e-5 * n_in**0.5)


@pytest.mark.parametrize("n", [1, 3, 8, 9, 35])
@pytest.mark.parametrize("dtype", ["F32", "F8_E4M3", "Q8_0", "IQ2_XXS"])
def test_grouped(checked, cpu, dtype: str, n: int) -> None:
    rng = np.random.default_rng(n)
    for n_groups, rank in ((6, 5), (2, 70)):
        n_in = BLOCKS[dtype][0] if BLOCKS[dtype][0] > 1 else 51
        w = random_weight(rng, dtype, n_groups * rank, n_in)
        x = vectors(rng, n, n_groups * n_in)
        args = (w.data, dtype, n_groups, rank, x, w.scale)
        got, expected = checked.matmul_grouped(*args), cpu.matmul_grouped(*args)
        size = np.abs(floats_of(cpu, w)).max() * n_in**0.5
        assert np.abs(got - expected).max() <= 3e-6 * size


@pytest.mark.parametrize("n", [2, 12])
def test_what_is_not_finite_goes_through(metal, n: int) -> None:
    rng = np.random.default_rng(7)
    for dtype in ("F32", "Q8_0", "Q4_K", "IQ2_XXS"):
        for bad in (np.nan, np.inf, -np.inf):
            w, x = random_weight(rng, dtype, 7, 256), vectors(rng, n, 256)
            x[1, 200] = bad
            y = multiply(metal, w, x)
            touched = ~np.isfinite(y[1])
            assert touched.any() and np.isfinite(y[[i for i in range(n) if i != 1]]).all()
    codes = random_weight(rng, "F8_E4M3", 7, 256)
    codes.data[3 * 256 + 9] = 0xFF
    y = multiply(metal, codes, vectors(rng, n, 256))
    assert np.isnan(y[:, 3]).all() and np.isfinite(np.delete(y, 3, axis=1)).all()
