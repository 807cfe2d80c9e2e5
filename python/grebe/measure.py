"""Measurements behind ``grebe bench`` and ``grebe perplexity``."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from . import _engine
from .errors import InvalidArgumentError
from .model import Model

__all__ = ["BenchRow", "Perplexity", "bench", "perplexity", "plot", "read_bandwidth"]

Progress = Callable[[int, int], object]


@dataclass(frozen=True, slots=True)
class BenchRow:
    """Speed at one context frontier.

    Attributes:
        depth: tokens in the state before the measurement.
        prefill_tok_per_s: of ``n_prefill`` tokens appended at this depth; only they are timed.
        decode_tok_per_s: of ``n_decode`` single tokens appended after that, median of the steps.
        decode_spread: (90th - 10th percentile) / median of the step times.
        bandwidth_share: weight bytes per decoded token x decode speed / measured read bandwidth. KV
            reads and activations are not counted, and weights that fit into the caches can exceed
            1.
        kv_bytes: of the session at the end.
    """

    depth: int
    n_prefill: int
    prefill_tok_per_s: float
    n_decode: int
    decode_tok_per_s: float
    decode_spread: float
    bandwidth_share: float
    kv_bytes: int


def read_bandwidth(n_threads: int, seconds: float = 0.5) -> float:
    """Bytes per second that n_threads read from memory: the best of three, as a roof should be."""
    return max(_engine.measure_read_bandwidth(n_threads, seconds / 3) for _ in range(3))


def bench(
    model: Model,
    depths: Sequence[int],
    *,
    n_prefill: int = 512,
    n_decode: int = 32,
    bandwidth: float,
    on_progress: Progress | None = None,
) -> Iterator[BenchRow]:
    """Prefill and decode speed at growing depths, one row each, in one session that grows.

    The text is a fixed sequence of ordinary tokens; decode feeds the argmax and never stops. The
    first row is measured after a warm-up that also pages the weights in.

    Raises:
        InvalidArgumentError: depths that do not grow, or counts below 1.
    """
    if not depths or list(depths) != sorted(set(depths)) or depths[0] < 0:
        raise InvalidArgumentError(f"depths are {list(depths)}; growing numbers are expected")
    if n_prefill < 1 or n_decode < 1:
        raise InvalidArgumentError("n_prefill and n_decode must be at least 1")
    vocab_size = model.config.vocab_size
    random = np.random.default_rng(1)
    tokens = random.integers(0, vocab_size, depths[-1] + n_prefill, dtype=np.int32).tolist()
    with model.session() as warm:
        warm.prefill(tokens[:64])
        warm.decode(tokens[0])
    with model.session(depths[-1] + n_prefill + n_decode) as session:
        for depth in depths:
            if depth > 0:
                session.prefill(tokens[:depth], on_progress)
            start = time.perf_counter()
            session.prefill(tokens[: depth + n_prefill], on_progress)
            prefill_s = time.perf_counter() - start
            steps = []
            for _ in range(n_decode):
                token = int(session.logits.argmax())
                start = time.perf_counter()
                session.decode(token)
                steps.append(time.perf_counter() - start)
            median = statistics.median(steps)
            low, high = np.percentile(steps, [10, 90])
            yield BenchRow(
                depth,
                n_prefill,
                n_prefill / prefill_s,
                n_decode,
                1 / median,
                float(high - low) / median,
                model.bytes_per_token / median / bandwidth,
                session.nbytes,
            )


def plot(rows: Sequence[BenchRow], path: Path, title: str) -> None:
    """Both speeds over depth, as a picture. Needs the extra ``plot``.

    Raises:
        InvalidArgumentError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InvalidArgumentError("a plot needs matplotlib: pip install 'grebe[plot]'") from error
    figure = Figure(figsize=(8, 3.5), layout="constrained")
    axes = figure.subplots(1, 2)
    depths = [r.depth for r in rows]
    for ax, label, values in (
        (axes[0], "prefill", [r.prefill_tok_per_s for r in rows]),
        (axes[1], "decode", [r.decode_tok_per_s for r in rows]),
    ):
        ax.plot(depths, values, marker="o")
        ax.set(xlabel="tokens of context", ylabel="tokens per second", title=label, ylim=(0, None))
        ax.grid(alpha=0.3)
    figure.suptitle(title)
    figure.savefig(path, dpi=120)


