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
from tests.s3_server import S3Server, s3_server


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


@pytest.fixture(scope="session")
def s3_of_session() -> Iterator[S3Server]:
    with tempfile.TemporaryDirectory(prefix="celadon-s3-") as folder, s3_server(Path(folder)) as server:
        yield server


@pytest.fixture
def s3(s3_of_session: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """A real S3 server with a bucket, and its keys in this process's environment."""
    for name, value in s3_of_session.environment.items():
        monkeypatch.setenv(name, value)
    return s3_of_session
