"""From what a client said to what is drawn: a Draft (GenerationParams with holes) against one model's card.

Every door builds a Draft; `resolve` fills the holes with the model's defaults, draws a seed, and refuses what the model
or this service cannot do. Pure: no Redis, no HTTP.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
import secrets
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from jobs.job import JobWarning
from pipelines import names
from pipelines.card import ModelCard, SamplerInfo, ScheduleInfo
from pipelines.params import (
    EXTENSIONS,
    MAX_CACHE_INTERVAL,
    SEED_LIMIT,
    GenerationParams,
    Kind,
    LoraUse,
    MaskContent,
    OutputFormat,
    kept_steps,
)
from pipelines.prompts import PromptError, PromptUnsupported, Syntax, words
from service.controlnets import controlled
from service.embeddings import embeddings_of, without
from service.errors import InvalidSize, InvalidValue, NotSupported, UnknownSampler, UnknownSchedule, shown
from service.guided import guidance_warnings, guided
from service.inputs import Pictures
from service.kinds import kind_warnings, of_picture, size_of, transparency_warning
from service.loras import check_loras
from service.option_values import checked_options, idle_options
from service.second_pass import second_pass
from service.settings import Settings
from service.steps import ends_open, number_of_steps

NO_PICTURES = Pictures()
OF_PART = ("strength", "start", "end")
WORDS_NAMED = 8  # unknown words that a warning lists at most
STRIDED = ("ddim", "pndm")  # a step goes down T // n timesteps, wherever the next level lies
NOISE_SHOWS = range(2, 6)  # steps for which the last step but one lands visibly above the last level of linspace

# Control characters but tab, newline and return; and halves of surrogate pairs, which no UTF-8 holds.
UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")
WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")  # numbers, too


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """What a client asked for. None means that the client did not say; then the model's default is taken."""

    prompt: str
    negative_prompt: str = ""
    prompt_syntax: Syntax = "plain"
    clip_skip: int = 1
    loras: tuple[LoraUse, ...] = ()
    cache_interval: int = 1
    embeddings: tuple[str, ...] = ()
    controlnet: Mapping[str, Any] = field(default_factory=dict)  # name, image (as below), scale, start, end
    width: int | None = None
    height: int | None = None
    steps: int | None = None
    guidance: float | None = None
    sampler: str | None = None
    sampler_options: Mapping[str, Any] = field(default_factory=dict)
    schedule: str | None = None
    schedule_options: Mapping[str, Any] = field(default_factory=dict)
    guidance_options: Mapping[str, Any] = field(default_factory=dict)
    seed: int | None = None
    num_images: int = 1
    model: str | None = None
    output_format: OutputFormat = "png"
    output_quality: int | None = None
    preview: bool = False
    kind: Kind | None = None
    image: str | bytes | None = None  # a key, a data URL, or the file itself
    mask: str | bytes | None = None
    mask_feather: int | None = None
    mask_padding: int | None = None
    mask_content: MaskContent | None = None
    outpaint: Mapping[str, int] | None = None
    strength: float | None = None
    start: float | None = None
    end: float | None = None
    size_conditioning: Mapping[str, Any] = field(default_factory=dict)
    upscale: Mapping[str, Any] = field(default_factory=dict)  # factor, or width and height; method; steps, strength


@dataclass(frozen=True, slots=True)
class Resolved:
    """A draft without holes. `steps_total` counts the U-Net evaluations of all its images."""

    params: GenerationParams
    steps_total: int
    warnings: tuple[JobWarning, ...]


def fingerprint(body: Mapping[str, Any]) -> str:
    """One value for equal bodies, whatever the order of their fields; taken before defaults and seed are filled in."""
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def resolve(draft: Draft, card: ModelCard, settings: Settings, given: Pictures = NO_PICTURES) -> Resolved:
    """Fill and check a draft; `given` is what its pictures are. Raises the BadRequest that names the field at fault."""
    check_texts(draft, card, settings)
    settled = settle(draft, card, settings, given)
    return replace(settled, warnings=(*settled.warnings, *words_warning(draft, card)))


def check_texts(draft: Draft, card: ModelCard, settings: Settings) -> None:
    for name in ("prompt", "negative_prompt"):
        _check_text(name, getattr(draft, name), draft.prompt_syntax, settings)
    check_loras(draft.prompt, draft.negative_prompt, draft.prompt_syntax, draft.loras, card)
    if draft.prompt_syntax not in card.prompt_syntaxes:
        raise NotSupported(f"{card.id} reads {' and '.join(card.prompt_syntaxes)} prompts alone.", param="prompt_syntax")


