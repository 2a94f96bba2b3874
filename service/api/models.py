"""What there is to choose from: models, their samplers and schedules, and the workers that hold them."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field

from jobs.registry import WorkerInfo
from pipelines.card import Defaults, SamplerInfo, ScheduleInfo
from service import errors
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
    and `evals_open` more where the levels end above zero.
    """
    return list((await gateway.catalog.card(query.model)).samplers)


@router.get("/schedules", summary="The schedules that a model can run", responses=FOR_MODEL)
async def schedules(gateway: Current, query: Annotated[ModelQuery, Query()]) -> list[ScheduleInfo]:
    """A request may use the id, the name or any alias. `curve` is the log signal-to-noise ratio over 16 steps."""
    return list((await gateway.catalog.card(query.model)).schedules)


@router.get("/workers", summary="The workers that are up", responses=documented(errors.QueueUnavailable))
async def workers(gateway: Current) -> list[WorkerInfo]:
    """A worker that is silent for 15 seconds is gone from here."""
    return await gateway.registry.workers()
