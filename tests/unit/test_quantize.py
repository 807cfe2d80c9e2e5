"""The quantizers: bytes that the `gguf` package reads as we do, small errors, the same everywhere."""

from __future__ import annotations

import gguf
import gguf.quants
import numpy as np
import pytest
from grebe import InvalidArgumentError, _engine

TYPES = _engine.quantizable_dtypes()
BLOCK = {t: 32 if t in ("Q8_0", "MXFP4") else 256 for t in TYPES}
# Weighted squared error over the weighted sum of squares: 1.05 times what was measured on 64 x 1024
# numbers. Rounding to nearest in the largest range is 1.1 to 2 times as bad.
GAUSSIAN = {
    "Q8_0": 2.6e-5, "Q2_K": 7.1e-2, "Q4_K": 5.2e-3, "Q5_K": 1.26e-3, "Q6_K": 2.96e-4,
    "IQ2_XXS": 0.1125, "IQ2_S": 6.0e-2, "IQ3_XXS": 3.3e-2, "MXFP4": 1.31e-2,
}  # fmt: skip


def theirs(dtype: str, data: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    with np.errstate(all="ignore"):
        number = gguf.GGMLQuantizationType[dtype]
        return gguf.quants.dequantize(data.reshape(shape[0], -1), number).reshape(shape)


def error(back: np.ndarray, x: np.ndarray, w: np.ndarray | None = None) -> float:
    w = np.ones(x.shape[1]) if w is None else w
    wide = x.astype(np.float64)
    return float((w * (back - wide) ** 2).sum() / (w * wide**2).sum())


def gaussian(n_rows: int, n_in: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n_rows, n_in), np.float32)


def inputs(block: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(5)
    n = 3 * block  # an odd number of blocks: some families work on two or sixteen at once
    x = gaussian(2, n)
    spike = np.zeros((2, n), np.float32)
    spike[0, 7], spike[1, -1] = 3, -0.25
    return {
        "gaussian": x,
        "heavy": rng.standard_t(2, (2, n)).astype(np.float32),
        "zeros": np.zeros((2, n), np.float32),
        "negative": -np.abs(x),
        "positive": np.abs(x) + 5,
        "constant": np.full((2, n), -1.5, np.float32),
        "spike": spike,
        "tiny": x * np.float32(1e-7),
        "denormal": x * np.float32(1e-40),
        "large": x * np.float32(1e5),
    }


@pytest.mark.parametrize("dtype", TYPES)
def test_the_gguf_package_reads_the_same_numbers(dtype):
    for name, x in inputs(BLOCK[dtype]).items():
        data = _engine.quantize(dtype, x)
        ours = _engine.dequantize(dtype, data, *x.shape)
        np.testing.assert_array_equal(ours, theirs(dtype, data, x.shape), err_msg=name)
        assert np.isfinite(ours).all(), name


@pytest.mark.parametrize("dtype", [*TYPES, "Q3_K", "F16", "BF16", "F32"])
def test_any_bytes_are_read_as_the_gguf_package_reads_them(dtype):
    block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[dtype]]
    data = np.random.default_rng(3).integers(0, 256, 64 * size, np.uint8)
    data = data.reshape(64, -1) if dtype == "F32" else data
    shape = (64, block)
    expected = theirs(dtype, data.reshape(64, -1), shape)
    np.testing.assert_array_equal(_engine.dequantize(dtype, data.reshape(-1), *shape), expected)


@pytest.mark.parametrize("dtype", TYPES)
def test_the_error_of_gaussian_weights_is_as_measured(dtype):
    x = gaussian(64, 1024)
    back = _engine.dequantize(dtype, _engine.quantize(dtype, x), *x.shape)
    assert error(back, x) < GAUSSIAN[dtype]


