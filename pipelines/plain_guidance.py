"""The slow obvious twin of `guidance`: one image, one row, each formula as its paper writes it. The oracle of the engine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.models.attention_processor import PAGIdentitySelfAttnProcessor2_0

from pipelines.guidance_plan import COLUMNS, Plan
from pipelines.perturbation import self_attentions

Tensor = Any


def numbers(plan: Plan, row: int) -> dict[str, float]:
    """The row's columns by name."""
    return dict(zip(COLUMNS, plan.columns[row].tolist(), strict=True))


def guide(variant: str, n: Mapping[str, float], c: Tensor, u: Tensor, p: Tensor, delta: Tensor, clean: Tensor, c_out: float) -> Tensor:
    """One raw output from the raw outputs `c`, `u` and the disturbed `p` [C, h, w].

    APG reads the shortened or averaged difference `delta` of the denoised estimates, and the conditional one, `clean`.
    """
    if variant == "zero":
        return torch.zeros_like(c)
    if n["scale"] == 1 and not n["perturbed"]:
        return c
    if variant == "cfg_zero_star":
        u = (c * u).sum() / (u * u).sum() * u
    elif variant == "tcfg":
        u = tangential(c, u)
    guided = c + (n["scale"] - 1) * projected(delta, clean, n) / c_out if variant == "apg" else u + n["scale"] * (c - u)
    guided = guided + n["perturbed"] * (c - p)
    phi = n["rescale"]
    return phi * guided * c.std() / guided.std() + (1 - phi) * guided if phi else guided


def tangential(c: Tensor, u: Tensor) -> Tensor:
    """u without its part along the second right singular vector of [c, u]: arXiv 2503.18137, algorithm 1."""
    _, _, v = torch.linalg.svd(torch.stack([c.flatten(), u.flatten()]), full_matrices=False)  # v [2, D]
    return (u.flatten() @ v[0] * v[0]).reshape(u.shape)


def projected(delta: Tensor, clean: Tensor, n: Mapping[str, float]) -> Tensor:
    """arXiv 2410.02416, algorithm 1: shortened to the threshold, then split along and across `clean`."""
    if n["norm_threshold"] > 0:
        delta = delta * min(1.0, n["norm_threshold"] / delta.norm().item())
    direction = clean / clean.norm()
    along = (delta * direction).sum() * direction
    return delta - along + n["eta"] * along


@contextmanager
def disturbed(unet: Any, mark: str) -> Iterator[None]:
    """Within, the second of the two rows of a call is disturbed: by diffusers' own processor for PAG, by a hook for SEG."""
    layers = self_attentions(unet)
    kept = [layer.processor for layer in layers]
    hooks = [layer.to_q.register_forward_hook(_one_question) for layer in layers] if mark == "seg" else []
    try:
        for layer in layers if mark == "pag" else ():
            layer.processor = PAGIdentitySelfAttnProcessor2_0()
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for layer, processor in zip(layers, kept, strict=True):
            layer.processor = processor


def _one_question(layer: Any, inputs: Any, queries: Tensor) -> Tensor:
    """The second row [N, C] asks the mean of its queries everywhere."""
    return torch.stack([queries[0], queries[1].mean(dim=0).expand_as(queries[1])])
