"""Whether the process lives, whether it would take a job, and its numbers."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel

from service import errors
from service.error_answers import documented
from service.gateway import Current
from service.probes import CHECKS, observe_queue, probe

router = APIRouter(tags=["operation"])


class HealthAnswer(BaseModel):
    """The process answers."""

    status: Literal["ok"] = "ok"


class ReadyAnswer(BaseModel):
    """A job would be taken now."""

    status: Literal["ready"] = "ready"
    checks: dict[str, Literal["ok"]]


@router.get("/healthz", summary="The process lives", responses=documented())
async def healthz() -> HealthAnswer:
    return HealthAnswer()


@router.get("/readyz", summary="A job would be taken now", responses=documented(errors.NotReady))
async def readyz(gateway: Current) -> ReadyAnswer:
    """Redis takes writes and keeps them, the image store can be written, and at least one model is known. Workers may be
    down: jobs wait."""
    if faults := await probe(gateway):
        raise errors.NotReady(f"Not ready: {', '.join(f'{name} ({fault})' for name, fault in faults.items())}.")
    return ReadyAnswer(checks=dict.fromkeys(CHECKS, "ok"))


@router.get(
    "/metrics",
    summary="Numbers for Prometheus",
    response_class=Response,
    responses={
        200: {"content": {CONTENT_TYPE_LATEST: {"schema": {"type": "string"}}}},
        **documented(errors.KeyMissing, errors.KeyInvalid, errors.HostRefused),  # unless it is open
    },
)
async def metrics(gateway: Current) -> Response:
    """Requests, latencies, submitted jobs, served images; and the shared queue and workers as they are now."""
    await observe_queue(gateway)
    return Response(gateway.metrics.render(), media_type=CONTENT_TYPE_LATEST)
