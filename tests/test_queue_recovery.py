"""Leases, cancels and crashes: every job that was accepted ends, and ends once."""

from __future__ import annotations

import pytest
from redis.asyncio import Redis
from redis.exceptions import OutOfMemoryError

from jobs.events import EventLog
from jobs.job import Job, JobStatus
from jobs.job_queue import JobQueue, Standing
from tests.job_samples import MODEL, Clock, sample_image, sample_job


async def submitted(queue: JobQueue, **fields: object) -> Job:
    return (await queue.submit(sample_job(**fields))).job  # type: ignore[arg-type]


async def current(queue: JobQueue, job: Job) -> Job:
    found = await queue.get(job.id)
    assert found is not None
    return found


async def crash(queue: JobQueue, clock: Clock, job: Job, worker: str) -> None:
    """A worker takes the job and is never heard of again."""
    assert [j.id for j in await queue.claim(worker, [MODEL], 1)] == [job.id]
    await clock.advance(15)
    assert await queue.reap() == 1


async def test_a_renewed_lease_holds_and_a_lapsed_one_is_reaped(queue: JobQueue, clock: Clock) -> None:
    job = await submitted(queue)
    await queue.claim("w1", [MODEL], 1)
    await clock.advance(14.9)
    assert await queue.reap() == 0
    renewal = await queue.renew("w1", {job.id: 1, "unknown": 1})
    assert (renewal.lost, renewal.canceled) == ({"unknown"}, frozenset())
    await clock.advance(14.9)
    assert await queue.reap() == 0
    await clock.advance(0.1)
    assert await queue.reap() == 1
    again = await current(queue, job)
    assert (again.status, again.failures, again.worker, again.steps_done) == (JobStatus.QUEUED, 1, None, 0)
    assert await queue.reap() == 0


async def test_a_worker_that_is_late_but_not_reaped_still_holds(queue: JobQueue, clock: Clock) -> None:
    job = await submitted(queue)
    await queue.claim("w1", [MODEL], 1)
    await clock.advance(100)
    assert not (await queue.renew("w1", {job.id: 1})).lost
    assert await queue.reap() == 0
    assert await queue.finish("w1", 1, job.id, [])


@pytest.mark.parametrize("lost", [True, False])
async def test_a_job_that_comes_back_stands_at_the_front(queue: JobQueue, clock: Clock, lost: bool) -> None:
    first = await submitted(queue)
    await queue.claim("w1", [MODEL], 1)
    later = await submitted(queue)
    if lost:
        await clock.advance(15)
        await queue.reap()
    else:
        assert await queue.release("w1", 1, first.id)
    again = await queue.claim("w2", [MODEL], 2)
    assert [j.id for j in again] == [first.id, later.id]
    assert (again[0].attempt, again[0].failures, again[0].started_at) == (2, int(lost), 1_000_000.0)


async def test_cancel_of_a_queued_job_is_a_fact_at_once(queue: JobQueue, redis: Redis) -> None:
    job = await submitted(queue)
    canceled = await queue.cancel(job.id)
    assert canceled is not None and canceled.status is JobStatus.CANCELED
    assert await redis.exists(f"{{q0}}:ring:{MODEL}", f"{{q0}}:r:{MODEL}:ada") == 0
    assert await queue.claim("w1", [MODEL], 1) == []
    assert await queue.depth() == {"queued": 0, "running": 0}
    assert (await EventLog(redis).read(job.id))[-1].type == "canceled"
    assert await queue.cancel(job.id) == canceled


async def test_cancel_of_a_running_job_is_a_wish(queue: JobQueue) -> None:
    job = await submitted(queue)
    await queue.claim("w1", [MODEL], 1)
    assert not await queue.cancel_running("w1", 1, job.id)  # nobody wished it
    wished = await queue.cancel(job.id)
    assert wished is not None and wished.status is JobStatus.RUNNING and wished.cancel_requested
    assert (await queue.renew("w1", {job.id: 1})).canceled == {job.id}
    assert await queue.progress("w1", 1, job.id, 3) is Standing.CANCEL
    assert await queue.cancel_running("w1", 1, job.id)
    assert await queue.cancel_running("w1", 1, job.id)
    ended = await current(queue, job)
    assert (ended.status, ended.steps_done) == (JobStatus.CANCELED, 3)


async def test_a_result_that_arrives_after_the_wish_counts(queue: JobQueue) -> None:
    job = await submitted(queue)
    await queue.claim("w1", [MODEL], 1)
    await queue.cancel(job.id)
    assert await queue.finish("w1", 1, job.id, [sample_image(job)])
    ended = await queue.cancel(job.id)
    assert ended is not None and ended.status is JobStatus.SUCCEEDED and len(ended.images) == 1


@pytest.mark.parametrize("how", ["reap", "release"])
async def test_a_canceled_job_is_not_queued_again(queue: JobQueue, clock: Clock, how: str) -> None:
    job = await submitted(queue)
    await queue.claim("w1", [MODEL], 1)
    await queue.cancel(job.id)
    if how == "reap":
        await clock.advance(15)
        await queue.reap()
    else:
        assert await queue.release("w1", 1, job.id)
    assert (await current(queue, job)).status is JobStatus.CANCELED
    assert await queue.depth() == {"queued": 0, "running": 0}


async def test_cancel_of_an_unknown_job(queue: JobQueue) -> None:
    assert await queue.cancel("unknown") is None


