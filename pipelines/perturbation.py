"""Rows that the U-Net answers badly on purpose, for guidance away from them: the self-attention of its mid block is disturbed.

PAG (arXiv 2403.17377, equation 14): every position attends to itself alone. SEG (arXiv 2408.00760, section 4, at infinite
blur): every position asks the same question, the mean of all queries. Both act on the marked rows of a batch and leave the
others bit for bit: they go through the same operations in the same shapes, and are chosen row by row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from pipelines.guidance_plan import KINDS


def self_attentions(unet: Any) -> list[Any]:
    """Those of the mid block; none where it has no such layers."""
    layers = (layer for block in getattr(unet.mid_block, "attentions", ()) for layer in getattr(block, "transformer_blocks", ()))
    return [layer.attn1 for layer in layers if not layer.attn1.is_cross_attention]


@contextmanager
def disturbed(unet: Any, marks: Sequence[str]) -> Iterator[None]:
    """Within, row i of a call of the U-Net is disturbed as `marks[i]` says: pag, seg, or nothing."""
    layers = self_attentions(unet)
    kept = [layer.processor for layer in layers]
    try:
        for layer in layers:
            layer.processor = MarkedAttention(marks)
        yield
    finally:
        for layer, processor in zip(layers, kept, strict=True):
            layer.processor = processor


class MarkedAttention:
    """diffusers' AttnProcessor2_0 for the self-attention of a transformer block, with marked rows."""

    def __init__(self, marks: Sequence[str]) -> None:
        self._marks = marks

    def __call__(self, attn: Any, hidden_states: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        rows, length, _ = hidden_states.shape  # [R, N, C]
        pag, seg = (torch.tensor([m == kind for m in self._marks], device=hidden_states.device)[:, None, None] for kind in KINDS)
        if attn.fused_projections:
            query, key, value = attn.to_qkv(hidden_states).chunk(3, dim=-1)  # [R, N, C]
        else:
            query, key, value = attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states)
        query = torch.where(seg, query.mean(dim=1, keepdim=True), query)
        q, k, v = (t.view(rows, length, attn.heads, -1).transpose(1, 2) for t in (query, key, value))  # [R, heads, N, C / heads]
        out = scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(rows, length, -1)  # [R, N, C]
        return attn.to_out[1](attn.to_out[0](torch.where(pag, value, out)))
