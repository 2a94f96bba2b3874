"""Patience with Redis: it may go and come back, and whoever asks again gets the answer."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import TypeVar

import structlog
from redis.exceptions import AuthenticationError, RedisError

from jobs.connection import heed_cancel

T = TypeVar("T")

log = structlog.get_logger("worker")

BACK_OFF_S = (0.1, 0.25, 0.5, 1.0, 2.0)


async def insist(call: Callable[..., Awaitable[T]], *args: object) -> T:
    """Repeat an idempotent call until Redis answers; waits grow to two seconds. Raises AuthenticationError: waiting would not help."""
    tries = 0
    while True:
        try:
            answer = await call(*args)
            heed_cancel()
            return answer
        except AuthenticationError:
            raise
        except (RedisError, OSError) as error:
            wait = BACK_OFF_S[min(tries, len(BACK_OFF_S) - 1)]
            if tries == 0:
                log.warning("redis_unavailable", error=type(error).__name__, retry_in_s=wait)
            tries += 1
            await asyncio.sleep(wait)


async def unless(stop: asyncio.Event, work: Coroutine[None, None, object]) -> bool:
    """Do the work, unless `stop` is set first; whether it was done. Raises what the work raises."""
    working, stopping = asyncio.create_task(work), asyncio.create_task(stop.wait())
    await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if not working.done():
        working.cancel()
        return False
    working.result()
    return True
