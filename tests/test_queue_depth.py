"""What a claim costs does not grow with the queue: counted in commands on the server, which do not depend on the machine."""

from __future__ import annotations

import statistics
from typing import Any

import pytest
from redis.asyncio import Redis

from benchmarks.depth import Site
from tests.job_samples import Clock


async def counts(redis: Redis, redis_url: str, clock: Clock, depth: int, *, claims: int, **site: Any) -> list[int]:
    await redis.flushall()
    await clock.advance(0)
    opened = Site(redis, **site)
    await opened.open(redis_url, depth)
    return await opened.count_claims(claims)


async def test_a_claim_runs_no_more_commands_with_ten_times_as_many_jobs(redis: Redis, redis_url: str, clock: Clock) -> None:
    few, many = [await counts(redis, redis_url, clock, depth, claims=100, restless=False, workers=20) for depth in (200, 2_000)]
    assert statistics.mean(many) < 1.1 * statistics.mean(few)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("restless", [False, True])
async def test_a_claim_runs_no_more_commands_with_a_hundred_times_as_many_jobs(
    redis: Redis, redis_url: str, clock: Clock, restless: bool
) -> None:
    few, many = [await counts(redis, redis_url, clock, depth, claims=1000, restless=restless) for depth in (1_000, 100_000)]
    assert statistics.mean(many) < 1.1 * statistics.mean(few)
    assert max(many) < 2 * statistics.mean(few)
