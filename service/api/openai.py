"""The door of the OpenAI Images API: /v1/images/generations, /v1/images/edits and /v1/models, over `generations`, as every door."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

from jobs.job import Job
from service import errors
from service.catalog import alias
from service.dialects import OPENAI, said_in
from service.drafts import Draft, fingerprint
from service.error_answers import documented, openai_error, translate
from service.finished import pictures_of, raise_unless_succeeded
from service.gateway import BaseUrl, Client, Current, Gateway
from service.generations import START
from service.headers import IdempotencyKey
from service.openai_edits import FORM, VARIATION, read, read_variation
from service.openai_images import ImagesAnswer, ImagesRequest, answer, completed, event_of, partial, whole
from service.picture_errors import OF_PICTURES
from service.strict_json import StrictJsonRoute
from service.terms import Terms

MARGIN_S = 5.0  # before a client gives up by itself
PING_S = 15.0

RetryCount = Annotated[str, Header(alias="x-stainless-retry-count", description="of the SDK; above 0 it is a repeat")]
ReadTimeout = Annotated[str, Header(alias="x-stainless-read-timeout", description="of the SDK: seconds it will wait")]
OF_DRAWING = (
    errors.MissingField, errors.UnknownField, errors.InvalidValue, errors.InvalidSize, errors.InvalidHeader, errors.NotSupported,
    errors.ModelNotFound, errors.KeyReused, errors.JobCanceled, errors.JobExpired, errors.BodyTooLarge, errors.UnsupportedMediaType,
    errors.QueueIsFull, errors.ClientQueueFull, errors.RateLimited, errors.QuotaSpent, errors.TooManyStreams, errors.QueueUnavailable,
    errors.QueueOutOfMemory, errors.QueueReadOnly, errors.StorageUnavailable, errors.NoModel, errors.JobFailed, errors.StillRunning,
)  # fmt: skip

router = APIRouter(prefix="/v1", route_class=StrictJsonRoute, tags=["openai"])


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks for pictures, under which key, and how long it will wait."""

    request: Request
    gateway: Current
    client: Client
    base: BaseUrl
    key: IdempotencyKey
    retry_count: RetryCount = "0"
    read_timeout: ReadTimeout = ""

    @property
    def request_id(self) -> str:
        return str(self.request.scope["request_id"])

    async def key_of(self, said: str) -> str:
        """Its key; of a client that names none, a repeat by the SDK has that of its first try."""
        if self.key:
            return self.key
        repeat = self.retry_count.isdigit() and int(self.retry_count) > 0
        return f"openai:{said}:{await self.gateway.tries.number(self.client, said, repeat=repeat)}"


Asking = Annotated[Caller, Depends()]


class ModelAnswer(BaseModel):
    id: str
    object: str = "model"
    created: int
    owned_by: str = "celadon"


class ModelsAnswer(BaseModel):
    object: str = "list"
    data: list[ModelAnswer]


@router.get("/models", summary="Models, in OpenAI's form", responses=documented(errors.QueueUnavailable))
async def list_models(gateway: Current) -> ModelsAnswer:
    return ModelsAnswer(data=[ModelAnswer(id=model, created=0) for model in await gateway.catalog.cards()])


@router.get("/models/{model}", summary="A model, in OpenAI's form", responses=documented(errors.ModelNotFound, errors.QueueUnavailable))
async def get_model(model: str, gateway: Current) -> ModelAnswer:
    return ModelAnswer(id=(await _card(gateway, model)).id, created=0)


@router.post(
    "/images/generations",
    response_model=ImagesAnswer,
    summary="Draw pictures, in OpenAI's form",
    response_description="the pictures; or, with `stream`, server-sent events",
    responses={
        200: {"content": {"text/event-stream": {}}},
        **documented(errors.InvalidJson, *OF_DRAWING),
    },
)
async def generate_images(body: ImagesRequest, caller: Asking) -> Response | ImagesAnswer:
    """Queue a job and wait for it. A repeat by the SDK joins the job of its first try, whatever became of the answer."""
    said = fingerprint(body.model_dump(exclude_unset=True))
    return await _drawn(caller, body, body.to_draft(await _card(caller.gateway, body.model)), said)


@router.post(
    "/images/edits",
    response_model=ImagesAnswer,
    summary="Draw upon a picture, in OpenAI's form",
    response_description="the pictures; or, with `stream`, server-sent events",
    openapi_extra={"requestBody": FORM},
    responses={
        200: {"content": {"text/event-stream": {}}},
        **documented(*OF_DRAWING, *OF_PICTURES),
    },
)
async def edit_image(request: Request, caller: Asking) -> Response | ImagesAnswer:
    """With a mask its transparent parts are drawn and the rest stays; without one the whole picture is drawn anew, from 0.8 noise."""
    edit = await read(request)
    return await _drawn(caller, edit.body, edit.to_draft(await _card(caller.gateway, edit.body.model)), edit.said)


