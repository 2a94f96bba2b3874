"""The job record: what it is, which states it may take, and how it is written down."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal, cast

from pipelines.params import GenerationParams

ServiceClass = Literal["interactive", "normal", "batch"]
WebhookEvent = Literal["started", "succeeded", "failed", "canceled"]

SERVICE_CLASSES: tuple[ServiceClass, ...] = ("interactive", "normal", "batch")  # in the order they are served
WEBHOOK_EVENTS: tuple[WebhookEvent, ...] = ("started", "succeeded", "failed", "canceled")

SELDOM = frozenset(  # not stored at their default
    {
        "service_class",
        "deadline_at",
        "webhook",
        "predicted_s",
        "reuse",
        "pauses",
        "losses",
        "preview_steps",
        "batch",
        "request_id",
        "traceparent",
    }
)

ENCODE = json.JSONEncoder(ensure_ascii=False).encode  # json.dumps would make an encoder for every job

SCHEMA = 1  # of the stored record; workers leave newer ones alone


class JobStatus(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"


TERMINAL = frozenset({JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELED})

TRANSITIONS: Mapping[JobStatus, frozenset[JobStatus]] = {
    JobStatus.QUEUED: frozenset({JobStatus.RUNNING, JobStatus.CANCELED, JobStatus.FAILED}),
    JobStatus.RUNNING: frozenset({JobStatus.QUEUED, *TERMINAL}),  # back to queued: released, or its worker died
    **{status: frozenset() for status in TERMINAL},
}


@dataclass(frozen=True, slots=True)
class JobError:
    """Why a job failed: a stable code, one sentence without paths or prompts, and whether a repeat may help."""

    code: str
    message: str
    retryable: bool = False


@dataclass(frozen=True, slots=True)
class JobWarning:
    """Something the client should know although the job runs."""

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class ImageRef:
    """Where a finished picture lies. Never a URL: URLs are made when answering."""

    key: str
    width: int
    height: int
    seed: int
    media_type: str


@dataclass(frozen=True, slots=True)
class Webhook:
    """Whom to tell about a job, and of which events."""

    url: str
    events: tuple[str, ...] = WEBHOOK_EVENTS


@dataclass(frozen=True, slots=True)
class Loss:
    """One time that a job's worker was lost: who it was, as which attempt, and when that was noticed (Unix seconds)."""

    worker: str
    attempt: int
    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One request, durable. Times are Unix seconds of the Redis server; `attempt` fences a job's runs.

    `failures` counts lost workers since the last checkpoint that had progress, `losses` names the newest of them all.
    `predicted_s` and `deadline_at` are set by the queue. With `reuse` an equal job of the same client may answer for this one.
    `batch` names the batch that it is a line of. `preview_steps` are the evaluations of its first image at which a preview is
    told and kept, whatever `params.preview` says. `request_id` names the HTTP request that made it, `traceparent` its span, if it has one.
    """

    id: str
    client: str
    params: GenerationParams
    status: JobStatus = JobStatus.QUEUED
    priority: int = 0
    created_at: float = 0.0
    started_at: float | None = None
    finished_at: float | None = None
    steps_done: int = 0
    steps_total: int = 0
    attempt: int = 0
    failures: int = 0
    worker: str | None = None
    cancel_requested: bool = False
    images: tuple[ImageRef, ...] = ()
    error: JobError | None = None
    warnings: tuple[JobWarning, ...] = ()
    service_class: ServiceClass = "normal"
    deadline_at: float | None = None
    webhook: Webhook | None = None
    predicted_s: float = 0.0
    reuse: bool = False
    pauses: int = 0
    losses: tuple[Loss, ...] = ()
    preview_steps: tuple[int, ...] = ()
    batch: str = ""
    request_id: str = ""
    traceparent: str = ""
    schema: int = SCHEMA

    @property
    def done(self) -> bool:
        return self.status in TERMINAL

    def to_hash(self) -> dict[str, str]:
        """Flat string fields, as the Redis hash holds them; None is the empty string. What most jobs do not have is left out."""
        told: dict[str, str] = {}
        for name, default, usual in _stored_fields():
            if (value := getattr(self, name)) != default:
                told[name] = _dump(value)
            elif usual is not None:
                told[name] = usual
        return told

    def stamped(self, news: Mapping[str, str]) -> Job:
        """With what the queue has written into the record beside the job's own fields."""
        created_at, deadline_at = float(news["created_at"]), _float(news["deadline_at"])
        return dataclasses.replace(self, created_at=created_at, deadline_at=deadline_at, predicted_s=float(news["predicted_s"]))

    @classmethod
    def from_hash(cls, data: Mapping[str, str]) -> Job:
        """The inverse of `to_hash`. Unknown fields (of the queue's own bookkeeping) are left out."""
        return cls(
            id=data["id"],
            client=data["client"],
            params=GenerationParams.from_dict(json.loads(data["params"])),
            status=JobStatus(data["status"]),
            priority=int(data["priority"]),
            created_at=float(data["created_at"]),
            started_at=_float(data.get("started_at", "")),
            finished_at=_float(data.get("finished_at", "")),
            steps_done=int(data["steps_done"]),
            steps_total=int(data["steps_total"]),
            attempt=int(data["attempt"]),
            failures=int(data["failures"]),
            worker=data.get("worker") or None,
            cancel_requested=data.get("cancel_requested") == "1",
            images=tuple(ImageRef(**i) for i in json.loads(data.get("images") or "[]")),
            error=JobError(**json.loads(data["error"])) if data.get("error") else None,
            warnings=tuple(JobWarning(**w) for w in json.loads(data.get("warnings") or "[]")),
            service_class=cast(ServiceClass, data.get("service_class") or "normal"),
            deadline_at=_float(data.get("deadline_at", "")),
            webhook=_webhook(data.get("webhook", "")),
            predicted_s=float(data.get("predicted_s") or 0),
            reuse=data.get("reuse") == "1",
            pauses=int(data.get("pauses") or 0),
            losses=tuple(Loss(**loss) for loss in json.loads(data.get("losses") or "[]")),
            preview_steps=tuple(json.loads(data.get("preview_steps") or "[]")),
            batch=data.get("batch", ""),
            request_id=data.get("request_id", ""),
            traceparent=data.get("traceparent", ""),
            schema=int(data["schema"]),
        )


@functools.cache
def _stored_fields() -> tuple[tuple[str, Any, str | None], ...]:
    """Name, default, and how that is written: None where it is not."""
    fields = ((f.name, f.default) for f in dataclasses.fields(Job))
    return tuple((name, default, None if name in SELDOM else _dump(default)) for name, default in fields)


def _float(text: str) -> float | None:
    return float(text) if text else None


def _webhook(text: str) -> Webhook | None:
    if not text:
        return None
    stored = json.loads(text)
    return Webhook(stored["url"], tuple(stored["events"]))


def _dump(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "1" if value else "0"
    if isinstance(value, GenerationParams):
        return ENCODE(value.brief())
    if isinstance(value, (JobError, Webhook)):
        return ENCODE(dataclasses.asdict(value))
    if isinstance(value, tuple):
        return ENCODE([v if isinstance(v, int) else dataclasses.asdict(v) for v in value])
    return str(value)
