"""A piece of a tensor: read from the checkpoint, widened, narrowed to the type of the file."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .. import _engine
from ..errors import FormatError, InvalidArgumentError
from .checkpoint import Checkpoint, fp4_to_mxfp4
from .outputs import Piece

__all__ = ["PLAIN", "Floats", "Importance", "narrow", "numbers"]

PLAIN = {"F32": "<f4", "F16": "<f2"}

Floats = NDArray[np.float32]
Importance = dict[str, Floats]


def numbers(checkpoint: Checkpoint, p: Piece) -> bytes | Floats:
    """Reads a piece: the final bytes where nothing is computed, else its weights."""
    o = p.output
    kind = checkpoint.kind(p.source)
    if o.what == "codes":
        return checkpoint.codes(p.source, p.begin, p.end).tobytes()
    if o.what == "scales":
        return checkpoint.scales(p.source, p.begin, p.end).tobytes()
    if o.dtype == "I32":
        ids = checkpoint.codes(p.source, p.begin, p.end)
        wide = ids.view("<i8" if kind == "i64" else "<i4")
        if wide.size and (wide.min() < 0 or wide.max() >= 2**31):
            raise FormatError(f"{p.source} has numbers that are no expert's", p.source)
        return wide.astype("<i4").tobytes()
    if o.dtype == "MXFP4" and kind == "fp4":
        codes = checkpoint.codes(p.source, p.begin, p.end)
        return fp4_to_mxfp4(codes, checkpoint.scales(p.source, p.begin, p.end)).tobytes()
    if o.dtype == "BF16" and kind == "bf16":
        return checkpoint.codes(p.source, p.begin, p.end).tobytes()
    return checkpoint.f32(p.source, p.begin, p.end)


def narrow(p: Piece, x: Floats, importance: Importance, n_threads: int) -> bytes:
    """Weights to the type of the file."""
    o = p.output
    if o.dtype == "BF16":
        return _engine.f32_to_bf16(np.ascontiguousarray(x).reshape(-1)).tobytes()
    if o.dtype in PLAIN:
        with np.errstate(over="ignore"):
            small = x.astype(PLAIN[o.dtype])
        if not np.isfinite(small).all():
            raise FormatError(f"{p.source} has weights that {o.dtype} cannot hold", p.source)
        return small.tobytes()
    weights = importance.get(o.name)
    n_in = o.shape[-1]
    if weights is not None:
        rows = weights.reshape(-1, n_in)
        weights = np.ascontiguousarray(rows[p.i_source if len(rows) > 1 else 0])
    try:
        data = _engine.quantize(
            o.dtype, np.ascontiguousarray(x.reshape(-1, n_in)), weights, n_threads=n_threads
        )
    except InvalidArgumentError as error:
        raise FormatError(f"{p.source}, rows from {p.begin}: {error}", p.source) from None
    return data.tobytes()
