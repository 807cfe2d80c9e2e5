"""Mixture of experts: hash-routed in the first layers, score-routed after, one shared expert."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from config import ModelConfig
from layers import Linear
from rounding import round_fp4, straight_through
from torch import nn

_grouped_mm = getattr(F, "grouped_mm", None) or getattr(torch, "_grouped_mm", None)


class _Permute(torch.autograd.Function):
    """x[order]. The gradient is gathered with the inverse permutation, where indexing would add atomically."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, order: torch.Tensor, inverse: torch.Tensor
    ) -> torch.Tensor:
        ctx.save_for_backward(inverse)
        return x[order]

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return grad[ctx.saved_tensors[0]], None, None


def swiglu(gate_up: torch.Tensor, clamp: float) -> torch.Tensor:
    gate, up = gate_up.chunk(2, -1)
    return F.silu(gate.clamp(max=clamp)) * up.clamp(-clamp, clamp)


def expert_product(x: torch.Tensor, w: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    """Rows of x, sorted by expert, times w[expert].T; ends[e] is the row after the last one of expert e."""
    if x.is_cuda and _grouped_mm is not None:
        return _grouped_mm(x, w.transpose(-2, -1), offs=ends)
    counts = torch.diff(ends, prepend=ends.new_zeros(1)).tolist()
    return torch.cat([F.linear(rows, w[e]) for e, rows in enumerate(x.split(counts))])


class MixtureOfExperts(nn.Module):
    def __init__(self, c: ModelConfig, *, hashed: bool) -> None:
        super().__init__()
        self.c, self.hashed = c, hashed
        self.fp4 = True  # round the experts in the forward pass
        n, d, f = c.n_experts, c.hidden_size, c.moe_intermediate_size
        self.gate = nn.Parameter(torch.randn(n, d) * 0.02)
        self.gate_up = nn.Parameter(torch.randn(n, 2 * f, d) * d**-0.5)
        self.down = nn.Parameter(torch.randn(n, d, f) * 0.5 * f**-0.5)
        self.shared_gate_up = Linear(d, 2 * f)
        self.shared_down = Linear(f, d, gain=0.5)
        if hashed:
            table = torch.zeros(c.vocab_size, c.n_experts_per_token, dtype=torch.int32)
            self.register_buffer("tid2eid", table)
        else:
            self.register_buffer("bias", torch.zeros(n))
        self.register_buffer("load", torch.zeros(n), persistent=False)

    def forward(self, x: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """x[batch, n_tokens, hidden], ids[batch, n_tokens] -> output, tokens per expert f32[n_experts]."""
        c, shape = self.c, x.shape
        x = x.flatten(0, 1)
        affinity = F.softplus(F.linear(x.float(), self.gate)).sqrt()
        with torch.no_grad():
            if self.hashed:
                chosen = self.tid2eid[ids.flatten()].long()
            else:
                chosen = (affinity + self.bias).topk(c.n_experts_per_token, -1).indices
            flat = chosen.flatten()
            ordered, order = flat.sort(stable=True)
            inverse = torch.empty_like(order).scatter_(
                0, order, torch.arange(len(order), device=x.device)
            )
            experts = torch.arange(c.n_experts, device=x.device)
            ends = torch.searchsorted(ordered, experts, right=True).to(torch.int32)
            load = torch.diff(ends, prepend=ends.new_zeros(1)).float()
        weight = affinity.gather(1, chosen)
        weight = weight / weight.sum(-1, keepdim=True) * c.routed_scaling_factor

        copies = x[:, None].expand(-1, c.n_experts_per_token, -1).flatten(0, 1)
        rows = _Permute.apply(copies, order, inverse)
        gate_up, down = self._stored(self.gate_up, x), self._stored(self.down, x)
        hidden = swiglu(expert_product(rows, gate_up, ends), c.swiglu_clamp)
        rows = _Permute.apply(expert_product(hidden, down, ends), inverse, order)
        rows = rows.unflatten(0, (-1, c.n_experts_per_token))
        routed = (rows.float() * weight[..., None]).sum(1).to(x.dtype)
        shared = self.shared_down(swiglu(self.shared_gate_up(x), c.swiglu_clamp))
        return (routed + shared).unflatten(0, shape[:2]), load

    def _stored(self, w: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        w = straight_through(w, round_fp4(w.detach())) if self.fp4 else w
        return w.to(like.dtype)


def hash_table(c: ModelConfig, frequency: np.ndarray, seed: int) -> torch.Tensor:
    """Distinct experts for every token id: frequent ids first, each to the experts with the least load so far."""
    rng = np.random.default_rng(seed)
    load = np.zeros(c.n_experts)
    table = np.zeros((c.vocab_size, c.n_experts_per_token), dtype=np.int32)
    for token in np.argsort(-frequency, kind="stable"):
        noise = rng.random(c.n_experts) * (frequency[token] * 0.1 + 1e-9)
        experts = np.argsort(load + noise, kind="stable")[: c.n_experts_per_token]
        table[token] = np.sort(experts)
        load[experts] += frequency[token]
    return torch.from_numpy(table)
