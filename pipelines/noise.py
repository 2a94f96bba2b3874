"""Torch's CPU normal generator in numpy: the same seed draws the same noise on a worker without torch.

Source: PyTorch, aten/src/ATen/native/cpu/DistributionTemplates.h (normal_fill) and ATen/core/DistributionsHelper.h;
MT19937 of Matsumoto and Nishimura (1998), Box-Muller (1958). Agrees with torch.randn within 5e-7, since only the
last digits of log, sqrt, cos and sin differ.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

BLOCK = 16  # torch transforms sixteen uniforms at once; fewer values take another path

Float32 = NDArray[np.float32]


class NormalStream:
    """Standard normals in the order of `torch.Generator("cpu").manual_seed(seed)` and successive `torch.randn` calls.

    Raises ValueError when the seed lies outside 0 .. 2^32 - 1 (torch keeps 32 bits only).
    """

    def __init__(self, seed: int) -> None:
        if not 0 <= seed < 2**32:
            raise ValueError(f"a seed is a whole number from 0 to {2**32 - 1}, not {seed}")
        self._bits = np.random.MT19937()
        legacy: Any = np.random.RandomState(seed).get_state(legacy=False)  # Knuth's seeding, as in torch
        self._bits.state = legacy
        self._spare: float | None = None  # the second half of a Box-Muller pair, kept for the next small draw

    def draw(self, shape: Sequence[int]) -> Float32:
        """The next normals, float32 of that shape. The stream advances as torch.randn(shape) would advance it."""
        size = math.prod(shape)
        values = self._blocks(size) if size >= BLOCK else np.array([self._single() for _ in range(size)], np.float32)
        return values.reshape(tuple(shape))

    def skip(self, *shapes: Sequence[int]) -> None:
        """Forget these draws: what resuming in the middle of a picture needs."""
        for shape in shapes:
            self.draw(shape)

    def _blocks(self, size: int) -> Float32:
        uniform = self._uniform24(size)
        whole = size - size % BLOCK
        values = _box_muller(uniform[:whole])
        if size == whole:
            return values
        # An incomplete block is not filled: torch draws sixteen new values over the last sixteen places.
        return np.concatenate([values[: size - BLOCK], _box_muller(self._uniform24(BLOCK))])

    def _uniform24(self, size: int) -> Float32:
        raw = self._bits.random_raw(size) & np.uint64(2**24 - 1)
        return raw.astype(np.float32) * np.float32(2.0**-24)

    def _single(self) -> float:
        if self._spare is not None:
            value, self._spare = self._spare, None
            return value
        angle, radius = self._uniform53(), self._uniform53()
        r, theta = math.sqrt(-2.0 * math.log1p(-radius)), 2.0 * math.pi * angle
        self._spare = r * math.sin(theta)
        return r * math.cos(theta)

    def _uniform53(self) -> float:
        high, low = (int(v) for v in self._bits.random_raw(2))
        return ((high << 32 | low) & (2**53 - 1)) * 2.0**-53


def _box_muller(uniform: Float32) -> Float32:
    """[16k] uniforms -> [16k] normals; of each block the first eight are radii, the last eight angles."""
    block = uniform.reshape(-1, 2, BLOCK // 2)
    angle = np.float32(2.0 * math.pi) * block[:, 1]  # rounded to float32 as in torch: at 6.3 the rounding shows
    # The rest in float64, so that every machine rounds to the same float32.
    radius, theta = np.sqrt(-2.0 * np.log(1.0 - block[:, 0].astype(np.float64))), angle.astype(np.float64)
    return np.stack([radius * np.cos(theta), radius * np.sin(theta)], axis=1).reshape(-1).astype(np.float32)
