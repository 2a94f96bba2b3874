"""A worker and a Redis that is full, read-only, gone or silent: it waits, goes on by itself, and goes when it is told to."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from pathlib import Path

import pytest
from redis.asyncio import Redis

import jobs.valkey
import workers.serving
from jobs.image_store import THREADS, LocalImageStore
from jobs.job import JobStatus
from jobs.job_queue import JobQueue, connect
from jobs.registry import Registry
from jobs.shards import Shards
from tests.worker_bench import CARD, TIMEOUT_S, Bench, draw_at_once, job
from workers import encode
from workers.messages import Command, Draw, Report
from workers.serving import REFUSED
from workers.settings import WorkerSettings


async def test_a_worker_that_comes_when_the_server_is_full_draws_what_is_inside(redis: Redis, tmp_path: Path) -> None:
    """Else nobody would ever make room: also the scripts are gone, and the model is a new one."""
    queue, registry = JobQueue(redis), Registry(redis)
    await queue.submit(job("a"))
    await redis.script_flush()
    await redis.config_set("maxmemory", 1)
    try:
        await Shards.of(redis).check()  # as a worker does before it begins
        bench = Bench(JobQueue(redis), redis, tmp_path, draw_at_once)
        assert (await bench.ended("a")).status is JobStatus.SUCCEEDED
        async with asyncio.timeout(TIMEOUT_S):
            while not await registry.workers():
                await asyncio.sleep(0.01)
        assert set(await registry.cards()) == {CARD.id}
        await bench.stop()
    finally:
        await redis.config_set("maxmemory", 0)


@pytest.mark.parametrize("held", [False, True])
async def test_a_read_only_server_is_waited_for(redis: Redis, tmp_path: Path, held: bool) -> None:
    """Before a job is claimed, and while its end is to be recorded."""
    queue, drawing, refused = JobQueue(redis), asyncio.Event(), asyncio.Event()
    write = queue.finish if held else queue.claim

    async def told(*args: object, **named: object) -> object:
        try:
            return await write(*args, **named)  # type: ignore[arg-type]
        except Exception:
            refused.set()
            raise

    setattr(queue, write.__name__, told)

    def react(command: Command) -> list[Report]:
        drawing.set()
        return [] if held else draw_at_once(command)

    if not held:
        await redis.replicaof("127.0.0.1", "9")
    else:
        await queue.submit(job("a"))
    try:
        bench = Bench(queue, redis, tmp_path, react)
        if held:
            await asyncio.wait_for(drawing.wait(), TIMEOUT_S)
            await redis.replicaof("127.0.0.1", "9")
            [draw] = [c for c in bench.puppet.commands if isinstance(c, Draw)]
            for report in draw_at_once(draw):
                bench.puppet.report(report)
        await asyncio.wait_for(refused.wait(), TIMEOUT_S)
    finally:
        await redis.replicaof("NO", "ONE")
    if not held:
        await queue.submit(job("a"))
    done = await bench.ended("a")
    await bench.stop()
    assert (done.status, done.attempt) == (JobStatus.SUCCEEDED, 1)


async def test_a_server_that_may_evict_refuses_the_start(
    redis: Redis, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(workers.serving, "_stock", lambda settings: (None, []))
    await redis.config_set("maxmemory-policy", "allkeys-lru")
    try:
        assert (
            await asyncio.wait_for(workers.serving.run(WorkerSettings(redis_url=redis_url, data_dir=tmp_path), asyncio.Event()), TIMEOUT_S)
            == REFUSED
        )
    finally:
        await redis.config_set("maxmemory-policy", "noeviction")
    assert "noeviction" in capsys.readouterr().err


async def test_a_silent_redis_does_not_keep_a_worker_that_is_told_to_go(tmp_path: Path) -> None:
    """It takes connections and commands and answers nothing, as a machine that hangs: leases run out, and others go on."""
    server = jobs.valkey.start(tmp_path / "server")
    redis = connect(jobs.valkey.url(tmp_path / "server"))
    try:
        queue, claimed = JobQueue(redis), asyncio.Event()
        for name in ("a", "b", "c"):
            await queue.submit(job(name))

        def react(command: Command) -> list[Report]:
            if isinstance(command, Draw) and command.job.id == "c":
                claimed.set()
            return []

        bench = Bench(queue, redis, tmp_path, react)
        await asyncio.wait_for(claimed.wait(), TIMEOUT_S)
        server.send_signal(signal.SIGSTOP)
        began = time.monotonic()
        await bench.stop()
        assert time.monotonic() - began < 3, "less than one time-out of a command, which is 5 s"
        server.send_signal(signal.SIGCONT)
        assert sum((await queue.depth()).values()) == 3, "what was sent may still arrive; nothing is lost"
    finally:
        server.send_signal(signal.SIGCONT)
        await redis.aclose()
        server.kill()
        server.wait()


@pytest.mark.parametrize("what", ["encode", "put"])
async def test_what_hangs_behind_the_drawing_fails_its_job_alone(
    redis: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """Also more of them at one time than there are threads to wait in."""
    release, queue = threading.Event(), JobQueue(redis)

    def hang(*_: object) -> bytes:
        release.wait()
        return b""

    with monkeypatch.context() as broken:
        broken.setattr(*{"encode": (encode, "encode"), "put": (LocalImageStore, "_write")}[what], hang)
        for number in range(THREADS + 1):
            await queue.submit(job(f"bad-{number}"))
        bench = Bench(queue, redis, tmp_path, draw_at_once, store_s=0.3)
        ends = [await bench.ended(f"bad-{number}") for number in range(THREADS + 1)]
    assert {(end.error.code, end.error.retryable) for end in ends if end.error} == {("storage_unavailable", True)}
    assert all(end.error for end in ends)
    release.set()  # as storage that comes back
    await queue.submit(job("good"))
    assert (await bench.ended("good")).status is JobStatus.SUCCEEDED
    await bench.stop()