def settle(draft: Draft, card: ModelCard, settings: Settings, given: Pictures = NO_PICTURES) -> Resolved:
    """The same without what depends on the words of its texts; of those it matters whether there are any."""
    width, height = _size(*size_of(draft, given.image), card, settings)
    sampler, sampler_options, schedule = _pair(draft, card)
    schedule_options = checked_options("schedule_options", draft.schedule_options, schedule)

    def counted(said: int | None) -> int:
        return number_of_steps(said, schedule_options, card, sampler, schedule, settings)

    steps = counted(draft.steps)
    picture = of_picture(draft, card, sampler, steps, given)
    first, last = kept_steps(steps, **{name: picture[name] for name in OF_PART if name in picture})
    guidance, guidance_options = guided(draft.guidance, draft.guidance_options, card, sampler, last - first)
    second = second_pass(draft, picture["kind"], card, sampler, (width, height), lambda said: counted(said or steps), settings)
    params = GenerationParams(
        prompt=draft.prompt,
        negative_prompt=draft.negative_prompt,
        width=width,
        height=height,
        steps=steps,
        guidance=guidance,
        guidance_options=guidance_options,
        sampler=sampler.id,
        sampler_options=checked_options("sampler_options", sampler_options, sampler),
        schedule=schedule.id,
        schedule_options=schedule_options,
        seed=seed_of(draft),
        num_images=_within("num_images", draft.num_images, 1, settings.max_images),
        model=card.id,
        output_format=_format(draft.output_format),
        output_quality=_quality(draft),
        preview=draft.preview,
        prompt_syntax=draft.prompt_syntax,
        size_conditioning=_told_sizes(draft, card),
        upscale=second,
        loras=draft.loras,
        cache_interval=_within("cache_interval", draft.cache_interval, 1, MAX_CACHE_INTERVAL),
        embeddings=acting_embeddings(draft, card),
        controlnet=controlled(draft, picture["kind"], card, given.control, last - first),
        clip_skip=_within("clip_skip", draft.clip_skip, 1, card.max_clip_skip),
        **picture,
    )
    evaluations = sampler.evaluations(last - first, ends_open=last < steps or ends_open(schedule, schedule_options))
    if len(params.passes) > 1:
        first, last = params.passes[1].kept
        evaluations += sampler.evaluations(last - first, ends_open=ends_open(schedule, schedule_options))
    return Resolved(params, evaluations * params.num_images, (*_warnings(params, card), *transparency_warning(params, given)))


def _check_text(name: str, text: str, syntax: Syntax, settings: Settings) -> None:
    if len(text) > settings.max_prompt_chars:
        raise InvalidValue(f"{name} has {len(text)} characters; at most {settings.max_prompt_chars} are taken.", param=name)
    if UNPRINTABLE.search(text):
        raise InvalidValue(f"{name} holds control characters or halves of surrogate pairs.", param=name)
    try:
        words(text, syntax)
    except PromptUnsupported as error:
        raise NotSupported(f"{error}.", param=name) from error
    except PromptError as error:
        raise InvalidValue(f"{name} cannot be read: {error}.", param=name) from error


def _within(name: str, value: int, low: int, high: int) -> int:
    if not low <= value <= high:
        raise InvalidValue(f"{name} must be from {low} to {high}.", param=name)
    return value


def _quality(draft: Draft) -> int | None:
    if draft.output_quality is None:
        return None
    if draft.output_format == "png":
        raise InvalidValue("output_quality goes with output_format jpeg or webp: png loses nothing.", param="output_quality")
    return _within("output_quality", draft.output_quality, 1, 100)


def _size(wide: int | None, high: int | None, card: ModelCard, settings: Settings) -> tuple[int, int]:
    width = _side("width", wide, card.width, card.max_width, card)
    height = _side("height", high, card.height, card.max_height, card)
    if width * height > settings.max_pixels:
        raise InvalidSize(f"width times height is {width * height}; this service draws at most {settings.max_pixels} pixels.")
    return width, height


def _side(name: str, wanted: int | None, default: int, most: int, card: ModelCard) -> int:
    value = default if wanted is None else wanted
    multiple = card.size_multiple
    if not multiple <= value <= most or value % multiple:
        raise InvalidSize(f"{name} must be a multiple of {multiple} from {multiple} to {most}.", param=name)
    return value


def _told_sizes(draft: Draft, card: ModelCard) -> dict[str, Any]:
    if draft.size_conditioning and not card.size_conditioning:
        raise InvalidValue(f"{card.id} is told no sizes; leave size_conditioning out.", param="size_conditioning")
    return dict(draft.size_conditioning)


def _pair(draft: Draft, card: ModelCard) -> tuple[SamplerInfo, Mapping[str, Any], ScheduleInfo]:
    """The sampler, its options and the schedule, whatever dialect their names come from (`pipelines.names`)."""
    asked = draft.sampler or card.defaults.sampler
    try:
        choice = names.find(asked, draft.schedule, (s.id for s in card.samplers), draft.sampler_options)
    except names.UnknownName as error:
        if (own := card.sampler(asked)) is None or error.reason:
            raise _unknown(error, card) from error
        choice = names.Choice(sampler=own.id, sampler_options=draft.sampler_options, schedule=draft.schedule)
    except names.UnknownSetting as error:
        param = "schedule" if error.option == "schedule" else f"sampler_options.{shown(error.option)}"
        raise InvalidValue(f"{error}.", param=param) from error
    sampler = card.sampler(choice.sampler)
    if sampler is None:
        raise _unknown(names.UnknownName("sampler", asked, names.needs(choice.sampler) or f"{card.id} has no {choice.sampler}"), card)
    return sampler, choice.sampler_options, _beside(sampler, card, choice.schedule)


