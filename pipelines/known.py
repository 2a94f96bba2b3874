"""What an image in flight knows of the picture that it begins with, and of its mask.

The VAE's encoder gives a normal distribution of latents, not latents. As in diffusers' pipelines one of them is drawn, with the image's
own generator and before its noise: equal seeds give equal pictures, and the images of one job differ in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipelines.noise import NormalStream
from pipelines.step_table import StepTable

Pixels = NDArray[np.uint8]
Latents = NDArray[np.float32]


class Posterior(NamedTuple):
    """Mean and standard deviation [C, h, w] of a picture's latents, in the space that the U-Net works in."""

    mean: Latents
    std: Latents

    def sample(self, noise: NormalStream) -> Latents:
        """The next of the stream's latents [C, h, w]."""
        return self.mean + self.std * noise.draw(self.mean.shape)


@dataclass(frozen=True, slots=True, eq=False)
class Known:
    """A picture, which of it is to be drawn anew, and whether that begins as noise alone.

    `mask` [1, h, w] is 1 where the image is drawn and 0 where the picture stays; None: all of it is drawn.
    """

    picture: Posterior
    mask: Latents | None = None
    from_noise: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Blend:
    """What keeps the known part of an image where it belongs: x = mask * x + (1 - mask) * (alpha * picture + sigma * noise)."""

    picture: Latents  # [C, h, w]
    noise: Latents  # [C, h, w], that of the start
    mask: Latents  # [1, h, w]

    def known_at(self, table: StepTable, row: int) -> Latents:
        """The picture at the level where `row` ends: that of the next row, and clean after the last [C, h, w]."""
        if row + 1 == len(table):
            return self.picture
        return np.float32(table.alpha[row + 1]) * self.picture + np.float32(table.sigma[row + 1]) * self.noise


def begin(known: Known | None, table: StepTable, noise: NormalStream, shape: tuple[int, int, int]) -> tuple[Latents, Blend | None]:
    """The first latents of an image [C, h, w]. What is drawn: the picture's latents, the noise, those of the masked picture.

    diffusers' inpainting draws the last whether its U-Net looks at a masked picture or not, so that is drawn here too.
    """
    if known is None:
        return np.float32(table.init) * noise.draw(shape), None
    picture = known.picture.sample(noise)
    first = noise.draw(shape)
    if known.mask is not None:
        noise.skip(shape)
    x = np.float32(table.alpha[0]) * picture + np.float32(table.sigma[0]) * first
    if known.from_noise:
        x = np.float32(table.init) * first
    return x, Blend(picture, first, known.mask) if known.mask is not None else None
