"""DeepSeek's number formats, as rounding in the forward pass and as stored bytes.

Training rounds with a straight-through gradient: the forward pass sees exactly the numbers that the exported files
hold and that an engine keeps in its cache, the gradient passes as if nothing had been rounded.

    FP8 weights   E4M3, one power-of-two scale for a tile of 128x128        dense matrices
    FP4 weights   E2M1, one power-of-two scale for 32 inputs of a row       routed experts
    KV rows       E4M3, one power-of-two scale for 64 channels              all but the rotary channels
    index rows    Hadamard transform, then E2M1 with a scale for 32 channels
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

TILE = 128
FP8_MAX = 448.0
FP4_MAX = 6.0


def power_of_two_at_least(x: torch.Tensor) -> torch.Tensor:
    """The smallest power of two >= x for positive normal f32, exactly (a logarithm could miss by one)."""
    return ((x.view(torch.int32) + 0x7FFFFF) & 0x7F800000).view(torch.float32)


def to_e2m1(x: torch.Tensor) -> torch.Tensor:
    """Round |x| <= 6 to the values of FP4, ties to even."""
    a = x.abs()
    step = torch.where(a < 2, 0.5, torch.where(a < 4, 1.0, 2.0))
    return torch.round(x / step) * step


def to_e4m3(x: torch.Tensor) -> torch.Tensor:
    return x.to(torch.float8_e4m3fn).float()


def fp8_scales(w: torch.Tensor) -> torch.Tensor:
    """Scales of 128x128 tiles of the last two dimensions, f32[..., ceil(rows/128), ceil(columns/128)]."""
    rows, columns = w.shape[-2:]
    padded = F.pad(w.abs(), (0, -columns % TILE, 0, -rows % TILE))
    tiles = padded.unflatten(-1, (-1, TILE)).unflatten(-3, (-1, TILE))
    return power_of_two_at_least(tiles.amax((-1, -3)).clamp_min(1e-20) / FP8_MAX)


def spread_tiles(scales: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    full = scales.repeat_interleave(TILE, -2).repeat_interleave(TILE, -1)
    return full[..., :rows, :columns]


def fp4_scales(w: torch.Tensor) -> torch.Tensor:
    """Scales of blocks of 32 inputs, f32[..., rows, columns/32]."""
    amax = w.abs().unflatten(-1, (-1, 32)).amax(-1)
    return power_of_two_at_least(amax.clamp_min(1e-20) / FP4_MAX)


def round_fp8(w: torch.Tensor) -> torch.Tensor:
    s = spread_tiles(fp8_scales(w), *w.shape[-2:])
    return to_e4m3(w / s) * s


def round_fp4(w: torch.Tensor) -> torch.Tensor:
    s = fp4_scales(w).repeat_interleave(32, -1)
    return to_e2m1(w / s) * s


def round_kv(row: torch.Tensor, rope_dim: int) -> torch.Tensor:
    """The cache round trip of KV rows; the last `rope_dim` channels stay."""
    x = row[..., :-rope_dim].float().unflatten(-1, (-1, 64))
    s = power_of_two_at_least(x.abs().amax(-1, keepdim=True).clamp_min(1e-4) / FP8_MAX)
    q = (to_e4m3(x / s) * s).flatten(-2).to(row.dtype)
    return torch.cat([q, row[..., -rope_dim:]], -1)


def hadamard_matrix(n: int) -> torch.Tensor:
    """+1 and -1 in natural order, f32[n, n]; n is a power of two."""
    h = torch.ones(1, 1)
    while h.shape[0] < n:
        h = torch.cat([torch.cat([h, h], 1), torch.cat([h, -h], 1)], 0)
    return h


def round_index(row: torch.Tensor, hadamard: torch.Tensor) -> torch.Tensor:
    """The round trip of index queries and rows: transform, then FP4 with a straight-through gradient.

    The gradient passes the rounding alone. Passed around the transform as well it would arrive in the wrong basis,
    with no correlation to the right one, and the indexer would learn noise.
    """
    turned = (row @ hadamard.to(row.dtype)).float() * row.shape[-1] ** -0.5
    return straight_through(turned, _round_index_fp4(turned.detach())).to(row.dtype)


def _round_index_fp4(x: torch.Tensor) -> torch.Tensor:
    x = x.unflatten(-1, (-1, 32))
    amax = x.abs().amax(-1, keepdim=True).clamp_min(FP4_MAX * 2.0**-126)
    s = power_of_two_at_least(amax / FP4_MAX)
    return (to_e2m1(x / s) * s).flatten(-2)


def straight_through(exact: torch.Tensor, rounded: torch.Tensor) -> torch.Tensor:
    """The value of `rounded`, the gradient of `exact`."""
    return exact + (rounded - exact).detach()
