"""What ``grebe doctor`` does: single ops of a backend against the CPU's plain code, right here.

Kernels can be right on the machines of their authors and wrong on another: a driver, a compiler, a
chip. Every op runs here on random numbers in a handful of shapes, without a model.
"""

from __future__ import annotations

import platform
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import _engine
from .errors import GrebeError, InvalidArgumentError

__all__ = ["Case", "Result", "cases", "choose", "examine", "random_weight", "system"]

Ops = _engine.BackendOps
Arrays = Sequence[NDArray[Any]]

# Where the f16 factors of a block lie, in its bytes.
_FACTORS = {
    "Q8_0": (0,),
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
    "IQ2_XXS": (0,),
    "IQ2_S": (0,),
    "IQ3_XXS": (0,),
}
# Numbers and bytes of a block.
_BLOCKS = {
    "Q8_0": (32, 34),
    "Q2_K": (256, 84),
    "Q3_K": (256, 110),
    "Q4_K": (256, 144),
    "Q5_K": (256, 176),
    "Q6_K": (256, 210),
    "IQ2_XXS": (256, 66),
    "IQ2_S": (256, 82),
    "IQ3_XXS": (256, 98),
    "MXFP4": (32, 17),
}

# Results in float32 differ by the order of sums: some 1e-6 of the largest number.
_EXACT = 5e-5
# Activations of eight bits on the CPU; the second through three products. A GPU has tiles of half
# precision instead.
_FAST = 2e-2
_FAST_MOE = 5e-2
_HALF_TILES = 0.2
# Share of bytes and indices that may differ: numbers on the edge between two codes, scores that
# are equal but for rounding.
_SHARE = 0.01


