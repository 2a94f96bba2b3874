"""Jobs that were submitted: list, look, follow, cancel, erase, try again."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Header, Query, Response
from fastapi.sse import EventSourceResponse, ServerSentEvent
from pydantic import BaseModel, ConfigDict, Field

from jobs.job import Job
from service import errors
from service.answers import JobAnswer, JobId, JobsAnswer, from_job, from_jobs
from service.error_answers import documented
from service.gateway import BaseUrl, Client, Current
from service.generations import START
from service.strict_json import StrictJsonRoute

EVENT_ID = re.compile(r"[0-9]{1,19}-[0-9]{1,19}")
EVENT_ID_OR_NOTHING = f"^({EVENT_ID.pattern})?$"

router = APIRouter(route_class=StrictJsonRoute, tags=["jobs"])

NO_JOB = (errors.JobNotFound, errors.JobExpired, errors.QueueUnavailable)
BOUNDS = (errors.QueueIsFull, errors.ClientQueueFull, errors.RateLimited, errors.QuotaSpent)
NO_WRITE = (errors.QueueOutOfMemory, errors.QueueReadOnly)

LOCATION: dict[str, Any] = {"Location": {"description": "the new job", "schema": {"type": "string"}}}
CURSOR = "^[0-9]{1,17}$"

EVENT_DATA = {  # what `data` of an event is, once read as JSON
    "type": "object",
    "required": ["steps_done", "steps_total"],
    "properties": {
        "steps_done": {"type": "integer"},
        "steps_total": {"type": "integer"},
        "preview": {"type": "string", "description": "of progress: a data URL"},
        "preview_at": {"type": "integer", "description": "beside a preview that was asked for by its step: evaluations behind it"},
        "error": {"$ref": "#/components/schemas/JobErrorAnswer", "description": "of failed"},
    },
}
EVENT_FIELDS = {"data": {"contentMediaType": "application/json", "contentSchema": EVENT_DATA}}


@dataclass(frozen=True, slots=True)
class Place:
    """In the stream of a job, behind the event of that id."""

    job: Job
    after: str


async def _start_of_events(
    gateway: Current,
    client: Client,
    job_id: JobId,
    last_event_id: Annotated[
        str | None,
        Header(
            description="the last id seen; what came after it follows",
            examples=["1790000000000-0"],
            json_schema_extra={"pattern": EVENT_ID_OR_NOTHING},
        ),
    ] = None,
) -> AsyncIterator[Place]:
    """All that can go wrong, before the answer's head has left; and the stream's place, until its last byte has."""
    if last_event_id and not EVENT_ID.fullmatch(last_event_id):
        raise errors.InvalidHeader("Last-Event-ID is no id that this service gave.", param="Last-Event-ID")
    job = await gateway.generations.get(job_id, client)
    with gateway.generations.stream():
        yield Place(job, last_event_id or START)


class JobsQuery(BaseModel):
    """Which jobs are asked for."""

    model_config = ConfigDict(extra="forbid")

    status: Literal["queued", "running", "succeeded", "failed", "canceled", "dead"] | None = Field(
        default=None, description="only these; dead: those failed jobs that were given up after their workers were lost"
    )
    limit: int = Field(default=20, ge=1, le=100, description="how many at most")
    cursor: str = Field(default="", pattern=CURSOR, description="of the page before")


@router.get("/jobs", summary="Your jobs", responses=documented(errors.InvalidValue, errors.UnknownField, errors.QueueUnavailable))
async def list_jobs(client: Client, gateway: Current, base: BaseUrl, query: Annotated[JobsQuery, Query()]) -> JobsAnswer:
    """The newest first. Jobs that expired are not among them. Dead letters come on one page."""
    if query.cursor and query.status == "dead":
        raise errors.InvalidValue("Dead letters come on one page, without a cursor.", param="cursor")
    return await from_jobs(await gateway.generations.list_jobs(client, query.status, query.limit, query.cursor), gateway, base)


@router.post(
    "/jobs/{id}/retry",
    status_code=202,
    summary="Queue a dead letter again",
    response_description="queued as a new job",
    responses={202: {"headers": LOCATION}, **documented(*NO_JOB, *NO_WRITE, errors.JobNotDead, *BOUNDS)},
)
async def retry_job(job_id: JobId, response: Response, gateway: Current, client: Client, base: BaseUrl) -> JobAnswer:
    """A new job does what the dead letter should have done; the dead letter stays as it ended, but is listed as dead no more.
    Asked again, the same new job is told. It counts as a submit of yours."""
    job = await gateway.generations.retry(job_id, client)
    gateway.log.info("retry", job=job.id, of=job_id)
    response.headers["Location"] = f"{base}/jobs/{job.id}"
    return await from_job(job, gateway, base)


@router.get("/jobs/{id}", summary="A job as it is now", responses=documented(*NO_JOB))
async def get_job(job_id: JobId, gateway: Current, client: Client, base: BaseUrl) -> JobAnswer:
    """Polling this is always enough; the image URLs are fresh each time."""
    return await from_job(await gateway.generations.get(job_id, client), gateway, base)


@router.delete("/jobs/{id}", summary="Cancel a job", responses=documented(*NO_JOB, errors.QueueReadOnly))
async def cancel_job(job_id: JobId, gateway: Current, client: Client, base: BaseUrl) -> JobAnswer:
    """A queued job is canceled at once, a running one at its next step, a finished one is returned unchanged."""
    job = await gateway.generations.cancel(job_id, client)
    gateway.log.info("cancel", job=job.id, status=job.status.value)
    return await from_job(job, gateway, base)


@router.delete(
    "/jobs/{id}/images",
    summary="Erase a job's images",
    responses=documented(*NO_JOB, errors.JobNotFinished, errors.QueueReadOnly, errors.StorageUnavailable),
)
async def erase_images(job_id: JobId, gateway: Current, client: Client, base: BaseUrl) -> JobAnswer:
    """Delete the pictures of a finished job for good. Their URLs answer 410 from now on."""
    job = await gateway.generations.erase(job_id, client)
    gateway.log.info("erased", job=job.id)
    return await from_job(job, gateway, base)


@router.get(
    "/jobs/{id}/events",
    response_class=EventSourceResponse,
    summary="Follow a job",
    openapi_extra={"responses": {"200": {"content": {"text/event-stream": {"itemSchema": {"properties": EVENT_FIELDS}}}}}},
    responses=documented(*NO_JOB, errors.InvalidHeader, errors.TooManyStreams),
)
async def job_events(place: Annotated[Place, Depends(_start_of_events)], gateway: Current) -> AsyncIterator[ServerSentEvent]:
    """Server-sent events `queued`, `started`, `progress`, `requeued` and, last and always, one of `succeeded`, `failed`,
    `canceled`. Each has an id: coming back with Last-Event-ID misses nothing. A comment comes every 15 s of silence."""
    async for event in gateway.generations.events(place.job, place.after):
        yield ServerSentEvent(id=event.id, event=event.type, data=event.data)