async def test_a_job_that_kills_five_workers_has_failed(queue: JobQueue, redis: Redis, clock: Clock) -> None:
    job = await submitted(queue)
    for n in range(5):
        await crash(queue, clock, job, f"w{n}")
    dead = await current(queue, job)
    assert dead.error is not None
    assert (dead.status, dead.error.code, dead.failures, dead.attempt) == (JobStatus.FAILED, "worker_lost", 5, 5)
    last = (await EventLog(redis).read(job.id))[-1]
    assert (last.type, last.data["error"]["code"]) == ("failed", "worker_lost")
    assert await queue.claim("w9", [MODEL], 1) == []


async def test_a_wish_to_cancel_outweighs_the_last_crash(queue: JobQueue, clock: Clock) -> None:
    job = await submitted(queue)
    for n in range(4):
        await crash(queue, clock, job, f"w{n}")
    await queue.claim("w4", [MODEL], 1)
    await queue.cancel(job.id)
    await clock.advance(15)
    await queue.reap()
    ended = await current(queue, job)
    assert (ended.status, ended.error, ended.failures) == (JobStatus.CANCELED, None, 5)


async def test_after_two_crashes_a_job_runs_alone(queue: JobQueue, clock: Clock) -> None:
    suspect = await submitted(queue)
    for n in range(2):
        await crash(queue, clock, suspect, f"dead{n}")
    others = [await submitted(queue) for _ in range(3)]
    assert await queue.position(suspect.id) == 0
    assert [j.id for j in await queue.claim("w1", [MODEL], 9)] == [suspect.id]
    assert await queue.claim("w1", [MODEL], 9) == []  # nothing beside it
    assert len(await queue.claim("w2", [MODEL], 9)) == 3
    await queue.finish("w1", 3, suspect.id, [])
    await submitted(queue)
    assert len(await queue.claim("w1", [MODEL], 9)) == 1
    assert {(await current(queue, j)).worker for j in others} == {"w2"}


async def test_a_suspicious_job_does_not_starve_under_load(queue: JobQueue, clock: Clock) -> None:
    """No worker is ever idle, so one of them is kept from taking more until it is, and the others go on."""
    suspect = await submitted(queue)
    for n in range(2):
        await crash(queue, clock, suspect, f"dead{n}")
    await queue.cancel((await submitted(queue)).id)
    assert (await queue.claim("w0", [MODEL], 1))[0].id == suspect.id
    busy = [await submitted(queue) for _ in range(2)]
    assert [(await queue.claim(f"w{n}", [MODEL], 1))[0].id for n in (1, 2)] == [j.id for j in busy]
    await clock.advance(14)
    await queue.renew("w1", {busy[0].id: 1})
    await queue.renew("w2", {busy[1].id: 1})
    await clock.advance(1)
    assert await queue.reap() == 1  # w0 crashed as well
    await submitted(queue)
    assert await queue.claim("w1", [MODEL], 1) == []  # chosen to become idle
    assert len(await queue.claim("w2", [MODEL], 1)) == 1
    await queue.finish("w1", 1, busy[0].id, [])
    assert [j.id for j in await queue.claim("w1", [MODEL], 1)] == [suspect.id]


async def test_cancel_of_a_suspicious_job(queue: JobQueue, redis: Redis, clock: Clock) -> None:
    suspect = await submitted(queue)
    for n in range(2):
        await crash(queue, clock, suspect, f"dead{n}")
    await queue.cancel(suspect.id)
    assert await redis.exists(f"{{q0}}:alone:{MODEL}") == 0
    assert await queue.claim("w1", [MODEL], 1) == []
    assert await queue.depth() == {"queued": 0, "running": 0}


async def test_reap_leaves_newer_records_alone(queue: JobQueue, redis: Redis, clock: Clock) -> None:
    newer, ours = await submitted(queue, client="a"), await submitted(queue, client="b")
    await queue.claim("w1", [MODEL], 2)
    await redis.hset("{q0}:j:" + newer.id, "schema", "2")
    await clock.advance(15)
    assert await queue.reap() == 1
    assert (await current(queue, newer)).status is JobStatus.RUNNING
    assert (await current(queue, ours)).status is JobStatus.QUEUED


async def test_a_record_that_vanished_stops_nobody(queue: JobQueue, redis: Redis, clock: Clock) -> None:
    running, queued, last = [await submitted(queue, client=c) for c in "abc"]
    assert [j.id for j in await queue.claim("w1", [MODEL], 1)] == [running.id]
    await redis.delete("{q0}:j:" + running.id, "{q0}:j:" + queued.id)
    await clock.advance(15)
    assert await queue.reap() == 0
    assert [j.id for j in await queue.claim("w2", [MODEL], 9)] == [last.id]
    assert await queue.depth() == {"queued": 0, "running": 1}


async def test_a_server_out_of_memory_takes_no_job_and_loses_none(queue: JobQueue, redis: Redis, clock: Clock) -> None:
    accepted, lost = await submitted(queue), await submitted(queue)
    await redis.config_set("maxmemory", 1)
    try:
        before = await redis.dbsize()
        with pytest.raises(OutOfMemoryError):
            await submitted(queue)
        assert await redis.dbsize() == before
        assert len(await queue.claim("w1", [MODEL], 2)) == 2
        assert await queue.progress("w1", 1, accepted.id, 5)
        assert await queue.finish("w1", 1, accepted.id, [sample_image(accepted)])
    finally:
        await redis.config_set("maxmemory", 0)
    await clock.advance(15)
    assert await queue.reap() == 1
    assert [(await current(queue, j)).status for j in (accepted, lost)] == [JobStatus.SUCCEEDED, JobStatus.QUEUED]
