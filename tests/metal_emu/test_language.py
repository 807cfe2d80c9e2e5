"""Corners of Metal and of its library, against values worked out by hand or by numpy."""

from __future__ import annotations

import numpy as np
import pytest

from .compiler import CompileError
from .library import IMMUTABLE, WRITABLE, KernelError, Library, reports

pytestmark = pytest.mark.parametrize("race", [False, True], ids=["plain", "checked"])


def run(library, race, kernel, outputs, *inputs, groups=1, threads=1, **options):
    """Runs a kernel of language.metal whose last buffer is its output."""
    buffers = dict(enumerate([*inputs, outputs]))
    library("language", race).run(kernel, buffers, groups, threads, **options)
    return outputs


def test_literals(library, race):
    y = run(library, race, "literals", np.zeros(9, np.float32))
    half = np.float16(0.1)
    expected = [1 / 3, half, 512, 2048, half + np.float16(0.2), 10 + 2**-9, 1, 2, 6]
    np.testing.assert_array_equal(y, np.array(expected, np.float32))


def test_vectors(library, race):
    packed = np.arange(1, 7, dtype=np.float32)
    y = np.zeros((10, 4), np.float32)
    library("language", race).run("vectors", {0: y, 1: packed}, 1, 1)
    expected = [
        [4, 3, 2, 1],
        [1, 2, 7, 8],
        [1, 2, 0, 0],
        [4, 5, 6, 1],
        [-0.5, 1, -1.5, 2],
        [1.5, 2, 3, 3.5],
        [-1, -2, -3, -4],
        [1, 0, 30, np.sqrt(5)],
        [0.5, 1, 1.5, 2],
        [2, 1, 2, 1],
    ]
    np.testing.assert_allclose(y, expected, rtol=1e-6)


def test_functions(library, race):
    x = np.array([0.7, np.nan, np.inf], np.float32)
    y = run(library, race, "functions", np.zeros(14, np.float32), x)
    v = np.float64(x[0])
    expected = [np.exp(v), np.exp(v), np.log(v), v**-0.5, v**1.5, v * v - 1, 2, -1]
    expected += [np.tanh(v), -v, 0.75, 1, 1, 32]
    np.testing.assert_allclose(y, expected, rtol=1e-6)


@pytest.mark.parametrize("given", [True, False])
def test_integers_and_function_constants(library, race, given):
    x = 0xF0F1A2B0
    constants = {3: 7, 4: 99} if given else {3: 7}
    outputs = np.zeros(15, np.uint32)
    y = run(library, race, "integers", outputs, np.array([x], np.uint32), constants=constants)
    field = x >> 4 & 0xFF  # 0x2b
    expected = [x.bit_count(), 4, 0, field, field, (x & ~0xFF0) | 0x50]
    expected += [(x << 8 | x >> 24) & 0xFFFFFFFF, int(f"{x:032b}"[::-1], 2), x * x >> 32]
    expected += [32, 15, 8, 7, 7, 99 if given else 17]
    assert y.tolist() == expected


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_simd_functions(library, race, seed):
    x = np.random.default_rng(0).standard_normal(32).astype(np.float32)
    y = run(
        library, race, "simd_functions", np.zeros((13, 32), np.float32), x, threads=32, seed=seed
    )
    lanes = np.arange(32)
    same = np.ones(32)
    expected = [
        same * x.sum(dtype=np.float64),
        same * x.max(),
        same * x.min(),
        np.cumsum(x),
        np.cumsum(x) - x,
        x[::-1],
        x[lanes ^ 5],
        x[np.minimum(lanes + 1, 31)],
        x[np.maximum(lanes - 1, 0)],
        same * x[3],
        same * float(sum(1 << i for i in range(0, 32, 3))),
        same,
        np.where(lanes < 10, 10, 0),
    ]
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_array_references(library, race, seed):
    y = run(library, race, "array_references", np.zeros(32, np.float32), threads=32, seed=seed)
    np.testing.assert_array_equal(y, np.arange(32)[::-1])


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_atomics(library, race, seed):
    total, largest = np.zeros(1, np.uint32), np.zeros(1, np.uint32)
    library("language", race).run("count", {0: total, 1: largest}, 5, 64, seed=seed)
    assert (total[0], largest[0]) == (640, 319)


