"""Errors in the words of a dialect: what is checked behind all doors names the fields as the native one does."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from service.errors import ApiError, InvalidSize

OPENAI = {
    "num_images": "n", "width": "size", "height": "size", "output_quality": "output_compression", "steps": "quality", "kind": "image",
}  # fmt: skip
A1111 = {
    "num_images": "batch_size", "guidance": "cfg_scale", "sampler": "sampler_name", "schedule": "scheduler", "kind": "init_images",
    "image": "init_images", "strength": "denoising_strength", "start": "denoising_strength", "mask_feather": "mask_blur",
    "output_format": "override_settings", "output_quality": "override_settings", "model": "override_settings",
    "clip_skip": "override_settings.CLIP_stop_at_last_layers",
    "mask_padding": "inpaint_full_res_padding", "mask_content": "inpainting_fill",
    "upscale.factor": "hr_scale", "upscale.width": "hr_resize_x", "upscale.height": "hr_resize_y", "upscale.steps": "hr_second_pass_steps",
    "upscale.strength": "denoising_strength", "upscale.method": "hr_upscaler", "upscale": "hr_scale",
}  # fmt: skip
SIDES = ("width", "height")  # parts of a size stay what they are
OPTIONS = ("sampler_options.", "schedule_options.", "guidance_options.")  # of A1111 they are fields of their own


@contextmanager
def said_in(names: Mapping[str, str]) -> Iterator[None]:
    """An ApiError that leaves it names the fields by these names."""
    try:
        yield
    except ApiError as error:
        own = error.param or ("width" if isinstance(error, InvalidSize) else "")
        for options in OPTIONS:
            own = own.removeprefix(options)
        error.message = _reworded(error.message, names)
        error.param = names.get(own, own) or None
        raise


def _reworded(message: str, names: Mapping[str, str]) -> str:
    """Names that are words of English too stand for the field where a message begins with them alone."""
    for options in OPTIONS:
        message = message.replace(options, "")
    for name, other in names.items():
        place = rf"\b{name}\b" if "_" in name else rf"^{re.escape(name)}\b(?! times)"
        message = re.sub(place, f"{other}: {name}" if name in SIDES else other, message)
    return message
