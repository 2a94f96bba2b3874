"""The slow obvious twin of `guidance`: one image, one row, each formula as its paper writes it. The oracle of the engine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from pipelines.guidance_plan import COLUMNS, Plan

Tensor = Any


def numbers(plan: Plan, row: int) -> dict[str, float]:
    """The row's columns by name."""
    return dict(zip(COLUMNS, plan.columns[row].tolist(), strict=True))


def guide(variant: str, n: Mapping[str, float], c: Tensor, u: Tensor, delta: Tensor, clean: Tensor, c_out: float) -> Tensor:
    """One raw output from the raw outputs `c` and `u` [C, h, w].

    APG reads the shortened or averaged difference `delta` of the denoised estimates, and the conditional one, `clean`.
    """
    if variant == "zero":
        return torch.zeros_like(c)
    if n["scale"] == 1:
        return c
    if variant == "cfg_zero_star":
        u = (c * u).sum() / (u * u).sum() * u
    elif variant == "tcfg":
        u = tangential(c, u)
    guided = c + (n["scale"] - 1) * projected(delta, clean, n) / c_out if variant == "apg" else u + n["scale"] * (c - u)
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