def _beside(sampler: SamplerInfo, card: ModelCard, asked: str | None) -> ScheduleInfo:
    """The schedule for a sampler; one that was learned together with its levels takes no other."""
    only = sampler.only_schedules
    schedule = schedule_of(card, asked or (only[0] if only else card.defaults.schedule))
    if only and schedule.id not in only:
        raise InvalidValue(f"{sampler.id} has levels of its own: its schedule must be {' or '.join(only)}.", param="schedule")
    return schedule


def schedule_of(card: ModelCard, name: str) -> ScheduleInfo:
    """The model's schedule of that name in any dialect. Raises UnknownSchedule."""
    try:
        id = names.find_schedule(name, (s.id for s in card.schedules))
    except names.UnknownName as error:
        if (own := card.schedule(name)) is None or error.reason:
            raise _unknown(error, card) from error
        return own
    if (info := card.schedule(id)) is None:
        raise _unknown(names.UnknownName("schedule", name, names.needs(id) or f"{card.id} has no {id}"), card)
    return info


def _unknown(error: names.UnknownName, card: ModelCard) -> UnknownSampler | UnknownSchedule:
    """With why it cannot run, if it is known elsewhere, and what may have been meant."""
    ids = [info.id for info in (card.samplers if error.kind == "sampler" else card.schedules)]
    close = [] if error.reason else names.nearest(error.kind, error.name, ids)
    said = f"The {error.kind} {shown(error.name)!r} cannot run here: {error.reason}." if error.reason else ""
    said = said or f"There is no {error.kind} {shown(error.name)!r}."
    meant = f" Did you mean {' or '.join(close)}?" if close else ""
    kind = UnknownSampler if error.kind == "sampler" else UnknownSchedule
    return kind(f"{said}{meant} Known: {', '.join(sorted(ids))}. Their names in other programs are understood too.", param=error.kind)


def acting_embeddings(draft: Draft, card: ModelCard) -> tuple[str, ...]:
    return embeddings_of(draft.prompt, draft.negative_prompt, draft.prompt_syntax, draft.embeddings, card)


def seed_of(draft: Draft) -> int:
    """The one that was asked for, or any."""
    return secrets.randbelow(SEED_LIMIT) if draft.seed is None else _within("seed", draft.seed, 0, SEED_LIMIT - 1)


def _format(wanted: OutputFormat) -> OutputFormat:
    if wanted not in EXTENSIONS:
        raise InvalidValue(f"output_format must be one of {', '.join(EXTENSIONS)}.", param="output_format")
    return wanted


def _warnings(params: GenerationParams, card: ModelCard) -> Iterable[JobWarning]:
    if params.width > card.width or params.height > card.height:
        size = f"{card.width}x{card.height}"
        yield JobWarning("beyond_trained_size", f"The model was trained at {size}; larger pictures may repeat themselves.")
    yield from kind_warnings(params)
    yield from guidance_warnings(params, card)
    if unused := idle_options(params, card):
        yield JobWarning("sampler_options_unused", f"{', '.join(unused)} of {params.sampler} act only where it adds noise; it adds none.")
    if params.sampler in STRIDED and _drawn_on(params, card) == "linspace" and params.steps in NOISE_SHOWS:
        yield JobWarning(
            "noise_left",
            f"With {params.steps} steps on linspace, {params.sampler} leaves noise in the picture, as in diffusers: its steps land above "
            "the next level. On trailing or sgm_uniform they do not.",
        )


def words_warning(draft: Draft, card: ModelCard) -> Iterable[JobWarning]:
    if not card.words:
        return
    said = "\n".join(words(text, draft.prompt_syntax) for text in (draft.prompt, draft.negative_prompt))
    said = without(said, acting_embeddings(draft, card))
    if said and (unknown := _unknown_words(said, card)):
        yield JobWarning("unknown_words", f"The model was not trained on: {', '.join(unknown)}.")


def _drawn_on(params: GenerationParams, card: ModelCard) -> str:
    """The schedule, or the one that the automatic one means."""
    sampler = card.sampler(params.sampler)
    return sampler.auto if sampler and params.schedule == "auto" else params.schedule


@functools.lru_cache(maxsize=16)  # of so many models
def _vocabulary(words: tuple[str, ...]) -> frozenset[str]:
    return frozenset(part.lower() for one in words for part in WORD.findall(one))


def _unknown_words(text: str, card: ModelCard) -> list[str]:
    known = _vocabulary(card.words)
    signs = [] if text.isascii() else [sign for sign in text if unicodedata.category(sign) == "So"]  # emoji
    strange = dict.fromkeys(word for word in (*map(str.lower, WORD.findall(text)), *signs) if word not in known)
    named = [shown(word) for word in list(strange)[:WORDS_NAMED]]
    return [*named, f"and {len(strange) - WORDS_NAMED} more"] if len(strange) > WORDS_NAMED else named
