"""Events can be followed live, resumed after any id, and always end with the terminal one."""

from __future__ import annotations

import asyncio

import pytest
from redis.asyncio import Redis

from jobs.events import Event, EventLog
from jobs.job import Job
from jobs.job_queue import JobQueue
from tests.job_samples import MODEL, sample_job


async def running(queue: JobQueue, steps_total: int = 20) -> Job:
    await queue.submit(sample_job(steps_total=steps_total))
    [job] = await queue.claim("w1", [MODEL], 1)
    return job


@pytest.fixture
def log(redis: Redis) -> EventLog:
    return EventLog(redis)


async def test_replay_after_any_id_misses_nothing(queue: JobQueue, log: EventLog) -> None:
    job = await running(queue)
    for step in range(1, 20):
        await queue.progress("w1", 1, job.id, step)
    await queue.finish("w1", 1, job.id, [])
    events = await log.read(job.id)
    assert len(events) == 22
    assert [e.terminal for e in events] == [False] * 21 + [True]
    for n, event in enumerate(events):
        assert await log.read(job.id, after=event.id) == events[n + 1 :]
        assert await log.read(job.id, after=event.id, block_ms=1, count=2) == events[n + 1 : n + 3]


async def test_a_follower_is_woken_by_the_next_event(queue: JobQueue, log: EventLog) -> None:
    job = await running(queue)
    seen = (await log.read(job.id))[-1].id
    following = asyncio.create_task(log.read(job.id, after=seen, block_ms=2000))
    await queue.progress("w1", 1, job.id, 4)
    [event] = await asyncio.wait_for(following, 1.5)
    assert (event.type, event.data) == ("progress", {"steps_done": 4, "steps_total": 20, "attempt": 1})


async def test_waiting_ends_without_an_event(queue: JobQueue, log: EventLog) -> None:
    job = await running(queue)
    [*_, last] = await log.read(job.id)
    assert await log.read(job.id, after=last.id, block_ms=10) == []
    assert await log.read("unknown") == await log.read("unknown", block_ms=10) == []


async def test_only_the_newest_preview_is_kept(queue: JobQueue, log: EventLog, redis: Redis) -> None:
    job = await running(queue)
    await queue.progress("w1", 1, job.id, 1, preview="data:one")
    await queue.progress("w1", 1, job.id, 2, preview="data:two")
    await queue.progress("w1", 1, job.id, 2, preview="data:three")
    await queue.progress("w1", 1, job.id, 3)
    assert [previews(e) for e in (await log.read(job.id))[2:]] == [None, None, "data:three", None]
    await queue.finish("w1", 1, job.id, [])
    assert [previews(e) for e in (await log.read(job.id))[2:]] == [None] * 5
    assert await redis.keys("{q0}:p:*") == []


async def test_previews_at_named_steps_are_all_kept_and_outlive_the_job(queue: JobQueue, log: EventLog, redis: Redis) -> None:
    job = (await queue.submit(sample_job(preview_steps=(5, 10)))).job
    assert job.preview_steps == (5, 10)
    await queue.claim("w1", ["toy"], 1)
    for step in (5, 7, 10):
        await queue.progress("w1", 1, job.id, step, preview=f"data:{step}", preview_at=step if step != 7 else None)
    assert await queue.finish("w1", 1, job.id, [])
    told = [(e.data.get("preview_at"), e.data.get("preview")) for e in (await log.read(job.id))[2:]]
    assert told == [(5, "data:5"), (None, None), (10, "data:10"), (None, None)]
    assert 0 < await redis.ttl(f"{{q0}}:p:{job.id}") <= 60


@pytest.mark.parametrize("steps", [(0,), (20,), (3, 3), (5, 4), tuple(range(1, 10))])
async def test_previews_at_steps_that_cannot_be_are_refused(queue: JobQueue, steps: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="Previews"):
        await queue.submit(sample_job(preview_steps=steps))


def previews(event: Event) -> object:
    return event.data.get("preview")


async def test_a_repeated_report_is_no_event(queue: JobQueue, log: EventLog) -> None:
    job = await running(queue)
    for step in (3, 3, 2):
        await queue.progress("w1", 1, job.id, step)
    assert [e.type for e in await log.read(job.id)] == ["queued", "started", "progress"]


async def test_the_stream_is_capped_and_keeps_its_end(queue: JobQueue, log: EventLog, redis: Redis) -> None:
    job = await running(queue, steps_total=2000)
    for step in range(1, 1500):
        await queue.progress("w1", 1, job.id, step)
    await queue.finish("w1", 1, job.id, [])
    assert 1000 <= await redis.xlen("{q0}:e:" + job.id) < 1200
    [*_, last] = await log.read(job.id, count=5000)
    assert last.type == "succeeded"


@pytest.mark.parametrize("after", ["x", "1-", "-1", "1-2-3", "1 ", "٣", "$", "9" * 40])
async def test_what_is_no_event_id_is_refused(log: EventLog, after: str) -> None:
    with pytest.raises(ValueError, match="not an event id"):
        await log.read("job", after=after)
