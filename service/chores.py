"""What a gateway does beside answering: it moves on jobs of dead workers, and deletes pictures whose time of keeping is over."""

from __future__ import annotations

import asyncio
import time

from redis.exceptions import RedisError
from structlog.typing import FilteringBoundLogger

from jobs.connection import heed_cancel
from jobs.image_store import ImageStore
from jobs.job_queue import JobQueue
from service.settings import Settings

REAP_EVERY_S = 1.0
SWEEP_EVERY_S = 600.0
SHARED_S = 3600.0  # for so long the queue may answer an equal request with the same pictures, for a record that is kept from then on


async def reap_forever(queue: JobQueue, log: FilteringBoundLogger) -> None:
    """Every process moves on the jobs of dead workers, so that one which is left is enough."""
    away = False
    while True:
        try:
            moved = await queue.reap()
            heed_cancel()
            if moved:
                log.warning("reaped", jobs=moved)
            if away:
                log.warning("redis is back")
            away = False
        except RedisError as error:
            if not away:
                log.error("redis is away", error=type(error).__name__)
            away = True
        await asyncio.sleep(REAP_EVERY_S)


async def sweep_forever(store: ImageStore, queue: JobQueue, settings: Settings, log: FilteringBoundLogger) -> None:
    """Every gateway sweeps; several of them are as good as one."""
    while True:
        try:
            if swept := await sweep(store, queue, retention_s=settings.retention_s, now=time.time()):
                log.info("swept", jobs=swept)
        except (RedisError, OSError) as error:
            log.warning("not swept", error=type(error).__name__)
        await asyncio.sleep(SWEEP_EVERY_S)


async def sweep(store: ImageStore, queue: JobQueue, *, retention_s: float, now: float) -> int:
    """Delete the pictures of every job whose record has expired, and those that a worker left behind when it lost its job.
    `now` is Unix seconds of this machine. Returns of how many jobs. Raises RedisError, OSError."""
    swept = 0
    for job_id in await store.untouched_since(now - retention_s - SHARED_S - SWEEP_EVERY_S):
        if await queue.get(job_id) is None:  # one that still runs, or was kept longer by other settings, keeps its pictures
            await store.delete_all(job_id)
            swept += 1
    return swept
