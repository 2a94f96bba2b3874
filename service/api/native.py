"""The native door: POST /generate."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from jobs.job import Job
from jobs.job_queue import Forecast, Submitted
from pipelines.params import GenerationParams
from service import errors, picture_errors
from service.answers import JobAnswer, WarningAnswer, from_job
from service.controlnets import UnknownControlNet
from service.drafts import fingerprint
from service.embeddings import UnknownEmbedding
from service.error_answers import documented
from service.gateway import BaseUrl, Client, Current, Gateway
from service.generate_request import GenerateRequest
from service.headers import IdempotencyKey, WaitSeconds
from service.loras import UnknownLora
from service.strict_json import StrictJsonRoute

router = APIRouter(route_class=StrictJsonRoute, tags=["jobs"])


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
            *picture_errors.OF_PICTURES,
            picture_errors.PictureUrlRefused,
            picture_errors.PictureUrlFailed,
            errors.NotSupported,
            picture_errors.PictureNotFound,
            errors.StorageUnavailable,
            errors.UnknownModel,
            errors.UnknownSampler,
            errors.UnknownSchedule,
            UnknownLora,
            UnknownEmbedding,
            UnknownControlNet,
            errors.UnknownOption,
            errors.WebhookRefused,
            errors.BodyTooLarge,
            errors.UnsupportedMediaType,
            errors.KeyReused,
            errors.JobExpired,
            errors.ClassNotAllowed,
            errors.HostRefused,
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
    if query.dry_run == "true":
        job, forecast = await gateway.generations.forecast(body.to_draft(), body.to_terms(), client=client)
        return JSONResponse(_dry_run(job, forecast).model_dump(mode="json"))
    submitted = await queued(body, gateway, client, key)
    job, outlook = submitted.job, submitted.outlook
    if wait_s is not None and gateway.generations.has_room:  # a preference, not a demand: the job is queued already
        response.headers["Preference-Applied"] = f"wait={wait_s:g}"
        job, outlook = await gateway.generations.wait(job, wait_s), None
    response.headers.update(headers_of(submitted, base))
    response.status_code = 200 if job.done else 202
    return await from_job(job, gateway, base, outlook)


async def queued(body: GenerateRequest, gateway: Gateway, client: str, key: str | None) -> Submitted:
    """What both ways to this route do with a body: see service/fast_lane.py."""
    said = fingerprint(body.model_dump(exclude_unset=True)) if key else ""
    draft, terms = body.to_draft(), body.to_terms()
    submitted = await gateway.generations.submit(draft, terms, client=client, idempotency_key=key, fingerprint=said)
    if submitted.created:
        job = submitted.job
        gateway.metrics.submitted(job.params.model)
        gateway.log.info("submitted", job=job.id, model=job.params.model, images=job.params.num_images, steps=job.steps_total)
    return submitted


def headers_of(submitted: Submitted, base: str) -> dict[str, str]:
    headers = {"Location": f"{base}/jobs/{submitted.job.id}"}
    return headers if submitted.created else headers | {"Idempotency-Replayed": "true"}


def _dry_run(job: Job, forecast: Forecast) -> DryRunAnswer:
    return DryRunAnswer(
        predicted_s=forecast.predicted_s,
        position=forecast.position,
        eta_s=forecast.eta_s,
        params=job.params,
        warnings=[WarningAnswer(**asdict(warning)) for warning in job.warnings],
    )
