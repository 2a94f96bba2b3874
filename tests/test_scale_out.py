"""Two gateways and three workers on one Redis: any gateway knows every job, and the workers share them."""

from __future__ import annotations

import collections
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from redis.client import Redis

from tests.fleet import Fleet
from training.toy import write_toy

pytestmark = pytest.mark.timeout(240)  # whole processes start here, on whatever machine this is

JOBS = 30


@pytest.fixture
def fleets(redis_url: str, tmp_path: Path) -> Iterator[tuple[Fleet, Fleet]]:
    """The second has a gateway alone."""
    pair = (Fleet(redis_url, tmp_path, write_toy(tmp_path / "toy")), Fleet(redis_url, tmp_path, tmp_path / "toy"))
    try:
        for fleet in pair:
            fleet.gateway()
        pair[0].crew(3, CELADON_SLOTS="2")
        yield pair
    finally:
        for fleet in pair:
            fleet.close()


def test_gateways_and_workers_share_one_queue(fleets: tuple[Fleet, Fleet], redis_url: str) -> None:
    jobs = [fleets[n % 2].submit({"Idempotency-Key": f"k{n}"}, seed=n, steps=12) for n in range(JOBS)]
    for n, job in enumerate(jobs):
        other = fleets[1 - n % 2]
        assert other.submit({"Idempotency-Key": f"k{n}"}, seed=n, steps=12)["id"] == job["id"]
        done = other.finished(job["id"])
        assert done["status"] == "succeeded"
        url = httpx2.URL(done["images"][0]["url"])
        assert fleets[n % 2].client.get(url.raw_path.decode()).status_code == 200, "a link of one gateway is good at the other"
    assert fleets[0].workers() == fleets[1].workers()
    with Redis.from_url(redis_url, decode_responses=True) as redis:
        done_by = collections.Counter(redis.hget("{q0}:j:" + job["id"], "worker") for job in jobs)
        started = [sum(f["type"] == "started" for _, f in redis.xrange("{q0}:e:" + job["id"])) for job in jobs]
    assert set(done_by) == fleets[0].workers()
    assert started == [1] * JOBS
