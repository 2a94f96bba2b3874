"""The pictures that a job begins with: from storage, decoded, in the size that is drawn."""

from __future__ import annotations

import asyncio
import io

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from jobs.image_store import BadKey, ImageStore, NotFound
from jobs.job import JobError
from pipelines.controls import Control, control_for
from pipelines.masks import extended
from pipelines.params import GenerationParams
from pipelines.step_table import StepTable
from workers.messages import Inputs, Pixels
from workers.regions import region, whole

FORMATS = ("PNG", "JPEG", "WEBP")
MOST_PIXELS = 50_000_000  # a header may promise less than its file holds
EXPIRED = JobError("upload_expired", "A picture that the job begins with is no longer stored; upload it again.")
UNREADABLE = JobError("bad_picture", "A picture that the job begins with cannot be read.")
AWAY = JobError("storage_unavailable", "A picture that the job begins with could not be read from storage.", retryable=True)


class NoInputs(Exception):
    """The job cannot begin; `error` says why."""

    def __init__(self, error: JobError) -> None:
        super().__init__(error.code)
        self.error = error


async def load(params: GenerationParams, store: ImageStore) -> Inputs | None:
    """Picture and mask of a job that has one. Raises NoInputs."""
    if not params.image:
        return None
    picture = await _read(params.image, store)
    mask = await _read(params.mask, store) if params.mask else None
    return await asyncio.to_thread(_decoded, params, picture, mask)


async def load_control(params: GenerationParams, store: ImageStore) -> Pixels | None:
    """What a job's ControlNet is shown, as it is stored. Raises NoInputs."""
    if not params.controlnet:
        return None
    picture = await _read(params.controlnet["image"], store)
    return await asyncio.to_thread(lambda: np.asarray(_opened(picture).convert("RGB")))


def control_of(params: GenerationParams, picture: Pixels | None, table: StepTable) -> Control | None:
    """The same, resized as diffusers does to what these parameters draw."""
    if picture is None:
        return None
    return control_for(params, np.asarray(_sized(Image.fromarray(picture), (params.width, params.height))), table)


async def _read(key: str, store: ImageStore) -> bytes:
    try:
        return await store.read(key)
    except (NotFound, BadKey):
        raise NoInputs(EXPIRED) from None
    except OSError:
        raise NoInputs(AWAY) from None


def _decoded(params: GenerationParams, picture: bytes, mask: bytes | None) -> Inputs:
    more = params.outpaint
    size = params.width - more.get("left", 0) - more.get("right", 0), params.height - more.get("top", 0) - more.get("bottom", 0)
    if params.mask_padding is not None:
        size = _opened(picture).size
    of_itself = params.mask == params.image
    found = pixels(picture, size, on_white=not of_itself)
    if params.kind == "outpaint":
        return whole(params, *extended(found, more, params.mask_feather))
    if mask is None:
        return Inputs(found, None)
    drawn = mask_pixels(mask, size, of_itself=of_itself)
    return whole(params, found, drawn) if params.mask_padding is None else region(params, found, drawn)


def pixels(data: bytes, size: tuple[int, int], *, on_white: bool = False) -> Pixels:
    """[H, W, 3], resized as diffusers does (Lanczos) where the size (W, H) is another. What is transparent is laid on white, as A1111
    does, or shows the colours that it hides. Raises NoInputs."""
    image = _opened(data)
    if on_white and image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return np.asarray(_sized(image.convert("RGB"), size))


def mask_pixels(data: bytes, size: tuple[int, int], *, of_itself: bool = False) -> Pixels:
    """[H, W]: 255 is drawn, 0 stays. Of a mask with transparency the transparent parts are drawn, of others the white ones; of a picture
    that is its own mask the transparent ones in any case. Raises NoInputs.
    """
    image = _opened(data)
    alpha = np.asarray(_sized(image.convert("RGBA").getchannel("A"), size))
    return 255 - alpha if of_itself or alpha.min() < 255 else np.asarray(_sized(image.convert("L"), size))


def _opened(data: bytes) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        if image.width * image.height > MOST_PIXELS:
            raise NoInputs(UNREADABLE)
        image.load()
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        raise NoInputs(UNREADABLE) from None
    return ImageOps.exif_transpose(image)


def _sized(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    return image if image.size == size else image.resize(size, Image.Resampling.LANCZOS)
