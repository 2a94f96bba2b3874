"""What the native door says of a job: the answer's shape, and how a record becomes one."""

from __future__ import annotations

import re
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated

from fastapi import Depends
from pydantic import BaseModel, Field

from jobs.job import Job, JobStatus, ServiceClass, WebhookEvent
from jobs.job_queue import Forecast, Page
from pipelines.params import GenerationParams
from service import errors
from service.gateway import Gateway

JOB_ID = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")


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


class WebhookAnswer(BaseModel):
    """Where the job's events go."""

    url: str
    events: list[WebhookEvent]


class LossAnswer(BaseModel):
    """One time that a worker was lost with the job."""

    worker: str
    attempt: int
    at: datetime


class JobAnswer(BaseModel):
    """A job as it is now. Times are RFC 3339 in UTC."""

    id: str
    status: JobStatus
    progress: ProgressAnswer
    images: list[ImageAnswer] = Field(description="empty until the job has succeeded, and after they were erased")
    params: GenerationParams = Field(description="everything that decides the picture, defaults and seed filled in")
    error: JobErrorAnswer | None
    warnings: list[WarningAnswer]
    losses: list[LossAnswer] = Field(description="workers that were lost with it; the reasons why a dead letter was given up")
    cancel_requested: bool
    priority: int
    service_class: ServiceClass
    deadline_at: datetime | None
    webhook: WebhookAnswer | None
    reuse: bool
    batch: str | None = Field(description="the batch that it is a line of")
    predicted_s: float = Field(description="seconds of work, as it was judged at submit")
    position: int | None = Field(description="your jobs of its model and class that go before it, while it is queued")
    eta_s: float | None = Field(description="seconds until it will be done, while it is queued")
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    links: LinksAnswer


class JobsAnswer(BaseModel):
    """Some of a client's jobs, the newest first."""

    jobs: list[JobAnswer]
    cursor: str | None = Field(description="give it back for the next ones, also after a short page; null: there are no more")


async def _job_id(id: str) -> str:
    """Ids that this service never gave are not looked for."""
    if not JOB_ID.fullmatch(id):
        raise errors.JobNotFound()
    return id


JobId = Annotated[str, Depends(_job_id)]


async def from_job(job: Job, gateway: Gateway, base: str, outlook: Forecast | None = None) -> JobAnswer:
    """The answer that tells of a job; `base` is how the client reaches us. `outlook` is asked for unless it is known."""
    links = await gateway.links.sign([image.key for image in job.images])
    outlook = outlook or await gateway.generations.outlook(job)
    return JobAnswer(
        id=job.id,
        status=job.status,
        progress=ProgressAnswer(steps_done=job.steps_done, steps_total=job.steps_total),
        images=[ImageAnswer(url=base + link, **asdict(image)) for image, link in zip(job.images, links, strict=True)],
        params=job.params,
        error=JobErrorAnswer(**asdict(job.error)) if job.error else None,
        warnings=[WarningAnswer(**asdict(warning)) for warning in job.warnings],
        losses=[LossAnswer(worker=gateway.shown(loss.worker), attempt=loss.attempt, at=utc(loss.at)) for loss in job.losses],
        cancel_requested=job.cancel_requested,
        priority=job.priority,
        service_class=job.service_class,
        deadline_at=utc(job.deadline_at) if job.deadline_at else None,
        webhook=WebhookAnswer(**asdict(job.webhook)) if job.webhook else None,
        reuse=job.reuse,
        batch=job.batch or None,
        predicted_s=job.predicted_s,
        position=outlook.position if outlook else None,
        eta_s=outlook.eta_s if outlook else None,
        created_at=utc(job.created_at),
        started_at=utc(job.started_at) if job.started_at else None,
        finished_at=utc(job.finished_at) if job.finished_at else None,
        links=LinksAnswer(self=f"{base}/jobs/{job.id}", events=f"{base}/jobs/{job.id}/events"),
    )


async def from_jobs(page: Page, gateway: Gateway, base: str) -> JobsAnswer:
    """The answer that tells of several jobs."""
    jobs = [await from_job(job, gateway, base) for job in page.jobs]  # not all at once: each would want a connection of its own
    return JobsAnswer(jobs=jobs, cursor=page.cursor or None)


def utc(seconds: float) -> datetime:
    return datetime.fromtimestamp(round(seconds, 3), UTC)
