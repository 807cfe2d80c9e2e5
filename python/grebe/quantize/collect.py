"""What the weights of a model are multiplied with, on a text: the numbers of ``grebe imatrix``."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from .. import _engine
from ..checks import file_path
from ..errors import InvalidArgumentError
from ..model import Model
from .imatrix import Imatrix, Squares

__all__ = ["LOGIT_BYTES", "collect", "load_observed"]

LOGIT_BYTES = 64 << 20  # of logits at once


def load_observed(
    path: str | os.PathLike[str],
    what: str,
    *,
    n_threads: int | None = None,
    kernels: str = "fast",
    kv_rounding: str = "official",
    backend: str = "cpu",
    prefill_chunk: int = 512,
) -> Model:
    """A model whose steps are watched: ``what`` is "inputs", "hidden", or "" for nothing."""
    file = file_path(path)
    engine = _engine.Model.load(
        file,
        backend=backend,
        n_threads=n_threads or 0,
        kv_rounding=kv_rounding,
        kernels=kernels,
        isa="",
        prefill_chunk=prefill_chunk,
        observe=what,
    )
    return Model(engine, file)


def collect(
    model: Model,
    texts: Sequence[tuple[str, str]],
    *,
    n_ctx: int = 2048,
    max_chunks: int | None = None,
    special: bool = False,
    on_progress: Callable[[int, int], object] | None = None,
) -> Iterator[Imatrix]:
    """Reads texts and yields, after each window, what has been seen so far.

    Args:
        model: of load_observed(path, "inputs").
        texts: pairs of a name and a text; windows do not cross from one to the next.
        n_ctx: tokens of a window, BOS included. Beyond 4 x index_top_k tokens the indexer works,
            and its weights are seen too.
        max_chunks: windows to read; None: all.
        special: whether markers such as <｜User｜> in a text are the tokens they stand for.
        on_progress: called with (tokens done, tokens in all).

    Raises:
        InvalidArgumentError: no text, or numbers out of range.
    """
    if n_ctx < 2:
        raise InvalidArgumentError(f"n_ctx is {n_ctx}; at least 2 is expected")
    windows: list[tuple[str, list[int]]] = []
    for name, text in texts:
        ids = model.tokenizer.encode(text, special)
        windows += [(name, ids[i : i + n_ctx - 1]) for i in range(0, len(ids), n_ctx - 1)]
    windows = windows[:max_chunks]
    if not windows:
        raise InvalidArgumentError("the texts are empty")
    total = sum(len(w) + 1 for _, w in windows)
    out = Imatrix(chunk_size=n_ctx)
    step = max(1, min(512, LOGIT_BYTES // (4 * model.config.vocab_size)))
    done = 0
    with model.session(n_ctx) as session:
        for name, window in windows:
            session.rewind(0)
            ids = [model.config.bos_token, *window]
            for i in range(0, len(ids), step):
                session.evaluate(ids[i : i + step])
                done += len(ids[i : i + step])
                if on_progress is not None:
                    on_progress(done, total)
            seen = model._live.take_inputs()
            entries = {n: Squares(s, c.astype(np.float64)) for n, s, c in seen}
            out.merge(Imatrix(entries, [name], n_ctx, 1))
            yield out
