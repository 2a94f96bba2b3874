"""Pictures twice as large: a few steps of diffusion over what bicubic enlargement lacks.

The residual r = picture - bicubic(low) is drawn in pixel-unshuffled form, [B, 12, h, w] for a small picture [B, 3, h, w], so that every
layer works at the small picture's size. A state is x = alpha r + sigma noise, r in units of its deviation. Arrays are numpy's or torch's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = Any
Floats = NDArray[np.float64]
Network = Callable[[Array, Array, float], Array]  # (state [B, 12, h, w], low [B, 3, h, w] in 0..1, time) -> [B, 12, h, w]
Schedule = Callable[[Floats], tuple[Floats, Floats]]  # time 0..1, 1 being the noisiest -> alpha, sigma

FREQUENCIES = 16  # of the time, that the network is told sine and cosine of
SHIFT_STEPS, SHIFT_POWER, SHIFT_FIRST, SHIFT_LAST, SHIFT_NOISE = 15, 0.3, 0.001, 0.999, 2.0


def cosine(time: Floats) -> tuple[Floats, Floats]:
    """Nichol and Dhariwal 2021 (arXiv 2102.09672, equation 17) without their offset: ends in pure noise."""
    return np.cos(np.pi / 2 * time), np.sin(np.pi / 2 * time)


def linear(time: Floats) -> tuple[Floats, Floats]:
    """Ho et al. 2020 (arXiv 2006.11239, section 4) in continuous time: beta from 0.1 to 20."""
    alpha = np.exp(-0.25 * time**2 * (20 - 0.1) - 0.5 * time * 0.1)
    return alpha, np.sqrt(1 - alpha**2)


def shift(time: Floats) -> tuple[Floats, Floats]:
    """ResShift (arXiv 2307.12348, equations 1 and 10): the residual fades by eta, noise grows as kappa sqrt(eta).

    Kappa is in units of the residual's deviation. For times of its 15 steps.
    """
    step = np.maximum(np.round(time * SHIFT_STEPS), 1) - 1
    share = (step / (SHIFT_STEPS - 1)) ** SHIFT_POWER
    eta = SHIFT_FIRST * (SHIFT_LAST / SHIFT_FIRST) ** share
    return 1 - eta, SHIFT_NOISE * np.sqrt(eta)


SCHEDULES: Mapping[str, Schedule] = {"cosine": cosine, "linear": linear, "shift": shift}


def times(steps: int, ladder: int) -> Floats:
    """From 1 to 0, `steps` + 1 of them, each a multiple of 1 / ladder."""
    return np.ceil(np.linspace(1, 0, steps + 1) * ladder - 1e-9) / ladder


def cubic(distance: Floats) -> Floats:
    """Keys 1981, equation 15 with a = -3/4, as OpenCV and PyTorch have it; on area means it comes closer than Pillow's a = -1/2."""
    d = np.abs(distance)
    return np.where(d <= 1, (1.25 * d - 2.25) * d * d + 1, np.where(d < 2, ((-0.75 * d + 3.75) * d - 6) * d + 3, 0))


def doubling(side: int) -> NDArray[np.float32]:
    """[2 side, side]: a line of pixels to one twice as long, by cubic convolution; beyond the edges they repeat."""
    matrix = np.zeros((2 * side, side))
    for row in range(2 * side):
        centre = (row + 0.5) / 2 - 0.5
        for column in range(int(np.floor(centre)) - 1, int(np.floor(centre)) + 3):
            matrix[row, min(max(column, 0), side - 1)] += cubic(np.asarray(centre - column))
    return matrix.astype(np.float32)


def bicubic(low: NDArray[np.float32]) -> NDArray[np.float32]:
    """[..., h, w] -> [..., 2h, 2w]."""
    return np.asarray(doubling(low.shape[-2]) @ low @ doubling(low.shape[-1]).T)


def area(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The degradation: [..., 2h, 2w, 3] -> [..., h, w, 3], the mean of each 2 x 2 pixels, rounded to 8 bits (halves up)."""
    *rest, high, wide, colours = pixels.shape
    sums = pixels.reshape(*rest, high // 2, 2, wide // 2, 2, colours).sum((-4, -2), dtype=np.uint16)
    return np.asarray((sums + 2) // 4, np.uint8)


def denoised(network: Network, x: Array, low: Array, time: float, level: tuple[float, float]) -> Array:
    """The estimate of r. For a residual of variance 1 the network's input and target have variance 1 (arXiv 2206.00364, section 5)."""
    alpha, sigma = level
    size = float(np.hypot(alpha, sigma))
    return alpha / size**2 * x + sigma / size * network(x / size, low, time)


def draw(
    network: Network, low: Array, noise: Array, steps: int, schedule: str, ladder: int, fresh: Callable[[], Array] | None = None
) -> Array:
    """The residual, in units of its deviation, from `noise` [B, 12, h, w].

    DDIM (arXiv 2010.02502, equation 12), or with `fresh` noise at every step the posterior of ResShift (equation 7).
    """
    at = times(steps, ladder)
    levels = list(zip(*SCHEDULES[schedule](at), strict=True))
    x = float(levels[0][1]) * noise
    for (now, after), (here, there) in zip(pairwise(at), pairwise(levels), strict=True):
        found = denoised(network, x, low, float(now), (float(here[0]), float(here[1])))
        if after == 0:
            return found
        ratio = float(there[1] / here[1])
        kept = ratio**2 if fresh else ratio
        x = float(there[0]) * found + kept * (x - float(here[0]) * found)
        if fresh:
            x = x + float(there[1]) * float(np.sqrt(1 - ratio**2)) * fresh()
    raise ValueError("at least one step must be taken")
