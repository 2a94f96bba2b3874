"""Looks at what the gateway stands on. Nothing here fails: what cannot be used is named, with the reason."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

from redis.exceptions import RedisError

from jobs.figures import read_figures
from jobs.job_queue import ServerUnfit
from jobs.scripts import Scripts
from jobs.shards import Shards
from service.error_answers import translate
from service.errors import ApiError, NoModel, QueueOutOfMemory, QueueReadOnly
from service.gateway import Gateway

CHECK_S = 2.0  # of one check; a probe must not hang with what it probes
CHECKS = ("redis", "storage", "model")
SAID: dict[type[ApiError | None], str] = {QueueOutOfMemory: "out of memory", QueueReadOnly: "read-only"}
NOTHING = "probe"  # a key that never is


async def probe(gateway: Gateway) -> dict[str, str]:
    """By name, what keeps a job from being taken now; nothing when Redis takes writes and keeps them, the image store can
    be written, and a model is known."""
    checks: tuple[Awaitable[object], ...] = (takes_writes(gateway.shards), gateway.store.check(), gateway.catalog.card(None))
    faults = await asyncio.gather(*map(_fault, checks))
    return {name: fault for name, fault in zip(CHECKS, faults, strict=True) if fault}


async def takes_writes(shards: Shards) -> None:
    """Raises RedisError, or ServerUnfit, when a job could not be written and kept now. Writes nothing itself.

    Setting no bytes makes no key, but a server that is full, read-only or without its replicas refuses it as it would
    refuse a job.
    """

    async def ask(shard: Scripts) -> None:
        await shard.redis.setrange(shard.key(NOTHING), 0, "")
        await shards.check_server(shard)  # another may have come in the place of the one that was checked at the start

    await shards.some(ask, shards.all)  # while one shard fails over, the clients of the others are served
    await shards.agree()


async def observe_queue(gateway: Gateway) -> None:
    """Bring the gauges of the shared queue up to date."""
    try:
        async with asyncio.timeout(CHECK_S):
            gateway.metrics.queue_seen(await read_figures(gateway.shards), await gateway.registry.workers())
    except (RedisError, TimeoutError):
        gateway.metrics.queue_unseen()


async def _fault(check: Awaitable[object]) -> str:
    """One or two words on what is wrong; empty when it passes."""
    try:
        await asyncio.wait_for(check, CHECK_S)
    except ServerUnfit:
        return "may lose jobs"
    except RedisError as error:
        return SAID.get(type(translate(error)), "away")
    except NoModel:
        return "none announced"
    except OSError:  # a TimeoutError is one
        return "away"
    return ""
