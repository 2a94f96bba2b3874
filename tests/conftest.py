"""Fixtures shared by all tests: a real Valkey server, empty for each test that asks for it."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from redis.asyncio import Redis
from redis.client import Redis as BlockingRedis

import jobs.valkey
from jobs.job_queue import JobQueue, connect
from tests.job_samples import Clock


@pytest.fixture(scope="session")
def valkey() -> Iterator[str]:
    """The URL of a server of this test session."""
    with tempfile.TemporaryDirectory(prefix="celadon-test-") as folder:
        process = jobs.valkey.start(Path(folder))
        try:
            yield jobs.valkey.url(Path(folder))
        finally:
            process.terminate()
            process.wait()


@pytest.fixture
def redis_url(valkey: str) -> str:
    """The URL of an empty server."""
    with BlockingRedis.from_url(valkey) as client:
        client.flushall()
    return valkey


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    """A client of an empty server, connected as the service does it."""
    client = connect(redis_url)
    yield client
    await client.aclose()


@pytest.fixture
def queue(redis: Redis) -> JobQueue:
    return JobQueue(redis)


@pytest.fixture
async def clock(redis: Redis) -> Clock:
    """The time that the queue's scripts see; it moves only when told to."""
    clock = Clock(redis, 1_000_000.0)
    await clock.advance(0)
    return clock
