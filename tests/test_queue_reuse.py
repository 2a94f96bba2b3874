"""One computation for equal requests of one client: single flight while it runs, its result for an hour after."""

from __future__ import annotations

import pytest
from redis.asyncio import Redis

from jobs.events import EventLog
from jobs.job import Job, JobError, JobStatus, JobWarning
from jobs.job_queue import JobQueue, QueueFull
from tests.job_samples import MODEL, Clock, sample_image, sample_job

QUEUED, SUCCEEDED, CANCELED = JobStatus.QUEUED, JobStatus.SUCCEEDED, JobStatus.CANCELED


async def asked(queue: JobQueue, client: str = "ada", print_: str = "f", deadline_s: float | None = None, **fields: object) -> Job:
    job = sample_job(client, **{"reuse": True, **fields})  # type: ignore[arg-type]
    submitted = await queue.submit(job, reuse_fingerprint=print_, deadline_s=deadline_s)
    assert submitted.created
    return submitted.job


async def states(queue: JobQueue, *jobs: Job) -> list[JobStatus]:
    return [found.status for job in jobs if (found := await queue.get(job.id))]


async def run_all(queue: JobQueue, worker: str = "w1") -> list[Job]:
    """What there is to run, run to its end."""
    jobs = await queue.claim(worker, [MODEL], 99)
    for job in jobs:
        assert await queue.finish(worker, job.attempt, job.id, [sample_image(job)], [JobWarning("late", "Found while drawing.")])
    return jobs


@pytest.mark.parametrize("running", [False, True])
async def test_equal_requests_share_one_run(queue: JobQueue, redis: Redis, running: bool) -> None:
    leader = await asked(queue)
    held = await queue.claim("w1", [MODEL], 9) if running else []
    followers = [await asked(queue) for _ in range(3)]
    assert await states(queue, *followers) == [QUEUED] * 3
    assert (await queue.depth())["queued"] == 4 - len(held)
    assert await queue.position(followers[0].id) == (None if running else 0)
    if running:
        assert await queue.claim("w2", [MODEL], 9) == []
        assert await queue.finish("w1", 1, leader.id, [sample_image(leader)])
    else:
        assert [job.id for job in await run_all(queue)] == [leader.id]
    for job in followers:
        done = await queue.get(job.id)
        assert done is not None
        assert (done.status, done.images, done.steps_done, done.attempt) == (SUCCEEDED, (sample_image(leader),), 20, 0)
        assert [e.type for e in await EventLog(redis).read(job.id)] == ["queued", "succeeded"]
    assert await queue.depth() == {"queued": 0, "running": 0}
    assert await redis.exists("{q0}:f:" + leader.id, "{q0}:queued") == 0


async def test_only_equal_requests_of_one_client_that_wish_it(queue: JobQueue) -> None:
    jobs = [await asked(queue), await asked(queue, "bob"), await asked(queue, print_="g"), await asked(queue, reuse=False)]
    other = await queue.submit(sample_job(reuse=True))  # without a fingerprint nothing is equal
    assert {job.id for job in await run_all(queue)} == {*(job.id for job in jobs), other.job.id}


async def test_a_result_is_answered_again_at_once(queue: JobQueue, redis: Redis) -> None:
    first = await asked(queue)
    await run_all(queue)
    again = await asked(queue)
    assert (again.status, again.images, again.finished_at) == (SUCCEEDED, (sample_image(first),), again.created_at)
    assert again.warnings == (JobWarning("late", "Found while drawing."),)
    assert 80_000 < await redis.ttl("{q0}:j:" + again.id) <= 86_400
    assert await queue.depth() == {"queued": 0, "running": 0}
    assert 3590 < await redis.ttl("{q0}:same:ada:f") <= 3600  # of the run, not of the answer


async def test_an_erased_or_expired_result_is_drawn_again(queue: JobQueue, redis: Redis) -> None:
    first = await asked(queue)
    await run_all(queue)
    await queue.erase_images(first.id)
    second = await asked(queue)
    assert [job.id for job in await run_all(queue)] == [second.id]
    await redis.delete("{q0}:j:" + second.id)
    third = await asked(queue)
    assert [job.id for job in await run_all(queue)] == [third.id]


async def test_the_cache_is_bounded(queue: JobQueue, redis: Redis) -> None:
    await asked(queue, print_="oldest")
    await run_all(queue)
    await redis.zadd("{q0}:results", {f"{{q0}}:same:x:{n}": 9e9 for n in range(9_999)})
    await asked(queue, print_="newest")
    await run_all(queue)
    assert await redis.zcard("{q0}:results") == 10_000
    assert await redis.exists("{q0}:same:ada:oldest") == 0
    assert await redis.exists("{q0}:same:ada:newest") == 1


