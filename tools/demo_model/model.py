"""The DeepSeek V4 architecture for training: residual streams, blocks, output head, draft (MTP) block, losses.

The forward pass holds everything that an inference engine must run, rounded as the engine rounds it (rounding.py).
On CUDA the activations are bf16, on a CPU f32; routing, stream mixing, norms and softmax are f32 everywhere.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from attention import Attention, AttentionMode
from config import ModelConfig
from layers import Linear, Rotation, rms_norm, rotation_table
from moe import MixtureOfExperts
from sinkhorn import sinkhorn
from torch import nn
from torch.utils.checkpoint import checkpoint

FULL = AttentionMode()


class HyperConnection(nn.Module):
    """Collapses the streams into a sublayer's input and spreads its output over them again."""

    def __init__(self, c: ModelConfig, i_sublayer: int) -> None:
        super().__init__()
        self.c = c
        n = c.hc_mult
        self.fn = nn.Parameter(torch.randn((2 + n) * n, n * c.hidden_size) * 0.02)
        # Close to an ordinary residual at the start: sublayers read one stream each in turn, streams stay apart.
        base = torch.zeros((2 + n) * n)
        base[:n] = -1.5
        base[i_sublayer % n] = 1.0
        base[2 * n :] = torch.eye(n).flatten() * 4
        self.base = nn.Parameter(base)
        self.scale = nn.Parameter(torch.full((3,), 0.1))

    def forward(self, streams: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """streams[batch, n_tokens, n, hidden] -> sublayer input, post f32[..., n], mix f32[..., n, n]"""
        n, eps = self.c.hc_mult, self.c.eps
        flat = streams.flatten(2).float()
        m = F.linear(flat, self.fn) * torch.rsqrt(flat.square().mean(-1, keepdim=True) + eps)
        pre = torch.sigmoid(m[..., :n] * self.scale[0] + self.base[:n]) + eps
        post = 2 * torch.sigmoid(m[..., n : 2 * n] * self.scale[1] + self.base[n : 2 * n])
        mix = (m[..., 2 * n :] * self.scale[2] + self.base[2 * n :]).unflatten(-1, (n, n))
        mix = sinkhorn(mix.contiguous(), self.c.hc_sinkhorn_iters, eps)
        x = (pre.unsqueeze(-1) * streams.float()).sum(2)
        return x.to(streams.dtype), post, mix


def spread(
    y: torch.Tensor, streams: torch.Tensor, post: torch.Tensor, mix: torch.Tensor
) -> torch.Tensor:
    """new[k] = post[k] y + sum_j mix[j, k] old[j]"""
    old = streams.float()
    new = post.unsqueeze(-1) * y.unsqueeze(2).float()
    for j in range(old.shape[2]):
        new = new + mix[:, :, j, :, None] * old[:, :, j, None]
    return new.to(streams.dtype)


class Head(nn.Module):
    """Collapses the streams for the output matrix."""

    def __init__(self, c: ModelConfig) -> None:
        super().__init__()
        self.eps = c.eps
        self.fn = nn.Parameter(torch.randn(c.hc_mult, c.hc_mult * c.hidden_size) * 0.02)
        self.base = nn.Parameter(torch.full((c.hc_mult,), -1.0))
        self.scale = nn.Parameter(torch.full((1,), 0.1))
        self.norm = nn.Parameter(torch.ones(c.hidden_size))

    def forward(self, streams: torch.Tensor) -> torch.Tensor:
        flat = streams.flatten(2).float()
        m = F.linear(flat, self.fn) * torch.rsqrt(flat.square().mean(-1, keepdim=True) + self.eps)
        pre = torch.sigmoid(m * self.scale + self.base) + self.eps
        x = (pre.unsqueeze(-1) * streams.float()).sum(2)
        return rms_norm(x, self.norm, self.eps).to(streams.dtype)


class Block(nn.Module):
    def __init__(self, c: ModelConfig, i_layer: int) -> None:
        super().__init__()
        self.eps = c.eps
        self.attn = Attention(c, c.compress_ratios[i_layer])
        self.ffn = MixtureOfExperts(c, hashed=i_layer < c.n_hash_layers)
        self.attn_norm = nn.Parameter(torch.ones(c.hidden_size))
        self.ffn_norm = nn.Parameter(torch.ones(c.hidden_size))
        self.hc_attn = HyperConnection(c, 2 * i_layer)
        self.hc_ffn = HyperConnection(c, 2 * i_layer + 1)

    def forward(
        self, streams: torch.Tensor, ids: torch.Tensor, rotation: Rotation, mode: AttentionMode
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
        """-> streams, loss of the indexer, tokens per expert"""
        x, post, mix = self.hc_attn(streams)
        y, index_loss = self.attn(rms_norm(x, self.attn_norm, self.eps), rotation, mode)
        streams = spread(y, streams, post, mix)
        x, post, mix = self.hc_ffn(streams)
        y, load = self.ffn(rms_norm(x, self.ffn_norm, self.eps), ids)
        return spread(y, streams, post, mix), index_loss, load


class Draft(nn.Module):
    """The MTP block: from the streams at position t and the next token, the token after it."""

    def __init__(self, c: ModelConfig) -> None:
        super().__init__()
        self.eps = c.eps
        self.e_proj = Linear(c.hidden_size, c.hidden_size)
        self.h_proj = Linear(c.hidden_size, c.hidden_size)
        self.enorm = nn.Parameter(torch.ones(c.hidden_size))
        self.hnorm = nn.Parameter(torch.ones(c.hidden_size))
        self.block = Block(c, c.n_layers)
        self.head = Head(c)

    def join(self, streams: torch.Tensor, embedded: torch.Tensor) -> torch.Tensor:
        e = self.e_proj(rms_norm(embedded, self.enorm, self.eps))
        return e.unsqueeze(2) + self.h_proj(rms_norm(streams, self.hnorm, self.eps))


class Output(NamedTuple):
    hidden: torch.Tensor  # [batch, n_tokens, hidden]; row t predicts token t + 1
    draft: torch.Tensor | None  # [batch, n_tokens - 1, hidden]; row t predicts token t + 2
    index_loss: torch.Tensor | None
    loads: list[torch.Tensor]  # tokens per expert, of the layers, then of the MTP block


class Model(nn.Module):
    def __init__(self, c: ModelConfig) -> None:
        super().__init__()
        self.c = c
        self.embed = nn.Parameter(torch.randn(c.vocab_size, c.hidden_size) * 0.02)
        self.lm_head = nn.Parameter(torch.randn(c.vocab_size, c.hidden_size) * 0.02)
        self.blocks = nn.ModuleList([Block(c, i) for i in range(c.n_layers)])
        self.head = Head(c)
        self.mtp = Draft(c) if c.n_mtp_layers else None
        self.recompute = False  # trade time for memory: keep only the streams between blocks
        self._rotations: list[Rotation] = []

    def rotations(self, n_positions: int, device: torch.device) -> list[Rotation]:
        """Tables of plain layers and of layers with compressed rows."""
        have = self._rotations
        if not have or have[0][0].shape[0] < n_positions or have[0][0].device != device:
            tables = [rotation_table(self.c, n_positions, compressed=k) for k in (False, True)]
            self._rotations = [(cos.to(device), sin.to(device)) for cos, sin in tables]
        return [(cos[:n_positions], sin[:n_positions]) for cos, sin in self._rotations]

    def forward(
        self,
        ids: torch.Tensor,
        mode: AttentionMode = FULL,
        *,
        draft: bool = True,
        dtype: torch.dtype = torch.float32,
    ) -> Output:
        """ids i64[batch, n_tokens]; activations in `dtype`."""
        plain, compressed = self.rotations(ids.shape[1], ids.device)
        embedded = F.embedding(ids, self.embed).to(dtype)
        streams = embedded.unsqueeze(2).expand(-1, -1, self.c.hc_mult, -1).contiguous()
        losses, loads = [], []
        for block in self.blocks:
            rotation = compressed if block.attn.ratio else plain
            streams, loss, load = self._run(block, streams, ids, rotation, mode)
            loads.append(load)
            if loss is not None:
                losses.append(loss)
        index_loss = torch.stack(losses).mean() if losses else None
        hidden, drafted = self.head(streams), None
        if self.mtp is not None and draft:
            # The last position has no next token yet; a dummy keeps the shape and its row is cut off.
            following = torch.cat([embedded[:, 1:], embedded[:, :1]], 1)
            next_ids = torch.cat([ids[:, 1:], ids[:, :1]], 1)
            joined = self.mtp.join(streams, following)
            drafted, _, load = self._run(self.mtp.block, joined, next_ids, plain, mode)
            drafted = self.mtp.head(drafted)[:, :-1]
            loads.append(load)
        return Output(hidden, drafted, index_loss, loads)

    def _run(
        self,
        block: nn.Module,
        streams: torch.Tensor,
        ids: torch.Tensor,
        rotation: Rotation,
        mode: AttentionMode,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
        if self.recompute and self.training:
            return checkpoint(block, streams, ids, rotation, mode, use_reentrant=False)
        return block(streams, ids, rotation, mode)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return F.linear(hidden, self.lm_head.to(hidden.dtype)).float()

    def loss(self, hidden: torch.Tensor, targets: torch.Tensor, chunk: int = 16384) -> torch.Tensor:
        """Mean cross entropy; chunk by chunk and computed again for the gradient, so that logits never pile up."""
        hidden, targets = hidden.flatten(0, 1), targets.flatten()
        total = hidden.new_zeros((), dtype=torch.float32)
        for h, t in zip(hidden.split(chunk), targets.split(chunk), strict=True):
            total = total + checkpoint(self._chunk_loss, h, t, use_reentrant=False)
        return total / len(targets)

    def _chunk_loss(self, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(self.logits(hidden), targets, reduction="sum")

    def compile_parts(self) -> None:
        """Compile what runs in every step: the blocks and the loss."""
        # One code object, many variants: layer kinds x sequence lengths x attention modes.
        torch._dynamo.config.recompile_limit = 64
        blocks = [*self.blocks] + ([self.mtp.block] if self.mtp is not None else [])
        for block in blocks:
            block.compile(dynamic=False)
        self._chunk_loss = torch.compile(self._chunk_loss, dynamic=False)  # type: ignore[method-assign]
