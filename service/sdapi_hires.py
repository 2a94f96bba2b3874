"""A1111's "hires. fix" of txt2img: what its fields say of a second pass."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from pipelines.card import ModelCard
from pipelines.params import UpscaleMethod
from service.errors import InvalidValue, NotSupported
from service.second_pass import DOUBLES

METHODS: Mapping[str, UpscaleMethod] = {"Latent": "latent", "Lanczos": "lanczos", "Superres": "superres"}
STRENGTH = 0.7
SAME: Mapping[str, tuple[Any, ...]] = {  # what the second pass shares with the first
    "hr_sampler_name": ("", "Use same sampler"), "hr_scheduler": ("", "Use same scheduler"),
    "hr_additional_modules": ([], ["Use same choices"]),
}  # fmt: skip


class Body(Protocol):
    """The fields of txt2img that matter."""

    width: int | None
    height: int | None
    denoising_strength: float | None
    hr_scale: float | None
    hr_upscaler: str | None
    hr_second_pass_steps: int | None
    hr_resize_x: int | None
    hr_resize_y: int | None

    @property
    def model_extra(self) -> dict[str, Any] | None: ...


def latent_modes(card: ModelCard) -> list[str]:
    """The values of hr_upscaler that enlarge latents, of those that the model can take."""
    return [name for name in _taken(card) if METHODS[name] == "latent"]


def upscalers(card: ModelCard) -> list[dict[str, Any]]:
    """Those that enlarge pictures, in the form of A1111's list. Neither paths nor addresses are told."""
    names = [name for name in _taken(card) if METHODS[name] != "latent"]
    nothing = {"model_name": None, "model_path": None, "model_url": None}
    return [{"name": name, **nothing, "scale": 2 if METHODS[name] == DOUBLES else None} for name in names]


def _taken(card: ModelCard) -> list[str]:
    """The model's own network needs no second pass, all others draw over what they made."""
    return [name for name, how in METHODS.items() if (how in card.upscalers if how == DOUBLES else "image_to_image" in card.kinds)]


def second_pass(body: Body) -> dict[str, Any]:
    """As `Draft.upscale`. Raises NotSupported, InvalidValue."""
    for name, same in SAME.items():
        value = (body.model_extra or {}).get(name)
        if value is not None and value not in same:
            raise NotSupported(f"{name} is that of the first pass here.", param=name)
    method = METHODS.get(body.hr_upscaler or "Latent")
    if method is None:
        raise NotSupported(f"hr_upscaler must be one of {', '.join(METHODS)}.", param="hr_upscaler")
    strength = STRENGTH if body.denoising_strength is None else body.denoising_strength
    if method == "superres" and strength == 0:  # enlarged and no more, as A1111's own networks do it
        return {"method": method, **_size(body)}
    if not 0 < strength <= 1:
        raise InvalidValue("denoising_strength must be above 0, and at most 1.", param="denoising_strength")
    steps = {"steps": body.hr_second_pass_steps} if body.hr_second_pass_steps else {}
    return {"method": method, "strength": strength, **steps, **_size(body)}


def _size(body: Body) -> dict[str, Any]:
    """hr_resize_x and hr_resize_y, one of them in proportion; hr_scale where neither is given."""
    wide, high = body.hr_resize_x or 0, body.hr_resize_y or 0
    if not wide and not high:
        return {"factor": 2.0 if body.hr_scale is None else body.hr_scale}
    width, height = body.width or 512, body.height or 512
    return {"width": wide or round(width * high / height), "height": high or round(height * wide / width)}
