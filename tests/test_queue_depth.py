"""What a claim costs does not grow with the queue: counted in commands on the server, which do not depend on the machine."""

from __future__ import annotations

import statistics

import pytest
from redis.asyncio import Redis

from benchmarks.depth import Site
from tests.job_samples import Clock


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("restless", [False, True])
async def test_a_claim_runs_no_more_commands_with_a_hundred_times_as_many_jobs(
    redis: Redis, redis_url: str, clock: Clock, restless: bool
) -> None:
    means, longest = [], []
    for depth in (1_000, 100_000):
        await redis.flushall()
        await clock.advance(0)
        site = Site(redis, restless)
        await site.open(redis_url, depth)
        counts = await site.count_claims(1000)
        means.append(statistics.mean(counts))
        longest.append(max(counts))
    assert means[1] < 1.1 * means[0]
    assert longest[1] < 2 * means[0]
