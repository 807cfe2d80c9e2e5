"""Sinkhorn's iteration on the 4x4 stream mixing matrices: plain PyTorch, and one Triton kernel each way for CUDA.

Written as tensor operations it is 80 small kernels per sublayer forward and twice that backward, two thirds of all
kernels of a training step. Every step divides by a sum, y = x / s, so the backward kernel needs only the sums: it
gets x back as y * s.
"""

from __future__ import annotations

import torch

try:
    import triton
    import triton.language as tl
except ImportError:  # a CPU build of PyTorch comes without it
    triton = None


def sinkhorn_reference(x: torch.Tensor, n_iters: int, eps: float) -> torch.Tensor:
    """Softmax of rows, then columns and rows in turn divided by their sums, columns last. x: f32[..., n, n]."""
    k = x.softmax(-1) + eps
    k = k / (k.sum(-2, keepdim=True) + eps)
    for _ in range(n_iters - 1):
        k = k / (k.sum(-1, keepdim=True) + eps)
        k = k / (k.sum(-2, keepdim=True) + eps)
    return k


if triton is not None:
    BLOCK = 64

    @triton.jit
    def _forward(x_ptr, y_ptr, sums_ptr, n, eps, n_iters: tl.constexpr, block: tl.constexpr):
        row = tl.program_id(0) * block + tl.arange(0, block)
        four = tl.arange(0, 4)
        at = row[:, None, None] * 16 + four[None, :, None] * 4 + four[None, None, :]
        inside = (row < n)[:, None, None]
        at_sum = row[:, None] * 4 + four[None, :]
        inside_sum = (row < n)[:, None]
        x = tl.load(x_ptr + at, mask=inside, other=0.0)
        e = tl.exp(x - tl.max(x, axis=2)[:, :, None])
        k = e / tl.sum(e, axis=2)[:, :, None] + eps
        s = tl.sum(k, axis=1) + eps
        tl.store(sums_ptr + at_sum, s, mask=inside_sum)
        k = k / s[:, None, :]
        for i in range(1, n_iters):
            s = tl.sum(k, axis=2) + eps
            tl.store(sums_ptr + (2 * i - 1) * n * 4 + at_sum, s, mask=inside_sum)
            k = k / s[:, :, None]
            s = tl.sum(k, axis=1) + eps
            tl.store(sums_ptr + 2 * i * n * 4 + at_sum, s, mask=inside_sum)
            k = k / s[:, None, :]
        tl.store(y_ptr + at, k, mask=inside)

    @triton.jit
    def _backward(
        y_ptr, sums_ptr, grad_ptr, out_ptr, n, eps, n_iters: tl.constexpr, block: tl.constexpr
    ):
        row = tl.program_id(0) * block + tl.arange(0, block)
        four = tl.arange(0, 4)
        at = row[:, None, None] * 16 + four[None, :, None] * 4 + four[None, None, :]
        inside = (row < n)[:, None, None]
        at_sum = row[:, None] * 4 + four[None, :]
        inside_sum = (row < n)[:, None]
        k = tl.load(y_ptr + at, mask=inside, other=0.0)
        g = tl.load(grad_ptr + at, mask=inside, other=0.0)
        for j in range(1, n_iters):
            i = n_iters - j
            s = tl.load(sums_ptr + 2 * i * n * 4 + at_sum, mask=inside_sum, other=1.0)
            g = (g - tl.sum(g * k, axis=1)[:, None, :]) / s[:, None, :]
            k = k * s[:, None, :]
            s = tl.load(sums_ptr + (2 * i - 1) * n * 4 + at_sum, mask=inside_sum, other=1.0)
            g = (g - tl.sum(g * k, axis=2)[:, :, None]) / s[:, :, None]
            k = k * s[:, :, None]
        s = tl.load(sums_ptr + at_sum, mask=inside_sum, other=1.0)
        g = (g - tl.sum(g * k, axis=1)[:, None, :]) / s[:, None, :]
        p = k * s[:, None, :] - eps
        tl.store(out_ptr + at, p * (g - tl.sum(g * p, axis=2)[:, :, None]), mask=inside)

    @torch.library.custom_op("demo_model::sinkhorn", mutates_args=())
    def _sinkhorn(x: torch.Tensor, n_iters: int, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
        x = x.contiguous()
        n = x.numel() // 16
        y = torch.empty_like(x)
        sums = x.new_empty(2 * n_iters - 1, n, 4)
        _forward[(triton.cdiv(n, BLOCK),)](x, y, sums, n, eps, n_iters, BLOCK)
        return y, sums

    @_sinkhorn.register_fake
    def _(x: torch.Tensor, n_iters: int, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
        y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        return y, x.new_empty(2 * n_iters - 1, x.numel() // 16, 4)

    @torch.library.custom_op("demo_model::sinkhorn_backward", mutates_args=())
    def _sinkhorn_backward(
        y: torch.Tensor, sums: torch.Tensor, grad: torch.Tensor, n_iters: int, eps: float
    ) -> torch.Tensor:
        out = torch.empty_like(y)
        n = y.numel() // 16
        grid = (triton.cdiv(n, BLOCK),)
        _backward[grid](y, sums, grad.contiguous(), out, n, eps, n_iters, BLOCK)
        return out

    @_sinkhorn_backward.register_fake
    def _(
        y: torch.Tensor, sums: torch.Tensor, grad: torch.Tensor, n_iters: int, eps: float
    ) -> torch.Tensor:
        return torch.empty_like(y)

    def _setup(ctx, inputs, output):
        ctx.n_iters, ctx.eps = inputs[1], inputs[2]
        ctx.save_for_backward(*output)

    def _gradient(ctx, grad, _):
        y, sums = ctx.saved_tensors
        return _sinkhorn_backward(y, sums, grad, ctx.n_iters, ctx.eps), None, None

    _sinkhorn.register_autograd(_gradient, setup_context=_setup)


def sinkhorn(x: torch.Tensor, n_iters: int, eps: float) -> torch.Tensor:
    if x.is_cuda and triton is not None and x.shape[-1] == 4:
        return _sinkhorn(x, n_iters, eps)[0]
    return sinkhorn_reference(x, n_iters, eps)
