"""What a request may use: the parts of one gateway, and who is asking."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Annotated, cast

from fastapi import Depends, Request
from starlette.types import Scope
from structlog.typing import FilteringBoundLogger

from jobs.hooks import HookQueue
from jobs.image_store import ImageStore
from jobs.job_queue import JobQueue
from jobs.registry import Registry, pseudonym
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

    def shown(self, worker_id: str) -> str:
        """A worker as this gateway's clients may know it: without keys the one client is who runs it all."""
        return pseudonym(worker_id) if self.settings.keys_in_force else worker_id


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
    return base_url(request.scope, _gateway(request).settings)


def base_url(scope: Scope, settings: Settings) -> str:
    """The same outside the framework's dependencies."""
    if settings.public_url:
        return settings.public_url
    host = next((value for name, value in scope["headers"] if name == b"host"), b"")
    return _asked_at(scope["scheme"], host, tuple(scope["server"] or ()), scope.get("root_path", ""))


@functools.lru_cache(maxsize=64)
def _asked_at(scheme: str, host: bytes, server: tuple[str, int | None], root_path: str) -> str:
    scope = {"type": "http", "scheme": scheme, "headers": [(b"host", host)] * bool(host), "server": server or None}
    return str(Request(scope | {"root_path": root_path}).base_url).rstrip("/")


async def _current(request: Request) -> Gateway:
    return _gateway(request)


Current = Annotated[Gateway, Depends(_current)]
Client = Annotated[str, Depends(_client)]
BaseUrl = Annotated[str, Depends(_base_url)]
