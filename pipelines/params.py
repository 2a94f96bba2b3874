"""What a picture is asked for by: the one request record that every dialect translates to. Standard library only."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pipelines.prompts import Reading, Syntax, Worn, worn_in

Kind = Literal["text_to_image", "image_to_image", "inpaint", "outpaint", "variations"]
OutputFormat = Literal["png", "jpeg", "webp"]
MaskContent = Literal["original", "fill"]
UpscaleMethod = Literal["lanczos", "latent", "superres"]

MEDIA_TYPES: Mapping[str, str] = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}
KINDS: tuple[Kind, ...] = ("text_to_image", "image_to_image", "inpaint", "outpaint", "variations")
SIDES = ("left", "top", "right", "bottom")
EXTENSIONS: Mapping[str, str] = {"png": "png", "jpeg": "jpg", "webp": "webp"}

UNSAID: Mapping[str, Any] = {  # defaults of what most jobs do not have
    "image": "", "mask": "", "mask_feather": 0, "mask_padding": None, "mask_content": "original", "outpaint": {},
    "strength": 1.0, "start": 0.0, "end": 1.0, "prompt_syntax": "plain", "size_conditioning": {}, "upscale": {},
    "clip_skip": 1, "loras": (), "cache_interval": 1, "embeddings": (), "controlnet": {},
}  # fmt: skip

FIRST_PASS = "first pass"  # in the place of a key
MAX_CACHE_INTERVAL = 10
SEED_LIMIT = 2**32  # seeds are 0 .. 2^32-1: torch's CPU generator keeps no more of them


@dataclass(frozen=True, slots=True)
class LoraUse:
    """A LoRA of the worker's, and how strongly it acts."""

    name: str
    weight: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationParams:
    """Everything that decides the picture, with every default already filled in.

    Width and height are pixels. `seed` belongs to image 0; image i uses `image_seed(i)`. `image` and `mask` are keys of stored
    pictures; `strength`, `start` and `end` say which of the steps are taken (`kept_steps`); `mask_feather` is in pixels,
    and so is `mask_padding`: with it only the masked region is drawn, at width and height, and the picture keeps its own size.
    """

    prompt: str
    model: str
    width: int
    height: int
    steps: int
    guidance: float
    sampler: str
    schedule: str
    seed: int
    negative_prompt: str = ""
    sampler_options: Mapping[str, Any] = field(default_factory=dict)
    schedule_options: Mapping[str, Any] = field(default_factory=dict)
    guidance_options: Mapping[str, Any] = field(default_factory=dict)
    num_images: int = 1
    output_format: OutputFormat = "png"
    output_quality: int | None = None  # 1 to 100, of jpeg and webp
    preview: bool = False
    kind: Kind = "text_to_image"
    image: str = ""
    mask: str = ""
    mask_feather: int = 0
    mask_padding: int | None = None
    mask_content: MaskContent = "original"  # what the masked part begins as
    outpaint: Mapping[str, int] = field(default_factory=dict)  # by side; width and height are those of the whole
    strength: float = 1.0
    start: float = 0.0
    end: float = 1.0
    prompt_syntax: Syntax = "plain"
    size_conditioning: Mapping[str, Any] = field(default_factory=dict)  # what SDXL is told: original_size, crop, target_size; pairs
    clip_skip: int = 1
    loras: tuple[LoraUse, ...] = ()  # beside those that the prompt names
    cache_interval: int = 1  # rows of the table from one asking of the U-Net's deep layers to the next
    embeddings: tuple[str, ...] = ()  # names in either prompt that stand for learned vectors, in order
    controlnet: Mapping[str, Any] = field(default_factory=dict)  # name, image (a key), scale, start, end
    upscale: Mapping[str, Any] = field(default_factory=dict)  # width, height, method; of a second pass steps and strength

    @property
    def reading(self) -> Reading:
        """How both prompts are read."""
        return Reading(self.prompt_syntax, self.clip_skip, self.worn, self.embeddings)

    @property
    def worn(self) -> Worn:
        """All LoRAs of the picture, those that its prompt names too, in the order of their names."""
        named = worn_in(self.prompt)[0] if self.prompt_syntax == "a1111" else ()
        return tuple(sorted({**dict(named), **{lora.name: lora.weight for lora in self.loras}}.items()))

    @property
    def passes(self) -> tuple[GenerationParams, ...]:
        """One, or where the picture is enlarged and drawn over two: the second is image-to-image of what the first draws, with the
        same seed.
        """
        if "strength" not in self.upscale:
            return (self,)
        first, more = dataclasses.replace(self, upscale={}), {name: self.upscale[name] for name in ("width", "height", "steps", "strength")}
        second = dataclasses.replace(first, kind="image_to_image", image=self.image or FIRST_PASS, start=0.0, end=1.0, **more)
        return first, second

    @property
    def masked(self) -> bool:
        """Whether a part of the picture stays."""
        return self.kind in ("inpaint", "outpaint")

    @property
    def kept(self) -> tuple[int, int]:
        """First and last of the steps first .. last - 1 that are taken. Raises ValueError where none is left."""
        return kept_steps(self.steps, strength=self.strength, start=self.start, end=self.end)

    def image_seed(self, index: int) -> int:
        """The seed of image `index` of this request; it wraps at 2^32."""
        return (self.seed + index) % SEED_LIMIT

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dict with every field."""
        return dataclasses.asdict(self)

    def brief(self) -> dict[str, Any]:
        """The same without what most jobs do not have: as records hold it, and those read it who know nothing of that."""
        fields = ((name, getattr(self, name)) for name in self.__dataclass_fields__)  # asdict would copy all that is inside
        brief = {name: value for name, value in fields if value != UNSAID.get(name, self)}
        return brief | {"loras": [dataclasses.asdict(lora) for lora in self.loras]} if self.loras else brief

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> GenerationParams:
        """The inverse of `to_dict` and of `brief`. Raises TypeError on missing or unknown fields."""
        loras = tuple(LoraUse(**lora) for lora in data.get("loras", ()))
        return cls(**{**data, "loras": loras, "embeddings": tuple(data.get("embeddings", ()))})


def kept_steps(steps: int, *, strength: float = 1.0, start: float = 0.0, end: float = 1.0) -> tuple[int, int]:
    """First and last of the steps first .. last - 1 that are taken of a schedule of `steps`.

    `strength` is that of image-to-image: the last int(steps * strength) steps, as diffusers counts them. `start` and `end`
    are fractions of the steps, rounded, so that one picture may be handed on where another ends.
    Raises ValueError where a number is out of [0, 1], both ways of skipping are used, or no step is left.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, not {steps}")
    for name, value in (("strength", strength), ("start", start), ("end", end)):
        if not 0.0 <= value <= 1.0:
            raise ValueError(f"{name} must lie between 0 and 1, not {value!r}")
    if strength < 1.0 and start > 0.0:
        raise ValueError("strength and start both say where to begin; give one of them")
    first = round(steps * start) if strength == 1.0 else steps - min(int(steps * strength), steps)
    last = round(steps * end)
    if first >= last:
        raise ValueError(f"no step of {steps} is left with strength {strength:g}, start {start:g} and end {end:g}")
    return first, last


