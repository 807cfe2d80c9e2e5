"""Attention of one layer: sliding window, compressed rows and the indexer that selects them.

Window attention is banded: blocks of 128 queries look at their own and the previous block of keys. Compressed rows
are one dense product with a mask. The indexer gets no gradient from the language loss (it returns row numbers); it
learns to predict the mean attention of the heads over the rows, by KL divergence, from detached inputs.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from config import ModelConfig
from layers import Linear, Rotation, rms_norm, rotate
from rounding import hadamard_matrix, round_index, round_kv, straight_through
from torch import nn

HIDDEN = -1e30  # the score of what a query does not see


class AttentionMode(NamedTuple):
    """What one forward pass does about compressed rows."""

    select: bool = True  # attend to the indexer's choice; False: to all rows (start of training)
    use_rows: bool = True  # False: ablation, the window alone
    # bool[batch]: windows that attend to all rows although the others select. Only there does the indexer's target
    # hold rows that it would not choose itself, so training keeps a share of such windows to the end.
    dense: torch.Tensor | None = None


class Compressor(nn.Module):
    """Gated pooling of `ratio` tokens into one row; ratio 4 also pools the window before (halves A and B)."""

    def __init__(self, c: ModelConfig, ratio: int, width: int) -> None:
        super().__init__()
        self.ratio, self.width, self.eps = ratio, width, c.eps
        self.overlaps = ratio == 4
        n_out = 2 * width if self.overlaps else width
        self.wkv = Linear(c.hidden_size, n_out, fp8=False)
        self.wgate = Linear(c.hidden_size, n_out, fp8=False)
        self.ape = nn.Parameter(torch.zeros(ratio, n_out))
        self.norm = nn.Parameter(torch.ones(width))

    def forward(self, x: torch.Tensor, rotation: Rotation) -> torch.Tensor:
        """x[batch, n_tokens, hidden] -> rows[batch, n_tokens // ratio, width], rotated to their first token."""
        n_rows = x.shape[1] // self.ratio
        used = x[:, : n_rows * self.ratio]
        k = self.wkv(used).unflatten(1, (n_rows, self.ratio))
        z = self.wgate(used).unflatten(1, (n_rows, self.ratio)).float() + self.ape
        if self.overlaps:
            d = self.width
            before = (0, 0, 0, 0, 1, 0)  # one more window in front, none before the first
            k = torch.cat([F.pad(k[:, :-1, :, :d], before), k[..., d:]], 2)
            z = torch.cat([F.pad(z[:, :-1, :, :d], before, value=HIDDEN), z[..., d:]], 2)
        row = (k.float() * z.softmax(2)).sum(2).to(x.dtype)
        cos, sin = (t[: n_rows * self.ratio : self.ratio] for t in rotation)
        return rotate(rms_norm(row, self.norm, self.eps), (cos, sin))


class Indexer(nn.Module):
    """Scores every compressed row for every query."""

    def __init__(self, c: ModelConfig) -> None:
        super().__init__()
        self.n_heads, self.width = c.index_n_heads, c.index_head_dim
        self.compressor = Compressor(c, 4, c.index_head_dim)
        self.wq_b = Linear(c.q_lora_rank, c.index_n_heads * c.index_head_dim)
        self.weights_proj = Linear(c.hidden_size, c.index_n_heads, fp8=False)
        self.register_buffer("hadamard", hadamard_matrix(c.index_head_dim), persistent=False)

    def forward(self, x: torch.Tensor, qr: torch.Tensor, rotation: Rotation) -> torch.Tensor:
        """-> f32[batch, n_tokens, n_rows]"""
        rows = round_index(self.compressor(x, rotation), self.hadamard)
        q = rotate(self.wq_b(qr).unflatten(-1, (self.n_heads, self.width)), rotation)
        q = round_index(q, self.hadamard)
        weight = self.weights_proj(x).float() * (self.width * self.n_heads) ** -0.5
        score = F.relu(torch.einsum("bthd,bsd->bths", q, rows).float())
        return (score * weight[..., None]).sum(2)


class Attention(nn.Module):
    def __init__(self, c: ModelConfig, ratio: int) -> None:
        super().__init__()
        self.c, self.ratio = c, ratio
        self.wq_a = Linear(c.hidden_size, c.q_lora_rank)
        self.q_norm = nn.Parameter(torch.ones(c.q_lora_rank))
        self.wq_b = Linear(c.q_lora_rank, c.n_heads * c.head_dim)
        self.wkv = Linear(c.hidden_size, c.head_dim)
        self.kv_norm = nn.Parameter(torch.ones(c.head_dim))
        group_width = c.n_heads // c.o_groups * c.head_dim
        self.wo_a = Linear(group_width, c.o_groups * c.o_lora_rank)
        self.wo_b = Linear(c.o_groups * c.o_lora_rank, c.hidden_size, gain=0.5)
        self.attn_sink = nn.Parameter(torch.zeros(c.n_heads))
        self.compressor = Compressor(c, ratio, c.head_dim) if ratio else None
        self.indexer = Indexer(c) if ratio == 4 else None

    def forward(
        self, x: torch.Tensor, rotation: Rotation, mode: AttentionMode
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """x[batch, n_tokens, hidden] -> output of the same shape, loss of the indexer while training."""
        c = self.c
        n_tokens, block = x.shape[1], c.window_size
        n_blocks = -(-n_tokens // block)
        pad = n_blocks * block - n_tokens
        rotation = (rotation[0][:n_tokens], rotation[1][:n_tokens])

        qr = rms_norm(self.wq_a(x), self.q_norm, c.eps)
        q = self.wq_b(qr).unflatten(-1, (c.n_heads, c.head_dim))
        q = rotate(rms_norm(q, None, c.eps), rotation)
        kv = self._stored(rotate(rms_norm(self.wkv(x), self.kv_norm, c.eps), rotation))

        q = F.pad(q, (0, 0, 0, 0, 0, pad)).unflatten(1, (n_blocks, block)).transpose(2, 3)
        keys = F.pad(kv, (0, 0, block, pad)).unflatten(1, (n_blocks + 1, block))
        keys = torch.cat([keys[:, :-1], keys[:, 1:]], 2)  # [batch, block, 2 * 128, head_dim]
        scores = torch.einsum("bnhqd,bnkd->bnhqk", q, keys).float() * c.head_dim**-0.5
        scores = scores.masked_fill(~self._window_mask(n_blocks, x.device)[None, :, None], HIDDEN)
        sink = self.attn_sink.view(1, 1, -1, 1, 1).expand(*scores.shape[:-1], 1)

        if self.compressor is None or n_tokens < self.ratio or not mode.use_rows:
            weights = torch.cat([scores, sink], -1).softmax(-1)[..., :-1]
            out = torch.einsum("bnhqk,bnkd->bnhqd", weights.to(x.dtype), keys)
            return self._project(out, n_tokens, rotation), None

        rows = self._stored(self.compressor(x, rotation))
        n_rows = rows.shape[1]
        position = torch.arange(n_blocks * block, device=x.device)
        complete = (position[:, None] + 1) // self.ratio
        visible = (torch.arange(n_rows, device=x.device)[None] < complete)[None]
        index = None
        if self.indexer is not None:
            index = self.indexer(x.detach(), qr.detach(), rotation)
            index = F.pad(index, (0, 0, 0, pad)).masked_fill(~visible, HIDDEN)
            if mode.select and n_rows > c.index_top_k:
                best = index.detach().topk(c.index_top_k, -1).indices
                chosen = torch.zeros_like(index, dtype=torch.bool).scatter_(2, best, True)
                if mode.dense is not None:
                    chosen = chosen | mode.dense[:, None, None]
                visible = visible & chosen
        row_scores = torch.einsum("bnhqd,bsd->bnhqs", q, rows).float() * c.head_dim**-0.5
        row_mask = visible.unflatten(1, (n_blocks, 1, block))
        row_scores = row_scores.masked_fill(~row_mask, HIDDEN)
        weights = torch.cat([scores, row_scores, sink], -1).softmax(-1)
        near, far = weights[..., : 2 * block], weights[..., 2 * block : -1]
        out = torch.einsum("bnhqk,bnkd->bnhqd", near.to(x.dtype), keys)
        out = out + torch.einsum("bnhqs,bsd->bnhqd", far.to(x.dtype), rows)
        loss = None
        if index is not None and self.training:
            loss = self._index_loss(index, far.detach(), visible, n_tokens)
        return self._project(out, n_tokens, rotation), loss

    def _stored(self, rows: torch.Tensor) -> torch.Tensor:
        return straight_through(rows, round_kv(rows.detach(), self.c.rope_dim))

    def _window_mask(self, n_blocks: int, device: torch.device) -> torch.Tensor:
        """bool[block, query, key]: keys of the own and the previous block, at most window_size back."""
        n = self.c.window_size
        query = torch.arange(n, device=device)[:, None]
        key = torch.arange(2 * n, device=device)[None] - n
        band = (key <= query) & (query - key < n)
        exists = (key >= 0)[None] | (torch.arange(n_blocks, device=device) > 0)[:, None, None]
        return band[None] & exists

    def _project(self, out: torch.Tensor, n_tokens: int, rotation: Rotation) -> torch.Tensor:
        c = self.c
        out = out.transpose(2, 3).flatten(1, 2)[:, :n_tokens]
        out = rotate(out, rotation, inverse=True)
        groups = out.flatten(-2).unflatten(-1, (c.o_groups, -1))
        w = self.wo_a.stored().to(out.dtype)
        low = torch.einsum("btgi,gri->btgr", groups, w.unflatten(0, (c.o_groups, -1)))
        return self.wo_b(low.flatten(-2))

    def _index_loss(
        self, index: torch.Tensor, far: torch.Tensor, visible: torch.Tensor, n_tokens: int
    ) -> torch.Tensor:
        """KL(mean attention of the heads over the rows || softmax of the scores), mean over queries."""
        target = far.mean(2).flatten(1, 2)
        mass = target.sum(-1, keepdim=True)
        target = target / mass.clamp_min(1e-9)
        log_p = index.masked_fill(~visible, HIDDEN).log_softmax(-1)
        kl = (target * (target.clamp_min(1e-9).log() - log_p)).sum(-1)
        position = torch.arange(kl.shape[1], device=kl.device)
        counts = (mass[..., 0] > 1e-4) & (position < n_tokens)
        return (kl * counts).sum() / counts.sum().clamp_min(1)
