"""What there is to choose from: models, their samplers and schedules, and the workers that hold them."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Response
from pydantic import BaseModel, ConfigDict, Field

from jobs.registry import WorkerInfo
from pipelines.card import ControlNetInfo, Defaults, EmbeddingInfo, GuidanceInfo, LoraInfo, ModelCard, SamplerInfo, ScheduleInfo
from service import drafts, errors, schedule_plot
from service.error_answers import documented
from service.gateway import Current

router = APIRouter(tags=["models"])


class ModelQuery(BaseModel):
    """Which model is asked about."""

    model_config = ConfigDict(extra="forbid")

    model: str | None = Field(default=None, min_length=1, description="id of GET /models; the default model if left out")


class ModelAnswer(BaseModel):
    """One model. Sizes are pixels."""

    id: str
    title: str
    description: str
    license: str
    hash: str
    prediction_type: str
    default: bool = Field(description="whether requests that name no model get this one")
    ready: bool = Field(description="whether a worker that is up holds it; if not, jobs wait for one")
    width: int
    height: int
    max_width: int
    max_height: int
    size_multiple: int
    max_steps: int
    max_prompt_tokens: int
    defaults: Defaults
    kinds: tuple[str, ...] = Field(description="of jobs that it can draw")
    prompt_syntaxes: tuple[str, ...] = Field(description="values of `prompt_syntax`")
    size_conditioning: bool = Field(description="whether it is told sizes, as SDXL is")
    distilled_guidance: bool = Field(
        description="whether it has learned guidance, so that it is asked once a step and takes no guidance_options"
    )
    upscalers: tuple[str, ...] = Field(description="values of `upscale.method` that it brings itself")
    max_clip_skip: int
    loras: tuple[LoraInfo, ...] = Field(description="LoRAs that it can be drawn with, or why not")
    embeddings: tuple[EmbeddingInfo, ...] = Field(description="words with learned vectors that its prompts can hold, or why not")
    controlnets: tuple[ControlNetInfo, ...] = Field(description="ControlNets that it can be drawn with, or why not")
    words: tuple[str, ...] = Field(description="what it was trained on, where that is a closed list")


SHOWN = tuple(name for name in ModelAnswer.model_fields if name not in ("default", "ready"))  # as the card has them

FOR_MODEL = documented(errors.UnknownModel, errors.InvalidValue, errors.UnknownField, errors.QueueUnavailable, errors.NoModel)


@router.get("/models", summary="The models that workers have announced", responses=documented(errors.QueueUnavailable))
async def models(gateway: Current) -> list[ModelAnswer]:
    """The default model first."""
    cards = await gateway.catalog.cards()
    held = {model for worker in await gateway.registry.workers() if worker.ready for model in worker.models}
    default = gateway.settings.default_model or next(iter(cards), None)
    return [
        ModelAnswer(default=card.id == default, ready=card.id in held, **{name: getattr(card, name) for name in SHOWN})
        for card in cards.values()
    ]


@router.get("/samplers", summary="The samplers that a model can run", responses=FOR_MODEL)
async def samplers(gateway: Current, query: Annotated[ModelQuery, Query()]) -> list[SamplerInfo]:
    """A request may use the id, the name or any alias.

    n steps cost `evals_per_step` * n + `evals_offset` U-Net evaluations, or entry n of `evals_first` where it has one,
    and `evals_open` more where the levels end above zero. A sampler that was learned takes `only_steps` and `only_schedules`,
    where they are not empty.
    """
    return list((await gateway.catalog.card(query.model)).samplers)


@router.get("/schedules", summary="The schedules that a model can run", responses=FOR_MODEL)
async def schedules(gateway: Current, query: Annotated[ModelQuery, Query()]) -> list[ScheduleInfo]:
    """A request may use the id, the name or any alias. `curve` is the log signal-to-noise ratio over 16 steps."""
    return list((await gateway.catalog.card(query.model)).schedules)


class PlotQuery(ModelQuery):
    """What else is drawn."""

    compare: str | None = Field(default=None, min_length=1, max_length=400, description="further schedules, by commas")


PLOT: dict[int | str, dict[str, Any]] = {
    200: {"content": {schedule_plot.MEDIA_TYPE: {"schema": {"type": "string"}}}, "description": "an SVG picture"},
    **documented(
        errors.UnknownSchedule, errors.UnknownModel, errors.InvalidValue, errors.UnknownField, errors.QueueUnavailable, errors.NoModel
    ),
}
PLOT_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'",
    "Cache-Control": "max-age=60",
}


@router.get("/schedules/{id}.svg", summary="A schedule drawn", responses=PLOT, response_class=Response)
async def schedule_svg(
    gateway: Current, id: Annotated[str, Path(description="id, name or alias")], query: Annotated[PlotQuery, Query()]
) -> Response:
    """Levels and logSNR over 16 steps, as the model's worker announced them, with default options.

    Other options and lengths need the model's ladder, which the gateway does not have: `celadon plot schedule` draws those.
    """
    card = await gateway.catalog.card(query.model)
    asked = [("id", id), *(("compare", name.strip()) for name in (query.compare.split(",") if query.compare else ()))]
    found = dict(_curve(card, name, param) for param, name in asked)
    if len(found) > schedule_plot.MOST:
        raise errors.InvalidValue(f"At most {schedule_plot.MOST} schedules can be told apart in one picture.", param="compare")
    return Response(schedule_plot.svg(found, card.title), media_type=schedule_plot.MEDIA_TYPE, headers=PLOT_HEADERS)


def _curve(card: ModelCard, name: str, param: str) -> tuple[str, tuple[float, ...]]:
    """Id and logSNR of a schedule. Raises UnknownSchedule, InvalidValue, which blame `param`."""
    try:
        info = drafts.schedule_of(card, name)
    except errors.UnknownSchedule as error:
        error.param = param
        raise
    if not info.curve:
        why = "its levels are what a request gives it" if info.id == "custom" else f"{card.id} has announced no curve of it"
        raise errors.InvalidValue(f"{info.id} cannot be drawn: {why}.", param=param)
    return info.id, info.curve


@router.get("/guidances", summary="The variants of guidance that a model can be drawn with", responses=FOR_MODEL)
async def guidances(gateway: Current, query: Annotated[ModelQuery, Query()]) -> list[GuidanceInfo]:
    """A request names one in `guidance_options.variant`, by id, name or alias, and sets its options beside it."""
    return list((await gateway.catalog.card(query.model)).guidances)


@router.get("/workers", summary="The workers that are up", responses=documented(errors.QueueUnavailable))
async def workers(gateway: Current) -> list[WorkerInfo]:
    """A worker that is silent for 15 seconds is gone from here. Where keys are asked for, an id says nothing of the worker's host."""
    return [replace(worker, id=gateway.shown(worker.id)) for worker in await gateway.registry.workers()]