def step_scales(guidance: float, options: Mapping[str, Any], steps: int) -> tuple[float, ...]:
    """The guidance scale of each of `steps` steps; 1 where guidance is off, and then one U-Net row is enough.

    `guidance` is the scale of the first step. `start` and `end` are fractions of the steps, cut to whole steps as diffusers'
    guiders do; curves run over all steps, guided or not. Raises ValueError where the options contradict each other.
    """
    curve = options.get("curve", "constant")
    if options.get("pag_scale") and options.get("seg_scale"):
        raise ValueError("pag_scale and seg_scale disturb the same layers; give one of them")
    if options.get("scales") and curve != "constant":
        raise ValueError("scales and curve both say how the scale goes on; give one of them")
    scales = options.get("scales") or _curve(curve, guidance, options.get("final", 1.0), steps)
    if len(scales) != steps:
        raise ValueError(f"scales must hold one number for each of the {steps} steps, not {len(scales)}")
    within = guided_steps(options, steps)
    return tuple(float(scale) if i in within else 1.0 for i, scale in enumerate(scales))


def guided_steps(options: Mapping[str, Any], steps: int) -> range:
    """The steps from `start` to `end` on which guidance acts, without those whose output is replaced by zero."""
    start, end = options.get("start", 0.0), options.get("end", 1.0)
    if start >= end:
        raise ValueError("start must be less than end")
    return range(max(int(start * steps), int(options.get("zero_init", 0))), int(end * steps))


def controlled_steps(steps: int, start: float, end: float) -> range:
    """Those of `steps` steps at which a ControlNet acts from `start` to `end`, fractions of them, as diffusers counts: whole steps."""
    within = [i for i in range(steps) if i / steps >= start and (i + 1) / steps <= end]
    return range(within[0], within[-1] + 1) if within else range(0)


def _curve(curve: str, first: float, last: float, steps: int) -> list[float]:
    """From `first` at step 0 to `last` at the last step: constant, linear, or half a cosine."""
    if curve == "constant":
        return [first] * steps
    way = [i / max(steps - 1, 1) for i in range(steps)]
    if curve == "cosine":
        way = [(1 - math.cos(math.pi * u)) / 2 for u in way]
    return [first + (last - first) * u for u in way]
