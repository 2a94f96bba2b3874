"""From x to what the network sees, and from what it says to the denoised: one rule for each space and prediction type."""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any

from pipelines.ladder import Ladder
from pipelines.level import Level

Array = Any  # numpy or torch, through the array API

MEASURED = 0.0  # in place of c_in: 1 / std(x), taken over each latent at run time


def preconditioning(ladder: Ladder, at: Level) -> tuple[float, float, float]:
    """c_in, c_skip, c_out: the network is given c_in * x, and denoised = c_skip * x + c_out * output."""
    if ladder.space == "edm":
        return _of_edm(ladder, at.sigma)
    c_in = MEASURED if ladder.normalize == "measured" else 1.0 if ladder.normalize == "closed" else _deviation(ladder, at)
    if ladder.prediction_type == "epsilon":
        return c_in, 1.0 / at.alpha, -at.sigma / at.alpha
    if ladder.prediction_type == "v_prediction":  # arXiv 2202.00512, appendix D
        return c_in, at.alpha, -at.sigma
    if ladder.prediction_type == "flow":  # noise - x0: arXiv 2209.03003, equation 1
        return c_in, 1.0, -at.sigma
    return c_in, 0.0, 1.0


def _deviation(ladder: Ladder, at: Level) -> float:
    """Of sqrt(gamma) b x0 + sqrt(1 - gamma) noise, the x of a network trained without normalisation; ours is kept at unit variance."""
    b2 = ladder.input_scale**2
    gamma = at.alpha**2 / (b2 - (b2 - 1.0) * at.alpha**2)
    return 1.0 if b2 == 1.0 else math.sqrt((b2 - 1.0) * gamma + 1.0)


def _of_edm(ladder: Ladder, sigma: float) -> tuple[float, float, float]:
    """arXiv 2206.00364, table 1; with v prediction the output has the other sign (diffusers' EDMEulerScheduler)."""
    data, whole = ladder.sigma_data, math.hypot(sigma, ladder.sigma_data)
    c_out = sigma * data / whole
    return 1.0 / whole, (data / whole) ** 2, -c_out if ladder.prediction_type == "v_prediction" else c_out


def seen(xp: ModuleType, x: Array, c_in: Array) -> Array:
    """What the network is given of latents x [S, D], with c_in [S, 1]: algorithm 3 of arXiv 2301.10972 where it is to be measured."""
    measured = 1 / xp.std(x, axis=1, keepdims=True)  # [S, 1]
    return x * xp.where(c_in == MEASURED, measured, c_in)
