"""The native door: POST /generate, and the jobs it makes."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Response
from fastapi.sse import EventSourceResponse, ServerSentEvent
from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

from jobs.job import Job, JobStatus
from pipelines.params import GenerationParams, OutputFormat
from service import errors
from service.drafts import Draft, fingerprint
from service.error_answers import documented
from service.gateway import BaseUrl, Client, Current, Gateway
from service.generations import START
from service.headers import IdempotencyKey, WaitSeconds
from service.strict_json import StrictJsonRoute

JOB_ID = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
EVENT_ID = re.compile(r"[0-9]{1,19}-[0-9]{1,19}")

router = APIRouter(route_class=StrictJsonRoute, tags=["jobs"])

Options = Annotated[
    dict[str, Any],
    WithJsonSchema({"type": "object", "additionalProperties": {"anyOf": [{"type": "number"}, {"type": "string"}]}}),
]


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
    width: int | None = Field(default=None, ge=1, description="pixels, a multiple of the model's `size_multiple`")
    height: int | None = Field(default=None, ge=1, description="pixels, a multiple of the model's `size_multiple`")
    steps: int | None = Field(default=None, ge=1, description="steps of the sampler; GET /samplers tells its limits")
    guidance: float | None = Field(default=None, ge=0, description="how strictly the prompt is followed; 1 switches it off")
    sampler: str | None = Field(default=None, min_length=1, description="id, name or alias of GET /samplers")
    sampler_options: Options = Field(default_factory=dict, description="by name; GET /samplers lists them")
    schedule: str | None = Field(default=None, min_length=1, description="id, name or alias of GET /schedules")
    schedule_options: Options = Field(default_factory=dict, description="by name; GET /schedules lists them")
    seed: int | None = Field(default=None, ge=0, le=2**32 - 1, description="of the first image; image i takes seed + i; null: any")
    num_images: int = Field(default=1, ge=1, description="pictures of one job")
    model: str | None = Field(default=None, min_length=1, description="id of GET /models")
    output_format: OutputFormat = "png"
    preview: bool = Field(default=False, description="whether progress events carry a small picture of what is forming")

    def to_draft(self) -> Draft:
        return Draft(**dict(self))


class ProgressAnswer(BaseModel):
    """U-Net evaluations of all images of the job."""

    steps_done: int
    steps_total: int


class ImageAnswer(BaseModel):
    """One finished picture. The URL is signed, made for this answer, and expires."""

    url: str
    key: str
    seed: int
    width: int
    height: int
    media_type: str


class JobErrorAnswer(BaseModel):
    """Why a job failed, and whether a repeat may help."""

    code: str
    message: str
    retryable: bool


class WarningAnswer(BaseModel):
    """Something to know although the job runs."""

    code: str
    message: str


class LinksAnswer(BaseModel):
    """Where this job and its events are."""

    self: str
    events: str


class JobAnswer(BaseModel):
    """A job as it is now. Times are RFC 3339 in UTC."""

    id: str
    status: JobStatus
    progress: ProgressAnswer
    images: list[ImageAnswer] = Field(description="empty until the job has succeeded, and after they were erased")
    params: GenerationParams = Field(description="everything that decides the picture, defaults and seed filled in")
    error: JobErrorAnswer | None
    warnings: list[WarningAnswer]
    cancel_requested: bool
    position: int | None = Field(description="jobs that go before this one, while it is queued")
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    links: LinksAnswer


async def _job_id(id: str) -> str:
    """Ids that this service never gave are not looked for."""
    if not JOB_ID.fullmatch(id):
        raise errors.JobNotFound()
    return id


async def _start_of_events(
    gateway: Current,
    job_id: Annotated[str, Depends(_job_id)],
    last_event_id: Annotated[
        str | None, Header(description="the last id seen; what came after it follows", examples=["1790000000000-0"])
    ] = None,
) -> AsyncIterator[str]:
    """All that can go wrong, before the answer's head has left; and the stream's place, until its last byte has."""
    if last_event_id and not EVENT_ID.fullmatch(last_event_id):
        raise errors.InvalidHeader("Last-Event-ID is no id that this service gave.", param="Last-Event-ID")
    await gateway.generations.get(job_id)
    with gateway.generations.stream():
        yield last_event_id or START


JobId = Annotated[str, Depends(_job_id)]


def _header(description: str) -> dict[str, Any]:
    return {"description": description, "schema": {"type": "string"}}


GENERATE_HEADERS = {
    "Location": _header("the job"),
    "Preference-Applied": _header("`wait=N` as it was taken"),
    "Idempotency-Replayed": _header("`true` when the job is of an earlier request with the same key"),
}


EVENT_DATA = {  # what `data` of an event is, once read as JSON
    "type": "object",
    "required": ["steps_done", "steps_total"],
    "properties": {
        "steps_done": {"type": "integer"},
        "steps_total": {"type": "integer"},
        "preview": {"type": "string", "description": "of progress: a data URL"},
        "error": {"$ref": "#/components/schemas/JobErrorAnswer", "description": "of failed"},
    },
}
EVENT_FIELDS = {"data": {"contentMediaType": "application/json", "contentSchema": EVENT_DATA}}


@router.post(
    "/generate",
    status_code=202,
    summary="Queue a job",
    response_description="queued; the job is not done yet",
    responses={
        202: {"headers": GENERATE_HEADERS},
        200: {"model": JobAnswer, "description": "the job is done", "headers": GENERATE_HEADERS},
        **documented(
            errors.InvalidJson,
            errors.MissingField,
            errors.UnknownField,
            errors.InvalidValue,
            errors.InvalidSize,
            errors.InvalidHeader,
            errors.UnknownModel,
            errors.UnknownSampler,
            errors.UnknownSchedule,
            errors.UnknownOption,
            errors.BodyTooLarge,
            errors.UnsupportedMediaType,
            errors.KeyReused,
            errors.QueueIsFull,
            errors.QueueUnavailable,
            errors.NoModel,
        ),
    },
)
async def generate(
    body: GenerateRequest,
    response: Response,
    gateway: Current,
    client: Client,
    base: BaseUrl,
    wait_s: WaitSeconds,
    key: IdempotencyKey,
) -> JobAnswer:
    """Queue a job that draws `num_images` pictures. Everything is checked before anything is queued."""
    said = fingerprint(body.model_dump(exclude_unset=True)) if key else ""
    submitted = await gateway.generations.submit(body.to_draft(), client=client, idempotency_key=key, fingerprint=said)
    job = submitted.job
    if submitted.created:
        gateway.metrics.submitted(job.params.model)
        gateway.log.info("submitted", job=job.id, model=job.params.model, images=job.params.num_images, steps=job.steps_total)
    else:
        response.headers["Idempotency-Replayed"] = "true"
    if wait_s is not None and gateway.generations.has_room:  # a preference, not a demand: the job is queued already
        response.headers["Preference-Applied"] = f"wait={wait_s:g}"
        job = await gateway.generations.wait(job.id, wait_s)
    response.headers["Location"] = f"{base}/jobs/{job.id}"
    response.status_code = 200 if job.done else 202
    return await from_job(job, gateway, base)


@router.get("/jobs/{id}", summary="A job as it is now", responses=documented(errors.JobNotFound, errors.QueueUnavailable))
async def get_job(job_id: JobId, gateway: Current, base: BaseUrl) -> JobAnswer:
    """Polling this is always enough; the image URLs are fresh each time."""
    return await from_job(await gateway.generations.get(job_id), gateway, base)


@router.delete("/jobs/{id}", summary="Cancel a job", responses=documented(errors.JobNotFound, errors.QueueUnavailable))
async def cancel_job(job_id: JobId, gateway: Current, base: BaseUrl) -> JobAnswer:
    """A queued job is canceled at once, a running one at its next step, a finished one is returned unchanged."""
    job = await gateway.generations.cancel(job_id)
    gateway.log.info("cancel", job=job.id, status=job.status.value)
    return await from_job(job, gateway, base)


@router.delete(
    "/jobs/{id}/images",
    summary="Erase a job's images",
    responses=documented(errors.JobNotFound, errors.JobNotFinished, errors.QueueUnavailable, errors.StorageUnavailable),
)
async def erase_images(job_id: JobId, gateway: Current, base: BaseUrl) -> JobAnswer:
    """Delete the pictures of a finished job for good. Their URLs answer 410 from now on."""
    job = await gateway.generations.erase(job_id)
    gateway.log.info("erased", job=job.id)
    return await from_job(job, gateway, base)


@router.get(
    "/jobs/{id}/events",
    response_class=EventSourceResponse,
    summary="Follow a job",
    openapi_extra={"responses": {"200": {"content": {"text/event-stream": {"itemSchema": {"properties": EVENT_FIELDS}}}}}},
    responses=documented(errors.JobNotFound, errors.InvalidHeader, errors.TooManyStreams, errors.QueueUnavailable),
)
async def job_events(job_id: JobId, after: Annotated[str, Depends(_start_of_events)], gateway: Current) -> AsyncIterator[ServerSentEvent]:
    """Server-sent events `queued`, `started`, `progress`, `requeued` and, last and always, one of `succeeded`, `failed`,
    `canceled`. Each has an id: coming back with Last-Event-ID misses nothing. A comment comes every 15 s of silence."""
    async for event in gateway.generations.events(job_id, after):
        yield ServerSentEvent(id=event.id, event=event.type, data=event.data)


async def from_job(job: Job, gateway: Gateway, base: str) -> JobAnswer:
    """The answer that tells of a job; `base` is how the client reaches us."""
    links = await gateway.links.sign([image.key for image in job.images])
    return JobAnswer(
        id=job.id,
        status=job.status,
        progress=ProgressAnswer(steps_done=job.steps_done, steps_total=job.steps_total),
        images=[ImageAnswer(url=base + link, **asdict(image)) for image, link in zip(job.images, links, strict=True)],
        params=job.params,
        error=JobErrorAnswer(**asdict(job.error)) if job.error else None,
        warnings=[WarningAnswer(**asdict(warning)) for warning in job.warnings],
        cancel_requested=job.cancel_requested,
        position=await gateway.generations.position(job),
        created_at=_utc(job.created_at),
        started_at=_utc(job.started_at) if job.started_at else None,
        finished_at=_utc(job.finished_at) if job.finished_at else None,
        links=LinksAnswer(self=f"{base}/jobs/{job.id}", events=f"{base}/jobs/{job.id}/events"),
    )


def _utc(seconds: float) -> datetime:
    return datetime.fromtimestamp(round(seconds, 3), UTC)
