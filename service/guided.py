"""What a client says of guidance, filled in and checked: the scale, and the options of its variant."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from jobs.job import JobWarning
from pipelines.card import GuidanceInfo, ModelCard, SamplerInfo
from pipelines.params import GenerationParams, guided_steps, step_scales
from service.errors import InvalidValue, shown
from service.option_values import checked_options, nearest

MAX_GUIDANCE = 50.0  # far beyond what any model draws well; keeps float32 away from overflow
STRONG = 2.0  # for samplers whose scale means another strength (CFG++)
PIXEL_VARIANTS = ("dynamic_thresholding", "thresholding")  # of Imagen, arXiv 2205.11487: they need values that lie in [-1, 1]


def guided(
    wanted: float | None, given: Mapping[str, Any], card: ModelCard, sampler: SamplerInfo, steps: int
) -> tuple[float, dict[str, Any]]:
    """The scale of the first step, and every option of the variant that means something beside the others.

    Raises InvalidValue, UnknownOption.
    """
    if given and card.distilled_guidance:
        message = f"{card.id} is told the scale and asked once a step: guidance is all there is to say."
        raise InvalidValue(message, param="guidance_options")
    options = _checked(given, card)
    scales = options.get("scales")
    usual = card.defaults.guidance if sampler.guidance is None else sampler.guidance
    value = wanted if wanted is not None else scales[0] if scales else usual
    if not 0.0 <= value <= MAX_GUIDANCE:  # also refuses NaN
        raise InvalidValue(f"guidance must be from 0 to {MAX_GUIDANCE:g}; 1 switches it off.", param="guidance")
    if scales and value != scales[0]:
        raise InvalidValue("guidance is the scale of the first step; here that is the first of guidance_options.scales.", param="guidance")
    try:
        step_scales(value, options, steps)
    except ValueError as error:
        raise InvalidValue(f"guidance_options: {error}.", param="guidance_options") from error
    return float(value), options


def guidance_warnings(params: GenerationParams, card: ModelCard) -> Iterator[JobWarning]:
    """What of the guidance that was asked for changes nothing, or too much."""
    options, sampler = params.guidance_options, card.sampler(params.sampler)
    first, last = params.kept
    scales = step_scales(params.guidance, options, last - first)
    if sampler and sampler.guidance is not None and max(scales) > STRONG:
        usual = f"{sampler.id} takes scales around {sampler.guidance:g}"
        yield JobWarning("guidance_too_strong", f"{usual}; above {STRONG:g} it burns pictures.")
    if card.distilled_guidance and params.negative_prompt:
        yield JobWarning("negative_prompt_unused", f"{card.id} has learned guidance without a negative prompt; it has no effect.")
    if card.distilled_guidance or any(scale != 1.0 for scale in scales):
        return
    if params.negative_prompt:
        yield JobWarning("negative_prompt_unused", "With guidance 1 the negative prompt has no effect.")
    disturbs = guided_steps(options, last - first) and (options.get("pag_scale") or options.get("seg_scale"))
    if _chosen(params, card) and not options.get("zero_init") and not disturbs:
        yield JobWarning("guidance_options_unused", "No step is guided, so guidance_options have no effect.")


def _checked(given: Mapping[str, Any], card: ModelCard) -> dict[str, Any]:
    if not card.guidances and not given:
        return {}
    info = _variant(given.get("variant", "cfg"), card)
    own = {name: value for name, value in given.items() if name != "variant"}
    options = checked_options("guidance_options", own, info)
    for name, option in info.options.items():
        unused = bool(option.needs) and options[option.needs] == info.options[option.needs].default
        if unused and name in own:
            raise InvalidValue(f"guidance_options.{name} means nothing without {option.needs}.", param=f"guidance_options.{name}")
        if unused or (option.many and not options[name]):
            del options[name]
    return {"variant": info.id, **options}


def _variant(name: object, card: ModelCard) -> GuidanceInfo:
    param = "guidance_options.variant"
    if name in PIXEL_VARIANTS:
        message = f"{name} clips pixels to [-1, 1], and {card.id} draws latents, which have no such bounds; take rescale or apg."
        raise InvalidValue(message, param=param)
    info = card.variant(name) if isinstance(name, str) else None
    if info is None:
        said = name if isinstance(name, str) else ""
        raise InvalidValue(f"There is no guidance {shown(said)!r}.{nearest(said, (g.id for g in card.guidances))}", param=param)
    return info


def _chosen(params: GenerationParams, card: ModelCard) -> bool:
    """Whether guidance_options say anything but the model's own."""
    options = {name: value for name, value in params.guidance_options.items() if name != "variant"}
    info = card.variant(params.guidance_options.get("variant", ""))
    return info is not None and (info.id != "cfg" or any(value != info.options[name].default for name, value in options.items()))
