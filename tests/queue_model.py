"""What the state machine of the queue knows of a job, and what follows from it."""

from __future__ import annotations

from dataclasses import dataclass

from jobs.job import SERVICE_CLASSES, JobStatus, ServiceClass

QUEUED, RUNNING = JobStatus.QUEUED, JobStatus.RUNNING
SUCCEEDED, FAILED, CANCELED = JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELED
PREDICTED_US = 20 * 64 * 64  # of a sample job, as long as no worker has measured anything
PREDICTED_S = PREDICTED_US / 1e6


@dataclass
class Expected:
    """What the model knows of a job."""

    client: str
    model: str
    status: JobStatus = QUEUED
    worker: str | None = None
    attempt: int = 0
    failures: int = 0
    steps: int = 0
    expiry: float = 0.0
    wish: bool = False
    deadline: float = float("inf")
    service_class: ServiceClass = "normal"
    saved: int = 0  # steps behind the checkpoint
    saved_by: int = 0  # the attempt that made it
    pauses: int = 0
    follows: str | None = None  # the equal job that runs for this one too
    expired: bool = False  # failed by its deadline

    @property
    def stands(self) -> bool:
        """Whether it waits in a place of its own."""
        return self.status is QUEUED and self.follows is None

    @property
    def suspicious(self) -> bool:
        return self.failures >= 2


def lane(job: Expected) -> str:
    return job.model if job.service_class == "normal" else f"{job.model}@{job.service_class}"


def rank(job: Expected) -> int:
    return [*SERVICE_CLASSES].index(job.service_class)
