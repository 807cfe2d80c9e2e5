"""Single operations at Flash's sizes against the oracle's recorded values (tests/vectors/oracle/units.npz)."""

from __future__ import annotations

import grebe
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.helpers import models

engine = grebe._engine
UNITS = dict(np.load(models.VECTORS / "units.npz"))
ISAS = engine.available_isas()


@pytest.fixture(params=ISAS)
def ops(request: pytest.FixtureRequest) -> grebe._engine.BackendOps:
    return engine.BackendOps("cpu", request.param, 2)


@pytest.mark.parametrize(("kind", "compressed"), [("main", False), ("compress", True)])
def test_rope_frequencies(kind: str, compressed: bool) -> None:
    expected = UNITS[f"rope_inv_freq_{kind}"]
    ours = engine.rope_frequencies(compressed)
    assert (
        np.abs(ours / expected - 1).max() <= 2.0**-23
    )  # one unit in the last place: powf differs between libraries


@pytest.mark.parametrize(
    ("name", "compressed", "inverse"),
    [
        ("rope_main", False, False),
        ("rope_compress", True, False),
        ("rope_compress_inverse", True, True),
    ],
)
def test_rope_up_to_the_last_position(name: str, compressed: bool, inverse: bool) -> None:
    assert UNITS["rope_pos"].max() == 1048575
    ours = engine.rope(UNITS["rope_x"], UNITS["rope_pos"], compressed, inverse)
    # One ulp in a frequency turns the angle at 1,048,575 by up to 0.06 rad, so compare where the frequencies are equal.
    kind = "compress" if compressed else "main"
    same = engine.rope_frequencies(compressed) == UNITS[f"rope_inv_freq_{kind}"]
    assert same.mean() > 0.6
    channels = np.concatenate([np.ones(448, bool), np.repeat(same, 2)])
    assert (
        np.abs(ours - UNITS[name])[..., channels].max() <= 1e-6 * np.abs(UNITS["rope_x"]).max() * 2
    )


@pytest.mark.parametrize("isa", ISAS)
def test_fp8_rows_are_exact(isa: str) -> None:
    x = np.concatenate([UNITS["fp8_x"], np.ones((64, 64), np.float32)], axis=1)
    y, row_bytes = engine.kv_round_trip(x, 64, "bf16", isa)
    assert row_bytes == 584
    assert np.array_equal(y[:, :448], UNITS["fp8_y"])
    again, _ = engine.kv_round_trip(y, 64, "bf16", isa)
    assert np.array_equal(again, y)  # what is stored is what is there


def test_index_rows_are_exact() -> None:
    turned, rounded, row_bytes = engine.index_round_trip(UNITS["index_x"])
    assert row_bytes == 68
    assert np.abs(turned - UNITS["index_hadamard"]).max() <= 4e-7 * np.abs(turned).max()
    # The oracle rounds its own float32 transform; a value that lies on a boundary may fall to either side.
    assert (rounded == UNITS["index_fp4"]).mean() >= 0.999


def test_hyper_connection(ops: grebe._engine.BackendOps) -> None:
    """fn is the identity on the first 24 channels; channel 24 makes the RMS one, so the mix arrives as it is."""
    mix = UNITS["hc_mix"].astype(np.float64)
    n, d = len(mix), 256
    X = np.zeros((n, 4 * d))
    X[:, :24] = mix
    X[:, 24] = np.sqrt(4 * d * (1 - 1e-6) - (mix**2).sum(1))
    X = X.astype(np.float32).reshape(n, 4, d)
    fn = np.zeros((24, 4 * d), np.float32)
    fn[:, :24] = np.eye(24)
    norm = np.linspace(0.5, 1.5, d).astype(np.float32)
    x, post, comb = ops.hc_pre(X, fn, UNITS["hc_base"], UNITS["hc_scale"], norm)
    assert np.abs(post - UNITS["hc_post"]).max() <= 2e-6
    assert np.abs(comb - UNITS["hc_comb"]).max() <= 2e-6
    collapsed = (UNITS["hc_pre"][:, :, None] * X).sum(1)
    collapsed /= np.sqrt((collapsed**2).mean(1, keepdims=True) + 1e-6)
    assert np.abs(x - collapsed * norm).max() <= 1e-5 * np.abs(x).max()

    y = np.random.default_rng(0).standard_normal((n, d)).astype(np.float32)
    expected = post[:, :, None] * y[:, None] + np.einsum("tjk,tjd->tkd", comb.astype(np.float64), X)
    out = ops.hc_post(X, y, post, comb)
    assert np.abs(out - expected).max() <= 4e-7 * np.abs(expected).max()


def test_router(ops: grebe._engine.BackendOps) -> None:
    experts, weights = ops.route(UNITS["router_logits"], UNITS["router_bias"], 6, 1.5)
    assert np.array_equal(experts, UNITS["router_pick"])
    assert np.abs(weights - UNITS["router_weight"]).max() <= 1e-6


