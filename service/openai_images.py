"""The OpenAI Images dialect as data: its request to a Draft, a finished job to its answer. Facts: the API of openai-python 3.52."""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from jobs.job import Job
from pipelines.card import ModelCard
from pipelines.params import GenerationParams, OutputFormat
from service.drafts import Draft
from service.errors import InvalidValue, NotSupported

SIZE = re.compile(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})")
Quality = Literal["auto", "low", "medium", "high", "xhigh", "max", "standard", "hd"]
STEPS: Mapping[str, float] = {"low": 0.5, "high": 2.0, "hd": 2.0, "xhigh": 3.0, "max": 4.0}  # times the model's default
ANYWAY = "This service does not moderate and has one style; the value changes nothing."


class ImagesRequest(BaseModel):
    """Body of POST /v1/images/generations. What this service cannot honour is refused."""

    model_config = ConfigDict(
        strict=True, extra="forbid", allow_inf_nan=False, json_schema_extra={"examples": [{"prompt": "a red apple", "size": "128x128"}]}
    )

    prompt: str = Field(description="what the picture shows")
    model: str | None = Field(default=None, min_length=1, description="id of GET /v1/models, or an alias of CELADON_OPENAI_MODELS")
    n: Annotated[int, Field(ge=1, le=10)] | None = Field(default=None, description="pictures; 1 if left out")
    size: str | None = Field(default=None, description="`WxH` in pixels, or `auto`: the model's own", examples=["128x128", "auto"])
    quality: Quality | None = Field(
        default=None, description="steps, against the default: low half, high and hd twice, xhigh 3 times, max 4"
    )
    response_format: Literal["url", "b64_json"] | None = Field(default=None, description="left out: both, for old and new clients alike")
    output_format: OutputFormat | None = Field(default=None, description="png if left out")
    output_compression: Annotated[int, Field(ge=0, le=100)] | None = Field(default=None, description="of jpeg and webp; 100 is best")
    background: Literal["auto", "opaque", "transparent"] | None = Field(default=None, description="transparent is refused")
    moderation: Literal["auto", "low"] | None = Field(default=None, description=ANYWAY)
    style: Literal["vivid", "natural"] | None = Field(default=None, description=ANYWAY)
    stream: bool | None = Field(default=None, description="server-sent events, with pictures that form")
    partial_images: Annotated[int, Field(ge=0, le=3)] | None = Field(default=None, description="of a stream, at most so many")
    user: str | None = Field(default=None, max_length=512, description="your user; written to the log of the gateway, nothing else")
    safety_identifier: str | None = Field(default=None, max_length=512, description="newer name of `user`")

    def to_draft(self, card: ModelCard) -> Draft:
        """Raises BadRequest and its kin."""
        if self.background == "transparent":
            raise NotSupported("Pictures have an opaque background here.", param="background")
        if self.output_compression is not None and self.output_format not in ("jpeg", "webp"):
            raise InvalidValue("output_compression goes with output_format jpeg or webp.", param="output_compression")
        if self.stream and (self.n or 1) > 1:
            raise NotSupported("A stream tells of one picture; leave n out, or leave stream out.", param="n")
        if self.partial_images and not self.stream:
            raise InvalidValue("partial_images goes with stream.", param="partial_images")
        width, height = self._size()
        return Draft(
            prompt=self.prompt,
            model=card.id,
            width=width,
            height=height,
            steps=self._steps(card),
            num_images=self.n or 1,
            output_format=self.output_format or "png",
            output_quality=None if self.output_compression is None else max(1, self.output_compression),
        )

    def _size(self) -> tuple[int | None, int | None]:
        if self.size in (None, "auto"):
            return None, None
        match = SIZE.fullmatch(self.size or "")
        if match is None:
            raise InvalidValue("size must be auto or WxH in pixels, as in 128x128.", param="size")
        return int(match[1]), int(match[2])

    def _steps(self, card: ModelCard) -> int | None:
        """Within what the model's default sampler takes; None is the default."""
        times = STEPS.get(self.quality or "auto")
        if times is None:
            return None
        sampler = card.sampler(card.defaults.sampler)
        most = min(card.max_steps, sampler.max_steps if sampler else card.max_steps)
        return min(max(1, round(card.defaults.steps * times)), most)


class ImageData(BaseModel):
    """One picture. `seed` is an addition of this service."""

    url: str | None = None
    b64_json: str | None = None
    revised_prompt: str | None = None
    seed: int


class Usage(BaseModel):
    """No tokens are counted here: zeros, since clients expect the field."""

    input_tokens: int = 0
    input_tokens_details: dict[str, int] = Field(default_factory=lambda: {"image_tokens": 0, "text_tokens": 0})
    output_tokens: int = 0
    total_tokens: int = 0


class ImagesAnswer(BaseModel):
    """The pictures. `id` and `warnings` are additions of this service."""

    created: int
    data: list[ImageData]
    background: Literal["opaque"] = "opaque"
    output_format: OutputFormat
    quality: str
    size: str
    usage: Usage = Field(default_factory=Usage)
    id: str = Field(description="of the job, for GET /jobs/{id}")
    warnings: list[str]


def size_of(params: GenerationParams) -> str:
    return f"{params.width}x{params.height}"


def answer(job: Job, body: ImagesRequest, urls: list[str], pictures: list[bytes]) -> ImagesAnswer:
    """Of a job that has succeeded. `urls` and `pictures` are as long as its images, or empty where they are not wanted."""
    data = [
        ImageData(
            url=urls[i] if urls else None, b64_json=base64.b64encode(pictures[i]).decode() if pictures else None, seed=image.seed
        )
        for i, image in enumerate(job.images)
    ]  # fmt: skip
    warnings = [warning.message for warning in job.warnings]
    warnings += [f"{name}: {ANYWAY}" for name in ("moderation", "style") if getattr(body, name) is not None]
    return ImagesAnswer(
        created=math.floor(job.created_at),
        data=data,
        output_format=job.params.output_format,
        quality=body.quality or "auto",
        size=size_of(job.params),
        id=job.id,
        warnings=warnings,
    )


def event_of(job: Job) -> str:
    """What events of its stream are called."""
    return "image_edit" if job.params.image else "image_generation"


def partial(job: Job, body: ImagesRequest, preview: str, index: int) -> dict[str, Any]:
    """`partial_image` from a preview, which is a data URL of a JPEG."""
    return _partial(job, preview.partition(",")[2], index) | _told(job, body, "jpeg")


def whole(job: Job, body: ImagesRequest, picture: bytes) -> dict[str, Any]:
    """`partial_image` of a picture that was done before anything of it could be looked at."""
    return _partial(job, base64.b64encode(picture).decode(), 0) | _told(job, body, job.params.output_format)


def _partial(job: Job, b64_json: str, index: int) -> dict[str, Any]:
    return {"type": f"{event_of(job)}.partial_image", "b64_json": b64_json, "partial_image_index": index}


def completed(job: Job, body: ImagesRequest, picture: bytes) -> dict[str, Any]:
    """`completed`."""
    told = {"type": f"{event_of(job)}.completed", "b64_json": base64.b64encode(picture).decode(), "usage": Usage().model_dump()}
    return told | _told(job, body, job.params.output_format)


def _told(job: Job, body: ImagesRequest, output_format: str) -> dict[str, Any]:
    return {
        "size": size_of(job.params), "quality": body.quality or "auto", "background": "opaque", "output_format": output_format,
        "created_at": math.floor(job.created_at),
    }  # fmt: skip
