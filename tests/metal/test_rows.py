"""The rows that a step adds to the cache (metal/rows.metal) against the CPU backend."""

import numpy as np
import pytest
from grebe import _engine

from tests.helpers.reference import E2M1, E4M3

FORMATS = ["bf16", "f32", "off"]
ROPE = 32  # rotated channels

# Sums of up to 544 squares and 128 exponentials in float32, in another order than the CPU.
TOLERANCE = dict(rtol=3e-5, atol=3e-6)


def floats(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


def angles(positions, compressed=True):
    cos, sin = _engine.rope_table(np.asarray(positions, np.int64), compressed)
    return np.ascontiguousarray(cos[:, : ROPE // 2]), np.ascontiguousarray(sin[:, : ROPE // 2])


def e8m0(scales, block):
    """Scale bytes as factors of `block` numbers each; 255 is NaN."""
    factors = np.where(scales == 255, np.nan, np.exp2(scales.astype(np.float64) - 127))
    return np.repeat(factors, block, axis=1)


def unpack_kv(rows, dim, form):
    """The numbers that packed KV rows hold: float32."""
    if form == "off":
        return rows.view(np.float32)
    nope, width = dim - ROPE, 2 if form == "bf16" else 4
    scales = rows[:, nope + ROPE * width :]
    table = np.append(E4M3, np.nan)
    codes = np.where(rows[:, :nope] & 128, -1, 1) * table[rows[:, :nope] & 127]
    values = codes * e8m0(scales[:, : nope // 64], 64)
    tail = np.ascontiguousarray(rows[:, nope : nope + ROPE * width])
    if form == "bf16":
        tail = (tail.view(np.uint16).astype(np.uint32) << 16).view(np.uint8)
    assert not scales[:, nope // 64 :].any(), "padding is zero"
    return np.concatenate([values.astype(np.float32), tail.view(np.float32)], 1)


def unpack_index(rows, dim, form):
    if form == "off":
        return rows.view(np.float32)
    codes = np.stack([rows[:, : dim // 2] & 15, rows[:, : dim // 2] >> 4], 2).reshape(-1, dim)
    values = np.where(codes & 8, -1, 1) * E2M1[codes & 7]
    return (values * e8m0(rows[:, dim // 2 :], 32)).astype(np.float32)


def expect_packed(rows, plain, form, kind):
    """`rows` are what the CPU makes of the floats `plain`, byte for byte."""
    dim = plain.shape[1]
    if form == "off":
        assert np.array_equal(rows.view(np.float32), plain)
    elif kind == "kv":
        values, row_bytes = _engine.kv_round_trip(plain, ROPE, form)
        assert rows.shape[1] == row_bytes
        assert np.array_equal(unpack_kv(rows, dim, form), values)
    else:
        _, values, row_bytes = _engine.index_round_trip(plain)
        assert rows.shape[1] == row_bytes
        assert np.array_equal(unpack_index(rows, dim, form), values)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(("n", "dim"), [(1, 96), (3, 32), (5, 160), (2, 544)])
def test_kv_rows(checked, cpu, form, n, dim):
    rng = np.random.default_rng(n)
    kv = floats(rng, n, dim) * np.exp(2 * rng.standard_normal((n, 1))).astype(np.float32)
    kv[0, : min(dim - ROPE, 64)] *= 1e-7  # below the smallest scale
    norm, (cos, sin) = floats(rng, dim), angles(range(7, 7 + n))
    plain = checked.kv_rows(kv, norm, cos, sin, "off").view(np.float32)
    np.testing.assert_allclose(
        plain, cpu.kv_rows(kv, norm, cos, sin, "off").view(np.float32), **TOLERANCE
    )
    expect_packed(checked.kv_rows(kv, norm, cos, sin, form), plain, form, "kv")


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_stays_so(metal, form, bad):
    rng = np.random.default_rng(0)
    kv, norm, (cos, sin) = floats(rng, 2, 160), floats(rng, 160), angles([3, 4])
    norm[5] = bad
    values = unpack_kv(metal.kv_rows(kv, norm, cos, sin, form), 160, form)
    assert not np.isfinite(values[:, 5]).any()
    if form != "off":
        assert np.isnan(values[:, :64]).all()  # one scale
    assert np.isfinite(values[:, 64:]).all()


@pytest.mark.parametrize(
    ("ratio", "dim", "n"), [(4, 96, 21), (128, 96, 130), (128, 64, 127), (4, 544, 4)]
)
def test_pool_alone(checked, cpu, ratio, dim, n):
    rng = np.random.default_rng(ratio)
    width = 2 * dim if ratio == 4 else dim
    args = floats(rng, n, width), 4 * floats(rng, n, width), floats(rng, ratio, width), dim
    np.testing.assert_allclose(checked.pool(*args), cpu.pool(*args), **TOLERANCE)


class Layer:
    """Compressors of one layer, the rows of all sessions' tokens, and a step of them."""

    def __init__(self, ratio, dims, seed=0):
        self.rng = np.random.default_rng(seed)
        self.ratio, self.dims = ratio, dims
        self.fixed = [
            dict(
                kind=kind, ape=floats(self.rng, ratio, self.width(dim)), norm=floats(self.rng, dim)
            )
            for kind, dim in dims
        ]

    def width(self, dim):
        return 2 * dim if self.ratio == 4 else dim

    def tokens(self, n):
        return [
            [floats(self.rng, n, self.width(dim)), 3 * floats(self.rng, n, self.width(dim))]
            for _, dim in self.dims
        ]

    def step(self, ops, parts, form="bf16", raw=None):
        """parts: (tokens, pos, states or None, checkpoints), one for each session."""
        row, tasks, rope_pos = 0, [], []
        for tokens, pos, states, checkpoints in parts:
            n = len(tokens[0][0])
            tasks.append(dict(row=row, n=n, pos=pos, checkpoints=checkpoints))
            if states is not None:
                tasks[-1]["states"] = states
            first, end = pos // self.ratio, (pos + n) // self.ratio
            rope_pos += [self.ratio * r for r in range(first, end)]
            row += n
        streams = [
            dict(
                f,
                kv=np.concatenate([tokens[i][0] for tokens, *_ in parts]),
                gate=np.concatenate([tokens[i][1] for tokens, *_ in parts]),
            )
            for i, f in enumerate(self.fixed)
        ]
        return ops.pool_store(
            streams, tasks, self.ratio, *angles(rope_pos), form, 3, offset=8, raw=raw
        )


def same(a, b, exact):
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        if exact:
            assert np.array_equal(x, y)
        else:
            assert np.array_equal(np.isinf(x), np.isinf(y))
            np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5)


CUTS = [
    (4, [130], [64, 128, 130]),
    (4, [1] * 9, [5]),
    (4, [6, 1, 2, 9, 3], [3, 7, 16]),
    (128, [130], [128]),
    (128, [127, 1, 1, 130], [128, 200, 256]),
    (128, [100, 20, 20], [110]),
]


@pytest.mark.parametrize(("ratio", "cuts", "checkpoints"), CUTS)
def test_pool_store_in_steps(metal, cpu, ratio, cuts, checkpoints):
    layer = Layer(ratio, [("kv", 96), ("index", 64)] if ratio == 4 else [("kv", 160)])
    history = layer.tokens(sum(cuts))
    whole = layer.step(cpu, [(history, 0, None, checkpoints)], "off")
    rows = [[] for _ in layer.dims]
    states, pos, found = None, 0, [[] for _ in layer.dims]
    for n in cuts:
        tokens = [[x[pos : pos + n] for x in stream] for stream in history]
        here = [c for c in checkpoints if pos < c <= pos + n]
        out = layer.step(metal, [(tokens, pos, states, here)], "off")
        for i, o in enumerate(out):
            rows[i].append(o["rows"].view(np.float32))
            found[i] += o["checkpoints"]
        states, pos = [o["state"] for o in out], pos + n
    for i, o in enumerate(whole):
        np.testing.assert_allclose(np.concatenate(rows[i]), o["rows"].view(np.float32), **TOLERANCE)
        same([states[i]], [o["state"]], exact=False)
        same(found[i], o["checkpoints"], exact=False)


@pytest.mark.parametrize("ratio", [4, 128])
def test_cuts_do_not_change_a_bit(metal, ratio):
    layer = Layer(ratio, [("kv", 96)], seed=1)
    history = layer.tokens(140)
    [whole] = layer.step(metal, [(history, 0, None, [131])])
    rows, states, pos = [], None, 0
    for n in (3, 1, 127, 9):
        tokens = [[x[pos : pos + n] for x in stream] for stream in history]
        [out] = layer.step(metal, [(tokens, pos, states, [131] if pos + n == 131 else [])])
        if out["checkpoints"]:
            same(out["checkpoints"], whole["checkpoints"], exact=True)
        rows.append(out["rows"])
        states, pos = [out["state"]], pos + n
    assert np.array_equal(np.concatenate(rows), whole["rows"])
    assert np.array_equal(states[0], whole["state"])


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("index_dim", [32, 128])
def test_sessions_side_by_side(checked, cpu, form, index_dim):
    layer = Layer(4, [("kv", 96), ("index", index_dim)], seed=2)
    parts = []
    for before, n, checkpoints in [(0, 13, [4, 12]), (5, 1, []), (7, 1, [8]), (2, 30, [32])]:
        states = None
        if before:
            states = [o["state"] for o in layer.step(cpu, [(layer.tokens(before), 0, None, [])])]
        parts.append((layer.tokens(n), before, states, checkpoints))
    n = sum(len(tokens[0][0]) for tokens, *_ in parts)
    cos, sin = angles(range(n), compressed=False)
    raw = dict(kv=floats(layer.rng, n, 96), norm=floats(layer.rng, 96), cos=cos, sin=sin)
    got = layer.step(checked, parts, form, raw)
    plain = layer.step(checked, parts, "off", raw)
    want = layer.step(cpu, parts, "off", raw)
    np.testing.assert_allclose(plain[0].view(np.float32), want[0].view(np.float32), **TOLERANCE)
    expect_packed(got[0], plain[0].view(np.float32), form, "kv")
    for i, (g, p, w) in enumerate(zip(got[1:], plain[1:], want[1:], strict=True)):
        rows = p["rows"].view(np.float32)
        np.testing.assert_allclose(rows, w["rows"].view(np.float32), **TOLERANCE)
        if len(rows):
            expect_packed(g["rows"], rows, form, layer.dims[i % 2][0])
        same([g["state"], *g["checkpoints"]], [w["state"], *w["checkpoints"]], exact=False)
        # Nothing else in the history is touched: rows before the segment, the margin of a block.
        first = parts[i // 2][1] // 4
        memory = np.concatenate([block[8:] for block in g["blocks"]]) if g["blocks"] else []
        kept = np.ones(len(memory), bool)
        row_bytes = g["rows"].shape[1]
        kept[first * row_bytes : (first + len(rows)) * row_bytes] = False
        assert not np.any(np.asarray(memory)[kept])
        assert not any(block[:8].any() for block in g["blocks"])
