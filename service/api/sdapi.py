"""The door of A1111's API, /sdapi/v1: a thin file over `generations`. Options of one request never become those of another."""

from __future__ import annotations

import base64
import binascii
from typing import Annotated, Any

from fastapi import APIRouter, Body, Query, Request
from pydantic import BaseModel, ConfigDict

from jobs.job import JobStatus
from pipelines import names
from pipelines.card import ModelCard
from pipelines.infotext import parse
from pipelines.name_tables import A1111_SAMPLERS, A1111_SCHEDULES
from service import errors
from service.dialects import A1111, said_in
from service.embeddings import UnknownEmbedding
from service.error_answers import documented
from service.finished import pictures_of, raise_unless_succeeded
from service.gateway import Client, Current, Gateway
from service.loras import UnknownLora
from service.picture_errors import OF_PICTURES
from service.png_text import texts
from service.sdapi import Txt2ImgRequest, info, progress, title
from service.sdapi_hires import latent_modes
from service.sdapi_hires import upscalers as upscalers_of
from service.sdapi_img2img import Img2ImgRequest
from service.strict_json import StrictJsonRoute
from service.terms import Terms

router = APIRouter(prefix="/sdapi/v1", route_class=StrictJsonRoute, tags=["a1111"])

EMPTY_LISTS = (
    "sd-vae", "sd-modules", "hypernetworks", "face-restorers", "realesrgan-models", "prompt-styles", "script-info",
    "extensions",
)  # fmt: skip
BODY = (errors.InvalidJson, errors.UnknownField, errors.InvalidValue, errors.BodyTooLarge, errors.UnsupportedMediaType)
DOWN = documented(errors.QueueUnavailable)
OF_DRAWING = (
    errors.InvalidJson, errors.UnknownField, errors.InvalidValue, errors.InvalidSize, errors.NotSupported, errors.UnknownModel,
    errors.UnknownSampler, errors.UnknownSchedule, UnknownLora, UnknownEmbedding, errors.BodyTooLarge, errors.UnsupportedMediaType,
    errors.JobCanceled, errors.JobExpired, errors.QueueIsFull, errors.ClientQueueFull, errors.RateLimited, errors.QuotaSpent,
    errors.TooManyStreams,
    errors.QueueUnavailable, errors.QueueOutOfMemory, errors.QueueReadOnly, errors.StorageUnavailable, errors.NoModel,
    errors.JobFailed, errors.StillRunning,
)  # fmt: skip
Anything = dict[str, Any]
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="  # a PNG


