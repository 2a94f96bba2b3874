"""ModelCard: what the gateway must know of a model without holding it. Standard library only.

A worker builds the card from a checkpoint (`pipelines.loading`) and announces it in Redis as JSON; the gateway
knows models only from there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, TypeVar


@dataclass(frozen=True, slots=True, kw_only=True)
class Defaults:
    """What is drawn when the client does not say."""

    sampler: str = "dpmpp_2m"
    schedule: str = "auto"
    steps: int = 20
    guidance: float = 5.0
    guidance_rescale: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplerInfo:
    """One sampler that the model can run, and what it costs.

    U-Net evaluations of n steps = `evals_per_step` * n + `evals_offset`, except for 1, 2 ... steps where `evals_first`
    says otherwise; `evals_open` more where the levels end above zero. A sampler that was learned for some numbers of steps
    takes `only_steps`, and `only_schedules` since its levels are its own; both are empty where there is no such limit. `auto` is
    the schedule that the automatic one means for it on this model, empty where that is not said.
    """

    id: str
    name: str
    aliases: tuple[str, ...] = ()
    min_steps: int = 1
    max_steps: int = 1000
    evals_per_step: int = 1
    evals_offset: int = 0
    evals_first: tuple[int, ...] = ()
    evals_open: int = 0
    only_steps: tuple[int, ...] = ()
    only_schedules: tuple[str, ...] = ()
    options: Mapping[str, OptionInfo] = field(default_factory=dict)
    stochastic: bool = False
    auto: str = ""
    guidance: float | None = None  # the scale if none is asked for, where it means another strength than for most (CFG++)

    def evaluations(self, steps: int, *, ends_open: bool = False) -> int:
        """U-Net evaluations of one unguided picture; exact for every number of steps from 1 on."""
        known = self.evals_first
        line = known[steps - 1] if steps <= len(known) else self.evals_per_step * steps + self.evals_offset
        return line + (self.evals_open if ends_open else 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleInfo:
    """One schedule that the model can run; `curve` is logSNR over 16 steps, for plots, empty where the caller gives the levels.

    `ends_open`: the last step lands above zero noise.
    """

    id: str
    name: str
    aliases: tuple[str, ...] = ()
    min_steps: int = 1
    max_steps: int = 1000
    options: Mapping[str, OptionInfo] = field(default_factory=dict)
    ends_open: bool = False
    curve: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class OptionInfo:
    """One option of a sampler, schedule or guidance: a number in [minimum, maximum], one of `choices`, or a list of such numbers.

    Where it is `falling`, it is a list of two or more, each below the one before, that must be given; the number of steps is one
    less than its length. Where it is `many`, it is a list of any length. `needs` names the option without which it is refused.
    """

    default: float | int | str | tuple[float, ...]
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()
    integer: bool = False
    falling: bool = False
    many: bool = False
    needs: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class GuidanceInfo:
    """One variant of guidance that the model can be drawn with: `guidance_options.variant` and the options beside it."""

    id: str
    name: str
    aliases: tuple[str, ...] = ()
    options: Mapping[str, OptionInfo] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LoraInfo:
    """One LoRA file that the model can be drawn with, or why not."""

    name: str
    hash: str
    refused: str = ""


@dataclass(frozen=True, slots=True)
class ControlNetInfo:
    """One ControlNet that the model can be drawn with, or why not."""

    name: str
    hash: str = ""
    refused: str = ""


@dataclass(frozen=True, slots=True)
class EmbeddingInfo:
    """One file of textual inversion that prompts can name, or why not. `width` is that of its vectors, of all text encoders together."""

    name: str
    hash: str = ""
    vectors: int = 0
    width: int = 0
    refused: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCard:
    """Sizes, limits, words and defaults of one checkpoint. Pixels; `vae_factor` pixels make one latent cell."""

    id: str
    title: str
    description: str
    license: str
    hash: str
    prediction_type: str
    width: int
    height: int
    max_width: int
    max_height: int
    size_multiple: int
    max_steps: int
    max_prompt_tokens: int
    defaults: Defaults
    samplers: tuple[SamplerInfo, ...]
    schedules: tuple[ScheduleInfo, ...]
    guidances: tuple[GuidanceInfo, ...] = ()  # empty on cards of workers that know guidance alone
    words: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ("text_to_image",)  # of jobs that the model can draw
    prompt_syntaxes: tuple[str, ...] = ("plain",)  # that its workers read
    size_conditioning: bool = False  # it is told sizes, as SDXL is
    distilled_guidance: bool = False  # it is told the scale, and asked once a row
    loras: tuple[LoraInfo, ...] = ()
    embeddings: tuple[EmbeddingInfo, ...] = ()
    upscalers: tuple[str, ...] = ()  # of its own, besides what enlarges pictures of every model
    controlnets: tuple[ControlNetInfo, ...] = ()
    max_clip_skip: int = 1  # layers of its text encoder, where its workers can do without some

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ModelCard:
        """The inverse of `to_dict`, also after a trip through JSON."""
        fields = dict(data)
        fields["defaults"] = Defaults(**fields["defaults"])
        fields["samplers"] = tuple(SamplerInfo(**_with_options(s) | {n: tuple(s[n]) for n in OF_TUPLES}) for s in fields["samplers"])
        fields["schedules"] = tuple(ScheduleInfo(**_with_options(s) | {"curve": tuple(s["curve"])}) for s in fields["schedules"])
        fields["guidances"] = tuple(GuidanceInfo(**_with_options(g)) for g in fields.get("guidances", ()))
        fields["words"] = tuple(fields["words"])
        fields["kinds"] = tuple(fields.get("kinds", ("text_to_image",)))  # cards of workers that know no other say nothing
        fields["upscalers"] = tuple(fields.get("upscalers", ()))
        fields["loras"] = tuple(LoraInfo(**lora) for lora in fields.get("loras", ()))
        fields["embeddings"] = tuple(EmbeddingInfo(**embedding) for embedding in fields.get("embeddings", ()))
        fields["controlnets"] = tuple(ControlNetInfo(**net) for net in fields.get("controlnets", ()))
        fields["prompt_syntaxes"] = tuple(fields.get("prompt_syntaxes", ("plain",)))  # likewise
        return cls(**fields)

    def sampler(self, name: str) -> SamplerInfo | None:
        """The sampler of that id, name or alias (case does not matter), or None."""
        return _find(self.samplers, name)

    def schedule(self, name: str) -> ScheduleInfo | None:
        """The schedule of that id, name or alias (case does not matter), or None."""
        return _find(self.schedules, name)

    def variant(self, name: str) -> GuidanceInfo | None:
        """The guidance of that id, name or alias (case does not matter), or None."""
        return _find(self.guidances, name)


LOWEST_GIVEN = 1e-4  # of falling numbers but a last zero; lower ones, and ones nearer to each other than
CLOSEST_GIVEN = 1e-6  # this, relatively, would be equal levels in double precision


def falling_fault(values: object, option: OptionInfo) -> str | None:
    """What a list for a `falling` option should have been, or None when it is good."""
    low, high = option.minimum or 0.0, 1e9 if option.maximum is None else option.maximum
    span = f"of {low:g} or more" if option.maximum is None else f"from {low:g} to {high:g}"
    numbers = values if isinstance(values, list | tuple) else ()
    if len(numbers) < 2 or not all(_is_number(x) and low <= x <= high for x in numbers):
        return f"a list of two or more numbers {span}, falling"
    if any(two > one * (1.0 - CLOSEST_GIVEN) for one, two in pairwise(numbers)):
        return f"falling: each number below the one before it, by {CLOSEST_GIVEN:g} of it or more"
    if any(0.0 < x < LOWEST_GIVEN for x in numbers) or 0.0 in numbers[:-1]:
        return f"numbers of {LOWEST_GIVEN:g} or more, but that the last may be 0"
    return None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


OF_TUPLES = ("evals_first", "only_steps", "only_schedules")
Info = TypeVar("Info", bound="SamplerInfo | ScheduleInfo | GuidanceInfo")


def _find(infos: tuple[Info, ...], name: str) -> Info | None:
    wanted = name.lower()
    for info in infos:
        if wanted in (info.id, info.name.lower(), *map(str.lower, info.aliases)):
            return info
    return None


def _with_options(info: Mapping[str, Any]) -> dict[str, Any]:
    options = {name: _option(option) for name, option in info["options"].items()}
    return {**info, "aliases": tuple(info["aliases"]), "options": options}


def _option(data: Mapping[str, Any]) -> OptionInfo:
    fields: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in data.items()}
    return OptionInfo(**fields)
