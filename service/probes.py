"""Looks at what the gateway stands on. Nothing here fails: what cannot be reached is said to be away."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

from redis.exceptions import RedisError

from service.errors import NoModel
from service.gateway import Gateway

CHECK_S = 2.0  # of one check; a probe must not hang with what it probes


async def probe(gateway: Gateway) -> dict[str, bool]:
    """Whether Redis answers, the image store can be written, and a model is known."""
    checks = {"redis": gateway.queue.depth(), "storage": gateway.store.check(), "model": gateway.catalog.card(None)}
    return dict(zip(checks, await asyncio.gather(*map(_passes, checks.values())), strict=True))


async def observe_queue(gateway: Gateway) -> None:
    """Bring the gauges of the shared queue up to date."""
    try:
        async with asyncio.timeout(CHECK_S):
            gateway.metrics.queue_seen(await gateway.queue.depth(), await gateway.registry.workers())
    except (RedisError, TimeoutError):
        gateway.metrics.queue_unseen()


async def _passes(check: Awaitable[object]) -> bool:
    try:
        await asyncio.wait_for(check, CHECK_S)
    except (RedisError, OSError, NoModel):  # a TimeoutError is an OSError
        return False
    return True