class PngInfoRequest(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", json_schema_extra={"examples": [{"image": PIXEL}]})

    image: str


@router.post(
    "/txt2img",
    summary="Draw pictures, in A1111's form",
    responses=documented(*OF_DRAWING),
)
async def txt2img(body: Txt2ImgRequest, request: Request, gateway: Current, client: Client) -> Anything:
    """Queue a job and wait for it. `images` are base64, `info` is a JSON string. An interrupted job has no images."""
    return await _draw(body, request, gateway, client)


@router.post(
    "/img2img",
    summary="Draw from a picture, in A1111's form",
    responses=documented(*OF_DRAWING, errors.MissingField, *OF_PICTURES),
)
async def img2img(body: Img2ImgRequest, request: Request, gateway: Current, client: Client) -> Anything:
    """As txt2img, from `init_images`; with `mask` only what is white is drawn."""
    return await _draw(body, request, gateway, client)


async def _draw(body: Txt2ImgRequest, request: Request, gateway: Gateway, client: str) -> Anything:
    body.checked()
    with said_in(A1111):
        card = await gateway.catalog.card(body.model)
    try:
        draft = body.to_draft(card)
    except names.UnknownName as error:
        kind = errors.UnknownSampler if error.kind == "sampler" else errors.UnknownSchedule
        raise kind(
            str(error).replace(error.name, errors.shown(error.name)), param="sampler_name" if error.kind == "sampler" else "scheduler"
        ) from error
    said = {"num_images": "n_iter"} if (body.n_iter or 1) > (body.batch_size or 1) else {}
    said |= {"upscale": "hr_resize_x"} if body.hr_resize_x else {"upscale": "hr_resize_y"} if body.hr_resize_y else {}
    with said_in(A1111 | said):
        submitted = await gateway.generations.submit(draft, Terms(), client=client)
    job = submitted.job
    gateway.metrics.submitted(job.params.model)
    gateway.log.info("submitted", door="a1111", job=job.id, model=job.params.model, images=job.params.num_images)
    job = await gateway.generations.wait(job, gateway.settings.door_wait_s)
    if job.status != JobStatus.CANCELED:
        raise_unless_succeeded(job)
    images = [base64.b64encode(data).decode() for data in await pictures_of(job, gateway)] if body.send_images is not False else []
    return {"images": images, "parameters": body.echo(), "info": info(job, card, request.app.version)}


@router.get("/progress", summary="How your own jobs stand", responses=DOWN | documented(errors.InvalidValue))
async def get_progress(
    gateway: Current, client: Client, skip_current_image: Annotated[bool, Query(description="leave the preview out")] = False
) -> Anything:
    """Of all jobs of yours that wait or run; with the newest preview of the oldest."""
    jobs = await gateway.generations.open_jobs(client)
    preview = await gateway.generations.preview(jobs[0]) if jobs and not skip_current_image else None
    left = sum(job.predicted_s * (1 - job.steps_done / job.steps_total) for job in jobs)
    return progress(jobs, preview, left)


@router.post("/interrupt", summary="Cancel your jobs that run", responses=DOWN)
async def interrupt(gateway: Current, client: Client) -> Anything:
    """All of yours that run; those that wait stay."""
    return await _cancel(gateway, client, most=100)


@router.post("/skip", summary="Cancel the oldest of your jobs that run", responses=DOWN)
async def skip(gateway: Current, client: Client) -> Anything:
    return await _cancel(gateway, client, most=1)


async def _cancel(gateway: Gateway, client: str, most: int) -> Anything:
    running = [job for job in await gateway.generations.open_jobs(client) if job.status == JobStatus.RUNNING]
    for job in running[:most]:
        await gateway.generations.cancel(job.id, client)
    return {}


@router.get("/options", summary="The settings that there are", responses=documented(errors.NoModel, errors.QueueUnavailable))
async def get_options(gateway: Current) -> Anything:
    card = await gateway.catalog.card(None)
    return {"sd_model_checkpoint": title(card), "sd_checkpoint_hash": card.hash, "samples_format": "png", "CLIP_stop_at_last_layers": 1}


@router.post("/options", summary="Settings belong to requests", responses=documented(*BODY, errors.NotSupported, errors.NoModel))
async def set_options(options: Annotated[Anything, Body(examples=[{"samples_format": "png"}])], gateway: Current) -> None:
    """What is so already may be said again. Anything else belongs into `override_settings` of the request that it is for."""
    now = await get_options(gateway)
    card = await gateway.catalog.card(None)
    for name, value in options.items():
        same = str(value).partition(" [")[0] == card.id if name == "sd_model_checkpoint" else value == now.get(name, object())
        if not same:
            message = "Options are not set for everybody here; send them as override_settings of the request."
            raise errors.NotSupported(message, param=errors.shown(name))


@router.get("/samplers", summary="Samplers by A1111's labels", responses=documented(errors.NoModel, errors.QueueUnavailable))
async def samplers(gateway: Current) -> list[Anything]:
    has = {sampler.id for sampler in (await gateway.catalog.card(None)).samplers}
    return [{"name": n.name, "aliases": list(n.also), "options": {}} for n in A1111_SAMPLERS if n.id in has]


@router.get("/schedulers", summary="Schedules by A1111's labels", responses=documented(errors.NoModel, errors.QueueUnavailable))
async def schedules(gateway: Current) -> list[Anything]:
    has = {schedule.id for schedule in (await gateway.catalog.card(None)).schedules}
    offered = [("Automatic", ())] + [(n.name, n.also) for n in A1111_SCHEDULES if n.id in has]
    return [
        {"name": names.fold(name).replace(" ", "_"), "label": name, "aliases": list(also), "default_rho": -1, "need_inner_model": False}
        for name, also in offered
    ]


@router.get("/sd-models", summary="Models in A1111's form", responses=DOWN)
async def sd_models(gateway: Current) -> list[Anything]:
    return [_model(card) for card in (await gateway.catalog.cards()).values()]


def _model(card: ModelCard) -> Anything:
    return {"title": title(card), "model_name": card.id, "hash": card.hash[:10], "sha256": card.hash, "filename": card.id, "config": None}


@router.post("/png-info", summary="Parameters of a PNG", responses=documented(*BODY, errors.MissingField))
async def png_info(body: PngInfoRequest) -> Anything:
    """`image` is base64, with or without the head of a data URL. A picture without parameters has an empty `info`."""
    try:
        found = texts(base64.b64decode(body.image.rpartition("base64,")[2], validate=True))
    except (ValueError, binascii.Error) as error:
        raise errors.InvalidValue(f"image cannot be read: {error}.", param="image") from None
    text = found.pop("parameters", "")
    return {"info": text, "items": found, "parameters": parse(text)}


@router.get("/memory", summary="Memory of workers is in GET /workers", responses=documented())
async def memory() -> Anything:
    """The gateway holds no model: it has nothing to tell of one."""
    return {"ram": {"error": "see GET /workers"}, "cuda": {"error": "see GET /workers"}}


@router.get("/cmd-flags", summary="Flags that clients look for", responses=documented())
async def cmd_flags() -> Anything:
    return {"api": True, "api_auth": None}


@router.get("/scripts", summary="There are no scripts", responses=documented())
async def scripts() -> Anything:
    return {"txt2img": [], "img2img": []}


@router.get("/embeddings", summary="Embeddings of the default model", responses=documented(errors.NoModel, errors.QueueUnavailable))
async def embeddings(gateway: Current) -> Anything:
    """Those that its prompts can name, and as skipped those that they cannot."""
    found: Anything = {"loaded": {}, "skipped": {}}
    for embedding in (await gateway.catalog.card(None)).embeddings:
        told = {"step": None, "sd_checkpoint": None, "sd_checkpoint_name": None, "shape": embedding.width}
        found["skipped" if embedding.refused else "loaded"][embedding.name] = told | {"vectors": embedding.vectors}
    return found


@router.get("/loras", summary="LoRAs of the default model", responses=documented(errors.NoModel, errors.QueueUnavailable))
async def loras(gateway: Current) -> list[Anything]:
    """Those that can be used, as in `<lora:name:0.8>`. `path` is no path."""
    known = (await gateway.catalog.card(None)).loras
    return [{"name": lora.name, "alias": lora.name, "path": lora.name, "metadata": {}} for lora in known if not lora.refused]


@router.get("/upscalers", summary="What enlarges pictures", responses=documented(errors.NoModel, errors.QueueUnavailable))
async def upscalers(gateway: Current) -> list[Anything]:
    """As `hr_upscaler` of the default model. Names alone: what else A1111 tells of its files is null."""
    return upscalers_of(await gateway.catalog.card(None))


@router.get("/latent-upscale-modes", summary="What enlarges latents", responses=documented(errors.NoModel, errors.QueueUnavailable))
async def latent_upscale_modes(gateway: Current) -> list[Anything]:
    """As `hr_upscaler` of the default model, beside the upscalers."""
    return [{"name": name} for name in latent_modes(await gateway.catalog.card(None))]


@router.get("/{what}", summary="Lists that are empty here", responses=documented(errors.NotFound))
async def nothing(what: str) -> list[Anything]:
    """Of VAEs, hypernetworks and the like. 404 for anything else."""
    if what not in EMPTY_LISTS:
        raise errors.NotFound()
    return []