@router.post(
    "/images/variations",
    response_model=ImagesAnswer,
    summary="Vary a picture, in OpenAI's form",
    response_description="the pictures",
    openapi_extra={"requestBody": VARIATION},
    responses=documented(*OF_DRAWING, *OF_PICTURES),
)
async def vary_image(request: Request, caller: Asking) -> Response | ImagesAnswer:
    """The picture drawn anew from 0.6 noise, without a prompt and without guidance."""
    edit = await read_variation(request)
    return await _drawn(caller, edit.body, edit.to_draft(await _card(caller.gateway, edit.body.model)), edit.said)


async def _drawn(caller: Caller, body: ImagesRequest, draft: Draft, said: str) -> Response | ImagesAnswer:
    """Queue a job and wait for it, or stream what becomes of it. `said` is the fingerprint of the request."""
    gateway = caller.gateway
    if body.stream and not gateway.generations.has_room:
        raise errors.TooManyStreams()  # before anything is queued
    key, previews = await caller.key_of(said), body.partial_images or 0
    with said_in(OPENAI):
        submitted = await gateway.generations.submit(
            draft, Terms(), client=caller.client, idempotency_key=key, fingerprint=said, previews=previews
        )
    job = submitted.job
    if submitted.created:
        gateway.metrics.submitted(job.params.model)
        user = errors.shown(body.safety_identifier or body.user or "")
        gateway.log.info("submitted", door="openai", job=job.id, model=job.params.model, images=job.params.num_images, user=user)
    if body.stream:
        return StreamingResponse(_stream(gateway, job, body, caller.request_id), media_type="text/event-stream")
    job = await gateway.generations.wait(job, _patience(caller.read_timeout, gateway.settings.door_wait_s))
    raise_unless_succeeded(job)
    links = await gateway.links.sign([i.key for i in job.images]) if body.response_format != "b64_json" else []
    pictures = await pictures_of(job, gateway) if body.response_format != "url" else []
    return answer(job, body, [caller.base + link for link in links], pictures)


async def _card(gateway: Gateway, model: str | None) -> Any:
    """Raises ModelNotFound, NoModel."""
    try:
        return await gateway.catalog.card(alias(model, gateway.settings))
    except errors.UnknownModel as error:
        raise errors.ModelNotFound(error.message, param="model") from None


def _patience(read_timeout: str, longest: float) -> float:
    """Seconds to wait: less than the client does, so that it hears from us and not from its own clock."""
    try:
        return max(1.0, min(longest, float(read_timeout) - MARGIN_S))
    except ValueError:
        return longest


async def _stream(gateway: Gateway, job: Job, body: ImagesRequest, request_id: str) -> AsyncIterator[bytes]:
    """Partial pictures as previews come, the whole one, and `[DONE]`; an error as the last event where it did not end well.

    Its place is taken here and not before: of a client that has gone, nothing of this is ever run.
    """
    try:
        with gateway.generations.stream():
            async for event in with_pings(_told(gateway, job, body), PING_S):
                yield event
    except Exception as exc:  # of Redis, for example: what has begun as a stream ends as one
        if (error := translate(exc)) is None:
            raise
        yield _event("error", openai_error(error, request_id))
    yield b"data: [DONE]\n\n"


async def _told(gateway: Gateway, job: Job, body: ImagesRequest) -> AsyncIterator[bytes]:
    sent = reached = 0
    async for event in gateway.generations.events(job, START):
        at = event.data.get("preview_at", 0)
        if at > reached and "preview" in event.data:  # a job that came back passes its steps once more
            yield _event(f"{event_of(job)}.partial_image", partial(job, body, event.data["preview"], sent))
            sent, reached = sent + 1, at
    job = await gateway.generations.get(job.id, job.client)
    raise_unless_succeeded(job)
    (picture,) = await pictures_of(job, gateway)
    if body.partial_images and not sent:
        yield _event(f"{event_of(job)}.partial_image", whole(job, body, picture))
    yield _event(f"{event_of(job)}.completed", completed(job, body, picture))


async def with_pings(events: AsyncIterator[bytes], silence_s: float) -> AsyncIterator[bytes]:
    """The same, with a comment after so many seconds of silence: gaps kill proxies."""
    coming: asyncio.Task[bytes | None] | None = None
    try:
        while True:
            coming = coming or asyncio.ensure_future(anext(events, None))
            done, _ = await asyncio.wait({coming}, timeout=silence_s)
            if not done:
                yield b": ping\n\n"
                continue
            event, coming = coming.result(), None
            if event is None:
                return
            yield event
    finally:
        if coming:
            coming.cancel()


def _event(name: str, data: Mapping[str, Any]) -> bytes:
    return f"event: {name}\ndata: {json.dumps(data)}\n\n".encode()