def test_positions_in_a_ragged_grid(library, race):
    y = np.zeros((5, 7, 4), np.uint32)
    buffers = {0: y}
    library("language", race).run("positions", buffers, (7, 5), (4, 2), by_threads=True, seed=1)
    row, column = np.mgrid[0:5, 0:7]
    shape = np.where(row == 4, 1, 2) * 16 + np.where(column >= 4, 3, 4)
    expected = [row // 2 * 16 + column // 4, row % 2 * 16 + column % 4, shape, np.full((5, 7), 5)]
    np.testing.assert_array_equal(y, np.stack(expected, -1))


def test_addresses_in_tables(library, race):
    blocks = [np.array([i, 10 * i], np.float32) for i in range(4)]
    table = np.array([block.ctypes.data for block in blocks], np.uint64)
    y = np.zeros(4, np.float32)
    buffers = {0: table, 1: table, 2: y}
    indirect = [(block, IMMUTABLE) for block in blocks]
    library("language", race).run("through_addresses", buffers, 1, 4, indirect=indirect, hazard=1)
    np.testing.assert_array_equal(y, [0, 11, 22, 33])
    target = np.zeros(2, np.float32)
    addresses = np.array([target.ctypes.data, target.ctypes.data + 4], np.uint64)
    indirect = [(target, WRITABLE)]
    library("language", race).run("write_through", {0: addresses}, 1, 2, indirect=indirect)
    np.testing.assert_array_equal(target, [1, 1])


# ---- what Metal refuses of a dispatch ----


def refused(library, kernel, buffers, groups, threads, **options) -> str:
    with pytest.raises(KernelError) as error:
        library.run(kernel, buffers, groups, threads, **options)
    assert reports() == [str(error.value)]
    return str(error.value)


def test_refusals(library, race):
    reduce, language = library("reduce", race), library("language", race)
    y = np.zeros(64, np.float32)
    buffers = {0: y, 1: y, 2: y}
    name = "reduce_rows_f32"
    assert "exceed max_total_threads_per_threadgroup(256)" in refused(reduce, name, buffers, 1, 288)
    assert "1 to 1024 threads" in refused(language, "literals", buffers, 1, 1056)
    assert "1 to 1024 threads" in refused(language, "literals", buffers, 1, 0)
    assert "grid is empty" in refused(language, "literals", buffers, 0, 32)
    assert "buffer 2 is not bound" in refused(reduce, name, {0: y, 1: y}, 1, 32)
    assert "no multiple of 16" in refused(language, "literals", buffers, 1, 1, threadgroup_bytes=20)
    assert "more than 32768" in refused(
        language, "literals", buffers, 1, 1, threadgroup_bytes={0: 32768, 1: 16}
    )
    matvec = library("matvec", race)
    buffers = dict.fromkeys(range(4), y)
    assert "threadgroup memory 0 has no length" in refused(matvec, "matvec_2", buffers, 1, 32)
    with pytest.raises(KernelError, match="no kernel nothing; there are reduce_rows_f32,"):
        reduce.run("nothing", {}, 1, 1)


def test_errors_name_the_line(race):
    text = (
        '#line 7 "metal/some.metal"\nkernel void k(device float* y [[buffer(0)]]) { y[0] = z; }\n'
    )
    with pytest.raises(CompileError, match=r"metal/some\.metal:7:\d+: error: use of undeclared"):
        Library(text, race)
    with pytest.raises(CompileError, match=r"metal/some\.metal:7: error: parameter without attr"):
        Library(text.replace(" [[buffer(0)]]", ""), race)
