"""Many jobs by one request: POST /batches, how they stand, their results, their pictures as one zip."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator
from dataclasses import asdict
from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from jobs.batches import BadLine, Batch
from jobs.job import Job
from service import errors
from service.answers import ImageAnswer, ProgressAnswer, WarningAnswer, utc
from service.batch_lines import JSON_LINES, read
from service.batching import told
from service.error_answers import BadLineAnswer, LineFault, documented
from service.gateway import BaseUrl, Client, Current, Gateway
from service.generate_request import GenerateRequest
from service.headers import IdempotencyKey
from service.picture_errors import TooManyUploads, UploadsBusy
from service.strict_json import StrictJsonRoute
from service.zip_stream import zipped

BATCH_ID = re.compile(r"[0-9a-f]{32}(s[1-9][0-9]{0,3})?")
NO_BATCH = (errors.BatchNotFound, errors.BatchExpired, errors.QueueUnavailable)

router = APIRouter(prefix="/batches", route_class=StrictJsonRoute, tags=["batches"])


class CountsAnswer(BaseModel):
    """Lines by what has become of them. `coming` are on their way into the queue, `refused` could not be drawn."""

    coming: int
    queued: int
    running: int
    succeeded: int
    failed: int
    canceled: int
    refused: int


class BatchLinksAnswer(BaseModel):
    """Where the batch, its results and its pictures are."""

    self: str
    results: str
    images: str


class BatchAnswer(BaseModel):
    """A batch as it is now."""

    id: str
    status: Literal["open", "incomplete", "ended"] = Field(
        description="incomplete: the service was interrupted before all lines were queued; the same request with the same key completes it"
    )
    counts: CountsAnswer
    progress: ProgressAnswer
    eta_s: float | None = Field(description="seconds until the last job will be done, while one is open")
    cancel_requested: bool
    created_at: datetime
    finished_at: datetime | None
    links: BatchLinksAnswer


class BatchAccepted(BatchAnswer):
    """A batch that was taken, and the lines that were not."""

    refused: list[BadLineAnswer]


class BatchesAnswer(BaseModel):
    """A client's batches, the newest first."""

    batches: list[BatchAnswer]


class LineAnswer(BaseModel):
    """One line of the results."""

    line: int
    id: str | None = Field(description="of the job, for GET /jobs/{id}")
    status: Literal["queued", "running", "succeeded", "failed", "canceled", "refused", "expired", "missing"]
    images: list[ImageAnswer]
    error: LineFault | None
    warnings: list[WarningAnswer]


class SubmitQuery(BaseModel):
    model_config = ConfigDict(extra="forbid")

    strict: Literal["true", "false"] = Field(default="false", description="`true`: refuse all of it if one line is bad")


async def _once(request: Request, query: Annotated[SubmitQuery, Query()]) -> SubmitQuery:
    if len(request.query_params.getlist("strict")) > 1:
        raise errors.InvalidValue("strict is given twice.", param="strict")
    return query


class ListQuery(BaseModel):
    model_config = ConfigDict(extra="forbid")

    limit: int = Field(default=20, ge=1, le=100, description="how many at most")


class ResultsQuery(BaseModel):
    model_config = ConfigDict(extra="forbid")

    first: int = Field(default=1, ge=1, le=2**53, description="the line to begin with")
    limit: int | None = Field(default=None, ge=1, le=100_000, description="how many at most; all if left out")


async def _batch(id: str, gateway: Current, client: Client) -> Batch:
    """Ids that this service never gave are not looked for."""
    if not BATCH_ID.fullmatch(id):
        raise errors.BatchNotFound()
    return await gateway.batching.get(id, client)


Found = Annotated[Batch, Depends(_batch)]

