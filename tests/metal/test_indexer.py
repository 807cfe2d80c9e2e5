"""The lightning indexer (metal/indexer.metal): scores against float64, selections exactly."""

import numpy as np
import pytest
from grebe import _engine

from tests.helpers.reference import E2M1

RATIO = 4


def floats(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


def packed_rows(rng, n, dim, spread=3):
    """Random FP4 rows: (u8[n, dim / 2 + dim / 32], the numbers that they hold)."""
    codes = rng.integers(0, 16, (n, dim), dtype=np.uint8)
    scales = rng.integers(127 - spread, 128, (n, dim // 32), dtype=np.uint8)
    rows = np.concatenate([codes[:, ::2] | codes[:, 1::2] << 4, scales], 1)
    values = np.where(codes & 8, -1, 1) * E2M1[codes & 7]
    return rows, values * np.repeat(np.exp2(scales.astype(np.float64) - 127), 32, 1)


def blocks_of(rows, rows_per_block, offset):
    """The history blocks that hold these rows."""
    data = np.ascontiguousarray(rows).view(np.uint8).reshape(len(rows), -1)
    blocks = []
    for first in range(0, len(data), rows_per_block):
        block = np.zeros(offset + rows_per_block * data.shape[1], np.uint8)
        part = data[first : first + rows_per_block].reshape(-1)
        block[offset : offset + len(part)] = part
        blocks.append(block)
    return blocks


def quarter_turns(rng, n, pairs):
    """Rotations that are exact: the order of multiplication and addition shows nowhere."""
    turn = rng.integers(0, 4, (n, pairs))
    return [np.array(t, np.float32)[turn] for t in ([1, 0, -1, 0], [0, 1, 0, -1])]


def rotated(q, cos, sin):
    out, pairs = q.copy(), cos.shape[1]
    tail = out[..., q.shape[-1] - 2 * pairs :]
    u, v = tail[..., ::2].copy(), tail[..., 1::2].copy()
    tail[..., ::2] = u * cos[:, None] - v * sin[:, None]
    tail[..., 1::2] = u * sin[:, None] + v * cos[:, None]
    return out


def scores_of(q, weights, values, packed):
    """f64[n, rows] from queries after the rotation."""
    n, heads, dim = q.shape
    if packed:
        q = _engine.index_round_trip(q.reshape(n * heads, dim))[1].reshape(q.shape)
    dots = np.einsum("nhd,sd->nhs", q.astype(np.float64), values.astype(np.float64))
    scale = np.float32(1 / np.sqrt(dim) / np.sqrt(heads))
    return np.einsum("nhs,nh->ns", np.maximum(dots, 0), (weights * scale).astype(np.float64))


def expect_best(selected, scores, top_k, tolerance):
    """`selected` are the top_k best of the visible rows; what differs by less may be either."""
    visible = len(scores)
    taken = selected[selected >= 0]
    assert len(taken) == min(top_k, visible)
    assert (selected[len(taken) :] == -1).all()
    assert (np.diff(taken) > 0).all() and (taken < visible).all()
    if visible <= top_k:
        return
    last = np.sort(scores)[visible - top_k]
    assert scores[taken].min() >= last - tolerance
    assert np.isin(np.flatnonzero(scores > last + tolerance), taken).all()


def select(ops, q, weights, angles, tasks, top_k, packed=True):
    return ops.index_select_tasks(q, weights, *angles, tasks, RATIO, top_k, packed)


def expect_best_of_random(ops, n_rows, n, heads, dim, top_k, packed):
    rng = np.random.default_rng(n_rows)
    if packed:
        rows, values = packed_rows(rng, n_rows, dim)
    else:
        rows = values = floats(rng, n_rows, dim)
    q, weights = floats(rng, n, heads, dim), floats(rng, n, heads)
    angles = quarter_turns(rng, n, 8)
    # The last query sees all rows, the ones before it perhaps one less.
    pos = RATIO * n_rows - n + 1
    task = dict(row=0, n=n, pos=pos, blocks=blocks_of(rows, 128, 8), rows_per_block=128, offset=8)
    selected = select(ops, q, weights, angles, [task], top_k, packed)
    scores = scores_of(rotated(q, *angles), weights, values, packed)
    for i in range(n):
        visible = (pos + i + 1) // RATIO
        tolerance = 1e-5 * np.abs(scores[i]).max()
        expect_best(selected[i], scores[i, :visible], top_k, tolerance)


@pytest.mark.parametrize("top_k", [1, 8, 512])
@pytest.mark.parametrize(
    ("n_rows", "n", "heads", "dim"),
    [(1, 2, 3, 32), (7, 1, 64, 128), (600, 9, 4, 64), (600, 1, 64, 128), (5000, 1, 3, 32)],
)
@pytest.mark.parametrize("packed", [True, False])
def test_best_rows(metal, top_k, n_rows, n, heads, dim, packed):
    expect_best_of_random(metal, n_rows, n, heads, dim, top_k, packed)


@pytest.mark.parametrize(("n_rows", "n", "heads", "dim"), [(1, 1, 1, 32), (67, 3, 33, 64)])
@pytest.mark.parametrize("packed", [True, False])
def test_ragged_shapes(checked, n_rows, n, heads, dim, packed):
    expect_best_of_random(checked, n_rows, n, heads, dim, 5, packed)


def exact_case(rng, n_rows, n, heads, dim):
    """Small integers everywhere: every sum is exact, and many scores are equal."""
    rows = rng.integers(-1, 2, (n_rows, dim)).astype(np.float32)
    rows[rng.random(n_rows) < 0.5] = rows[0]
    q = rng.integers(-1, 2, (n, heads, dim)).astype(np.float32)
    weights = rng.integers(-2, 3, (n, heads)).astype(np.float32)
    return rows, q, weights


@pytest.mark.parametrize(
    ("n_rows", "top_k"), [(40, 8), (700, 100), (17000, 8), (33000, 600), (9700, 8200)]
)
def test_the_lowest_row_wins_a_tie(metal, cpu, n_rows, top_k):
    # 16 heads of 64 channels: the scale of the weights is a power of two. 17,000 rows are two
    # slices; 8,200 of them are more than slices are good for.
    rng = np.random.default_rng(top_k)
    rows, q, weights = exact_case(rng, n_rows, 2, 16, 64)
    pos = RATIO * n_rows - 2
    scores = scores_of(q, weights, rows, False)
    selected = metal.index_select(q, weights, rows, pos, RATIO, top_k)
    for i in range(2):
        visible = (pos + i + 1) // RATIO
        order = np.argsort(-scores[i, :visible], kind="stable")[:top_k]
        assert np.array_equal(selected[i], np.sort(order))
    assert np.array_equal(selected, cpu.index_select(q, weights, rows, pos, RATIO, top_k))


@pytest.mark.parametrize("top_k", [5, 100])
def test_equal_packed_rows_score_equally(checked, top_k):
    rng = np.random.default_rng(0)
    rows, values = packed_rows(rng, 30, 128)
    pick = rng.integers(0, 30, 333)
    q, weights, angles = floats(rng, 3, 64, 128), floats(rng, 3, 64), quarter_turns(rng, 3, 32)
    task = dict(row=0, n=3, pos=4 * 333, rows_per_block=32, offset=16)
    task["blocks"] = blocks_of(rows[pick], 32, 16)
    selected = select(checked, q, weights, angles, [task], top_k)
    scores = scores_of(rotated(q, *angles), weights, values, True)
    for i in range(3):
        expect_best(selected[i], scores[i, pick], top_k, 1e-5 * np.abs(scores).max())
        taken = selected[i]
        for copy in range(30):  # of equal rows the first ones
            places = np.flatnonzero(pick == copy)
            mine = places[np.isin(places, taken)]
            assert np.array_equal(mine, places[: len(mine)])


def test_sessions_side_by_side(checked, cpu):
    rng = np.random.default_rng(4)
    lengths = [(0, 5), (2400, 1), (77, 20), (801, 3)]  # pos, n
    n, tasks, row, histories = 32, [], 2, []
    for pos, count in lengths:
        rows, values = packed_rows(rng, (pos + count) // RATIO, 64)
        histories.append(values)
        tasks.append(dict(row=row, n=count, pos=pos, blocks=blocks_of(rows, 32, 4)))
        tasks[-1].update(rows_per_block=32, offset=4)
        row += count
    q, weights, angles = floats(rng, n, 5, 64), floats(rng, n, 5), quarter_turns(rng, n, 16)
    selected = select(checked, q, weights, angles, tasks, 16)
    assert np.array_equal(selected < 0, select(cpu, q, weights, angles, tasks, 16) < 0)
    assert (selected[:2] == -2).all() and (selected[row:] == -2).all()
    turned = rotated(q, *angles)
    for task, values in zip(tasks, histories, strict=True):
        at = slice(task["row"], task["row"] + task["n"])
        scores = scores_of(turned[at], weights[at], values, True)
        for i in range(task["n"]):
            visible = (task["pos"] + i + 1) // RATIO
            tolerance = 1e-5 * np.abs(scores[i]).max(initial=0)
            expect_best(selected[task["row"] + i], scores[i, :visible], 16, tolerance)


@pytest.mark.parametrize("offset", [0, 1])
def test_rows_wider_than_a_tile(checked, offset):
    rng = np.random.default_rng(5)
    for dim in (256, 512):
        rows, values = packed_rows(rng, 90, dim)
        q, weights, angles = floats(rng, 2, 33, dim), floats(rng, 2, 33), quarter_turns(rng, 2, 8)
        task = dict(row=0, n=2, pos=359, blocks=blocks_of(rows, 32, offset), rows_per_block=32)
        task["offset"] = offset
        selected = select(checked, q, weights, angles, [task], 10)
        scores = scores_of(rotated(q, *angles), weights, values, True)
        for i in range(2):
            expect_best(selected[i], scores[i], 10, 1e-5 * np.abs(scores[i]).max())


@pytest.mark.parametrize("where", ["row", "q", "weight"])
def test_scores_that_are_not_numbers(checked, where):
    rng = np.random.default_rng(6)
    rows, _ = packed_rows(rng, 300, 64)
    q, weights, angles = floats(rng, 1, 4, 64), floats(rng, 1, 4), quarter_turns(rng, 1, 8)
    if where == "row":
        rows[rng.permutation(300)[:20], 32] = 255
    elif where == "q":
        q[0, 1, 3] = np.nan
    else:
        weights[0, 2] = np.inf
    task = dict(row=0, n=1, pos=1199, blocks=blocks_of(rows, 32, 0), rows_per_block=32, offset=0)
    [selected] = select(checked, q, weights, angles, [task], 50)
    assert len(np.unique(selected)) == 50 and selected.min() >= 0 and selected.max() < 300
    assert (np.diff(selected) > 0).all()