async def test_a_follower_survives_the_cancel_of_a_queued_leader(queue: JobQueue) -> None:
    leader, first, second = [await asked(queue) for _ in range(3)]
    later = await queue.submit(sample_job())
    await queue.cancel(leader.id)
    assert await states(queue, leader, first, second) == [CANCELED, QUEUED, QUEUED]
    assert [job.id for job in await run_all(queue)] == [first.id, later.job.id]  # at the leader's place
    assert await states(queue, first, second) == [SUCCEEDED, SUCCEEDED]


@pytest.mark.parametrize("how", ["cancel_running", "release", "reap"])
async def test_a_follower_survives_the_cancel_of_a_running_leader(queue: JobQueue, clock: Clock, how: str) -> None:
    leader, first, second = [await asked(queue) for _ in range(3)]
    await queue.claim("w1", [MODEL], 1)
    await queue.checkpoint("w1", 1, leader.id, b"state", [sample_image(leader)], steps_done=9)
    await queue.cancel(leader.id)
    if how == "reap":
        await clock.advance(15)
        await queue.reap()
    else:
        assert await getattr(queue, how)("w1", 1, leader.id)
    assert await states(queue, leader, first, second) == [CANCELED, QUEUED, QUEUED]
    assert await queue.load_checkpoint(first.id) is None  # the worker that stopped deletes those images
    assert [job.id for job in await run_all(queue)] == [first.id]
    assert await states(queue, first, second) == [SUCCEEDED, SUCCEEDED]


async def test_nobody_follows_a_job_that_is_about_to_be_canceled(queue: JobQueue) -> None:
    leader = await asked(queue)
    await queue.claim("w1", [MODEL], 1)
    await queue.cancel(leader.id)
    new = await asked(queue)
    assert [job.id for job in await queue.claim("w2", [MODEL], 1)] == [new.id]
    await queue.cancel_running("w1", 1, leader.id)
    follower = await asked(queue)
    assert await queue.finish("w2", 1, new.id, [sample_image(new)])
    assert await states(queue, follower) == [SUCCEEDED]


async def test_a_follower_can_be_canceled_alone(queue: JobQueue, redis: Redis) -> None:
    leader, first, second = [await asked(queue) for _ in range(3)]
    await queue.cancel(first.id)
    assert await states(queue, leader, first, second) == [QUEUED, CANCELED, QUEUED]
    assert await queue.position(first.id) is None
    assert await redis.hgetall("{q0}:queued") == {"ada": "2"}
    assert [job.id for job in await run_all(queue)] == [leader.id]
    assert await states(queue, leader, first, second) == [SUCCEEDED, CANCELED, SUCCEEDED]


async def test_a_failure_is_shared_and_not_kept(queue: JobQueue) -> None:
    leader, follower = await asked(queue), await asked(queue)
    await queue.claim("w1", [MODEL], 1)
    error = JobError("broken", "It broke.")
    await queue.fail("w1", 1, leader.id, error)
    failed = await queue.get(follower.id)
    assert failed is not None and (failed.status, failed.error) == (JobStatus.FAILED, error)
    again = await asked(queue)
    assert [job.id for job in await run_all(queue)] == [again.id]


async def test_the_deadline_of_one_is_not_that_of_the_others(queue: JobQueue, clock: Clock) -> None:
    leader = await asked(queue, deadline_s=5)
    hasty = await asked(queue, deadline_s=3)
    patient = await asked(queue)
    for seconds, ends in ((3, [QUEUED, JobStatus.FAILED, QUEUED]), (2, [JobStatus.FAILED, JobStatus.FAILED, QUEUED])):
        await clock.advance(seconds)
        assert await queue.reap() == 1
        assert await states(queue, leader, hasty, patient) == ends
    assert [job.id for job in await run_all(queue)] == [patient.id]


async def test_nobody_waits_for_a_job_of_a_lower_class(queue: JobQueue) -> None:
    slow = await asked(queue, service_class="batch")
    fast = await asked(queue, service_class="interactive")
    follower = await asked(queue)
    assert [job.id for job in await queue.claim("w1", [MODEL], 1)] == [fast.id]
    await queue.finish("w1", 1, fast.id, [sample_image(fast)])
    assert await states(queue, slow, follower) == [QUEUED, SUCCEEDED]


async def test_followers_count_in_the_bounds_of_the_queue(redis: Redis) -> None:
    queue = JobQueue(redis, max_queued=3)
    await asked(queue)
    await asked(queue)
    await asked(queue, print_="g")
    with pytest.raises(QueueFull):
        await asked(queue)
    await run_all(queue)
    assert (await asked(queue)).status is SUCCEEDED


async def test_one_job_has_a_bounded_number_of_followers(queue: JobQueue) -> None:
    for _ in range(102):
        await asked(queue)
    jobs = await run_all(queue)
    assert len(jobs) == 2
    assert await queue.depth() == {"queued": 0, "running": 0}
