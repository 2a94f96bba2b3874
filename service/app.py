"""The gateway: HTTP in, jobs in Redis. It holds no weights and starts in under a second."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from importlib.metadata import PackageNotFoundError, version
from types import FrameType

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from fastapi.telemetry import TelemetryConfig
from redis.exceptions import RedisError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from structlog.typing import FilteringBoundLogger

from jobs.batches import Batches
from jobs.clients import Clients
from jobs.entrance import Entrance
from jobs.events import EventLog
from jobs.followers import Followers
from jobs.hooks import HookQueue
from jobs.job_queue import JobQueue, ServerUnfit
from jobs.redis_spans import watch
from jobs.registry import Registry
from jobs.shards import Shards, open_shards
from jobs.stores import check_reachable
from jobs.tracing import Tracing, open_tracing
from jobs.tries import Tries
from jobs.uploads import UploadCount
from service.api import batches, health, images, models, native, openai, sdapi, studio, uploads, webhooks
from service.api import jobs as job_routes
from service.batching import Batching
from service.brought import Brought
from service.catalog import Catalog, ImageLinks
from service.chores import reap_forever, sweep_forever
from service.cors import Cors
from service.doorkeeper import Doorkeeper
from service.error_answers import documented, respond, translate
from service.errors import ApiError, HostRefused, KeyInvalid, KeyMissing
from service.fast_lane import PATH, FastLane
from service.gateway import Gateway, picture_store
from service.generations import Generations
from service.keyring import Keyring, check_keys
from service.log import carry_over, make_log
from service.metrics import Metrics
from service.middleware import PROBES, Surroundings
from service.openapi import openapi
from service.settings import Settings
from service.uploads import Uploads

FIRST_LOOK_S = 1.0  # at Redis, before the door opens; /readyz looks again each time
START_FAILED = 3  # the exit status, as uvicorn's own command has it
HANDLED = (ApiError, HTTPException, RequestValidationError, RedisError, ServerUnfit, ClientDisconnect)

WITH_PICTURES = (  # whose bodies hold files
    "/sdapi/v1/img2img", "/sdapi/v1/png-info", "/v1/images/edits", "/v1/images/variations", "/uploads",
)  # fmt: skip

DESCRIPTION = """Text to image. `POST /generate` queues a job; `GET /jobs/{id}` tells how it stands and where its pictures are.

Every error has one shape, `{"error": {"code", "message", "param", "request_id"}}`, and a code that does not change."""


def create_app(settings: Settings) -> FastAPI:
    """One gateway. Redis may be away at the start: `/readyz` says so until it comes."""
    log, metrics = make_log(settings.log_level), Metrics()
    tracing, why_not = open_tracing("celadon-gateway", _version(), os.environ)
    if why_not:
        log.warning("no traces", why=why_not)
    app = FastAPI(
        title="Celadon",
        version=_version(),
        description=DESCRIPTION,
        lifespan=_lifespan(settings, log, metrics, tracing),
        telemetry=_telemetry(tracing),
        docs_url=None,  # its scripts would come from other hosts
        redoc_url=None,
        redirect_slashes=False,
    )
    doors = (native, job_routes, batches, uploads, openai, sdapi, webhooks, models)
    for router in (door.router for door in doors):
        app.include_router(router, responses=documented(KeyMissing, KeyInvalid, HostRefused))
    for router in (images.router, health.router, studio.router):
        app.include_router(router)
    for kind in HANDLED:
        app.add_exception_handler(kind, _handle)
    way = next(route for route in native.router.routes if isinstance(route, APIRoute) and route.path == PATH)
    app.add_middleware(FastLane, route=way, tracing=tracing)
    # the last one stands outermost: a browser's question whether it may ask (CORS) comes without a key
    app.add_middleware(Doorkeeper, settings=settings)
    if settings.origins:
        app.add_middleware(Cors, origins=settings.origins)
    larger = {"/batches": settings.max_batch_bytes, **dict.fromkeys(WITH_PICTURES, settings.max_picture_bytes)}
    app.add_middleware(Surroundings, log=log, metrics=metrics, tracing=tracing, max_body_bytes=settings.max_body_bytes, larger=larger)
    app.openapi = lambda: openapi(app, settings)  # type: ignore[method-assign]
    return app


def serve(settings: Settings, listener: socket.socket | None = None) -> None:
    """Run the gateway until SIGTERM or SIGINT, then exit 0; requests that are under way get `request_drain_s` to end.

    A `listener` that is handed in takes the place of host and port, and outlives this process in its owner. Raises NoKeys where
    others can reach it and nobody has a key; ServerUnfit where Redis would lose jobs; StoreUnfit or StoreAway where pictures lie
    elsewhere and cannot be reached, ExtraMissing.
    """
    if listener:
        settings = settings.model_copy(update={"host": listener.getsockname()[0]})
    asyncio.run(check_reachable(settings.storage, settings.s3_endpoint))
    redis_url = settings.redis_url or _embedded_url(settings)
    asyncio.run(_check_first(redis_url, settings.shards))
    asyncio.run(check_keys(settings, redis_url))
    config = uvicorn.Config(
        create_app(settings),
        host=settings.host,
        port=settings.port,
        log_config=None,
        log_level="warning",  # the app says itself when it is up
        access_log=False,  # the app writes its own line
        server_header=False,
        timeout_graceful_shutdown=max(1, round(settings.request_drain_s)),
    )
    carry_over(make_log(settings.log_level))
    for number in (signal.SIGTERM, signal.SIGINT):  # uvicorn, when it has drained, raises the signal again for us
        signal.signal(number, lambda *_: sys.exit(0))
    server = Server(config)
    gc.freeze()  # what has been made by now lives as long as this process: no need to look through it over and over
    server.run([listener] if listener else None)
    if not server.started:
        sys.exit(START_FAILED)


class Server(uvicorn.Server):
    """uvicorn, but those who wait and follow are let go as soon as the end is asked for, not when `request_drain_s` is over."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        app = self.config.app
        gateway = getattr(app.state, "gateway", None) if isinstance(app, FastAPI) else None
        if gateway is not None:
            gateway.generations.draining.set()
        super().handle_exit(sig, frame)