LINE: dict[str, Any] = {"oneOf": [{"type": "string"}, {"type": "object"}], "description": "a prompt, or the fields of POST /generate"}
LINES: dict[str, Any] = {"type": "array", "minItems": 1, "items": LINE}
WHOLE = {
    "type": "object",
    "required": ["lines"],
    "properties": {"defaults": {"type": "object", "propertyNames": {"enum": sorted(GenerateRequest.model_fields)}}, "lines": LINES},
    "additionalProperties": False,
}
FILE_FORM = {
    "type": "object",
    "required": ["file"],
    "properties": {
        "file": {"type": "string", "format": "binary", "description": "JSON lines; or JSON, if it is sent as application/json"},
        "defaults": {"type": "string", "description": "a JSON object, beneath the defaults of the file"},
    },
    "additionalProperties": False,
}
BODY = {
    "required": True,
    "content": {
        "application/json": {"schema": {"oneOf": [LINES, WHOLE]}, "example": {"defaults": {"steps": 20}, "lines": ["a red apple"]}},
        **{media_type: {"schema": {"type": "string"}} for media_type in JSON_LINES},
        "multipart/form-data": {"schema": FILE_FORM},
    },
}
HEADERS = {name: {"description": about, "schema": {"type": "string"}} for name, about in (
    ("Location", "the batch"), ("Idempotency-Replayed", "`true` when the batch is of an earlier request with the same key")
)}  # fmt: skip


@router.post(
    "",
    status_code=202,
    summary="Queue a batch",
    response_description="queued: every line that can be drawn",
    openapi_extra={"requestBody": BODY},
    responses={
        202: {"headers": HEADERS},
        **documented(
            errors.InvalidJson, errors.MissingField, errors.UnknownField, errors.InvalidValue, errors.InvalidSize, errors.InvalidHeader,
            errors.UnknownModel,
            errors.InvalidBatch, errors.BodyTooLarge, errors.UnsupportedMediaType, errors.KeyReused, errors.BatchExpired,
            errors.QueueIsFull, errors.ClientQueueFull, errors.RateLimited, errors.QuotaSpent, TooManyUploads, UploadsBusy,
            errors.QueueUnavailable, errors.QueueOutOfMemory, errors.QueueReadOnly, errors.NoModel, errors.StorageUnavailable,
        ),
    },
)  # fmt: skip
async def submit_batch(
    request: Request,
    response: Response,
    gateway: Current,
    client: Client,
    base: BaseUrl,
    key: IdempotencyKey,
    query: Annotated[SubmitQuery, Depends(_once)],
) -> BatchAccepted:
    """A JSON list of lines, an object with `lines` and `defaults`, or JSON lines, also as the `file` of a form. Lines are prompts or
    bodies of POST /generate. All of them are checked first; there is room for all that can be drawn, or 429 and none is queued."""
    body, content_type = await request.body(), request.headers.get("content-type", "")
    upload = await asyncio.to_thread(read, body, content_type)
    said = hashlib.sha256(f"batch {query.strict} {upload.said}".encode()).hexdigest()
    strict = query.strict == "true"
    taken = await gateway.batching.submit(upload, client=client, strict=strict, idempotency_key=key, fingerprint=said)
    batch = taken.batch
    gateway.log.info("batch", batch=batch.id, lines=sum(map(len, batch.lines)), refused=batch.refused, queued=taken.queued, new=taken.new)
    if not taken.new:
        response.headers["Idempotency-Replayed"] = "true"
    response.headers["Location"] = f"{base}/batches/{batch.id}"
    return BatchAccepted(**_from_batch(batch, base).model_dump(), refused=[BadLineAnswer(**told(one)) for one in taken.bad])


@router.get("", summary="Your batches", responses=documented(errors.InvalidValue, errors.UnknownField, errors.QueueUnavailable))
async def list_batches(gateway: Current, client: Client, base: BaseUrl, query: Annotated[ListQuery, Query()]) -> BatchesAnswer:
    """The newest first. Those that expired are not among them."""
    return BatchesAnswer(batches=[_from_batch(batch, base) for batch in await gateway.batching.newest(client, query.limit)])


@router.get("/{id}", summary="A batch as it is now", responses=documented(*NO_BATCH))
async def get_batch(batch: Found, base: BaseUrl) -> BatchAnswer:
    """Polling this is cheap, however many lines there are."""
    return _from_batch(batch, base)


