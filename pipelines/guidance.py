"""Classifier-free guidance, one scale per row of the batch.

Guidance combines raw model outputs, before they become `denoised`, as diffusers does. Scale 1 is off.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

Array = Any  # numpy or torch, through the array API


def combine(xp: ModuleType, cond: Array, uncond: Array, scale: Array, rescale: Array) -> Array:
    """u + s (c - u) per row, then rescaled (arXiv 2207.12598 eq. 6; arXiv 2305.08891 section 3.4).

    cond, uncond [S, D] raw outputs; scale, rescale [S]. Rescale phi pulls each row's standard deviation back to that of
    its conditional output; rows with phi = 0 are left bit for bit.
    """
    guided = uncond + scale[:, None] * (cond - uncond)  # [S, D]
    guided = xp.where((scale == 1)[:, None], cond, guided)  # exactly off, without rounding
    if not bool(xp.any(rescale > 0)):
        return guided
    ratio = xp.std(cond, axis=1, correction=1) / xp.std(guided, axis=1, correction=1)  # [S]
    factor = 1 + rescale * (ratio - 1)  # [S]
    return xp.where((rescale > 0)[:, None], guided * factor[:, None], guided)
