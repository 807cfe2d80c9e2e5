"""Optimisers: Muon for the matrices (orthogonalised momentum), AdamW for embeddings, routers and vectors."""

from __future__ import annotations

import torch
from torch import nn

# Coefficients of the quintic iteration in Keller Jordan's Muon.
_A, _B, _C = 3.4445, -4.7750, 2.0315


def orthogonalize(g: torch.Tensor, n_steps: int = 5) -> torch.Tensor:
    """Bring the singular values of every matrix of g[..., rows, columns], rows <= columns, close to 1."""
    x = g.to(torch.bfloat16 if g.is_cuda else torch.float32)
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(n_steps):
        a = x @ x.mT
        x = _A * x + (_B * a + _C * a @ a) @ x
    return x.to(g.dtype)


class Muon(torch.optim.Optimizer):
    """Momentum whose update is orthogonalised and has RMS 0.2 * lr, the size of an AdamW update.

    Matrices of one shape are stacked and go through the iteration together; experts count as separate matrices.
    """

    def __init__(
        self,
        params: list[nn.Parameter],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.1,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            by_shape: dict[tuple[int, int], list[nn.Parameter]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    by_shape.setdefault((min(p.shape[-2:]), max(p.shape[-2:])), []).append(p)
            for shape, params in by_shape.items():
                self._step_shape(group, shape, params)

    def _step_shape(self, group: dict, shape: tuple[int, int], params: list[nn.Parameter]) -> None:
        directions = []
        for p in params:
            momentum = self.state[p].setdefault("momentum", torch.zeros_like(p))
            momentum.mul_(group["momentum"]).add_(p.grad)
            d = p.grad.add(momentum, alpha=group["momentum"])
            directions.append((d.mT if d.shape[-2] > d.shape[-1] else d).reshape(-1, *shape))
        updates = orthogonalize(torch.cat(directions)).split([len(d) for d in directions])
        size = group["lr"] * 0.2 * shape[1] ** 0.5
        for p, u in zip(params, updates, strict=True):
            u = (u.mT if p.shape[-2] > p.shape[-1] else u).reshape(p.shape)
            p.mul_(1 - group["lr"] * group["weight_decay"]).add_(u, alpha=-size)


def make_optimizers(model: nn.Module, lr: float, adam_lr: float) -> tuple[Muon, torch.optim.AdamW]:
    matrices, tables, rest, indexer = [], [], [], []
    for name, p in model.named_parameters():
        if ".indexer." in name:
            indexer.append(p)
        elif name in ("embed", "lm_head") or name.endswith("ffn.gate"):
            tables.append(p)
        elif p.dim() < 2 or name.endswith((".fn", ".ape")):
            rest.append(p)
        else:
            matrices.append(p)
    groups = [
        {"params": tables, "weight_decay": 0.01},
        {"params": rest, "weight_decay": 0.0, "lr": adam_lr * 0.5},
        {"params": indexer, "weight_decay": 0.0, "lr": adam_lr / 6},
    ]
    fused = next(model.parameters()).is_cuda
    adam = torch.optim.AdamW(groups, lr=adam_lr, betas=(0.9, 0.95), eps=1e-10, fused=fused)
    return Muon(matrices, lr), adam
