"""The native door: POST /generate."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema, field_validator

from jobs.job import WEBHOOK_EVENTS, Job, ServiceClass, Webhook, WebhookEvent
from jobs.job_queue import Forecast
from pipelines.params import GenerationParams, OutputFormat
from service import errors
from service.answers import JobAnswer, WarningAnswer, from_job
from service.drafts import Draft, fingerprint
from service.error_answers import documented
from service.gateway import BaseUrl, Client, Current
from service.headers import IdempotencyKey, WaitSeconds
from service.strict_json import StrictJsonRoute
from service.terms import Terms

MAX_DEADLINE_S = 2_592_000.0  # 30 days

router = APIRouter(route_class=StrictJsonRoute, tags=["jobs"])

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
        return Draft(**{name: getattr(self, name) for name in Draft.__dataclass_fields__})

    def to_terms(self) -> Terms:
        hook = self.webhook
        return Terms(
            priority=self.priority,
            service_class=self.service_class if "service_class" in self.model_fields_set else None,
            deadline_s=self.deadline_s,
            webhook=Webhook(url=hook.url, events=tuple(hook.events)) if hook else None,
            reuse=self.reuse,
        )


class GenerateQuery(BaseModel):
    """What is to be done with the request."""

    model_config = ConfigDict(extra="forbid")

    dry_run: Literal["true", "false"] = Field(default="false", description="`true`: only say what would become of it; nothing is queued")


async def _once(request: Request, query: Annotated[GenerateQuery, Query()]) -> GenerateQuery:
    """Of two that differ the last one would win, and what was to be a dry run would be a job."""
    if len(request.query_params.getlist("dry_run")) > 1:
        raise errors.InvalidValue("dry_run is given twice.", param="dry_run")
    return query


class DryRunAnswer(BaseModel):
    """What would become of a request that was not queued. `params` hold every default, and a seed where none was given."""

    valid: Literal[True] = True
    predicted_s: float = Field(description="seconds of work, once it has begun")
    position: int = Field(description="your jobs of its model and class that would go before it")
    eta_s: float = Field(description="seconds until it would be done")
    params: GenerationParams
    warnings: list[WarningAnswer]


def _header(description: str) -> dict[str, Any]:
    return {"description": description, "schema": {"type": "string"}}


GENERATE_HEADERS = {
    "Location": _header("the job"),
    "Preference-Applied": _header("`wait=N` as it was taken"),
    "Idempotency-Replayed": _header("`true` when the job is of an earlier request with the same key"),
}


@router.post(
    "/generate",
    status_code=202,
    response_model=JobAnswer,
    summary="Queue a job",
    response_description="queued; the job is not done yet",
    responses={
        202: {"headers": GENERATE_HEADERS},
        200: {"model": JobAnswer | DryRunAnswer, "description": "the job is done; or a dry run", "headers": GENERATE_HEADERS},
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
            errors.WebhookRefused,
            errors.BodyTooLarge,
            errors.UnsupportedMediaType,
            errors.KeyReused,
            errors.JobExpired,
            errors.ClassNotAllowed,
            errors.DeadlineUnmeetable,
            errors.QueueIsFull,
            errors.ClientQueueFull,
            errors.RateLimited,
            errors.QuotaSpent,
            errors.QueueUnavailable,
            errors.QueueOutOfMemory,
            errors.QueueReadOnly,
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
    query: Annotated[GenerateQuery, Depends(_once)],
) -> Response | JobAnswer:
    """Queue a job that draws `num_images` pictures. Everything is checked before anything is queued."""
    draft, terms = body.to_draft(), body.to_terms()
    if query.dry_run == "true":
        job, forecast = await gateway.generations.forecast(draft, terms, client=client)
        return JSONResponse(_dry_run(job, forecast).model_dump(mode="json"))
    said = fingerprint(body.model_dump(exclude_unset=True)) if key else ""
    submitted = await gateway.generations.submit(draft, terms, client=client, idempotency_key=key, fingerprint=said)
    job = submitted.job
    if submitted.created:
        gateway.metrics.submitted(job.params.model)
        gateway.log.info("submitted", job=job.id, model=job.params.model, images=job.params.num_images, steps=job.steps_total)
    else:
        response.headers["Idempotency-Replayed"] = "true"
    if wait_s is not None and gateway.generations.has_room:  # a preference, not a demand: the job is queued already
        response.headers["Preference-Applied"] = f"wait={wait_s:g}"
        job = await gateway.generations.wait(job, wait_s)
    response.headers["Location"] = f"{base}/jobs/{job.id}"
    response.status_code = 200 if job.done else 202
    return await from_job(job, gateway, base)


def _dry_run(job: Job, forecast: Forecast) -> DryRunAnswer:
    return DryRunAnswer(
        predicted_s=forecast.predicted_s,
        position=forecast.position,
        eta_s=forecast.eta_s,
        params=job.params,
        warnings=[WarningAnswer(**asdict(warning)) for warning in job.warnings],
    )
