"""Pixels -> file bytes, with the parameters embedded so that the picture can be drawn again.

The metadata is a function of parameters, seed, model hash and version alone (no id, time, client or host): the same seed
gives the same bytes. PNG carries text chunks `parameters` (the line that A1111's tools read) and `celadon` (JSON); JPEG and
WebP carry the same two in EXIF UserComment and ImageDescription, as far as an EXIF segment holds them (some 60,000 bytes).
"""

from __future__ import annotations

import base64
import io
import json
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

from pipelines.card import ModelCard
from pipelines.infotext import infotext
from pipelines.params import GenerationParams

PNG_LEVEL = 3  # Pillow's default 6 costs 4 times the time for a tenth fewer bytes
JPEG_QUALITY = 95
WEBP_QUALITY = 92

EXIF_IMAGE_DESCRIPTION = 0x010E
EXIF_POINTER = 0x8769
EXIF_USER_COMMENT = 0x9286
EXIF_BYTES = 65_000  # a JPEG segment holds 65,533 bytes

Pixels = NDArray[np.uint8]


def encode(pixels: Pixels, params: GenerationParams, index: int, card: ModelCard, version: str) -> bytes:
    """One picture [H, W, 3] of a request as PNG, JPEG or WebP bytes."""
    text, record = describe(params, index, card, version)
    image = Image.fromarray(pixels)
    buffer = io.BytesIO()
    if params.output_format == "png":
        chunks = PngImagePlugin.PngInfo()
        chunks.add_itxt("parameters", text)
        chunks.add_itxt("celadon", record)
        image.save(buffer, "PNG", compress_level=PNG_LEVEL, pnginfo=chunks)
    elif params.output_format == "jpeg":
        image.save(buffer, "JPEG", quality=params.output_quality or JPEG_QUALITY, subsampling=0, exif=_exif(text, record))
    else:
        image.save(buffer, "WEBP", quality=params.output_quality or WEBP_QUALITY, method=4, exif=_exif(text, record))
    return buffer.getvalue()


def describe(params: GenerationParams, index: int, card: ModelCard, version: str) -> tuple[str, str]:
    """The two texts of image `index`: A1111's line, and JSON that `POST /generate` accepts under "request"."""
    seed = params.image_seed(index)
    request: dict[str, Any] = params.brief() | {"seed": seed, "num_images": 1}
    for name in ("kind", "preview", "image", "mask"):  # keys of pictures are for those who stored them
        request.pop(name, None)
    if params.controlnet:
        request["controlnet"] = {name: value for name, value in params.controlnet.items() if name != "image"}
    record = json.dumps({"request": request, "model_hash": card.hash, "version": version}, sort_keys=True)
    sampler = card.sampler(params.sampler)
    text = infotext(params, seed, sampler.name if sampler else params.sampler, card.hash, version)
    return text, record


def data_url(pixels: Pixels, scale: int) -> str:
    """A small JPEG data URL of a preview [h, w, 3], enlarged `scale` times."""
    height, width, _ = pixels.shape
    image = Image.fromarray(pixels).resize((width * scale, height * scale), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def read_metadata(data: bytes) -> dict[str, Any]:
    """The `celadon` record of a picture made here. Raises ValueError if it carries none."""
    image = Image.open(io.BytesIO(data))
    record = image.info.get("celadon") or image.getexif().get(EXIF_IMAGE_DESCRIPTION)
    if not record:
        raise ValueError("this picture carries no Celadon parameters")
    found: dict[str, Any] = json.loads(record)
    return found


def _exif(text: str, record: str) -> Image.Exif:
    """Both texts; where they are too long for one EXIF segment, the record alone, and where even that is, neither."""
    exif = Image.Exif()
    exif[EXIF_IMAGE_DESCRIPTION] = record
    exif.get_ifd(EXIF_POINTER)[EXIF_USER_COMMENT] = b"UNICODE\0" + text.encode("utf-16-be")
    if len(exif.tobytes()) > EXIF_BYTES:
        exif = Image.Exif()
        exif[EXIF_IMAGE_DESCRIPTION] = record
    return exif if len(exif.tobytes()) <= EXIF_BYTES else Image.Exif()
