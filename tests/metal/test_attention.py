"""Attention (metal/attention_decode.metal, metal/attention_prefill.metal) against the CPU backend.

Segments of 16 queries and more take the matrix kernel, shorter ones the other; heads wider than 512
always the other.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
from numpy.typing import NDArray

FORMATS = ["bf16", "f32", "off"]
OFFSET = 16  # of the rows in a block

# Scores are sums of up to 512 products of order 1 (their errors become relative errors of the
# weights), results means of values of order 1.
TOLERANCE = 2e-5
# Queries and weights of the rows rounded to half precision: 2^-11 of a score of up to 8.
HALF_TOLERANCE = 4e-3


@dataclass
class Model:
    """What the tasks of a step have in common."""

    form: str = "bf16"
    heads: int = 2
    head_dim: int = 80
    rope_dim: int = 16
    window: int = 8
    ratio: int = 4
    top_k: int = 9
    rows_per_block: int = 5

    def rows(self, rng: np.random.Generator, n: int) -> NDArray[np.uint8]:
        """Packed rows: any codes and scales around 1."""
        if self.form == "off":
            return rng.standard_normal((n, self.head_dim)).astype(np.float32).view(np.uint8)
        nope = self.head_dim - self.rope_dim
        codes = rng.integers(0, 256, (n, nope), dtype=np.uint8)
        codes[codes & 127 == 127] = 0
        rope = rng.standard_normal((n, self.rope_dim)).astype(np.float32).view(np.uint32)
        if self.form == "bf16":
            rope = (rope >> 16).astype(np.uint16)
        scales = rng.integers(118, 121, (n, nope // 64), dtype=np.uint8)
        rows = np.concatenate([codes, rope.view(np.uint8), scales], 1)
        return np.pad(rows, ((0, 0), (0, -rows.shape[1] % 8)))


@dataclass
class Task:
    n: int
    pos: int
    select: bool = False
    row: int = field(default=0, init=False)

    def as_dict(self, m: Model, rng: np.random.Generator) -> dict[str, object]:
        task = {
            "row": self.row,
            "n": self.n,
            "pos": self.pos,
            "ring": m.rows(rng, m.window),
            "new_rows": m.rows(rng, self.n),
        }
        if m.ratio == 0:
            return task
        visible = (self.pos + self.n) // m.ratio
        blocks = [
            np.concatenate([np.full(OFFSET, 255, np.uint8), m.rows(rng, m.rows_per_block).ravel()])
            for _ in range(-(-visible // m.rows_per_block))
        ]
        task |= {"blocks": blocks, "rows_per_block": m.rows_per_block, "offset": OFFSET}
        if self.select:
            selected = np.full((self.n, m.top_k), -1, np.int32)
            for i in range(self.n):
                seen = (self.pos + i + 1) // m.ratio
                k = min(seen, m.top_k)
                selected[i, :k] = np.sort(rng.choice(seen, k, replace=False))
            task["selected"] = selected
        return task


def step(m: Model, tasks: list[Task], seed: int = 0) -> dict[str, object]:
    """Arguments of BackendOps.attention_tasks."""
    rng = np.random.default_rng(seed)
    n = 0
    for t in tasks:
        t.row = n
        n += t.n
    angles = rng.uniform(-3, 3, (n, m.rope_dim // 2))
    return {
        "q": rng.standard_normal((n, m.heads, m.head_dim)).astype(np.float32),
        "sinks": rng.standard_normal(m.heads).astype(np.float32),
        "cos": np.cos(angles).astype(np.float32),
        "sin": np.sin(angles).astype(np.float32),
        "tasks": [t.as_dict(m, rng) for t in tasks],
        "ratio": m.ratio,
        "window_size": m.window,
        "format": m.form,
        "top_k": m.top_k,
        "norm_eps": 1e-6,
    }


def expect_equal(metal, cpu, arguments, tolerance=TOLERANCE):
    np.testing.assert_allclose(
        metal.attention_tasks(**arguments),
        cpu.attention_tasks(**arguments),
        rtol=0,
        atol=tolerance,
    )


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("heads", [2, 6, 17])
@pytest.mark.parametrize("n", [1, 2, 5, 9, 16, 33])
def test_queries_and_heads(metal, cpu, n, heads, form):
    """Window only, all visible rows and chosen rows, from the first token and from later on."""
    for ratio, select in [(0, False), (128, False), (4, False), (4, True)]:
        m = Model(form, heads, ratio=ratio)
        for pos in [0, 3, 61]:
            expect_equal(metal, cpu, step(m, [Task(n, pos, select)], seed=n + pos))


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("n", [1, 16])
def test_flash(metal, cpu, n, form):
    m = Model(form, 64, 512, 64, 128, 4, top_k=40, rows_per_block=32)
    expect_equal(metal, cpu, step(m, [Task(n, 333, select=True)]))


@pytest.mark.parametrize("n", [1, 16])
def test_half_precision(metal_fast, cpu, n):
    m = Model("bf16", 18, 512, 64, 128, 4, top_k=40, rows_per_block=32)
    tolerance = TOLERANCE if n == 1 else HALF_TOLERANCE
    expect_equal(metal_fast, cpu, step(m, [Task(n, 333, select=True)]), tolerance)


RAGGED = [Task(5, 70, select=True), Task(17, 3), Task(1, 0), Task(16, 44, select=True)]


@pytest.mark.parametrize("form", FORMATS)
def test_order_and_memory(checked, cpu, form):
    """Any order of execution; every access in bounds and free of races."""
    expect_equal(checked, cpu, step(Model(form, 3), RAGGED))
    expect_equal(checked, cpu, step(Model(form, 9, 208), [Task(3, 30), Task(16, 0)]))
    expect_equal(checked, cpu, step(Model(form, 3, rows_per_block=32), [Task(1, 4099)]))


def test_order_and_memory_in_half_precision(backend_ops, fake, cpu):
    fake["race"] = 1
    metal = backend_ops(exact=False, race=True)
    for seed in [1, 2, 3]:
        fake["seed"] = seed
        expect_equal(metal, cpu, step(Model("bf16", 9), RAGGED), HALF_TOLERANCE)


@pytest.mark.parametrize(
    "m",
    [
        Model(head_dim=192, rope_dim=64, heads=3),
        Model(head_dim=640, rope_dim=64, heads=3),
        Model(head_dim=1152, rope_dim=128, heads=1),
        Model("f32", head_dim=112, rope_dim=48, heads=9),
        Model("off", head_dim=16, rope_dim=0, heads=5),
        Model(window=1),
        Model(window=200, rows_per_block=1),
    ],
    ids=str,
)
def test_shapes(metal, cpu, m):
    expect_equal(metal, cpu, step(m, [Task(3, 70, select=True), Task(17, 45)]))


@pytest.mark.parametrize("form", FORMATS)
def test_many_rows_are_split(metal, cpu, form):
    """More than 1,024 rows of a query: partial results and a merge; fewer beside them: none."""
    m = Model(form, 3, ratio=4, rows_per_block=32)
    expect_equal(metal, cpu, step(m, [Task(1, 4099), Task(2, 9001), Task(1, 40)]))


def test_answers_do_not_depend_on_company(metal, cpu):
    m = Model(heads=6)
    tasks = [Task(1, 30), Task(40, 7, select=True), Task(2, 0), Task(19, 64), Task(5, 81, True)]
    # Without the norm, which a step of many rows may do on its own.
    together = step(m, tasks) | {"norm_eps": None}
    expect_equal(metal, cpu, together)
    out = metal.attention_tasks(**together)
    for t, task in zip(tasks, together["tasks"], strict=True):
        rows = slice(t.row, t.row + t.n)
        alone = together | {"tasks": [task | {"row": 0}]}
        alone |= {k: np.ascontiguousarray(together[k][rows]) for k in ["q", "cos", "sin"]}
        np.testing.assert_array_equal(metal.attention_tasks(**alone), out[rows])


def test_without_norm(metal, cpu):
    m = Model(heads=3)
    expect_equal(metal, cpu, step(m, [Task(2, 9), Task(18, 0)]) | {"norm_eps": None})


@pytest.mark.parametrize("n", [1, 16])
@pytest.mark.parametrize(
    ("what", "value"),
    [
        ("q", np.nan),
        ("q", np.inf),
        ("sinks", np.nan),
        ("row", np.nan),
        ("row", np.inf),
        ("scale", 255),
    ],
)
def test_what_is_not_finite_stays_so(metal, n, what, value):
    """... in the queries and heads that meet it, and nowhere else."""
    m = Model("bf16" if what == "scale" else "off", heads=3)
    arguments = step(m, [Task(n, 9)])
    rows = arguments["tasks"][0]["new_rows"]
    bad = np.zeros((n, m.heads), bool)
    if what == "q":
        arguments["q"][0, 1, 7] = value
        bad[0, 1] = True
    elif what == "sinks":
        arguments["sinks"][1] = value
        bad[:, 1] = True
    else:
        if what == "row":
            rows.view(np.float32)[0, 3] = value
        else:
            rows[0, 96] = value
        bad[: m.window] = True
    out = metal.attention_tasks(**arguments)
    np.testing.assert_array_equal(~np.isfinite(out).all(2), bad)


def test_largest_and_smallest_codes(metal, cpu):
    """Every E4M3 code, subnormals included, at scales from 2^-21 to 2^3."""
    m = Model("bf16", 2, 272, 16, window=16, ratio=0)
    arguments = step(m, [Task(1, 15)])
    ring, row = arguments["tasks"][0]["ring"], arguments["tasks"][0]["new_rows"]
    codes = np.arange(256, dtype=np.uint8)
    codes[codes & 127 == 127] = 0
    for i, r in enumerate([*ring, row[0]]):
        r[:256] = np.roll(codes, 17 * i)
        r[288:292] = [106 + i % 8, 112, 120, 122 + i % 8]
    want = cpu.attention_tasks(**arguments)
    got = metal.attention_tasks(**arguments)
    np.testing.assert_allclose(got, want, rtol=2e-4, atol=2e-6 * np.abs(want).max())
