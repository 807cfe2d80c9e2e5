"""Random weights of every type as the bytes of a file, for tests of single ops."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

#: type -> weights and bytes of a block.
BLOCKS = {
    "F32": (1, 4),
    "F16": (1, 2),
    "BF16": (1, 2),
    "F8_E4M3": (1, 1),
    "Q8_0": (32, 34),
    "MXFP4": (32, 17),
    "Q2_K": (256, 84),
    "Q3_K": (256, 110),
    "Q4_K": (256, 144),
    "Q5_K": (256, 176),
    "Q6_K": (256, 210),
    "IQ2_XXS": (256, 66),
    "IQ2_S": (256, 82),
    "IQ3_XXS": (256, 98),
}
TYPES = list(BLOCKS)

# Where the half-precision scales of a block lie.
HALVES = {
    "Q8_0": [0],
    "Q2_K": [80, 82],
    "Q3_K": [108],
    "Q4_K": [0, 2],
    "Q5_K": [0, 2],
    "Q6_K": [208],
    "IQ2_XXS": [0],
    "IQ2_S": [0],
    "IQ3_XXS": [0],
}


@dataclass
class RandomWeight:
    """n_out rows (of n_experts matrices each) of n_in weights; any bits that a file may hold."""

    dtype: str
    n_out: int
    n_in: int
    data: np.ndarray  # u8[:]
    scale: np.ndarray | None  # u8[:], F8 only

    @property
    def tuple(self) -> tuple:
        """As BackendOps.moe takes it."""
        head = (self.data, self.dtype)
        return head if self.scale is None else (*head, self.scale)


def random_weight(
    rng: np.random.Generator, dtype: str, n_out: int, n_in: int, n_experts: int = 1
) -> RandomWeight:
    """Weights of magnitude around 1, unless a code is far from its block's scale."""
    per_block, n_bytes = BLOCKS[dtype]
    assert n_in % per_block == 0
    shape = (n_experts * n_out, n_in // per_block, n_bytes)
    scale = None
    if dtype in ("F32", "F16", "BF16"):
        values = rng.standard_normal(shape[:2]).astype(np.float32)
        if dtype == "BF16":
            values = (values.view(np.uint32) >> 16).astype(np.uint16)
        data = values.astype(np.float16) if dtype == "F16" else values
    else:
        data = rng.integers(0, 256, shape, dtype=np.uint8)
        if dtype == "F8_E4M3":
            data[data & 127 == 127] = 60  # NaN
            tiles = (n_experts, -(-n_out // 128), -(-n_in // 128))
            scale = rng.integers(118, 123, tiles, dtype=np.uint8).reshape(-1)
        if dtype == "MXFP4":
            data[..., 0] = rng.integers(124, 128, shape[:2])
        for at in HALVES.get(dtype, []):
            d = rng.standard_normal(shape[:2]) * 0.02
            data[..., at : at + 2] = d.astype(np.float16)[..., None].view(np.uint8)
    data = np.ascontiguousarray(data).view(np.uint8).reshape(-1)
    return RandomWeight(dtype, n_out, n_in, data, scale)


def floats_of(cpu, w: RandomWeight) -> np.ndarray:
    """The weight's values f32[n_out, n_in], as the CPU backend reads them."""
    rows = np.arange(w.n_out, dtype=np.int32)
    return cpu.embed(w.data, w.dtype, w.n_out, w.n_in, rows, 1, w.scale)[:, 0]
