"""What a client may say of one job: the body of POST /generate, and a line of a batch."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema, field_validator

from jobs.job import WEBHOOK_EVENTS, ServiceClass, Webhook, WebhookEvent
from pipelines.params import MAX_CACHE_INTERVAL, Kind, LoraUse, MaskContent, OutputFormat, UpscaleMethod
from pipelines.prompts import Syntax
from service.controlnets import MAX_SCALE
from service.drafts import Draft
from service.embeddings import MAX_EMBEDDINGS
from service.kinds import MAX_FEATHER, MAX_PADDING, MAX_SIDE
from service.loras import MAX_LORA_WEIGHT, MAX_LORAS
from service.second_pass import MAX_FACTOR
from service.terms import Terms

MAX_DEADLINE_S = 2_592_000.0  # 30 days
MAX_TOLD_SIZE = 16_384  # pixels, of sizes that a model is told
NUMBERS = {"type": "array", "items": {"type": "number"}}
Options = Annotated[
    dict[str, Any],
    WithJsonSchema(
        {"type": "object", "additionalProperties": {"anyOf": [{"type": "number"}, {"type": "string"}, {"type": "boolean"}, NUMBERS]}}
    ),
]

NUMBER_OR_TEXT: list[dict[str, Any]] = [{"type": "number"}, {"type": "string"}]
GuidanceOptions = Annotated[
    dict[str, Any],
    WithJsonSchema(
        {
            "type": "object",
            "properties": {"variant": {"type": "string", "default": "cfg"}},
            "additionalProperties": {"anyOf": [*NUMBER_OR_TEXT, {"type": "array", "items": {"type": "number"}}]},
            "examples": [{"variant": "apg", "eta": 0, "momentum": -0.5, "start": 0.1, "end": 0.8}],
        }
    ),
]


EmbeddingName = Annotated[str, Field(min_length=1, max_length=255)]
NONE_IF_EMPTY = ("image", "mask", "outpaint")  # as answers hold them


class WebhookRequest(BaseModel):
    """Where to tell what becomes of the job."""

    model_config = ConfigDict(strict=True, extra="forbid")

    url: str = Field(min_length=1, max_length=2048, description="https, on the public internet; see docs/webhooks.md")
    events: list[WebhookEvent] = Field(
        default_factory=lambda: list(WEBHOOK_EVENTS),
        min_length=1,
        description="which events are told; all of them if left out",
        json_schema_extra={"uniqueItems": True},
    )

    @field_validator("events")
    @classmethod
    def _each_once(cls, events: list[WebhookEvent]) -> list[WebhookEvent]:
        if len(set(events)) != len(events):
            raise ValueError("an event is named twice")
        return events


class OutpaintRequest(BaseModel):
    """Pixels that are drawn beyond each side."""

    model_config = ConfigDict(strict=True, extra="forbid")

    left: int = Field(default=0, ge=0, le=MAX_SIDE)
    top: int = Field(default=0, ge=0, le=MAX_SIDE)
    right: int = Field(default=0, ge=0, le=MAX_SIDE)
    bottom: int = Field(default=0, ge=0, le=MAX_SIDE)


Pair = Annotated[list[Annotated[int, Field(ge=0, le=MAX_TOLD_SIZE)]], Field(min_length=2, max_length=2)]


class SizeConditioning(BaseModel):
    """What an SDXL model is told of the picture's history; left out, the picture was always as large as it is drawn."""

    model_config = ConfigDict(strict=True, extra="forbid")

    original_size: Pair | None = Field(default=None, description="[width, height] before it was scaled down")
    crop: Pair | None = Field(default=None, description="[left, top] that was cut off")
    target_size: Pair | None = Field(default=None, description="[width, height] after that")


class UpscaleRequest(BaseModel):
    """How the picture is enlarged: `factor`, or both `width` and `height`, by `method`; `steps` and `strength` are of the second pass."""

    model_config = ConfigDict(extra="forbid", strict=True)

    factor: float | None = Field(default=None, gt=1, le=MAX_FACTOR, description="2 if left out; sides are rounded to the model's multiple")
    width: int | None = Field(default=None, ge=1, description="instead of factor: pixels of the result")
    height: int | None = Field(default=None, ge=1)
    steps: int | None = Field(default=None, ge=1, description="of which `strength` are taken; as many as before if left out")
    strength: float | None = Field(
        default=None, gt=0, le=1,
        description="share of the steps that is drawn: 0.4, or 0.6 for latent; superres without it has no second pass",
    )  # fmt: skip
    method: UpscaleMethod | None = Field(
        default=None,
        description="superres (the model's own network, by 2; if left out, where there is one), lanczos (pixels) or latent (bilinear)",
    )  # fmt: skip