@router.delete("/{id}", summary="Cancel a batch", responses=documented(*NO_BATCH, errors.QueueReadOnly))
async def cancel_batch(batch: Found, gateway: Current, client: Client, base: BaseUrl) -> BatchAnswer:
    """Its queued jobs are canceled at once, running ones at their next step; what has ended stays as it is."""
    gateway.log.info("cancel", batch=batch.id)
    return _from_batch(await gateway.batching.cancel(batch.id, client), base)


@router.get(
    "/{id}/results",
    response_class=StreamingResponse,
    summary="What became of each line",
    responses={
        200: {"content": {JSON_LINES[0]: {"itemSchema": LineAnswer.model_json_schema()}}, "description": "JSON lines, one for each line"},
        **documented(*NO_BATCH, errors.InvalidValue, errors.UnknownField),
    },
)
async def batch_results(batch: Found, gateway: Current, base: BaseUrl, query: Annotated[ResultsQuery, Query()]) -> StreamingResponse:
    """In the order of the lines, as it is now, with fresh image URLs."""
    return StreamingResponse(_results(batch, gateway, base, query), media_type=JSON_LINES[0])


@router.get(
    "/{id}/images.zip",
    response_class=StreamingResponse,
    summary="The pictures of a batch",
    responses={200: {"content": {"application/zip": {}}, "description": "a zip"}, **documented(*NO_BATCH, errors.StorageUnavailable)},
)
async def batch_images(batch: Found, gateway: Current) -> StreamingResponse:
    """Those that are done by now, named by line: `00001.png`, or `00001-2.png` where a line has several. Made while it is sent."""
    headers = {"Content-Disposition": f'attachment; filename="{batch.id}.zip"'}
    return StreamingResponse(zipped(gateway.batching.pictures(batch)), media_type="application/zip", headers=headers)


async def _results(batch: Batch, gateway: Gateway, base: str, query: ResultsQuery) -> AsyncIterator[bytes]:
    async for line, id, job, bad in gateway.batching.results(batch, query.first, query.limit):
        answer = await _line(batch, gateway, base, line, id, job) if job or not bad else _refused(bad)
        yield answer.model_dump_json().encode() + b"\n"


async def _line(batch: Batch, gateway: Gateway, base: str, line: int, id: str, job: Job | None) -> LineAnswer:
    if job is None:
        never = "canceled" if batch.stopped else "missing"
        ended = await gateway.batching.ended(batch, line)
        return LineAnswer(line=line, id=id if ended else None, status="expired" if ended else never, images=[], error=None, warnings=[])
    links = await gateway.links.sign([image.key for image in job.images])
    return LineAnswer(
        line=line,
        id=id,
        status=job.status.value,
        images=[ImageAnswer(url=base + link, **asdict(image)) for image, link in zip(job.images, links, strict=True)],
        error=LineFault(code=job.error.code, message=job.error.message, param=None) if job.error else None,
        warnings=[WarningAnswer(**asdict(warning)) for warning in job.warnings],
    )


def _refused(bad: BadLine) -> LineAnswer:
    fault = LineFault(code=bad.code, message=bad.message, param=bad.param)
    return LineAnswer(line=bad.line, id=None, status="refused", images=[], error=fault, warnings=[])


def _from_batch(batch: Batch, base: str) -> BatchAnswer:
    self = f"{base}/batches/{batch.id}"
    interrupted = batch.left > 0 and not batch.filling
    named = ("queued", "running", "succeeded", "failed", "canceled", "refused")
    return BatchAnswer(
        id=batch.id,
        status="ended" if batch.finished_at else "incomplete" if interrupted else "open",
        counts=CountsAnswer(coming=batch.left, **{name: getattr(batch, name) for name in named}),
        progress=ProgressAnswer(steps_done=batch.steps_done, steps_total=batch.steps_total),
        eta_s=batch.eta_s,
        cancel_requested=batch.stopped,
        created_at=utc(batch.created_at),
        finished_at=utc(batch.finished_at) if batch.finished_at else None,
        links=BatchLinksAnswer(self=self, results=f"{self}/results", images=f"{self}/images.zip"),
    )
