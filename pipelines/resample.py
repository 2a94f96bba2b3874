"""Latents in another size."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Latents = NDArray[np.float32]


def bilinear(latents: Latents, cells: tuple[int, int]) -> Latents:
    """[C, h, w] -> [C, *cells], as torch's `interpolate(mode="bilinear")`: the centres of cells are where they are, edges are repeated."""
    for axis, size in ((1, cells[0]), (2, cells[1])):
        have = latents.shape[axis]
        at = np.clip((np.arange(size) + 0.5) * have / size - 0.5, 0, None)
        low = np.minimum(at.astype(int), have - 1)
        high = np.minimum(low + 1, have - 1)
        share = (at - low).astype(np.float32).reshape([-1 if i == axis else 1 for i in range(3)])
        latents = np.take(latents, low, axis) * (1 - share) + np.take(latents, high, axis) * share
    return latents
