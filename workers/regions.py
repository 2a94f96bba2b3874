"""What a model sees of a masked picture, and what is put back around what it drew.

With `mask_padding` that is the masked region alone, in the size that was asked for, as diffusers' `padding_mask_crop` and A1111's
"only masked" have it; with `mask_content` "fill" what is masked begins as a blur of what surrounds it, as A1111's "fill" does.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageFilter

from pipelines.masks import DRAWN, crop_box, put_back
from pipelines.params import GenerationParams
from workers.messages import Inputs, Kept, Pixels

BLURS = ((256, 1), (64, 1), (16, 2), (4, 4), (2, 2), (0, 1))  # radius in pixels, how often it is laid on: A1111's modules/masking.py


def region(params: GenerationParams, picture: Pixels, mask: Pixels) -> Inputs:
    """`picture` [H, W, 3] and `mask` [H, W] in the picture's own size -> what is drawn, width x height."""
    size = params.width, params.height
    box = crop_box(mask, size, params.mask_padding or 0)
    cut, cut_mask = (_resized(array[box.top : box.bottom, box.left : box.right], size) for array in (picture, mask))
    return Inputs(_begun(params, cut, cut_mask), cut_mask, Kept(picture, mask, box))


def whole(params: GenerationParams, picture: Pixels, mask: Pixels) -> Inputs:
    """The same of all of it, in the size that is drawn."""
    plain = Inputs(picture, mask)
    return Inputs(_begun(params, picture, mask), mask, plain.around)


def returned(drawn: Pixels, kept: Kept, feather: int) -> Pixels:
    """The picture [H, W, 3] with what was drawn in its place: beyond the feather it is the picture's own, bit for bit."""
    box, (height, width) = kept.box, kept.mask.shape
    together = kept.picture.copy()
    together[box.top : box.bottom, box.left : box.right] = _resized(drawn, (box.right - box.left, box.bottom - box.top))
    rows = slice(max(box.top - feather, 0), min(box.bottom + feather, height))
    columns = slice(max(box.left - feather, 0), min(box.right + feather, width))
    part = rows, columns
    together[part] = put_back(together[part], kept.picture[part], kept.mask[part], feather)
    return together


def filled(picture: Pixels, mask: Pixels) -> Pixels:
    """The picture [H, W, 3] whose masked part is a blur of the rest, finer towards the edge."""
    seen = Image.new("RGBa", (mask.shape[1], mask.shape[0]))
    seen.paste(
        Image.fromarray(picture).convert("RGBA").convert("RGBa"), mask=Image.fromarray(np.where(mask >= DRAWN, 0, 255).astype(np.uint8))
    )
    laid = Image.new("RGBA", seen.size)
    for radius, times in BLURS:
        blurred = seen.filter(ImageFilter.GaussianBlur(radius)).convert("RGBA")
        for _ in range(times):
            laid.alpha_composite(blurred)
    return np.asarray(laid.convert("RGB"))


def _begun(params: GenerationParams, picture: Pixels, mask: Pixels) -> Pixels:
    return filled(picture, mask) if params.mask_content == "fill" else picture


def _resized(array: Pixels, size: tuple[int, int]) -> Pixels:
    image = Image.fromarray(array)
    return array if image.size == size else np.asarray(image.resize(size, Image.Resampling.LANCZOS))
