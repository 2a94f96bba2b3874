"""What a request may use: the parts of one gateway, and who is asking."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, cast

from fastapi import Depends, Request
from structlog.typing import FilteringBoundLogger

from jobs.hooks import HookQueue
from jobs.image_store import ImageStore
from jobs.job_queue import JobQueue
from jobs.registry import Registry
from jobs.shards import Shards
from jobs.stores import open_store
from jobs.tries import Tries
from service.batching import Batching
from service.catalog import Catalog, ImageLinks
from service.doorkeeper import CLIENT
from service.generations import Generations
from service.keyring import Keyring
from service.metrics import Metrics
from service.settings import Settings
from service.uploads import Uploads

STORE_S = 30.0  # for what is asked of a store that is not on this machine


@dataclass(frozen=True, slots=True)
class Gateway:
    """Made once per app, in its lifespan."""

    settings: Settings
    log: FilteringBoundLogger
    metrics: Metrics
    shards: Shards
    queue: JobQueue
    hooks: HookQueue
    registry: Registry
    store: ImageStore
    catalog: Catalog
    links: ImageLinks
    keyring: Keyring
    generations: Generations
    tries: Tries
    batching: Batching
    uploads: Uploads


def picture_store(settings: Settings) -> ImageStore:
    """Raises jobs.stores.ExtraMissing."""
    places = {"endpoint": settings.s3_endpoint, "public_endpoint": settings.s3_public_endpoint}
    return open_store(settings.storage, settings.data_dir, timeout_s=STORE_S if settings.storage else None, **places)


def _gateway(request: Request) -> Gateway:
    return cast(Gateway, request.app.state.gateway)


async def _client(request: Request) -> str:
    """Whose job it is, as the doorkeeper found out."""
    return cast(str, request.scope[CLIENT])


async def _base_url(request: Request) -> str:
    """How the client reaches us, without a slash at its end."""
    public = _gateway(request).settings.public_url
    return public or str(request.base_url).rstrip("/")


async def _current(request: Request) -> Gateway:
    return _gateway(request)


Current = Annotated[Gateway, Depends(_current)]
Client = Annotated[str, Depends(_client)]
BaseUrl = Annotated[str, Depends(_base_url)]
