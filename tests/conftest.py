"""Fixtures shared by all tests: a real Valkey server, empty for each test that asks for it."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpcore2
import pytest
from redis.asyncio import Redis
from redis.client import Redis as BlockingRedis

import jobs.valkey
from jobs.job_queue import JobQueue, connect
from tests.fleet import Fleet, shared
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


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """A real gateway and a real worker with a toy model."""
    from training.toy import write_toy  # and with it torch, which most tests can do without

    folder = tmp_path_factory.mktemp("fleet")
    with shared(folder, write_toy(folder / "toy")) as service:
        yield service


@pytest.fixture
def connections(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The addresses that are connected to; whatever the address, the connection ends at this machine."""
    made: list[str] = []
    connect = httpcore2.AnyIOBackend.connect_tcp

    async def at_home(self: httpcore2.AnyIOBackend, host: str, *args: object) -> httpcore2.AsyncNetworkStream:
        made.append(host)
        return await connect(self, "127.0.0.1", *args)  # type: ignore[arg-type]

    monkeypatch.setattr(httpcore2.AnyIOBackend, "connect_tcp", at_home)
    return made
