"""A checkpoint's own network that doubles its pictures: the folder `superres` beside its other parts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.known import Pixels
from pipelines.noise import NormalStream
from pipelines.superres import FREQUENCIES, SCHEDULES, Network, bicubic, draw

PART = "superres"
MOST = 100_000  # levels of its ladder
METHOD = "superres"  # what requests call it


@dataclass(frozen=True, slots=True)
class Recipe:
    """How the network is used: what its config says beside its shape."""

    steps: int
    schedule: str
    ladder: int
    deviation: float  # of the residual, pictures being 0..1

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Recipe:
        """Raises ValueError, KeyError or TypeError for what cannot be used."""
        recipe = cls(int(config["steps"]), config["schedule"], int(config["ladder"]), float(config["deviation"]))
        if recipe.schedule not in SCHEDULES or not 1 <= recipe.steps <= recipe.ladder <= MOST or not 0 < recipe.deviation < 1e3:
            raise ValueError(f"{PART}/config.json describes no sampler: {recipe}")
        return recipe


@dataclass(frozen=True, slots=True)
class Upscaler:
    """Doubles a picture. The same picture and seed give the same one."""

    network: Network  # of numpy arrays
    recipe: Recipe

    def __call__(self, pixels: Pixels, seed: int) -> Pixels:
        """[H, W, 3] -> [2H, 2W, 3]; H and W even. Raises FloatingPointError where what comes out is not finite."""
        low = np.ascontiguousarray(pixels.transpose(2, 0, 1)[None], np.float32) / np.float32(255)
        noise = NormalStream(seed).draw((1, 12, *low.shape[2:]))
        found = draw(self.network, low, noise, self.recipe.steps, self.recipe.schedule, self.recipe.ladder)
        large = bicubic(low) + np.float32(self.recipe.deviation) * shuffled(found)
        if not np.isfinite(large).all():
            raise FloatingPointError("The network that enlarges returned values that are not finite.")
        return np.ascontiguousarray(np.round(large[0].clip(0, 1) * 255).astype(np.uint8).transpose(1, 2, 0))


def shuffled(residual: NDArray[np.float32]) -> NDArray[np.float32]:
    """[B, 12, h, w] -> [B, 3, 2h, 2w], as torch's `pixel_shuffle`."""
    batch, _, high, wide = residual.shape
    cells = residual.reshape(batch, 3, 2, 2, high, wide).transpose(0, 1, 4, 2, 5, 3)
    return cells.reshape(batch, 3, 2 * high, 2 * wide)


def features(time: float) -> NDArray[np.float32]:
    """What the network is told of the time, [1, 32]."""
    angles = np.pi * time * np.logspace(-1, 5, FREQUENCIES, base=2)
    return np.concatenate([np.sin(angles), np.cos(angles)])[None].astype(np.float32)