def random_weight(rng: np.random.Generator, dtype: str, n_out: int, n_in: int) -> NDArray[np.uint8]:
    """Bytes of a random weight of n_out rows: all codes of a type, factors of moderate size."""
    values = rng.standard_normal((n_out, n_in), dtype=np.float32)
    if dtype == "F32":
        return values.view(np.uint8).reshape(-1)
    if dtype == "F16":
        return values.astype(np.float16).view(np.uint8).reshape(-1)
    if dtype == "BF16":
        return _engine.f32_to_bf16(values.reshape(-1)).view(np.uint8)
    if dtype == "F8_E4M3":
        codes = rng.integers(0, 256, n_out * n_in, dtype=np.uint8)
        codes[(codes & 0x7F) == 0x7F] = 0  # NaN
        return codes
    n_numbers, n_bytes = _BLOCKS[dtype]
    blocks = rng.integers(0, 256, (n_out * n_in // n_numbers, n_bytes), dtype=np.uint8)
    if dtype == "MXFP4":
        blocks[:, 0] = rng.integers(122, 128, len(blocks))
    for at in _FACTORS.get(dtype, ()):
        factors = rng.uniform(0.01, 0.04, len(blocks)).astype(np.float16)
        blocks[:, at : at + 2] = factors.view(np.uint8).reshape(-1, 2)
    return blocks.reshape(-1)


def _scale(
    rng: np.random.Generator, dtype: str, n_out: int, n_in: int, n_experts: int = 1
) -> NDArray[np.uint8] | None:
    """Scales of an FP8 weight, else None."""
    if dtype != "F8_E4M3":
        return None
    tiles = -(-n_out // 128) * -(-n_in // 128) * n_experts
    return rng.integers(118, 122, tiles, dtype=np.uint8)


def _floats(rng: np.random.Generator, *shape: int) -> NDArray[np.float32]:
    return rng.standard_normal(shape, dtype=np.float32)


def _angles(
    positions: NDArray[np.int64], half: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    cos, sin = _engine.rope_table(positions, True)
    return np.ascontiguousarray(cos[:, :half]), np.ascontiguousarray(sin[:, :half])


@dataclass(frozen=True)
class Case:
    """One op on one set of random numbers.

    Attributes:
        op: name, as in the engine.
        shape: what it runs on, for people.
        exact: whether the backend computes in float32.
        run: makes the numbers from a generator and returns a function of the ops, which may be
            called for several backends.
        tolerance: of numbers on the CPU, see Result.
        share: of bytes and indices, see Result.
    """

    op: str
    shape: str
    exact: bool
    run: Callable[[np.random.Generator], Callable[[Ops], Arrays]]
    tolerance: float
    share: float = 0.0


@dataclass(frozen=True)
class Result:
    """How a case went.

    Attributes:
        op: as in the case.
        shape: as in the case.
        exact: as in the case.
        error: of numbers the largest difference over the largest number, of bytes and indices the
            share that differs, whichever is worst; None when the op failed.
        tolerance: the error that is taken for rounding.
        ok: every error is within its tolerance.
        ms: time of the op, the second time it runs.
        problem: why the op failed, else "".
    """

    op: str
    shape: str
    exact: bool
    error: float | None
    tolerance: float
    ok: bool
    ms: float
    problem: str = ""


def _embed(dtype: str, n: int) -> Iterator[Case]:
    def run(rng: np.random.Generator) -> Callable[[Ops], Arrays]:
        weight, scale = random_weight(rng, dtype, 300, 512), _scale(rng, dtype, 300, 512)
        tokens = rng.integers(0, 300, n, dtype=np.int32)
        return lambda ops: [ops.embed(weight, dtype, 300, 512, tokens, 4, scale)]

    yield Case("embed", f"{dtype} [300, 512], {n} tokens", True, run, 0.0)


def _matmul(dtype: str, n: int, n_out: int, n_in: int) -> Iterator[Case]:
    def run(rng: np.random.Generator) -> Callable[[Ops], Arrays]:
        weight, scale = random_weight(rng, dtype, n_out, n_in), _scale(rng, dtype, n_out, n_in)
        x = _floats(rng, n, n_in)
        return lambda ops: [ops.matmul(weight, dtype, n_out, n_in, x, scale)]

    shape = f"{dtype} [{n_out}, {n_in}], {n} rows"
    yield Case("matmul", shape, True, run, _EXACT)
    yield Case("matmul", shape, False, run, _FAST)


def _matmul_bundle(n: int) -> Iterator[Case]:
    types = [("Q8_0", 96), ("F16", 40), ("BF16", 24), ("Q4_K", 64)]

    def run(rng: np.random.Generator) -> Callable[[Ops], Arrays]:
        weights = [(random_weight(rng, t, n_out, 512), t, n_out) for t, n_out in types]
        x, norm = _floats(rng, n, 512), _floats(rng, 512)
        return lambda ops: ops.matmul_bundle(weights, x, norm)

    yield Case("matmul", f"norm and 4 products, {n} rows", True, run, _EXACT)


def _matmul_grouped(n: int) -> Iterator[Case]:
    def run(rng: np.random.Generator) -> Callable[[Ops], Arrays]:
        weight, x = random_weight(rng, "Q8_0", 8 * 48, 256), _floats(rng, n, 8 * 256)
        return lambda ops: [ops.matmul_grouped(weight, "Q8_0", 8, 48, x)]

    yield Case("matmul", f"Q8_0, 8 groups of [48, 256], {n} rows", True, run, _EXACT)


def _moe(gate: str, down: str, n: int) -> Iterator[Case]:
    n_experts, n_ff, d, n_used = 8, 256, 512, 3

    def run(rng: np.random.Generator) -> Callable[[Ops], Arrays]:
        weights: dict[str, Any] = {}
        for name, dtype, n_out, n_in in [
            ("gate", gate, n_ff, d),
            ("up", gate, n_ff, d),
            ("down", down, d, n_ff),
        ]:
            data = random_weight(rng, dtype, n_experts * n_out, n_in)
            weights[name] = (data, dtype, _scale(rng, dtype, n_out, n_in, n_experts))
            weights["shared_" + name] = (random_weight(rng, "Q8_0", n_out, n_in), "Q8_0")
        x, logits, bias = _floats(rng, n, d), _floats(rng, n, n_experts), _floats(rng, n_experts)
        return lambda ops: ops.route_moe(logits, bias, n_used, 1.5, weights, n_ff, x)

    shape = f"{gate}/{down}, {n_used} of {n_experts} x {n_ff}, {n} rows"
    yield Case("moe", shape, True, run, _EXACT)
    yield Case("moe", shape, False, run, _FAST_MOE)


def _route(n: int) -> Iterator[Case]:
    def run(rng: np.random.Generator) -> Callable[[Ops], Arrays]:
        logits, bias = 3 * _floats(rng, n, 256), _floats(rng, 256)
        return lambda ops: ops.route(logits, bias, 6, 1.5)

    yield Case("route", f"6 of 256 experts, {n} rows", True, run, _EXACT)


def _hyper(n: int, d: int) -> Iterator[Case]:
    def run(rng: np.random.Generator) -> Callable[[Ops], Arrays]:
        s = 4
        fn = random_weight(rng, "F16", (2 + s) * s, s * d)
        X, y = _floats(rng, n, s, d), _floats(rng, n, d)
        post, comb = _floats(rng, n, s), _floats(rng, n, s, s)
        base, norm = _floats(rng, (2 + s) * s), _floats(rng, d)
        scale = np.full(3, (s * d) ** -0.5, np.float32)
        rows = np.arange(n, dtype=np.int32)[::-1].copy()
        head = random_weight(rng, "F16", s, s * d)

        def call(ops: Ops) -> Arrays:
            both = ops.hc_post_pre(X, y, post, comb, fn, base, scale, norm, dtype="F16")
            x = ops.hc_head(X, head, base[:s], scale[:1], norm, rows, dtype="F16")
            return [*both, x, ops.hc_post(X, y, post, comb)]

        return call

    yield Case("hyper-connection", f"4 streams of {d}, {n} rows", True, run, _EXACT)


def _norms(n: int) -> Iterator[Case]:
    def run(rng: np.random.Generator) -> Callable[[Ops], Arrays]:
        x, weight = _floats(rng, n, 1024), _floats(rng, 1024)
        q, (cos, sin) = _floats(rng, n, 64, 512), _angles(np.arange(n) * 1000, 32)
        return lambda ops: [ops.rms_norm(x, weight), ops.q_norm_rope(q, cos, sin)]

    yield Case("norm", f"1024, and 64 heads of 512, {n} rows", True, run, _EXACT)


def _kv_rows(n: int, form: str) -> Iterator[Case]:
    def run(rng: np.random.Generator) -> Callable[[Ops], Arrays]:
        kv, norm, (cos, sin) = _floats(rng, n, 512), _floats(rng, 512), _angles(np.arange(n), 32)

        def call(ops: Ops) -> Arrays:
            rows = ops.kv_rows(kv, norm, cos, sin, form)
            if form == "off":
                return [rows.view(np.float32)]
            if form == "bf16":
                return [rows]
            # Codes, 64 rotary numbers, scales: numbers are not compared by their bytes.
            codes, turned, scales = np.split(rows, [448, 448 + 4 * 64], axis=1)
            return [codes, np.ascontiguousarray(turned).view(np.float32), scales]

        return call

    yield Case("kv_rows", f"{form}, {n} rows of 512", True, run, _EXACT, _SHARE)


def _pool(ratio: int, n: int) -> Iterator[Case]:
    def run(rng: np.random.Generator) -> Callable[[Ops], Arrays]:
        streams = []
        for kind, dim in [("kv", 512), ("index", 128)][: 2 if ratio == 4 else 1]:
            width = 2 * dim if ratio == 4 else dim
            kv, gate = _floats(rng, n, width), _floats(rng, n, width)
            ape, norm = _floats(rng, ratio, width), _floats(rng, dim)
            streams.append({"kind": kind, "kv": kv, "gate": gate, "ape": ape, "norm": norm})
        cos, sin = _angles(np.arange(n // ratio) * ratio, 32)
        tasks = [{"row": 0, "n": n, "pos": 0, "checkpoints": [n - 1]}]

        def call(ops: Ops) -> Arrays:
            out: list[NDArray[Any]] = []
            for result in ops.pool_store(streams, tasks, ratio, cos, sin, rows_per_block=5):
                # -inf, where nothing has been pooled, is the same everywhere or it shows.
                states = [np.nan_to_num(s) for s in [result["state"], *result["checkpoints"]]]
                out += [result["rows"], *states]
            return out

        return call

    yield Case("pool", f"ratio {ratio}, {n} rows", True, run, _EXACT, _SHARE)


def _packed_rows(
    rng: np.random.Generator, n: int, first: int, dim: int, half: int, form: str
) -> NDArray[np.uint8]:
    """Rows as the cache holds them, by the CPU."""
    cos, sin = _angles(np.arange(first, first + n), half)
    norm = np.ones(dim, np.float32)
    return Ops("cpu").kv_rows(_floats(rng, n, dim), norm, cos, sin, form)


def _attention(n: int, pos: int, ratio: int, select: bool) -> Iterator[Case]:
    heads, dim, half, window, per_block, top_k = 16, 512, 32, 128, 32, 48

    def run(rng: np.random.Generator) -> Callable[[Ops], Arrays]:
        task: dict[str, Any] = {"row": 0, "n": n, "pos": pos}
        task["ring"] = _packed_rows(rng, window, 0, dim, half, "bf16")
        task["new_rows"] = _packed_rows(rng, n, pos, dim, half, "bf16")
        visible = (pos + n) // ratio if ratio else 0
        if ratio:
            n_blocks = max(1, -(-visible // per_block))
            rows = _packed_rows(rng, n_blocks * per_block, 0, dim, half, "bf16")
            task["blocks"] = [b.reshape(-1) for b in np.split(rows, n_blocks)]
            task["rows_per_block"] = per_block
        if select:
            task["selected"] = np.stack(
                [
                    np.sort(rng.permutation((pos + i + 1) // ratio)[:top_k]).astype(np.int32)
                    for i in range(n)
                ]
            )
        q, sinks = _floats(rng, n, heads, dim), _floats(rng, heads)
        cos, sin = _angles(np.arange(pos, pos + n), half)
        return lambda ops: [
            ops.attention_tasks(
                q, sinks, cos, sin, [task], ratio, window, "bf16", top_k, norm_eps=1e-6
            )
        ]

    shape = f"ratio {ratio}{', selected' if select else ''}, {n} rows at {pos}"
    yield Case("attention", shape, True, run, _EXACT)
    yield Case("attention", shape, False, run, _FAST)


def _index_select(n: int, pos: int) -> Iterator[Case]:
    heads, dim, per_block, top_k = 16, 128, 64, 64

    def run(rng: np.random.Generator) -> Callable[[Ops], Arrays]:
        n_blocks = -(-((pos + n) // 4) // per_block)
        row_bytes = dim // 2 + dim // 32
        rows = rng.integers(0, 256, (n_blocks * per_block, row_bytes), dtype=np.uint8)
        rows[:, dim // 2 :] = rng.integers(124, 128, (len(rows), dim // 32))
        blocks = [b.reshape(-1) for b in np.split(rows, n_blocks)]
        task = {"row": 0, "n": n, "pos": pos, "blocks": blocks, "rows_per_block": per_block}
        q, weights = _floats(rng, n, heads, dim), _floats(rng, n, heads)
        cos, sin = _angles(np.arange(pos, pos + n), 32)
        return lambda ops: [ops.index_select_tasks(q, weights, cos, sin, [task], 4, top_k)]

    # A query on the edge between two codes moves many scores a little.
    yield Case("index_select", f"{top_k} rows, {n} rows at {pos}", True, run, 0.0, 5 * _SHARE)


def cases() -> Iterator[Case]:
    """All cases, in the order of a layer."""
    for dtype in ("Q8_0", "F16"):
        yield from _embed(dtype, 5)
    for n, d in [(1, 4096), (3, 512), (70, 512)]:
        yield from _hyper(n, d)
    for n in (1, 37):
        yield from _norms(n)
    for dtype in _engine.dtypes():
        for n in (1, 3, 70):
            yield from _matmul(dtype, n, 200, 1024)
    for n in (1, 40):
        yield from _matmul_bundle(n)
        yield from _matmul_grouped(n)
    for form in ("bf16", "f32", "off"):
        yield from _kv_rows(19, form)
    yield from _pool(4, 150)
    yield from _pool(128, 300)
    for pos in (400, 8000):
        yield from _index_select(1, pos)
        yield from _index_select(33, pos)
    for n, pos, ratio, select in [
        (1, 0, 0, False),
        (1, 777, 128, False),
        (1, 3000, 4, True),
        (40, 100, 0, False),
        (40, 500, 4, True),
        (70, 900, 4, False),
    ]:
        yield from _attention(n, pos, ratio, select)
    for n in (1, 37):
        yield from _route(n)
    for gate, down in [("IQ2_XXS", "Q2_K"), ("Q4_K", "Q4_K"), ("MXFP4", "MXFP4"), ("Q8_0", "Q8_0")]:
        for n in (1, 5, 60):
            yield from _moe(gate, down, n)


def _is_code(array: NDArray[Any]) -> bool:
    return array.dtype != np.float32


def _error(got: NDArray[Any], expected: NDArray[Any]) -> float:
    if got.shape != expected.shape:
        return float("inf")
    if _is_code(expected):
        return float((got != expected).mean()) if got.size else 0.0
    finite = np.isfinite(expected)
    if not np.array_equal(finite, np.isfinite(got)):
        return float("inf")
    difference = np.abs(got[finite].astype(np.float64) - expected[finite])
    return float(difference.max(initial=0) / max(np.abs(expected[finite]).max(initial=0), 1e-30))


def _plain(tested: Ops) -> Ops:
    """What a backend is compared with: other code than its own, in float32."""
    return Ops("cpu", "scalar" if tested.name == "cpu" else "", 0)


def examine(backend: str, chosen: Iterable[Case]) -> Iterator[Result]:
    """Runs the cases on a backend and compares with the CPU's plain code in float32.

    Args:
        backend: "auto", "cpu" or "metal"; "cpu" is its best instruction set.
        chosen: what to run.

    Raises:
        BackendUnavailableError: no such backend here.
    """
    tested = {exact: Ops(backend, exact=exact, n_threads=0) for exact in (True, False)}
    plain = _plain(tested[True])
    for case in chosen:
        seed = zlib.crc32(f"{case.op} {case.shape}".encode())
        call = case.run(np.random.default_rng(seed))
        expected = call(plain)
        ops = tested[case.exact]
        half = ops.name != "cpu" and not case.exact
        limit = case.tolerance * (_HALF_TILES if half else 1)
        try:
            call(ops)  # compiles kernels
            got = call(ops)
        except GrebeError as error:
            yield Result(case.op, case.shape, case.exact, None, limit, False, 0.0, str(error))
            continue
        errors = [
            (_error(a, b), case.share if _is_code(b) else limit)
            for a, b in zip(got, expected, strict=True)
        ]
        worst, tolerance = max(errors, key=lambda e: (e[0] / max(e[1], 1e-30), e[1]))
        ok = worst <= tolerance
        yield Result(case.op, case.shape, case.exact, worst, tolerance, ok, ops.elapsed_ms)


def choose(names: Sequence[str] | None) -> list[Case]:
    """The cases of these ops; None is all.

    Raises:
        InvalidArgumentError: names an op that does not exist, and those that do.
    """
    everything = list(cases())
    known = sorted({case.op for case in everything})
    for name in names or ():
        if name not in known:
            raise InvalidArgumentError(f"op '{name}' is unknown; the ops are {', '.join(known)}")
    return [case for case in everything if not names or case.op in names]


def system(backend: str) -> dict[str, str]:
    """What a report of a failure should say about the machine."""
    from . import __version__

    tested = Ops(backend, n_threads=0)
    return {
        "grebe": __version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "machine": platform.machine(),
        "processor": platform.processor(),
        "backend": tested.description,
        "reference": _plain(tested).description,
    }