def _telemetry(tracing: Tracing) -> TelemetryConfig:
    """FastAPI makes the span of a request; our figures and log lines are our own. Probes would bury the others."""
    return {
        "tracer_provider": tracing.provider,
        "tracing": tracing.provider is not None,
        "metrics": False,
        "logs": False,
        "operation_spans": False,
        "auto_configure": False,
        "exclude": lambda scope: scope.get("path") in PROBES,
    }


def _lifespan(
    settings: Settings, log: FilteringBoundLogger, metrics: Metrics, tracing: Tracing
) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        shards = open_shards(settings.redis_url or _embedded_url(settings), settings.shards)
        watch(shards, tracing)
        queue = JobQueue(
            shards,
            max_queued=settings.max_queued,
            max_queued_per_client=settings.max_queued_per_client,
            rate_per_s=settings.rate_per_s,
            burst=settings.rate_burst,
            retention_s=settings.retention_s,
        )
        registry, store = Registry(shards), picture_store(settings)
        catalog = Catalog(registry, settings)
        keyring = Keyring(Clients(shards), settings)
        followers, entrance = Followers(shards), Entrance(shards, max_queued=settings.max_queued)
        brought = Brought(count := UploadCount(shards), store, settings)
        generations = Generations(queue, EventLog(shards), catalog, store, keyring, settings, tracing, followers, entrance, brought)
        links = ImageLinks(registry, settings)
        hooks, tries = HookQueue(shards), Tries(shards)
        every = Batches(shards, max_queued=settings.max_queued, retention_s=settings.retention_s)
        batching = Batching(every, generations, store, keyring, settings, entrance, brought)
        app.state.gateway = Gateway(
            settings, log, metrics, shards, queue, hooks, registry, store, catalog, links, keyring, generations, tries, batching,
            Uploads(count, brought, generations.inputs, keyring, settings),
        )  # fmt: skip
        await _check_servers(shards)
        chores = [asyncio.create_task(reap_forever(queue, log)), asyncio.create_task(sweep_forever(store, queue, settings, log))]
        log.info("gateway up", version=app.version, host=settings.host, port=settings.port, keys=settings.keys_in_force)
        try:
            yield
        finally:
            generations.draining.set()
            for chore in chores:
                chore.cancel()
            await asyncio.gather(*chores, return_exceptions=True)
            await followers.aclose()
            await shards.aclose()
            await tracing.aclose()
            log.info("gateway down")

    return lifespan


async def _check_first(url: str, count: int) -> None:
    """Before the server runs, which would tell a refusal with its trace. Raises ServerUnfit."""
    async with aclosing(open_shards(url, count)) as shards:
        await _check_servers(shards)


async def _check_servers(shards: Shards) -> None:
    """A server that is away, or silent, may come; one that would lose jobs stops the start. Raises ServerUnfit."""
    try:
        async with asyncio.timeout(FIRST_LOOK_S):
            await shards.check()
    except (RedisError, TimeoutError):
        return


def _embedded_url(settings: Settings) -> str:
    from jobs import valkey  # only here: it brings the server's wheel along

    return valkey.url(settings.data_dir)


async def _handle(request: Request, exc: Exception) -> Response:
    """The one handler: every error in the one shape."""
    error = translate(exc)
    if error is None:
        raise exc  # the outermost layer answers 500 and logs where it came from
    if error.http_status == 405:
        error.headers["Allow"] = ", ".join(_methods(request))
    return respond(error, request.scope)


def _methods(request: Request) -> list[str]:
    """All methods of a path; the framework names those of one route only."""
    paths = request.app.openapi()["paths"]
    route = getattr(request.scope.get("route"), "path_format", "")
    return sorted(method.upper() for method in paths.get(route, {}))


def _version() -> str:
    try:
        return version("celadon")
    except PackageNotFoundError:  # run from the source tree
        return "0"
