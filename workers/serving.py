"""What `celadon worker` puts together: the model, the doors to Redis and storage, the drawing thread, and the worker between them."""

from __future__ import annotations

import asyncio
import importlib.metadata
import os
import secrets
import socket
import sys
import time
from collections.abc import Callable
from functools import partial

import structlog
from redis.exceptions import AuthenticationError

from jobs.hooks import HookQueue
from jobs.image_store import StoreAway, StoreUnfit
from jobs.job_queue import JobQueue, ServerUnfit
from jobs.redis_spans import watch
from jobs.registry import Registry, WorkerInfo, pseudonym
from jobs.shards import Shards, open_shards
from jobs.stores import ExtraMissing, check_reachable, open_store
from jobs.tracing import open_tracing
from workers.drawing import DrawingThread
from workers.inbox import Inbox
from workers.insist import insist, unless
from workers.messages import Hold
from workers.metrics import WorkerMetrics
from workers.model import Model, ModelRefused, describe_models, open_model, weight_bytes
from workers.safety import CheckerUnfit, Safety, open_safety
from workers.settings import WorkerSettings
from workers.shelf import Shelf, Ware
from workers.worker import Doors, Worker

log = structlog.get_logger("worker")

REFUSED = 2  # exit status: these settings cannot work, so starting again cannot help
AWAY = 3  # exit status: starting again may help


async def run(settings: WorkerSettings, stop: asyncio.Event) -> int:
    """Load, measure, announce, serve until `stop`; the exit status."""
    started = time.monotonic()
    if (status := await _storeless(settings)) is not None:
        return status
    try:
        safety = open_safety(settings.checker, settings.checker_threshold, settings.watermark)
    except CheckerUnfit as error:
        print(error, file=sys.stderr)
        return REFUSED
    try:
        shelf, models = await asyncio.to_thread(_stock, settings)
    except ModelRefused as error:
        print(error, file=sys.stderr)
        return REFUSED
    except Exception as error:
        log.critical("not_loaded", reason=str(error))  # no prompt is in it: none has come yet
        raise
    metrics = WorkerMetrics()
    tracing, why_not = open_tracing("celadon-worker", importlib.metadata.version("celadon"), os.environ)
    if why_not:
        log.warning("no_traces", why=why_not)
    try:
        close = _open_metrics(settings, metrics)
    except OSError as error:
        print(f"CELADON_WORKER_METRICS_PORT: {error.strerror or error}", file=sys.stderr)
        return REFUSED
    shards = open_shards(settings.redis_url, settings.shards)
    try:
        if (status := await _unfit(shards, stop)) is not None:
            return status
        info, inbox = describe(settings, shelf, models[0]), Inbox()
        drawing = DrawingThread(inbox.put, metrics)
        for model in models:
            drawing.put(Hold(model.stages.card.id, model.stages, model.engine))
        worker = Worker(info, shelf, settings, doors(settings, shards, safety), drawing, inbox, metrics, tracing)
        watch(shards, tracing, worker.traceparent)
        told = {"worker": info.id, "shown_as": pseudonym(info.id), "models": info.models, "device": info.device, "backend": info.backend}
        log.info("ready", **told, seconds=round(time.monotonic() - started, 1))
        await worker.run(stop)
    finally:
        await shards.aclose()
        await tracing.aclose()
        close()
    return 0


def _stock(settings: WorkerSettings) -> tuple[Shelf, list[Model]]:
    """What the worker may draw with, and what of it is open. Raises ModelRefused."""
    wares = {
        model: Ware(said.card, weight_bytes(said, settings), partial(open_model, settings, said))
        for model, said in describe_models(settings).items()
    }
    shelf = Shelf(wares, budget=settings.model_memory_mb * 1_000_000, stay_s=settings.model_stay_s)
    return shelf, shelf.fill()


def _open_metrics(settings: WorkerSettings, metrics: WorkerMetrics) -> Callable[[], None]:
    """What ends the answering. Raises OSError where the port is taken."""
    if settings.worker_metrics_port is None:
        return lambda: None
    port, close = metrics.serve(settings.worker_metrics_host, settings.worker_metrics_port)
    log.info("metrics", host=settings.worker_metrics_host, port=port)
    return close


async def _storeless(settings: WorkerSettings) -> int | None:
    """The exit status where pictures could not be stored."""
    try:
        await check_reachable(settings.storage, settings.s3_endpoint)
    except StoreAway as error:
        print(error, file=sys.stderr)
        return REFUSED if isinstance(error, StoreUnfit) else AWAY
    except ExtraMissing as error:
        print(error, file=sys.stderr)
        return REFUSED
    return None


async def _unfit(shards: Shards, stop: asyncio.Event) -> int | None:
    """The exit status where the servers cannot hold a queue, or the worker is told to go before they answer."""
    try:
        return None if await unless(stop, insist(shards.check)) else 0
    except (ServerUnfit, AuthenticationError) as error:
        print(f"CELADON_REDIS_URL: {error}", file=sys.stderr)
        return REFUSED


def describe(settings: WorkerSettings, shelf: Shelf, model: Model) -> WorkerInfo:
    """What the fleet sees of this worker. Ids are new with every process."""
    return WorkerInfo(
        id=f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}",
        models=tuple(shelf.cards),
        device=model.device_name,
        backend=model.backend,
        slots=settings.slots,
        busy=0,
        version=importlib.metadata.version("celadon"),
        started_at=time.time(),
        ready=False,
    )


def doors(settings: WorkerSettings, shards: Shards, safety: Safety) -> Doors:
    queue = JobQueue(
        shards,
        lease_s=settings.lease_s,
        retention_s=settings.retention_s,
        checkpoint_s=settings.checkpoint_ttl_s,
        max_checkpoint_bytes=settings.checkpoint_bytes,
    )
    store = open_store(settings.storage, settings.data_dir, endpoint=settings.s3_endpoint, timeout_s=settings.store_s)
    return Doors(queue, Registry(shards), store, HookQueue(shards), safety)