def _or_factor(schema: dict[str, Any]) -> None:
    schema["anyOf"] = [{"type": "number", "exclusiveMinimum": 1, "maximum": MAX_FACTOR}, *schema["anyOf"]]


def _or_nothing(schema: dict[str, Any]) -> None:
    schema["anyOf"] = [*schema["anyOf"], {"type": "object", "maxProperties": 0}]  # as answers hold it


class LoraRequest(BaseModel):
    """A LoRA, and how strongly it acts."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    name: str = Field(min_length=1, max_length=255)
    weight: float = Field(default=1.0, ge=-MAX_LORA_WEIGHT, le=MAX_LORA_WEIGHT)


class ControlNetRequest(BaseModel):
    """A ControlNet, and what it is shown."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    name: str = Field(min_length=1, max_length=255)
    image: str = Field(min_length=1, description="edges, depth or a pose as it was trained on; a key, data URL or https, like `image`")
    scale: float = Field(default=1.0, ge=0, le=MAX_SCALE, description="how strongly it acts")
    start: float = Field(default=0.0, ge=0, lt=1, description="share of the steps from which on it acts")
    end: float = Field(default=1.0, gt=0, le=1, description="and up to which")


class GenerateRequest(BaseModel):
    """What to draw. A field left out, or null where null is allowed, takes the model's default."""

    model_config = ConfigDict(
        strict=True,
        extra="forbid",
        allow_inf_nan=False,
        json_schema_extra={"examples": [{"prompt": "a red apple on a blue background", "steps": 20, "seed": 7}]},
    )

    prompt: str = Field(description="what the picture shows; empty draws anything")
    negative_prompt: str = Field(default="", description="what it should not show")
    prompt_syntax: Syntax = Field(
        default="plain", description="plain takes every sign of both as text, a1111 knows (weights:1.3), [less] and BREAK; docs/prompts.md"
    )
    loras: list[LoraRequest] = Field(
        default_factory=list, max_length=MAX_LORAS, description="LoRAs that act on this picture, by the names of GET /models; each once"
    )
    embeddings: list[EmbeddingName] = Field(
        default_factory=list, max_length=MAX_EMBEDDINGS,
        description="embeddings by the names of GET /models, which stand for their vectors in both prompts; in a1111 syntax all of them do",
    )  # fmt: skip
    clip_skip: int = Field(default=1, ge=1, description="the text encoder's layer that is read: 1 the last, 2 the one before, as in A1111")
    cache_interval: int = Field(
        default=1, ge=1, le=MAX_CACHE_INTERVAL,
        description="ask the U-Net's deep layers at every n-th evaluation alone: sooner, and a little different; docs/performance.md",
    )  # fmt: skip
    width: int | None = Field(default=None, ge=1, description="pixels, a multiple of the model's `size_multiple`")
    height: int | None = Field(default=None, ge=1, description="pixels, a multiple of the model's `size_multiple`")
    steps: int | None = Field(default=None, ge=1, description="steps of the sampler; GET /samplers tells its limits")
    guidance: float | None = Field(default=None, ge=0, description="how strictly the prompt is followed; 1 switches it off")
    guidance_options: GuidanceOptions = Field(
        default_factory=dict, description="`variant` and its options, by name; GET /guidances lists them, docs/guidance.md has the formulas"
    )
    sampler: str | None = Field(
        default=None, min_length=1, description="id, name or alias of GET /samplers, or what A1111, ComfyUI or diffusers call it"
    )
    sampler_options: Options = Field(
        default_factory=dict, description="by name; GET /samplers lists them; those of the class where the sampler is one of diffusers"
    )
    schedule: str | None = Field(default=None, min_length=1, description="id, name or alias of GET /schedules, or its name elsewhere")
    schedule_options: Options = Field(default_factory=dict, description="by name; GET /schedules lists them")
    seed: int | None = Field(default=None, ge=0, le=2**32 - 1, description="of the first image; image i takes seed + i; null: any")
    num_images: int = Field(default=1, ge=1, description="pictures of one job")
    model: str | None = Field(default=None, min_length=1, description="id of GET /models")
    output_format: OutputFormat = "png"
    output_quality: int | None = Field(default=None, ge=1, le=100, description="of jpeg (95 if left out) and webp (92); 100 is best")
    preview: bool = Field(default=False, description="whether progress events carry a small picture of what is forming")
    kind: Kind | None = Field(default=None, description="left out, it follows from image and mask")
    image: str | None = Field(
        default=None,
        description="the picture to begin with: a key of GET /jobs/{id}, a data URL, or https where the service fetches; PNG, JPEG or WebP",
    )
    mask: str | None = Field(default=None, description="likewise, of the same size: what is white, or transparent, is drawn anew")
    mask_feather: int | None = Field(
        default=None, ge=0, le=MAX_FEATHER, description="pixels of soft edge where the picture is put back around the mask; 8 if left out"
    )
    mask_padding: int | None = Field(
        default=None, ge=0, le=MAX_PADDING,
        description="draw the masked region alone, with so many pixels around it, at width and height; the picture keeps its own size",
    )  # fmt: skip
    mask_content: MaskContent | None = Field(
        default=None, description="what the masked part begins as: original if left out, or fill: a blur of what surrounds it"
    )
    outpaint: OutpaintRequest | None = Field(default=None, description="pixels to draw beyond each side of the image")
    strength: float | None = Field(
        default=None, gt=0, le=1, description="share of the steps that is drawn; 0.8 if left out, 1 for inpaint: there it begins from noise"
    )
    start: float | None = Field(default=None, ge=0, lt=1, description="instead of strength: the share of the steps that is left out")
    end: float | None = Field(default=None, gt=0, le=1, description="share of the steps after which it ends; below 1 noise is left")
    size_conditioning: SizeConditioning | None = Field(
        default=None, description="for models that are told sizes (SDXL); see docs/models.md"
    )
    upscale: UpscaleRequest | None = Field(
        default=None, description="enlarge the picture, so many times, and draw its detail anew in the same job; docs/images.md",
        json_schema_extra=_or_factor,
    )  # fmt: skip
    controlnet: ControlNetRequest | None = Field(
        default=None, description="a ControlNet of GET /models that steers this picture by another one; docs/controlnet.md",
        json_schema_extra=_or_nothing,
    )  # fmt: skip
    priority: int = Field(default=0, ge=-100, le=100, description="among your own waiting jobs: the higher goes first")
    service_class: ServiceClass = Field(
        default="normal",
        description="among the jobs of all: interactive first, then normal, then batch; left out, that of your key if it has one",
    )
    deadline_s: float | None = Field(
        default=None, gt=0, le=MAX_DEADLINE_S, description="seconds from now in which it must be done; refused if it cannot be"
    )
    webhook: WebhookRequest | None = Field(default=None, description="called when something becomes of the job")
    reuse: bool = Field(default=False, description="share the work with an equal request of yours; needs a seed")

    def to_draft(self) -> Draft:
        said = {name: getattr(self, name) for name in self.model_fields_set if name in Draft.__dataclass_fields__}
        if self.outpaint:
            said["outpaint"] = {side: pixels for side, pixels in self.outpaint if pixels}
        if "loras" in said:
            said["loras"] = tuple(LoraUse(lora.name, lora.weight) for lora in self.loras)
        if "embeddings" in said:
            said["embeddings"] = tuple(self.embeddings)
        if "size_conditioning" in said:
            said["size_conditioning"] = {name: pair for name, pair in self.size_conditioning or () if pair}
        if "upscale" in said:
            said["upscale"] = {name: value for name, value in self.upscale or () if value is not None}
        if "controlnet" in said:
            said["controlnet"] = self.controlnet.model_dump() if self.controlnet else {}
        return Draft(**said | {name: said[name] or None for name in NONE_IF_EMPTY if name in said})

    @field_validator("outpaint")
    @classmethod
    def _adds_something(cls, said: OutpaintRequest | None) -> OutpaintRequest | None:
        """{} is what answers hold."""
        if said and said.model_fields_set and not any(pixels for _, pixels in said):
            raise ValueError("no side has a pixel to add: give left, top, right or bottom, or leave outpaint out")
        return said

    @field_validator("upscale", mode="before")
    @classmethod
    def _a_number_is_a_factor(cls, said: Any) -> Any:
        return {"factor": said} if isinstance(said, int | float) and not isinstance(said, bool) else said

    @field_validator("controlnet", mode="before")
    @classmethod
    def _nothing_is_none(cls, said: Any) -> Any:
        return said or None if isinstance(said, dict) else said

    def to_terms(self) -> Terms:
        hook = self.webhook
        return Terms(
            priority=self.priority,
            service_class=self.service_class if "service_class" in self.model_fields_set else None,
            deadline_s=self.deadline_s,
            webhook=Webhook(url=hook.url, events=tuple(hook.events)) if hook else None,
            reuse=self.reuse,
        )
