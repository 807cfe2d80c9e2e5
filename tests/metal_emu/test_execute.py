"""Kernels compute what numpy computes, in every order of execution, and the checker finds nothing."""

from __future__ import annotations

import numpy as np
import pytest

from .library import Library, stats

SEEDS = [0, 1, 2, 3]
PLAIN_AND_CHECKED = pytest.mark.parametrize("race", [False, True], ids=["plain", "checked"])


def to_bf16(x: np.ndarray) -> np.ndarray:
    bits = x.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def from_bf16(x: np.ndarray) -> np.ndarray:
    return (x.astype(np.uint32) << 16).view(np.float32)


@PLAIN_AND_CHECKED
@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("seed", SEEDS)
def test_reduce(library, race, dtype, seed):
    rows, n = 7, 1001
    values = np.random.default_rng(0).standard_normal((rows, n)).astype(np.float32)
    x = {"f32": values, "f16": values.astype(np.float16), "bf16": to_bf16(values)}[dtype]
    exact = from_bf16(x) if dtype == "bf16" else x.astype(np.float64)
    args = np.array([(n, 0.5)], np.dtype("u4, f4"))
    y = np.full(rows, np.nan, np.float32)
    library("reduce", race).run(
        f"reduce_rows_{dtype}",
        {0: args, 1: x, 2: y},
        groups=rows,
        threads=256,
        constants={0: 1, 1: 8},
        read_only={0, 1},
        unwritten={2},
        seed=seed,
        n_workers=2,
    )
    np.testing.assert_allclose(y, (exact.astype(np.float64) ** 2).sum(1) * 0.5, rtol=1e-5)


@PLAIN_AND_CHECKED
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("rows_per_simd", [2, 4])
def test_matvec(library, race, seed, rows_per_simd):
    rows, columns, simds = 43, 1024, 4
    rng = np.random.default_rng(1)
    w = np.zeros((rows, columns // 32), np.dtype([("scale", "f2"), ("values", "i1", 32)]))
    w["scale"] = rng.uniform(0.5, 1.5, w.shape)
    w["values"] = rng.integers(-127, 128, (*w.shape, 32))
    x = rng.standard_normal(columns).astype(np.float32)
    y = np.full(rows, np.nan, np.float32)
    library("matvec", race).run(
        f"matvec_{rows_per_simd}",
        {0: np.array([rows, columns], np.uint32), 1: w, 2: x, 3: y},
        groups=-(-rows // (rows_per_simd * simds)),
        threads=32 * simds,
        threadgroup_bytes=4 * columns,
        immutable={1, 2},
        seed=seed,
    )
    weights = (w["values"] * w["scale"][..., None].astype(np.float64)).reshape(rows, columns)
    np.testing.assert_allclose(y, weights @ x, rtol=1e-5, atol=1e-4 * np.abs(y).max())


@PLAIN_AND_CHECKED
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize(("m", "n", "k"), [(1, 1, 1), (13, 9, 21), (16, 8, 32)])
@pytest.mark.parametrize("seed", SEEDS[1:])
def test_matmul(library, race, dtype, m, n, k, seed):
    rng = np.random.default_rng(2)
    a = rng.standard_normal((m, k)).astype(dtype)
    b = rng.standard_normal((n, k)).astype(np.float16)
    c = np.full((m, n), np.nan, np.float32)
    library("matmul", race).run(
        "matmul_f32" if dtype == np.float32 else "matmul_f16",
        {0: np.array([m, n, k], np.uint32), 1: a, 2: b, 3: c},
        groups=(-(-n // 8), -(-m // 8)),
        threads=32,
        read_only={1, 2},
        unwritten={3},
        seed=seed,
    )
    exact = a.astype(np.float64) @ b.astype(np.float64).T
    np.testing.assert_allclose(c, exact, rtol=1e-5, atol=1e-5 * np.sqrt(k))


@PLAIN_AND_CHECKED
def test_matrices_from_device_memory(library, race):
    m, n, k = 16, 24, 32
    rng = np.random.default_rng(3)
    a = rng.standard_normal((m, k)).astype(np.float32)
    b = rng.standard_normal((n, k)).astype(np.float32)
    c = np.zeros((m, n), np.float32)
    library("matmul", race).run(
        "matmul_whole",
        {0: np.array([m, n, k], np.uint32), 1: a, 2: b, 3: c},
        groups=(n // 8, m // 8),
        threads=32,
    )
    np.testing.assert_allclose(c, 2 * a.astype(np.float64) @ b.T, rtol=1e-5, atol=1e-5)


def test_work_is_counted(library):
    stats()
    x, y = np.ones((1, 64), np.float32), np.zeros(1, np.float32)
    args = np.array([(64, 1.0)], np.dtype("u4, f4"))
    buffers = {0: args, 1: x, 2: y}
    library("reduce").run("reduce_rows_f32", buffers, 1, 64, constants={0: 0, 1: 2})
    done = stats()
    assert (done["threads"], done["collectives"], done["barriers"]) == (64, 3, 1)
    assert done["switches"] >= 2 * 64


def test_equal_texts_are_compiled_once(library, tmp_path, monkeypatch):
    monkeypatch.setenv("METAL_EMU_CACHE", str(tmp_path))
    text = "#include <metal_stdlib>\nkernel void k(device float* y [[buffer(0)]]) { y[0] = 1; }\n"
    first = Library(text).path
    written = first.stat().st_mtime_ns
    assert Library(text).path == first
    assert first.stat().st_mtime_ns == written
    assert Library(text, race=True).path != first
    assert [path.suffix for path in tmp_path.iterdir()] == [".so", ".so"]  # nothing half-written
