"""Small parts that several modules share: a matrix with stored rounding, RMS norm, rotary embedding."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from config import ModelConfig
from rounding import round_fp8, straight_through
from torch import nn

Rotation = tuple[torch.Tensor, torch.Tensor]  # cos, sin: f32[n_positions, rope_dim / 2]


class Linear(nn.Module):
    """A matrix without bias; with `fp8` the forward pass uses the weights that FP8 tiles can hold."""

    def __init__(self, n_in: int, n_out: int, *, fp8: bool = True, gain: float = 1.0) -> None:
        super().__init__()
        self.fp8 = fp8
        self.weight = nn.Parameter(torch.randn(n_out, n_in) * gain * n_in**-0.5)

    def stored(self) -> torch.Tensor:
        """The weights as the files hold them."""
        w = self.weight
        return straight_through(w, round_fp8(w.detach())) if self.fp8 else w

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.stored().to(x.dtype))


def rms_norm(x: torch.Tensor, weight: torch.Tensor | None, eps: float) -> torch.Tensor:
    f = x.float()
    f = f * torch.rsqrt(f.square().mean(-1, keepdim=True) + eps)
    return (f if weight is None else f * weight).to(x.dtype)


def rotation_table(c: ModelConfig, n_positions: int, *, compressed: bool) -> Rotation:
    """Angles of plain layers, or of layers with compressed rows (another base, YaRN, no magnitude)."""
    half = c.rope_dim // 2
    base = c.compress_rope_theta if compressed else c.rope_theta
    freq = base ** -(torch.arange(half).double() / half)
    if compressed:

        def channel(n_rotations: float) -> float:
            ratio = c.yarn_original_context / (n_rotations * 2 * math.pi)
            return c.rope_dim * math.log(ratio) / (2 * math.log(base))

        low = max(math.floor(channel(c.yarn_beta_fast)), 0)
        high = min(math.ceil(channel(c.yarn_beta_slow)), c.rope_dim - 1)
        keep = 1 - ((torch.arange(half).double() - low) / max(high - low, 1e-3)).clamp(0, 1)
        freq = freq / c.yarn_factor * (1 - keep) + freq * keep
    angle = torch.arange(n_positions).double()[:, None] * freq
    return angle.cos().float(), angle.sin().float()


def rotate(x: torch.Tensor, rotation: Rotation, *, inverse: bool = False) -> torch.Tensor:
    """Rotate the last channels of x[batch, position, (head,) channel] as interleaved pairs."""
    cos, sin = rotation
    n = 2 * cos.shape[-1]
    if x.dim() == 4:
        cos, sin = cos[:, None], sin[:, None]
    if inverse:
        sin = -sin
    u, v = x[..., -n:].float().unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack([u * cos - v * sin, u * sin + v * cos], -1).flatten(-2)
    return torch.cat([x[..., :-n], turned.to(x.dtype)], -1)