@dataclass(frozen=True, slots=True)
class Perplexity:
    """How well a model predicts a text.

    Attributes:
        nats_per_token: mean negative log likelihood.
        perplexity: its exponential.
        bits_per_byte: comparable between tokenizers.
        n_tokens: predicted tokens.
        n_bytes: bytes of text.
        tok_per_s: tokens computed a second, overlaps included.
    """

    nats_per_token: float
    perplexity: float
    bits_per_byte: float
    n_tokens: int
    n_bytes: int
    tok_per_s: float


def perplexity(
    model: Model,
    text: str,
    *,
    n_ctx: int = 2048,
    stride: int | None = None,
    on_progress: Progress | None = None,
) -> Perplexity:
    """Negative log likelihood of a text, in windows of n_ctx tokens that each begin with BOS.

    Windows start every ``stride`` tokens; a token is counted once, in the first window that has it,
    so that all but the first window give at least n_ctx - stride tokens of context to what they
    count.

    Args:
        model: with a tokenizer.
        text: any text of at least one token.
        n_ctx: tokens per window, BOS included.
        stride: 1 to n_ctx - 1; None: windows do not overlap.
        on_progress: called with (tokens counted, tokens in all).

    Raises:
        InvalidArgumentError: no text, or numbers out of range.
    """
    if n_ctx < 2:
        raise InvalidArgumentError(f"n_ctx is {n_ctx}; at least 2 is expected")
    stride = n_ctx - 1 if stride is None else stride
    if not 1 <= stride <= n_ctx - 1:
        raise InvalidArgumentError(f"stride is {stride}; 1 to {n_ctx - 1} is expected")
    ids = model.tokenizer.encode(text)
    if not ids:
        raise InvalidArgumentError("the text is empty")
    # 64 MB of logits at once.
    n_chunk = max(1, min(512, (64 << 20) // (4 * model.config.vocab_size)))
    total, n_counted, n_computed = 0.0, 0, 0
    start_s = time.perf_counter()
    with model.session(n_ctx) as session:
        for start in range(0, len(ids), stride):
            window = ids[start : start + n_ctx - 1]
            inputs = [model.config.bos_token, *window[:-1]]
            if session.pos:
                session.rewind(0)
            for i in range(0, len(inputs), n_chunk):
                logits = session.evaluate(inputs[i : i + n_chunk])
                targets = window[i : i + n_chunk]
                first = max(0, n_counted - (start + i))  # counted by an earlier window
                total += negative_log_likelihood(logits[first:], targets[first:])
                n_computed += len(targets)
                n_counted = max(n_counted, start + i + len(targets))
                if on_progress is not None:
                    on_progress(n_counted, len(ids))
            if n_counted == len(ids):
                break
    nats = total / n_counted
    n_bytes = len(text.encode("utf-8", "replace"))
    return Perplexity(
        nats,
        math.exp(nats),
        total / math.log(2) / n_bytes,
        n_counted,
        n_bytes,
        n_computed / (time.perf_counter() - start_s),
    )


def negative_log_likelihood(logits: np.ndarray, targets: Sequence[int]) -> float:
    """Sum over rows of -log softmax(logits)[target], in double precision.

    Args:
        logits: f32[n, vocab_size].
        targets: n token ids.
    """
    if len(targets) == 0:
        return 0.0
    x = logits.astype(np.float64)
    peak = x.max(axis=1)
    log_sum = peak + np.log(np.exp(x - peak[:, None]).sum(axis=1))
    return float((log_sum - x[np.arange(len(targets)), list(targets)]).sum())
