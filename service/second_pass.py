"""What a draft says of a picture that is drawn small and enlarged, and of its second pass, checked against model, sampler and bounds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from pipelines.card import ModelCard, SamplerInfo
from pipelines.params import Kind, kept_steps
from service.errors import InvalidSize, InvalidValue, NotSupported
from service.picture_errors import KindNotSupported
from service.settings import Settings

if TYPE_CHECKING:
    from service.drafts import Draft

MAX_FACTOR = 4
FACTOR = 2  # if nothing is said
STRENGTH: Mapping[str, float] = {  # if none is said; latents that were stretched are blurred pixels, and need more
    "lanczos": 0.4, "latent": 0.6, "superres": 0.4,
}  # fmt: skip
DOUBLES = "superres"  # the model's own network: it alone needs no second pass, and is taken where nothing is said
KINDS = ("text_to_image", "image_to_image", "variations")


def second_pass(
    draft: Draft, kind: Kind, card: ModelCard, sampler: SamplerInfo, size: tuple[int, int], steps: Callable[[int | None], int],
    settings: Settings,
) -> dict[str, Any]:  # fmt: skip
    """Width, height and method, with steps and strength of a second pass; empty where nothing is enlarged. `steps` checks a number of
    steps, or takes the first pass's.

    Raises InvalidValue, InvalidSize, KindNotSupported.
    """
    said = draft.upscale
    if not said:
        return {}
    if kind not in KINDS:
        raise InvalidValue(f"{kind} keeps a part of its picture and is not enlarged; enlarge what came of it.", param="upscale")
    if draft.end is not None and draft.end < 1:
        raise InvalidValue("What is enlarged must be drawn to its end; leave end out.", param="end")
    width, height = _enlarged(said, size, card, settings)
    method = _method(said, (width, height) == (2 * size[0], 2 * size[1]), card)
    if method == DOUBLES and "strength" not in said and "steps" not in said:
        return {"width": width, "height": height, "method": method}
    _check_drawn_over(draft, card, sampler, width, height)
    strength = said.get("strength", STRENGTH[method])
    try:
        taken = steps(said.get("steps"))
    except InvalidValue as error:
        raise InvalidValue(error.message, param="upscale.steps") from error
    try:
        kept_steps(taken, strength=strength)
    except ValueError as error:
        raise InvalidValue(f"{error}.".capitalize(), param="upscale.strength") from error
    return {"width": width, "height": height, "steps": taken, "strength": strength, "method": method}


def _method(said: Mapping[str, Any], doubled: bool, card: ModelCard) -> str:
    can_double = doubled and DOUBLES in card.upscalers
    method: str = said.get("method", DOUBLES if can_double else "lanczos")
    if method not in STRENGTH:
        raise InvalidValue(f"upscale.method must be one of {', '.join(STRENGTH)}.", param="upscale.method")
    if method == DOUBLES and DOUBLES not in card.upscalers:
        raise NotSupported(f"{card.id} brings no network that enlarges; take lanczos or latent.", param="upscale.method")
    if method == DOUBLES and not doubled:
        raise InvalidSize(f"{DOUBLES} doubles both sides, no more and no less.", param="upscale")
    return method


def _check_drawn_over(draft: Draft, card: ModelCard, sampler: SamplerInfo, width: int, height: int) -> None:
    """What a second pass needs."""
    if "image_to_image" not in card.kinds:
        raise KindNotSupported(f"{card.id} cannot draw from pictures, so it cannot draw them over.", param="upscale")
    if sampler.only_steps:
        raise InvalidValue(f"{sampler.id} was learned for all of its steps and cannot take a part of them.", param="upscale")
    if "scales" in draft.guidance_options:
        raise InvalidValue("scales hold one number for each step of one pass; a curve goes with both.", param="guidance_options")
    if width > card.max_width or height > card.max_height:
        raise InvalidSize(f"{card.id} draws at most {card.max_width}x{card.max_height}, not {width}x{height}.", param="upscale")


def _enlarged(said: Mapping[str, Any], size: tuple[int, int], card: ModelCard, settings: Settings) -> tuple[int, int]:
    width, height = _asked(said, size, card.size_multiple)
    if width % card.size_multiple or height % card.size_multiple:
        raise InvalidSize(f"Sides must be multiples of {card.size_multiple}.", param="upscale")
    if width < size[0] or height < size[1] or (width, height) == size:
        raise InvalidSize(f"{width}x{height} is not larger than the first pass, {size[0]}x{size[1]}.", param="upscale")
    if width * height > settings.max_pixels:
        raise InvalidSize(f"{width}x{height} is more than the {settings.max_pixels} pixels that this service draws.", param="upscale")
    return width, height


def _asked(said: Mapping[str, Any], size: tuple[int, int], multiple: int) -> tuple[int, int]:
    width, height, factor = (said.get(name) for name in ("width", "height", "factor"))
    if width is not None and height is not None and factor is None:
        return width, height
    if width is not None or height is not None:
        raise InvalidValue("upscale takes a factor, or both width and height.", param="upscale")
    factor = FACTOR if factor is None else factor
    if not 1 < factor <= MAX_FACTOR:
        raise InvalidValue(f"upscale.factor must be above 1, and at most {MAX_FACTOR}.", param="upscale.factor")
    wide, high = (round(side * factor / multiple) * multiple for side in size)
    return wide, high
