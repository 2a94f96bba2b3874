"""One computation for equal requests of one client: single flight while it runs, its result for an hour after."""

from __future__ import annotations

from typing import Any

import pytest
from redis.asyncio import Redis

from jobs.events import EventLog
from jobs.job import Job, JobError, JobStatus, JobWarning
from jobs.job_queue import DeadlineUnmeetable, JobQueue, QueueFull
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
    assert await queue.load_checkpoint(leader.id) is None
    kept = await queue.load_checkpoint(first.id)  # nothing that was done is done again
    assert kept is not None and (kept.data, kept.images, kept.steps_done) == (b"state", (sample_image(leader),), 9)
    [heir] = await queue.claim("w2", [MODEL], 9)
    assert (heir.id, heir.attempt, heir.steps_done) == (first.id, 1, 9)
    assert await queue.finish("w2", 1, first.id, [sample_image(first)])
    assert await states(queue, first, second) == [SUCCEEDED, SUCCEEDED]
    assert await queue.load_checkpoint(first.id) is None


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


def better(other: str) -> dict[str, Any]:
    """What a follower asks for, so that it would go before the job of somebody else on its own."""
    return {"priority": {"priority": 1}, "class": {"service_class": "normal"}, "deadline": {"deadline_s": 8}}[other]


PLACES = ["priority", "class", "deadline"]


async def led(queue: JobQueue) -> Job:
    """A leader of the batch class that stands behind a job of its client, which stands behind nobody."""
    await queue.submit(sample_job(id="other", service_class="batch"))
    return await asked(queue, service_class="batch")


@pytest.mark.parametrize("how", PLACES)
async def test_one_run_takes_the_best_place_of_all_who_wait_for_it(queue: JobQueue, clock: Clock, how: str) -> None:
    leader = await led(queue)
    plain = await asked(queue, service_class="batch")
    follower = await asked(queue, **{"service_class": "batch", **better(how)})
    assert [job.id for job in await queue.claim("w1", [MODEL], 1)] == [leader.id]
    assert [job.id for job in await queue.claim("w1", [MODEL], 9)] == ["other"], "one run for all of them"
    assert await queue.finish("w1", 1, leader.id, [sample_image(leader)])
    assert await states(queue, plain, follower) == [SUCCEEDED, SUCCEEDED]


@pytest.mark.parametrize("back", ["released", "paused", "reaped"])
@pytest.mark.parametrize("how", PLACES)
async def test_a_run_that_is_given_back_stands_there_too(queue: JobQueue, clock: Clock, how: str, back: str) -> None:
    """Also where the follower came while it ran; and it goes on from its checkpoint."""
    leader = await asked(queue, service_class="batch", priority=-1)
    await queue.claim("w1", [MODEL], 1)
    await queue.submit(sample_job(id="other", service_class="batch"))
    follower = await asked(queue, **{"service_class": "batch", **better(how) | ({"deadline_s": 25} if how == "deadline" else {})})
    assert await queue.checkpoint("w1", 1, leader.id, b"state", steps_done=9)
    await clock.advance(15)
    if back == "reaped":
        assert await queue.reap() == 1
    else:
        assert await queue.release("w1", 1, leader.id, reason=back)
    await queue.submit(sample_job("bob", service_class="batch"))
    [again] = await queue.claim("w2", [MODEL], 1)
    assert (again.id, again.steps_done) == (leader.id, 9)
    assert await queue.finish("w2", 2, leader.id, [sample_image(leader)])
    assert await states(queue, follower) == [SUCCEEDED]


@pytest.mark.parametrize("how", PLACES)
async def test_who_leaves_takes_the_better_place_along(queue: JobQueue, redis: Redis, clock: Clock, how: str) -> None:
    leader = await led(queue)
    before = await everything(redis, leader)
    follower = await asked(queue, **{"service_class": "batch", **better(how)})
    assert await everything(redis, leader) != before
    if how == "deadline":
        await clock.advance(8)
        assert await queue.reap() == 1
    else:
        await queue.cancel(follower.id)
    assert await everything(redis, leader) == before
    assert [job.id for job in await run_all(queue)] == ["other", leader.id]


async def everything(redis: Redis, leader: Job) -> dict[str, Any]:
    """Where the jobs stand, and what forecasts read."""
    sets = [key for key in await redis.keys("{q0}:*") if key.split(":")[1] in ("r", "slack", "ring", "deadline")]
    kept: dict[str, Any] = {key: await redis.zrange(key, 0, -1) for key in sorted(sets)}
    kept["pending"] = await redis.smembers("{q0}:pending")
    return kept | {key: await redis.hgetall(key) for key in ("{q0}:work", "{q0}:queued", "{q0}:ready")}


@pytest.mark.parametrize("follower", [{"service_class": "interactive"}, {"deadline_s": 60}])
async def test_a_run_that_somebody_urgent_waits_for_is_not_paused(queue: JobQueue, clock: Clock, follower: dict[str, Any]) -> None:
    leader = await asked(queue, service_class="batch")
    await queue.claim("w1", [MODEL], 1)
    await queue.submit(sample_job("bob", service_class="interactive"))
    assert (await queue.renew("w1", {leader.id: 1})).pausable == (leader.id,)
    await asked(queue, **{"service_class": "batch", **follower})
    assert (await queue.renew("w1", {leader.id: 1})).pausable == ()


async def test_a_follower_is_promised_what_is_left_of_its_leader(queue: JobQueue, clock: Clock) -> None:
    """20 evaluations take 10 s, 18 of them are done: it is not refused as if it began anew, nor promised too much."""
    await queue.report_cost(MODEL, 64, 64, 0.5)
    leader = await asked(queue)
    await queue.claim("w1", [MODEL], 1)
    await queue.progress("w1", 1, leader.id, 18)
    forecast = await queue.forecast(sample_job(reuse=True), deadline_s=2, reuse_fingerprint="f")
    assert (forecast.position, forecast.eta_s) == (0, pytest.approx(1.0))
    with pytest.raises(DeadlineUnmeetable) as refused:
        await asked(queue, deadline_s=0.9)
    assert refused.value.eta_s == pytest.approx(1.0)
    await asked(queue, deadline_s=1.1)
    await queue.checkpoint("w1", 1, leader.id, b"state", steps_done=18)
    await queue.release("w1", 1, leader.id)
    await asked(queue, deadline_s=1.1)  # given back, but what is done is done
    assert await queue.finish("w2", (await queue.claim("w2", [MODEL], 1))[0].attempt, leader.id, [sample_image(leader)])
    ready = await queue.forecast(sample_job(reuse=True), deadline_s=2, reuse_fingerprint="f")
    assert (ready.position, ready.eta_s) == (0, 0.0)


async def test_the_deadline_of_a_follower_ends_its_wait_and_not_the_run(queue: JobQueue, clock: Clock) -> None:
    """As with any job: one whose run has begun is not failed by its deadline, one that comes back late is."""
    leader = await asked(queue)
    follower = await asked(queue, deadline_s=5)
    await queue.claim("w1", [MODEL], 1)
    await clock.advance(6)
    assert await queue.reap() == 0
    assert await states(queue, leader, follower) == [JobStatus.RUNNING, QUEUED]
    await queue.release("w1", 1, leader.id)
    assert await queue.reap() == 1
    assert await states(queue, leader, follower) == [QUEUED, JobStatus.FAILED]


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
