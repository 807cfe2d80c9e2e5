"""The best logits (metal/sample.metal), dispatched as csrc/backend/metal/ops_sample.cpp does."""

import struct
from pathlib import Path

import numpy as np
import pytest

from tests.metal.conftest import ON_A_MAC

pytestmark = pytest.mark.skipif(
    ON_A_MAC, reason="runs the kernel in the emulator, without a backend"
)

SAMPLE = Path(__file__).parents[2] / "metal" / "sample.metal"
RUN = 2048  # candidates of a threadgroup


@pytest.fixture(params=["seed 1", "seed 2", "seed 3", "checker"])
def top_k(request):
    from tests.metal_emu.library import Library, reports

    race = request.param == "checker"
    library = Library(SAMPLE, race=race)
    seed = 1 if race else int(request.param[-1])

    def run(logits, k):
        candidates, n = None, len(logits)
        while True:
            groups = -(-n // RUN)
            out = np.full(groups * k, -7, np.int32)
            library.run(
                "top_k",
                {
                    0: struct.pack("II", n, k),
                    1: logits,
                    2: np.zeros(4, np.int32) if candidates is None else candidates,
                    3: out,
                },
                groups,
                256,
                constants={0: int(candidates is None)},
                read_only=[1, 2],
                unwritten=[3],
                seed=seed,
            )
            if groups == 1:
                return out
            candidates, n = out, len(out)

    yield run
    assert reports() == []


def expected(logits, k):
    """Descending, the lowest index first among equals, NaN last."""
    order = np.lexsort([np.arange(len(logits)), -logits.astype(np.float64)])[:k]
    return np.append(order, [-1] * (k - len(order)))


@pytest.mark.parametrize("n", [1, 31, 2048, 2049, 5000])
@pytest.mark.parametrize("k", [1, 5, 40])
def test_top_k(top_k, n, k):
    logits = np.random.default_rng(n).standard_normal(n).astype(np.float32)
    np.testing.assert_array_equal(top_k(logits, k), expected(logits, k))


def test_ties_go_to_the_lowest(top_k):
    logits = np.zeros(5000, np.float32)
    logits[[77, 2300, 4999]] = 1
    logits[3] = -0.0
    np.testing.assert_array_equal(top_k(logits, 6), [77, 2300, 4999, 0, 1, 2])
    np.testing.assert_array_equal(top_k(logits, 1), [77])
    logits[[77, 2300, 4999]] = 0
    np.testing.assert_array_equal(top_k(logits, 5), [0, 1, 2, 3, 4])


def test_what_is_not_finite(top_k):
    logits = np.full(3000, -np.inf, np.float32)
    logits[[5, 2500]] = np.nan, np.inf
    np.testing.assert_array_equal(top_k(logits, 3), [2500, 0, 1])
    np.testing.assert_array_equal(top_k(np.full(10, np.nan, np.float32), 2), [0, 1])


def test_flash(top_k):
    logits = np.random.default_rng(0).standard_normal(129280).astype(np.float32)
    np.testing.assert_array_equal(top_k(logits, 1), [logits.argmax()])