@pytest.mark.parametrize("dtype", TYPES)
def test_importance_moves_the_error_to_where_it_costs_less(dtype):
    x = gaussian(32, 512, seed=1)
    w = np.exp(np.random.default_rng(2).standard_normal(512) * 1.5).astype(np.float32)
    plain = _engine.dequantize(dtype, _engine.quantize(dtype, x), *x.shape)
    weighted = _engine.dequantize(dtype, _engine.quantize(dtype, x, w), *x.shape)
    assert error(weighted, x, w) < error(plain, x, w)
    # Only ratios count, and no importance at all is equal importance.
    same = _engine.quantize(dtype, x, w * np.float32(2**20))
    np.testing.assert_array_equal(same, _engine.quantize(dtype, x, w))
    for flat in (np.zeros(512, np.float32), np.full(512, 3, np.float32)):
        np.testing.assert_array_equal(_engine.quantize(dtype, x, flat), _engine.quantize(dtype, x))


@pytest.mark.parametrize("dtype", TYPES)
def test_bytes_do_not_depend_on_threads_or_instruction_set(dtype):
    x = gaussian(9, 768, seed=4) ** 3
    w = np.abs(gaussian(1, 768, seed=6))[0]
    expected = _engine.quantize(dtype, x, w, n_threads=1)
    np.testing.assert_array_equal(_engine.quantize(dtype, x, w, n_threads=4), expected)
    for isa in _engine.available_isas():
        np.testing.assert_array_equal(_engine.quantize(dtype, x, w, isa=isa), expected, err_msg=isa)


def test_weights_on_an_mxfp4_grid_come_out_exactly():
    rng = np.random.default_rng(8)
    grid = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
    x = grid[rng.integers(0, 8, (16, 256))] * rng.choice(np.float32([-1, 1]), (16, 256))
    x *= np.exp2(rng.integers(-30, 30, (16, 8))).astype(np.float32).repeat(32, 1)
    back = _engine.dequantize("MXFP4", _engine.quantize("MXFP4", x), *x.shape)
    np.testing.assert_array_equal(back, x)
    # Q8_0 and Q6_K can hold them too, as long as their scales can.
    x = grid[rng.integers(0, 8, (16, 256))] * rng.choice(np.float32([-1, 1]), (16, 256))
    x *= np.exp2(rng.integers(-8, -4, (16, 8))).astype(np.float32).repeat(32, 1)
    for dtype in ("Q8_0", "Q6_K"):
        back = _engine.dequantize(dtype, _engine.quantize(dtype, x), *x.shape)
        np.testing.assert_array_equal(back, x, err_msg=dtype)


@pytest.mark.parametrize("dtype", TYPES)
def test_what_was_quantized_once_hardly_changes(dtype):
    x = gaussian(4, 512, seed=9)
    once = _engine.dequantize(dtype, _engine.quantize(dtype, x), *x.shape)
    twice = _engine.dequantize(dtype, _engine.quantize(dtype, once), *x.shape)
    assert error(twice, once) < 0.15 * error(once, x) + 1e-9


def test_no_rows_is_no_bytes():
    assert _engine.quantize("Q4_K", np.empty((0, 256), np.float32)).size == 0


def test_arguments_that_cannot_be():
    x = gaussian(2, 256)
    for call, words in (
        (lambda: _engine.quantize("Q4_K", gaussian(2, 250)), "250 do not divide"),
        (lambda: _engine.quantize("F16", x), "no quantizer for 'F16'"),
        (lambda: _engine.quantize("Q4_K", x, np.ones(255, np.float32)), "255 columns"),
        (
            lambda: _engine.quantize("Q4_K", x, np.full(256, -1, np.float32)),
            "importance of column 0",
        ),
        (lambda: _engine.quantize("Q4_K", x, np.full(256, np.inf, np.float32)), "importance"),
    ):
        with pytest.raises(InvalidArgumentError, match=words):
            call()
    for bad in (np.nan, np.inf):
        x[1, 17] = bad
        with pytest.raises(InvalidArgumentError, match="row 1, column 17"):
            _engine.quantize("Q2_K", x)
