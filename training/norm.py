"""Group normalisation with a cheap backward pass: PyTorch's own takes almost half of a VAE step on a CPU."""

from __future__ import annotations

import torch
from torch import nn


class FastGroupNorm(torch.autograd.Function):
    """Native forward; the backward needs two sums per channel and one affine map, see Wu and He, 2018, for the formula."""

    @staticmethod
    def forward(ctx, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, groups: int, eps: float) -> torch.Tensor:
        if x.ndim == 3:
            x = x.contiguous()  # attention hands over a transposed view
        n, c = x.shape[:2]
        spatial = x[0, 0].numel()
        y, mean, rstd = torch.native_group_norm(x, weight.to(x.dtype), bias.to(x.dtype), n, c, spatial, groups, eps)
        ctx.save_for_backward(x, weight, mean, rstd)
        ctx.groups = groups
        return y

    @staticmethod
    def backward(ctx, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, mean, rstd = ctx.saved_tensors
        (n, c), g = x.shape[:2], ctx.groups
        axes = tuple(range(2, x.ndim))
        size = x[0, 0].numel() * (c // g)
        mean, rstd = mean.float().view(n, g, 1), rstd.float().view(n, g, 1)
        db = dy.sum(axes, dtype=torch.float32).view(n, g, -1)  # [n, g, c/g]
        ds = (dy * x).sum(axes, dtype=torch.float32).view(n, g, -1)  # [n, g, c/g]
        dw = (ds - mean * db) * rstd  # [n, g, c/g]
        w = weight.float().view(1, g, -1)
        a = (rstd * w).expand(n, g, c // g)
        p = (w * db).sum(2, keepdim=True) * rstd / size
        q = (w * dw).sum(2, keepdim=True) * rstd * rstd / size
        shape = (n, c) + (1,) * len(axes)
        scale, slope, shift = (v.expand(n, g, c // g).reshape(shape).to(x.dtype) for v in (a, -q, q * mean - p))
        dx = torch.addcmul(torch.addcmul(shift, slope, x), scale, dy)
        return dx, dw.sum(0).view(c), db.sum(0).view(c), None, None


def use_fast_group_norm(model: nn.Module) -> None:
    """Replace the forward of every GroupNorm; weights and their names stay."""
    for module in model.modules():
        if isinstance(module, nn.GroupNorm):
            module.forward = lambda x, m=module: FastGroupNorm.apply(x, m.weight, m.bias, m.num_groups, m.eps)
