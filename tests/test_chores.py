"""What a gateway does on the side: pictures go when their job's time of keeping is over, and not before."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from redis.asyncio import Redis

from cards import card
from job_samples import MODEL, sample_image, sample_job
from jobs.image_store import LocalImageStore, image_key
from jobs.job_queue import JobQueue
from live_gateway import assert_error, running
from service.chores import SHARED_S, SWEEP_EVERY_S, sweep

RETENTION_S = 60.0
NOW = 1_000_000.0
LONG_AGO = NOW - RETENTION_S - SHARED_S - SWEEP_EVERY_S - 1


@pytest.fixture
def store(tmp_path: Path) -> LocalImageStore:
    return LocalImageStore(tmp_path / "images")


async def drawn(store: LocalImageStore, queue: JobQueue, root: Path, at: float) -> str:
    """A job that has ended, with a picture of that age."""
    await queue.submit(sample_job())
    (job,) = await queue.claim("w", [MODEL], 1)
    await store.put(image_key(job.id, 1, 0, "png"), b"x")
    await queue.finish("w", job.attempt, job.id, [sample_image(job)])
    os.utime(root / "images" / job.id, (at, at))
    return job.id


async def test_pictures_go_with_their_record(store: LocalImageStore, queue: JobQueue, redis: Redis, tmp_path: Path) -> None:
    kept = await drawn(store, queue, tmp_path, LONG_AGO)
    expired = await drawn(store, queue, tmp_path, LONG_AGO)
    shared = await drawn(store, queue, tmp_path, LONG_AGO + 2)  # a younger job may show the same ones
    await redis.delete(f"{{q0}}:j:{expired}", f"{{q0}}:j:{shared}")
    assert await sweep(store, queue, retention_s=RETENTION_S, now=NOW) == 1
    assert sorted(p.name for p in (tmp_path / "images").iterdir() if not p.name.startswith(".")) == sorted([kept, shared])
    assert await sweep(store, queue, retention_s=RETENTION_S, now=NOW) == 0
    assert await sweep(store, queue, retention_s=RETENTION_S, now=NOW + 2) == 1


async def test_a_job_that_still_runs_keeps_what_it_has_drawn(store: LocalImageStore, queue: JobQueue, tmp_path: Path) -> None:
    await queue.submit(sample_job())
    (job,) = await queue.claim("w", [MODEL], 1)
    await store.put(image_key(job.id, 1, 0, "png"), b"x")
    os.utime(tmp_path / "images" / job.id, (LONG_AGO, LONG_AGO))
    assert await sweep(store, queue, retention_s=RETENTION_S, now=NOW) == 0


async def test_a_gateway_sweeps_when_it_starts(redis_url: str, tmp_path: Path) -> None:
    store = LocalImageStore(tmp_path / "images")
    await store.put(image_key("gone", 1, 0, "png"), b"x")
    os.utime(tmp_path / "images" / "gone", (1000, 1000))
    with running(redis_url, tmp_path, card()) as live:
        until = time.monotonic() + 20
        while (tmp_path / "images" / "gone").exists() and time.monotonic() < until:
            assert live.http.get("/healthz").status_code == 200
        assert not (tmp_path / "images" / "gone").exists()
        assert_error(live.http.get("/jobs/gone"), 404, "job_not_found")
