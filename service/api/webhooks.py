"""Webhook deliveries that were given up, and their second chance."""

from __future__ import annotations

import re
from dataclasses import asdict
from typing import Annotated, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field

from jobs.job import WebhookEvent
from service import errors
from service.error_answers import documented
from service.gateway import Client, Current

DELIVERY_ID = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}\.(started|succeeded|failed|canceled)")

router = APIRouter(tags=["webhooks"])


class DeliveriesQuery(BaseModel):
    """Which deliveries are asked for."""

    model_config = ConfigDict(extra="forbid")

    state: Literal["dead"] = Field(default="dead", description="dead: given up; those that wait or have arrived are not listed")
    limit: int = Field(default=20, ge=1, le=100, description="how many at most")


class DeliveryAnswer(BaseModel):
    """One event on its way to one URL."""

    id: str
    job_id: str
    event: WebhookEvent
    url: str
    attempt: int = Field(description="how often it was tried")
    reason: str = Field(description="why the last attempt failed")


class RedeliveryAnswer(BaseModel):
    """The delivery is due now, with all its attempts before it."""

    id: str
    state: Literal["due"] = "due"


@router.get(
    "/webhooks/deliveries",
    summary="Webhook deliveries that were given up",
    responses=documented(errors.InvalidValue, errors.UnknownField, errors.QueueUnavailable),
)
async def deliveries(gateway: Current, client: Client, query: Annotated[DeliveriesQuery, Query()]) -> list[DeliveryAnswer]:
    """Of your jobs, the newest first. They are kept for a week."""
    dead = await gateway.hooks.dead(query.limit, client)
    return [DeliveryAnswer(**{name: said for name, said in asdict(one).items() if name in DeliveryAnswer.model_fields}) for one in dead]


@router.post(
    "/webhooks/deliveries/{id}/redeliver",
    status_code=202,
    summary="Deliver again",
    response_description="due now",
    responses=documented(errors.DeliveryNotFound, errors.QueueUnavailable, errors.QueueReadOnly),
)
async def redeliver(id: str, gateway: Current, client: Client) -> RedeliveryAnswer:
    """A delivery that was given up is due at once. Its id and its body stay the same."""
    if not DELIVERY_ID.fullmatch(id) or not await gateway.hooks.redeliver(id, client):
        raise errors.DeliveryNotFound()
    gateway.log.info("redeliver", delivery=id)
    return RedeliveryAnswer(id=id)
