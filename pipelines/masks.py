"""Masks of inpainting: 255 where the picture is drawn anew, 0 where it stays.

In latent space a mask is binary, as in diffusers' pipelines: every cell takes its first pixel, drawn from 128 on. The picture that
is put back around what was drawn is blended with soft edges.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from pipelines.known import Latents, Pixels
from pipelines.params import SIDES

Mask = NDArray[np.uint8]  # [H, W]

DRAWN = 128  # and above


def latent_mask(mask: Mask, cells: tuple[int, int]) -> Latents:
    """[H, W] -> [1, h, w] of 0 and 1, as torch's `interpolate` takes the nearest pixel; H and W are multiples of h and w."""
    (height, width), (h, w) = mask.shape, cells
    return (mask[:: height // h, :: width // w] >= DRAWN).astype(np.float32)[None]


def extended(picture: Pixels, sides: Mapping[str, int], overlap: int) -> tuple[Pixels, Mask]:
    """A picture with more pixels at its sides, and the mask that draws them. The new ones repeat the edge, so that what the model sees of
    them is calm; the mask reaches `overlap` pixels into the picture where it is extended: there the seam is drawn anew.
    """
    left, top, right, bottom = (sides.get(side, 0) for side in SIDES)
    whole = np.pad(picture, ((top, bottom), (left, right), (0, 0)), mode="edge")
    mask = np.full(whole.shape[:2], 255, np.uint8)
    height, width = whole.shape[:2]
    inner = [at + overlap * bool(at) for at in (left, top, right, bottom)]
    mask[inner[1] : height - inner[3], inner[0] : width - inner[2]] = 0
    return whole, mask


def put_back(drawn: Pixels, picture: Pixels, mask: Mask, feather: int) -> Pixels:
    """The picture [H, W, 3] with what was drawn within the mask. `feather` pixels are about as wide as half of the soft edge.

    Pixels farther outside of the mask than that are the picture's own, bit for bit.
    """
    weight = _blurred((mask >= DRAWN).astype(np.float32), feather)[:, :, None]  # [H, W, 1]
    mixed = weight * drawn + (1 - weight) * picture
    return np.where(weight == 0, picture, np.round(mixed).astype(np.uint8))


def _blurred(weight: NDArray[np.float32], feather: int) -> NDArray[np.float32]:
    """A Gaussian of half the feather, cut at the feather: both ways one after the other, edges repeated."""
    if not feather:
        return weight
    offsets = np.arange(-feather, feather + 1)
    kernel = np.exp(-0.5 * (offsets / (feather / 2)) ** 2)
    kernel /= math.fsum(kernel)
    for axis in (0, 1):
        padding = [(feather, feather) if i == axis else (0, 0) for i in (0, 1)]
        padded = np.pad(weight.astype(np.float64), padding, mode="edge")
        size = weight.shape[axis]
        weight = sum(k * np.take(padded, range(i, i + size), axis=axis) for i, k in enumerate(kernel)).astype(np.float32)
    return np.clip(weight, 0, 1)
