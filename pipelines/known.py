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

    `mask` [1, h, w] is 1 where the image is drawn and 0 where the picture stays; None: all of it is drawn. An inpainting model also looks
    at the mask and at a picture whose masked part is hidden.
    """

    picture: Posterior
    mask: Latents | None = None
    from_noise: bool = False
    hidden: Posterior | None = None


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


class Start(NamedTuple):
    """The first latents of an image [C, h, w], what keeps its known part, and what its U-Net sees beside latents [1 + C, h, w]."""

    x: Latents
    blend: Blend | None = None
    beside: Latents | None = None


def begin(known: Known | None, table: StepTable, noise: NormalStream, shape: tuple[int, int, int]) -> Start:
    """Draws, in this order, the picture's latents, the noise, and the latents of the masked picture.

    diffusers' inpainting draws the last whether its U-Net looks at a masked picture or not, so that is drawn here too; it draws the first
    only where something is made of them.
    """
    if known is None:
        return Start(np.float32(table.init) * noise.draw(shape))
    blends = known.mask is not None and known.hidden is None
    picture = known.picture.sample(noise) if blends or not known.from_noise else None
    first = noise.draw(shape)
    x = np.float32(table.init) * first
    if picture is not None and not known.from_noise:
        x = np.float32(table.alpha[0]) * picture + np.float32(table.sigma[0]) * first
    if known.mask is None:
        return Start(x)
    if known.hidden is not None:
        return Start(x, beside=np.concatenate([known.mask, known.hidden.sample(noise)]))
    noise.skip(shape)
    assert picture is not None, "what blends has a picture"
    return Start(x, Blend(picture, first, known.mask))
