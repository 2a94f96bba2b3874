"""Each move of the queue on a real server: what it changes, and that it changes nothing for whoever has no right to it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from redis.asyncio import Redis

from jobs.events import EventLog
from jobs.job import Job, JobError, JobStatus, JobWarning
from jobs.job_queue import IdempotencyConflict, JobGone, JobQueue, QueueFull, Standing, connect
from tests.job_samples import MODEL, Clock, sample_image, sample_job

BROKEN = JobError("out_of_memory", "The picture did not fit.", retryable=True)


async def claimed(queue: JobQueue, job: Job | None = None, worker: str = "w1") -> Job:
    """One job, submitted and claimed."""
    await queue.submit(job or sample_job())
    [running] = await queue.claim(worker, [MODEL], 1)
    return running


async def test_submit_keeps_the_record_and_sets_server_time(queue: JobQueue, clock: Clock) -> None:
    job = sample_job(created_at=5.0)
    submitted = await queue.submit(job)
    assert submitted.created
    assert submitted.job == await queue.get(job.id)
    assert submitted.job.created_at == clock.now
    assert submitted.job.params == job.params
    assert await queue.depth() == {"queued": 1, "running": 0}


async def test_submit_of_the_same_id_is_one_job(queue: JobQueue) -> None:
    job = sample_job()
    await queue.submit(job)
    assert not (await queue.submit(job)).created
    assert (await queue.depth())["queued"] == 1


async def test_names_that_keys_cannot_hold_are_refused(queue: JobQueue) -> None:
    for job in (sample_job("a:b"), sample_job(model="m@2"), sample_job(model=""), sample_job(priority=901)):
        with pytest.raises(ValueError, match=r"key|Priority"):
            await queue.submit(job)
    assert (await queue.depth())["queued"] == 0


async def test_idempotency_key_gives_the_first_job(queue: JobQueue, redis: Redis) -> None:
    first, second = sample_job(), sample_job()
    await queue.submit(first, idempotency_key="k", fingerprint="f")
    again = await queue.submit(second, idempotency_key="k", fingerprint="f")
    assert (again.created, again.job.id) == (False, first.id)
    assert await queue.get(second.id) is None
    assert 86_000 < await redis.ttl("{q0}:idem:ada:k") <= 86_400
    other = await queue.submit(sample_job("bob"), idempotency_key="k", fingerprint="f")
    assert other.created  # keys belong to their client


async def test_a_key_whose_job_has_expired_makes_no_second_one(queue: JobQueue, redis: Redis) -> None:
    """The time of keeping may be shorter than that of the key. After a failover that forgot the job, it is made again."""
    first = sample_job()
    await queue.submit(first, idempotency_key="k", fingerprint="f")
    await queue.cancel(first.id)
    await redis.delete("{q0}:j:" + first.id)  # as the server does when the time has come
    with pytest.raises(JobGone):
        await queue.submit(sample_job(), idempotency_key="k", fingerprint="f")
    with pytest.raises(IdempotencyConflict):
        await queue.submit(sample_job(), idempotency_key="k", fingerprint="g")
    assert (await queue.depth())["queued"] == 0
    await redis.delete("{q0}:t:" + first.id)
    assert (await queue.submit(sample_job(), idempotency_key="k", fingerprint="f")).created


async def test_idempotency_key_with_another_request_is_a_conflict(queue: JobQueue) -> None:
    await queue.submit(sample_job(), idempotency_key="k", fingerprint="f")
    with pytest.raises(IdempotencyConflict):
        await queue.submit(sample_job(), idempotency_key="k", fingerprint="g")
    assert (await queue.depth())["queued"] == 1


async def test_many_submits_with_one_key_at_once_are_one_job(queue: JobQueue) -> None:
    results = await asyncio.gather(*(queue.submit(sample_job(), idempotency_key="k") for _ in range(20)))
    assert [r.created for r in results].count(True) == 1
    assert len({r.job.id for r in results}) == 1


async def test_a_full_queue_refuses_new_jobs_but_knows_old_ones(redis: Redis, clock: Clock) -> None:
    queue = JobQueue(redis, max_queued=2)
    await queue.submit(sample_job(), idempotency_key="k")
    await clock.advance(30)
    await queue.submit(sample_job())
    with pytest.raises(QueueFull) as full:
        await queue.submit(sample_job())
    assert full.value.retry_after_s == 1
    assert not (await queue.submit(sample_job(), idempotency_key="k")).created
    await queue.claim("w1", [MODEL], 1)
    assert (await queue.submit(sample_job())).created


async def test_claim_leases_and_marks(queue: JobQueue, redis: Redis, clock: Clock) -> None:
    job = await claimed(queue)
    assert (job.status, job.worker, job.attempt, job.started_at) == (JobStatus.RUNNING, "w1", 1, clock.now)
    assert await redis.zscore("{q0}:lease", job.id) == clock.now + 15
    assert await queue.depth() == {"queued": 0, "running": 1}
    assert await queue.claim("w2", [MODEL], 1) == []


async def test_claim_keeps_to_models_limit_and_schema(queue: JobQueue) -> None:
    for model in ("a", "a", "a", "b"):
        await queue.submit(sample_job(model=model))
    await queue.submit(sample_job(model="a", schema=2))
    assert [j.params.model for j in await queue.claim("w1", ["b", "c"], 9)] == ["b"]
    assert len(await queue.claim("w1", ["a"], 2)) == 2
    assert await queue.claim("w1", ["a"], 0) == []
    assert len(await queue.claim("w1", ["a", "b"], 9)) == 1
    assert (await queue.depth())["queued"] == 1  # the newer record is left alone


async def test_priority_goes_before_order(queue: JobQueue) -> None:
    jobs = [sample_job(priority=p) for p in (0, -1, 5, 0, 900)]
    for job in jobs:
        await queue.submit(job)
    assert [await queue.position(job.id) for job in jobs] == [2, 4, 1, 3, 0]
    assert [j.priority for j in await queue.claim("w1", [MODEL], 9)] == [900, 5, 0, 0, -1]
    assert await queue.position(jobs[0].id) is None
    assert await queue.position("unknown") is None


async def test_progress_counts_up_only(queue: JobQueue) -> None:
    job = await claimed(queue)
    for reported, kept in ((5, 5), (3, 5), (99, 20)):
        assert await queue.progress("w1", 1, job.id, reported) is Standing.HELD
        assert (await queue.get(job.id) or job).steps_done == kept


async def test_finish_records_images_once(queue: JobQueue, redis: Redis, clock: Clock) -> None:
    job = await claimed(queue)
    images = (sample_image(job), sample_image(job, index=1))
    assert await queue.finish("w1", 1, job.id, images)
    done = await queue.get(job.id)
    assert done is not None
    assert (done.status, done.images, done.steps_done, done.finished_at) == (JobStatus.SUCCEEDED, images, 20, clock.now)
    assert await queue.finish("w1", 1, job.id, [])  # the worker that lost our answer asks again
    assert await queue.get(job.id) == done
    assert not await queue.fail("w1", 1, job.id, BROKEN)
    assert await queue.depth() == {"queued": 0, "running": 0}
    assert [key for key in await redis.keys("{q0}:w:*")] == []


async def test_warnings_found_while_drawing_join_those_of_the_submit(queue: JobQueue) -> None:
    early, late = JobWarning("size", "Larger than trained."), JobWarning("prompt_truncated", "„Äpfel“ were cut.")
    for known, found in (((early,), (late,)), ((), (late,)), ((early,), ()), ((), ())):
        job = await claimed(queue, sample_job(warnings=known))
        await queue.finish("w1", 1, job.id, [], found)
        assert (await queue.get(job.id) or job).warnings == (*known, *found)


async def test_fail_keeps_the_reason(queue: JobQueue) -> None:
    job = await claimed(queue)
    assert await queue.fail("w1", 1, job.id, BROKEN)
    assert await queue.fail("w1", 1, job.id, BROKEN)
    failed = await queue.get(job.id)
    assert failed is not None
    assert (failed.status, failed.error) == (JobStatus.FAILED, BROKEN)


async def test_ended_jobs_expire_and_running_ones_do_not(redis: Redis) -> None:
    queue = JobQueue(redis, retention_s=100)
    job = await claimed(queue)
    keys = ["{q0}:j:" + job.id, "{q0}:e:" + job.id]
    assert [await redis.ttl(key) for key in keys] == [-1, -1]
    await queue.finish("w1", 1, job.id, [])
    assert all([90 < await redis.ttl(key) <= 100 for key in keys])


Move = Callable[[JobQueue, str, int, str], Awaitable[object]]
MOVES: dict[str, Move] = {
    "progress": lambda q, worker, attempt, id_: q.progress(worker, attempt, id_, 9, preview="data:,"),
    "finish": lambda q, worker, attempt, id_: q.finish(worker, attempt, id_, []),
    "fail": lambda q, worker, attempt, id_: q.fail(worker, attempt, id_, BROKEN),
    "release": lambda q, worker, attempt, id_: q.release(worker, attempt, id_),
    "cancel_running": lambda q, worker, attempt, id_: q.cancel_running(worker, attempt, id_),
}


@pytest.mark.parametrize("move", MOVES)
async def test_a_zombie_changes_nothing(queue: JobQueue, redis: Redis, clock: Clock, move: str) -> None:
    """The first worker slept through its lease; the second holds the job when the first wakes up."""
    job = await claimed(queue)
    await clock.advance(15)
    assert await queue.reap() == 1
    await queue.cancel((await queue.claim("w2", [MODEL], 1))[0].id)
    before = await state(redis, job.id)
    for worker, attempt in (("w1", 1), ("w1", 2), ("w2", 1), ("w3", 2), ("", 2)):
        assert not await MOVES[move](queue, worker, attempt, job.id)
    assert not await MOVES[move](queue, "w2", 2, "unknown")
    assert await state(redis, job.id) == before
    assert (await queue.renew("w1", {job.id: 1})).lost == {job.id}
    assert await MOVES[move](queue, "w2", 2, job.id)


@pytest.mark.parametrize("move", MOVES)
async def test_nothing_moves_a_queued_job(queue: JobQueue, redis: Redis, move: str) -> None:
    job = sample_job()
    await queue.submit(job)
    before = await state(redis, job.id)
    for worker, attempt in (("", 0), ("w1", 0), ("w1", 1)):
        assert not await MOVES[move](queue, worker, attempt, job.id)
    assert await state(redis, job.id) == before


async def state(redis: Redis, job_id: str) -> tuple[object, ...]:
    """All that a move could change of a job."""
    kinds = (redis.hgetall, redis.xrange, redis.hgetall)
    parts = [await read("{q0}:" + name + ":" + job_id) for name, read in zip("jep", kinds, strict=True)]
    return (*parts, await redis.zrange("{q0}:lease", 0, -1, withscores=True), sorted(await redis.smembers("{q0}:pending")))


async def test_erase_forgets_images_of_ended_jobs_only(queue: JobQueue) -> None:
    job = await claimed(queue)
    assert await queue.erase_images("unknown") is None
    running = await queue.erase_images(job.id)
    assert running is not None and running.status is JobStatus.RUNNING
    await queue.finish("w1", 1, job.id, [sample_image(job)])
    erased = await queue.erase_images(job.id)
    assert erased is not None and erased.images == () and erased.status is JobStatus.SUCCEEDED


async def test_scripts_are_loaded_again_when_the_server_forgot_them(queue: JobQueue, redis: Redis) -> None:
    await queue.submit(sample_job())
    await redis.script_flush()
    assert len(await queue.claim("w1", [MODEL], 1)) == 1


async def test_claims_at_once_never_give_one_job_twice(queue: JobQueue, redis_url: str) -> None:
    ids = {(await queue.submit(sample_job(f"client-{i % 7}"))).job.id for i in range(200)}
    clients = [connect(redis_url) for _ in range(5)]
    claims = (JobQueue(clients[i % 5]).claim(f"w{i % 5}", [MODEL], 1) for i in range(220))
    got = [job.id for jobs in await asyncio.gather(*claims) for job in jobs]
    for client in clients:
        await client.aclose()
    assert len(got) == 200
    assert set(got) == ids


async def test_an_idle_worker_wakes_up_for_its_model_only(queue: JobQueue, redis: Redis) -> None:
    waiting = asyncio.create_task(queue.wait_for_work([MODEL, "other"], 2.0))
    await queue.submit(sample_job(model="third"))
    await queue.submit(sample_job())
    await asyncio.wait_for(waiting, 1.0)
    assert await redis.llen("{q0}:wake:third") == 1
    for _ in range(300):
        await queue.submit(sample_job())
    assert await redis.llen(f"{{q0}}:wake:{MODEL}") == 256  # bounded
    await queue.claim("w1", [MODEL], 400)
    assert await redis.llen(f"{{q0}}:wake:{MODEL}") == 0  # nothing to wake up for


async def test_events_tell_the_whole_story(queue: JobQueue, redis: Redis) -> None:
    job = await claimed(queue)
    await queue.progress("w1", 1, job.id, 7)
    await queue.release("w1", 1, job.id)
    await queue.claim("w2", [MODEL], 1)
    await queue.finish("w2", 2, job.id, [])
    events = await EventLog(redis).read(job.id)
    told = [(e.type, e.data["steps_done"], e.data["attempt"]) for e in events]
    assert told == [("queued", 0, 0), ("started", 0, 1), ("progress", 7, 1), ("requeued", 0, 1), ("started", 0, 2), ("succeeded", 20, 2)]