def test_router_bias_chooses_but_does_not_weigh(ops: grebe._engine.BackendOps) -> None:
    logits = np.zeros((1, 8), np.float32)
    bias = np.zeros(8, np.float32)
    bias[5] = 3
    experts, weights = ops.route(logits, bias, 2, 1.0)
    assert experts.tolist() == [[5, 0]]
    assert weights.tolist() == [[0.5, 0.5]]


def test_pooling(ops: grebe._engine.BackendOps) -> None:
    rows = ops.pool(UNITS["pool4_kv"], UNITS["pool4_score"], np.zeros((4, 1024), np.float32), 512)
    assert np.abs(rows - UNITS["pool4_rows"]).max() <= 2e-6


def test_pooling_ratio_128(ops: grebe._engine.BackendOps) -> None:
    rng = np.random.default_rng(3)
    kv, gate = (rng.standard_normal((300, 64)).astype(np.float32) for _ in range(2))
    ape = rng.standard_normal((128, 64)).astype(np.float32)
    e = np.exp((gate[:256].astype(np.float64) + np.tile(ape, (2, 1))).reshape(2, 128, 64))
    expected = (e * kv[:256].reshape(2, 128, 64)).sum(1) / e.sum(1)
    assert np.abs(ops.pool(kv, gate, ape, 64) - expected).max() <= 2e-6


def test_attention_with_sink(ops: grebe._engine.BackendOps) -> None:
    out = ops.attention(UNITS["attn_q"], UNITS["attn_rows"], UNITS["attn_sink"])
    assert np.abs(out - UNITS["attn_out"]).max() <= 2e-6


@pytest.mark.parametrize("n_rows", [1, 63, 64, 65, 200])
@pytest.mark.parametrize("heads", [1, 4, 15, 16, 17, 40])
def test_attention_shapes(ops: grebe._engine.BackendOps, n_rows: int, heads: int) -> None:
    rng = np.random.default_rng(n_rows * 100 + heads)
    q = rng.standard_normal((heads, 128)).astype(np.float32)
    rows = rng.standard_normal((n_rows, 128)).astype(np.float32)
    sinks = rng.standard_normal(heads).astype(np.float32)
    s = q.astype(np.float64) @ rows.T / np.sqrt(128)
    e = np.exp(s)
    expected = (e / (e.sum(1) + np.exp(sinks))[:, None]) @ rows
    assert np.abs(ops.attention(q, rows, sinks) - expected).max() <= 5e-6


def reference_selection(
    q: NDArray, w: NDArray, rows: NDArray, visible: int, top_k: int
) -> list[int]:
    heads, d = q.shape
    score = (np.maximum(q.astype(np.float64) @ rows[:visible].T, 0) * w[:, None]).sum(0)
    chosen = sorted(np.argsort(-score / np.sqrt(d * heads), kind="stable")[:top_k].tolist())
    return chosen + [-1] * (top_k - len(chosen))


@pytest.mark.parametrize(("n_rows", "top_k"), [(10, 16), (16, 16), (17, 16), (100, 16), (333, 1)])
def test_index_selection(ops: grebe._engine.BackendOps, n_rows: int, top_k: int) -> None:
    rng = np.random.default_rng(n_rows)
    q = rng.standard_normal((3, 8, 128)).astype(np.float32)
    w = rng.standard_normal((3, 8)).astype(np.float32)
    rows = rng.standard_normal((n_rows, 128)).astype(np.float32)
    pos = 4 * n_rows - 2  # the three queries see n_rows - 1, n_rows and n_rows rows
    chosen = ops.index_select(q, w, rows, pos - 1, 4, top_k)
    for i in range(3):
        visible = (pos - 1 + i + 1) // 4
        assert chosen[i].tolist() == reference_selection(q[i], w[i], rows, visible, top_k)


def test_index_selection_ties_go_to_the_lowest_row(ops: grebe._engine.BackendOps) -> None:
    q = np.ones((1, 1, 32), np.float32)
    rows = np.ones((12, 32), np.float32)
    rows[7] = 2
    rows[9] = -1
    chosen = ops.index_select(q, np.ones((1, 1), np.float32), rows, 47, 4, 4)
    assert chosen.tolist() == [[0, 1, 2, 7]]


def test_swiglu(ops: grebe._engine.BackendOps) -> None:
    gate, up = UNITS["swiglu_gate"], UNITS["swiglu_up"]
    _n, ff = gate.shape
    x = np.concatenate([gate, up], axis=1)
    eye, zero = np.eye(ff, dtype=np.float32), np.zeros((ff, ff), np.float32)
    y = ops.swiglu_mlp(
        x, np.hstack([eye, zero]), np.hstack([zero, eye]), np.vstack([eye, zero]), 10.0
    )
    assert np.abs(y[:, :ff] - UNITS["swiglu_out"]).max() <= 1e-6 * np.abs(UNITS["swiglu_out"]).max()
    assert not y[:, ff:].any()
