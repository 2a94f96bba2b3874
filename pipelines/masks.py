"""Masks of inpainting: 255 where the picture is drawn anew, 0 where it stays.

In latent space a mask is binary, as in diffusers' pipelines: every cell takes its first pixel, drawn from 128 on. The picture that
is put back around what was drawn is blended with soft edges.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipelines.known import Latents, Pixels
from pipelines.params import SIDES

Mask = NDArray[np.uint8]  # [H, W]

DRAWN = 128  # and above


class Box(NamedTuple):
    """Pixels from `left` to before `right`, from `top` to before `bottom`."""

    left: int
    top: int
    right: int
    bottom: int


def latent_mask(mask: Mask, cells: tuple[int, int]) -> Latents:
    """[H, W] -> [1, h, w] of 0 and 1, as torch's `interpolate` takes the nearest pixel; H and W are multiples of h and w."""
    (height, width), (h, w) = mask.shape, cells
    return (mask[:: height // h, :: width // w] >= DRAWN).astype(np.float32)[None]


def crop_box(mask: Mask, size: tuple[int, int], padding: int) -> Box:
    """What is drawn of a picture [H, W] whose masked region alone is: that region and `padding` pixels around it, made wider or higher
    to the proportions of `size` (width, height) as far as the picture goes; as diffusers' `VaeImageProcessor.get_crop_region`.

    Of a mask that draws nothing the whole picture.
    """
    height, width = mask.shape
    rows, columns = (np.flatnonzero((mask >= DRAWN).any(axis)) for axis in (1, 0))
    if not len(rows):
        return Box(0, 0, width, height)
    left, right = max(int(columns[0]) - padding, 0), min(int(columns[-1]) + 1 + padding, width)
    top, bottom = max(int(rows[0]) - padding, 0), min(int(rows[-1]) + 1 + padding, height)
    ratio = size[0] / size[1]
    if (right - left) / (bottom - top) > ratio:
        top, bottom = _grown(top, bottom, int((right - left) / ratio), height)
    else:
        left, right = _grown(left, right, int((bottom - top) * ratio), width)
    return Box(left, top, right, bottom)


def _grown(first: int, last: int, length: int, most: int) -> tuple[int, int]:
    """first .. last made `length` long on both sides, moved inwards where it would leave 0 .. most, and cut where it is longer."""
    more = length - (last - first)
    first, last = first - more // 2, last + more - more // 2
    over = max(last - most, 0)
    first, last = first - over, last - over
    under = max(-first, 0)
    return first + under, min(last + under, most)


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
