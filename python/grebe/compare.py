"""Two models on one text: how well each predicts it, and how far apart they are.

The first is the reference. All numbers are over the predicted tokens of windows that each begin
with BOS, as ``grebe perplexity`` has them; logits meet in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .errors import GrebeError, InvalidArgumentError
from .model import Model

__all__ = ["Comparison", "compare", "divergence", "log_softmax", "score_texts"]

LOGIT_BYTES = 64 << 20  # of logits at once
HIDDEN_BYTES = 256 << 20  # of hidden states of both models at once

Doubles = NDArray[np.float64]


@dataclass
class Comparison:
    """What compare() found; b against a.

    Attributes:
        n_tokens: predicted tokens.
        nats_a: mean negative log likelihood of model a; nats_b of b.
        nats_error: standard error of the mean difference of the two.
        kl_mean: of a's distribution from b's, in nats; kl_median, kl_p99, kl_max likewise.
        kl_error: standard error of kl_mean.
        top1: share of tokens at which both would choose the same.
        top1_a: share of tokens at which a would choose the right one; top1_b of b.
        p_rms: root mean square of the change of the right token's probability.
        layers: error of the streams after each layer, root mean square of the difference over that
            of a; empty when the models differ in shape or it was not asked for.
        quantiles: of KL, at QUANTILES.
    """

    n_tokens: int
    nats_a: float
    nats_b: float
    nats_error: float
    kl_mean: float
    kl_error: float
    kl_median: float
    kl_p99: float
    kl_max: float
    top1: float
    top1_a: float
    top1_b: float
    p_rms: float
    bytes_per_token_a: int
    bytes_per_token_b: int
    layers: list[float] = field(default_factory=list)
    quantiles: list[float] = field(default_factory=list)

    @property
    def perplexity_a(self) -> float:
        """exp(nats_a)."""
        return math.exp(self.nats_a)

    @property
    def perplexity_b(self) -> float:
        """exp(nats_b)."""
        return math.exp(self.nats_b)


QUANTILES = tuple(i / 100 for i in range(101))


def log_softmax(logits: NDArray[np.float32], name: str = "the model") -> Doubles:
    """f64 of the same shape, over the last axis.

    Raises:
        GrebeError: the logits of the model of that name are not finite: its file is damaged.
    """
    if not np.isfinite(logits).all():
        raise GrebeError(f"{name}: logits are not finite")
    x: Doubles = logits.astype(np.float64)
    x -= x.max(-1, keepdims=True)
    x -= np.log(np.exp(x).sum(-1, keepdims=True))
    return x


def divergence(a: Doubles, b: Doubles) -> Doubles:
    """KL(a || b) of rows of log probabilities, in nats; never below 0."""
    kl: Doubles = (np.exp(a) * (a - b)).sum(-1)
    return np.maximum(kl, 0.0)


def score_texts(
    model: Model,
    texts: Sequence[str],
    n_ctx: int,
    max_tokens: int | None = None,
    special: bool = False,
) -> list[list[int]]:
    """The windows of tokens of texts, BOS not included.

    Raises:
        InvalidArgumentError: no text, or n_ctx below 2.
    """
    if n_ctx < 2:
        raise InvalidArgumentError(f"n_ctx is {n_ctx}; at least 2 is expected")
    windows, left = [], max_tokens
    for text in texts:
        ids = model.tokenizer.encode(text, special)[:left]
        left = None if left is None else left - len(ids)
        windows += [ids[i : i + n_ctx - 1] for i in range(0, len(ids), n_ctx - 1)]
    if not windows:
        raise InvalidArgumentError("the texts are empty")
    return windows


class _Layers:
    """Sums of squares of the streams and of their differences, by layer."""

    def __init__(self, models: tuple[Model, Model]) -> None:
        self._models = models
        shapes = [(m.config.n_layers, m.config.hc_mult, m.config.hidden_size) for m in models]
        self.on = shapes[0] == shapes[1]
        self.sums = np.zeros((2, shapes[0][0]))
        for m in models:
            m._live.take_hidden()  # of what ran before

    def add(self) -> None:
        a, b = (m._live.take_hidden() for m in self._models)
        if not self.on:
            return
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            flat = x.reshape(-1).astype(np.float64)
            self.sums[0, i] += flat @ flat
            flat -= y.reshape(-1)
            self.sums[1, i] += flat @ flat

    def errors(self) -> list[float]:
        if not self.on:
            return []
        return [float(e) for e in np.sqrt(self.sums[1] / np.maximum(self.sums[0], 1e-300))]


def _chunk(a: Model, b: Model, layers: bool) -> int:
    n = LOGIT_BYTES // (8 * a.config.vocab_size)
    if layers:
        token = sum(m.config.n_layers * m.config.hc_mult * m.config.hidden_size for m in (a, b))
        n = min(n, HIDDEN_BYTES // (4 * token))
    return max(1, min(512, n))


def compare(
    a: Model,
    b: Model,
    texts: Sequence[str],
    *,
    n_ctx: int = 2048,
    max_tokens: int | None = None,
    layers: bool = False,
    special: bool = False,
    on_progress: Callable[[int, int], object] | None = None,
) -> Comparison:
    """Runs both models over the texts, side by side.

    Args:
        a: the reference.
        b: the other; of the same tokenizer.
        texts: windows do not cross from one to the next.
        n_ctx: tokens of a window, BOS included.
        max_tokens: of all texts together; None: all.
        layers: whether to compare hidden states; both models were then loaded with
            load_observed(path, "hidden").
        special: whether markers such as <｜User｜> in a text are the tokens they stand for.
        on_progress: called with (tokens done, tokens in all).

    Raises:
        InvalidArgumentError: no text, or models of different tokenizers.
        GrebeError: logits are not finite.
    """
    windows = score_texts(a, texts, n_ctx, max_tokens, special)
    if (
        a.config.vocab_size != b.config.vocab_size
        or a.config.bos_token != b.config.bos_token
        or windows != score_texts(b, texts, n_ctx, max_tokens, special)
    ):
        raise InvalidArgumentError(f"{a.path} and {b.path} do not share a tokenizer")
    streams = _Layers((a, b)) if layers else None
    columns: list[list[Doubles]] = []
    total, done = sum(map(len, windows)), 0
    with a.session(n_ctx) as s, b.session(n_ctx) as t:
        for window in windows:
            s.rewind(0)
            t.rewind(0)
            for inputs, targets in _steps(a, window, _chunk(a, b, layers)):
                x = log_softmax(s.evaluate(inputs), str(a.path))
                y = log_softmax(t.evaluate(inputs), str(b.path))
                columns.append(_rows(x, y, targets))
                if streams is not None:
                    streams.add()
                done += len(targets)
                if on_progress is not None:
                    on_progress(done, total)
    nats_a, nats_b, kl, same, right_a, right_b = (
        np.concatenate([c[i] for c in columns]) for i in range(6)
    )
    return Comparison(
        n_tokens=total,
        nats_a=float(nats_a.mean()),
        nats_b=float(nats_b.mean()),
        nats_error=_error(nats_b - nats_a),
        kl_mean=float(kl.mean()),
        kl_error=_error(kl),
        kl_median=float(np.median(kl)),
        kl_p99=float(np.quantile(kl, 0.99)),
        kl_max=float(kl.max()),
        top1=float(same.mean()),
        top1_a=float(right_a.mean()),
        top1_b=float(right_b.mean()),
        p_rms=float(np.sqrt(((np.exp(-nats_b) - np.exp(-nats_a)) ** 2).mean())),
        bytes_per_token_a=a.bytes_per_token,
        bytes_per_token_b=b.bytes_per_token,
        layers=streams.errors() if streams is not None else [],
        quantiles=[float(q) for q in np.quantile(kl, QUANTILES)],
    )


def _error(values: Doubles) -> float:
    """Standard error of the mean."""
    return float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else 0.0


def _steps(model: Model, window: list[int], n: int) -> Iterator[tuple[list[int], list[int]]]:
    inputs = [model.config.bos_token, *window[:-1]]
    for i in range(0, len(inputs), n):
        yield inputs[i : i + n], window[i : i + n]


def _rows(a: Doubles, b: Doubles, targets: list[int]) -> list[Doubles]:
    """Per token: nats of a and b, KL, same choice, right choice of a and of b."""
    rows, ids = np.arange(len(targets)), np.asarray(targets)
    top_a, top_b = a.argmax(-1), b.argmax(-1)
    flags = [(x == y).astype(np.float64) for x, y in ((top_a, top_b), (top_a, ids), (top_b, ids))]
    return [-a[rows, ids], -b[rows, ids], divergence(a, b), *flags]
