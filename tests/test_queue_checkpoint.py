"""Checkpoints: what a job has behind it outlives its worker, and only a job that gets nowhere is given up."""

from __future__ import annotations

import pytest
from redis.asyncio import Redis

from jobs.events import EventLog
from jobs.job import Job, JobStatus
from jobs.job_queue import CheckpointTooLarge, JobQueue
from tests.job_samples import MODEL, Clock, sample_image, sample_job

STATE = bytes(range(256)) * 4  # no text in any encoding


async def started(queue: JobQueue, worker: str = "w1", **fields: object) -> Job:
    await queue.submit(sample_job(**fields))  # type: ignore[arg-type]
    [job] = await queue.claim(worker, [MODEL], 1)
    return job


async def lost(queue: JobQueue, clock: Clock) -> None:
    await clock.advance(15)
    assert await queue.reap() == 1


async def test_state_and_images_survive_into_the_next_attempt(queue: JobQueue, clock: Clock) -> None:
    job = await started(queue)
    images = (sample_image(job), sample_image(job, index=1))
    assert await queue.load_checkpoint(job.id) is None
    assert await queue.checkpoint("w1", 1, job.id, STATE, images, steps_done=12)
    await queue.progress("w1", 1, job.id, 15)
    await lost(queue, clock)
    [again] = await queue.claim("w2", [MODEL], 1)
    assert (again.id, again.attempt, again.steps_done) == (job.id, 2, 12)
    kept = await queue.load_checkpoint(job.id)
    assert kept is not None
    assert (kept.data, kept.images, kept.attempt, kept.steps_done) == (STATE, images, 1, 12)
    assert await queue.finish("w2", 2, job.id, images)
    assert await queue.load_checkpoint(job.id) is None


async def test_the_newest_checkpoint_counts_and_an_older_one_changes_nothing(queue: JobQueue) -> None:
    job = await started(queue)
    for steps, data in ((5, b"a"), (9, b"b"), (7, b"late")):
        assert await queue.checkpoint("w1", 1, job.id, data, steps_done=steps)
    kept = await queue.load_checkpoint(job.id)
    assert kept is not None and (kept.data, kept.steps_done) == (b"b", 9)


async def test_steps_are_those_last_reported_unless_given(queue: JobQueue) -> None:
    job = await started(queue)
    await queue.progress("w1", 1, job.id, 6)
    await queue.checkpoint("w1", 1, job.id, STATE)
    kept = await queue.load_checkpoint(job.id)
    assert kept is not None and kept.steps_done == 6


async def test_a_checkpoint_is_bounded_and_expires(redis: Redis) -> None:
    queue = JobQueue(redis, max_checkpoint_bytes=1000, checkpoint_s=50)
    job = await started(queue)
    with pytest.raises(CheckpointTooLarge):
        await queue.checkpoint("w1", 1, job.id, b"x" * 1001)
    assert await redis.exists("{q0}:k:" + job.id) == 0
    assert await queue.checkpoint("w1", 1, job.id, b"x" * 1000, steps_done=10)
    assert 40 < await redis.ttl("{q0}:k:" + job.id) <= 50
    await queue.release("w1", 1, job.id)
    await redis.delete("{q0}:k:" + job.id)  # as its time was over
    [again] = await queue.claim("w2", [MODEL], 1)
    assert again.steps_done == 0
    assert await queue.load_checkpoint(job.id) is None


@pytest.mark.parametrize("reason", ["released", "paused"])
async def test_release_keeps_checkpoint_place_and_honour(queue: JobQueue, redis: Redis, reason: str) -> None:
    job = await started(queue)
    await queue.submit(sample_job())
    await queue.checkpoint("w1", 1, job.id, STATE, steps_done=8)
    await queue.progress("w1", 1, job.id, 11)
    assert await queue.release("w1", 1, job.id, reason=reason)
    event = (await EventLog(redis).read(job.id))[-1]
    assert (event.type, event.data["reason"], event.data["steps_done"]) == ("requeued", reason, 8)
    [again] = await queue.claim("w2", [MODEL], 1)
    assert (again.id, again.steps_done, again.failures, again.pauses) == (job.id, 8, 0, int(reason == "paused"))


async def test_other_reasons_to_release_are_refused(queue: JobQueue) -> None:
    job = await started(queue)
    with pytest.raises(ValueError, match="bored"):
        await queue.release("w1", 1, job.id, reason="bored")


async def test_a_job_that_gets_on_is_never_given_up(queue: JobQueue, clock: Clock) -> None:
    """Its workers die again and again, but each of them leaves it further than it was."""
    job = await started(queue, "w1")
    for n in range(1, 11):
        assert await queue.checkpoint(f"w{n}", n, job.id, STATE, steps_done=2 * n)
        await lost(queue, clock)
        [job] = await queue.claim(f"w{n + 1}", [MODEL], 1)
        assert (job.failures, job.steps_done) == (1, 2 * n)
    assert [loss.attempt for loss in job.losses] == list(range(1, 11))


async def test_a_checkpoint_without_progress_excuses_nothing(queue: JobQueue, clock: Clock) -> None:
    """A job that kills its workers right after it was restored comes to the dead letters all the same."""
    job = await started(queue, "w1")
    await queue.checkpoint("w1", 1, job.id, STATE, steps_done=10)
    for n in range(1, 6):
        await lost(queue, clock)
        claimed = await queue.claim(f"w{n + 1}", [MODEL], 1)
        if claimed:
            assert await queue.checkpoint(f"w{n + 1}", n + 1, job.id, STATE, steps_done=10)
    dead = await queue.get(job.id)
    assert dead is not None and (dead.status, dead.failures, dead.attempt) == (JobStatus.FAILED, 5, 5)


async def test_a_suspicious_job_is_cleared_by_progress(queue: JobQueue, clock: Clock) -> None:
    await started(queue, "w1")
    for n in (2, 3):
        await lost(queue, clock)
        [job] = await queue.claim(f"w{n}", [MODEL], 1)
    await queue.submit(sample_job())
    assert await queue.claim("w3", [MODEL], 1) == []  # it runs alone
    await queue.checkpoint("w3", 3, job.id, STATE, steps_done=1)
    assert len(await queue.claim("w3", [MODEL], 1)) == 1


@pytest.mark.parametrize("end", ["cancel_running", "reap"])
async def test_no_state_is_kept_of_a_job_that_has_ended(queue: JobQueue, redis: Redis, clock: Clock, end: str) -> None:
    job = await started(queue)
    await queue.checkpoint("w1", 1, job.id, STATE, steps_done=3)
    await queue.cancel(job.id)
    if end == "reap":
        await lost(queue, clock)
    else:
        assert await queue.cancel_running("w1", 1, job.id)
    assert await redis.exists("{q0}:k:" + job.id) == 0
    assert not await queue.checkpoint("w1", 1, job.id, STATE, steps_done=4)
    assert await redis.exists("{q0}:k:" + job.id) == 0
