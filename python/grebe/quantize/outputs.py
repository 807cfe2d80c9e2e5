"""What goes into the file: the types of its tensors, and the pieces in which they are made."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import FormatError, InvalidArgumentError
from .checkpoint import TILE, Checkpoint
from .layout import Target
from .recipes import KEEP, TYPES, Rule, choose, fitting

__all__ = ["Output", "Piece", "check_experts", "pieces_of", "plan_outputs", "spans"]

PIECE_WEIGHTS = 8 << 20  # one expert of the full model


@dataclass(frozen=True)
class Output:
    """A tensor of the file; an FP8 matrix that is kept is two, codes and scales."""

    target: Target
    name: str
    dtype: str
    shape: tuple[int, ...]
    what: str  # "weights", "codes", "scales"

    @property
    def n_bytes(self) -> int:
        """Size of the data, without padding."""
        _, block, size = TYPES[self.dtype]
        return int(np.prod(self.shape, dtype=np.int64)) // block * size


def _kept(kind: str) -> str:
    return {"fp8": "FP8", "fp4": "MXFP4"}.get(kind, kind.upper())


def plan_outputs(
    checkpoint: Checkpoint, targets: Sequence[Target], rules: tuple[Rule, ...], fallbacks: list[str]
) -> list[Output]:
    """Types of all tensors; names those that cannot have theirs in ``fallbacks``."""
    outputs: list[Output] = []
    for t in targets:
        kind = checkpoint.kind(t.sources[0])
        if kind in ("i64", "i32"):
            dtype = "I32"
        elif len(t.shape) == 1:
            dtype = "F32"
        else:
            wanted = choose(rules, t.name)
            dtype = fitting(wanted, t.shape[-1])
            if dtype != wanted:
                fallbacks.append(f"{t.name}: {dtype} instead of {wanted}")
            if dtype == KEEP:
                dtype = _kept(kind)
            if t.name.endswith("_ape.weight") and dtype not in ("F32", "F16", "BF16"):
                dtype = "F16"  # added, not multiplied: no engine reads it quantized
        if dtype == "FP8":
            tiles = tuple(-(-n // TILE) for n in t.shape[-2:])
            scales = t.name.removesuffix("weight") + "scale"
            outputs.append(Output(t, t.name, "I8", t.shape, "codes"))
            outputs.append(Output(t, scales, "I8", (*t.shape[:-2], *tiles), "scales"))
        elif dtype in TYPES:
            outputs.append(Output(t, t.name, dtype, t.shape, "weights"))
        else:
            message = f"{t.name}: {t.sources[0]} is {dtype}, which no GGUF tensor can be"
            raise FormatError(message, str(checkpoint.folder))
    return outputs


def check_experts(outputs: Sequence[Output]) -> None:
    """Gate and up of a layer run in one loop, which wants one type."""
    types = {o.name: o.dtype for o in outputs}
    for name, dtype in types.items():
        up = name.replace("ffn_gate_exps", "ffn_up_exps")
        if up != name and types.get(up) != dtype:
            message = f"{name} would be {dtype} and {up} {types.get(up)}; they must be the same"
            raise InvalidArgumentError(message)


@dataclass(frozen=True)
class Piece:
    """Rows [begin, end) of one source of an output."""

    output: Output
    source: str
    i_source: int
    begin: int
    end: int


def pieces_of(output: Output) -> Iterator[Piece]:
    """In the order of the file; pieces of FP8 begin where a tile does."""
    t = output.target
    shape = t.shape[1:] if t.stacked else t.shape
    n_rows = shape[0]
    n_in = shape[1] if len(shape) > 1 else 1
    step = n_rows
    if output.what != "scales":
        step = max(TILE, PIECE_WEIGHTS // n_in // TILE * TILE)
    for i, source in enumerate(t.sources):
        for begin in range(0, n_rows, step):
            yield Piece(output, source, i, begin, min(n_rows, begin + step))


def spans(o: Output) -> Iterator[tuple[int, Piece]]:
    """Pieces with their bytes."""
    _, block, size = TYPES[o.dtype]
    for p in pieces_of(o):
        rows = p.end - p.begin
        if o.what == "scales":
            rows = -(-p.end // TILE) - p.begin // TILE
        n_in = o.shape[-1] if len(o.shape) > 1 else 1
        yield rows * n_in // block * size, p
