"""What lies before a queued job: its position and the time until it will be done, told by the queue at any moment."""

from __future__ import annotations

import pytest
from redis.asyncio import Redis

from jobs.job import Job
from jobs.job_queue import JobQueue
from jobs.outcomes import QueueFull
from tests.job_samples import MODEL, Clock, sample_image, sample_job

WORK_S = 10.0  # of a job of 20 evaluations, once their cost is known


@pytest.fixture
async def measured(queue: JobQueue) -> JobQueue:
    await queue.report_cost(MODEL, 64, 64, 0.5)
    return queue


async def eta(queue: JobQueue, job: Job) -> float:
    outlook = await queue.outlook(job.id)
    assert outlook is not None
    return outlook.eta_s


async def test_jobs_of_one_client_end_one_after_the_other(measured: JobQueue, clock: Clock) -> None:
    jobs = [(await measured.submit(sample_job())).job for _ in range(4)]
    outlooks = [await measured.outlook(job.id) for job in jobs]
    assert [o.position for o in outlooks if o] == [0, 1, 2, 3]
    assert [o.eta_s for o in outlooks if o] == pytest.approx([WORK_S, 2 * WORK_S, 3 * WORK_S, 4 * WORK_S])
    assert [o.predicted_s for o in outlooks if o] == pytest.approx([WORK_S] * 4)


async def test_what_was_forecast_is_what_the_job_is_told_after_submit(measured: JobQueue, clock: Clock) -> None:
    for client in ("ada", "bob", "bob", "cy"):
        await measured.submit(sample_job(client))
    for job in (sample_job("ada"), sample_job("dora"), sample_job("bob", service_class="batch"), sample_job("cy", priority=5)):
        forecast = await measured.forecast(job)
        await measured.submit(job)
        outlook = await measured.outlook(job.id)
        assert outlook is not None and outlook.position == forecast.position
        assert outlook.eta_s == pytest.approx(forecast.eta_s, abs=0.001)


async def test_a_deadline_is_met_before_what_has_time(measured: JobQueue, clock: Clock) -> None:
    usual = [(await measured.submit(sample_job())).job for _ in range(5)]
    urgent = (await measured.submit(sample_job(), deadline_s=30)).job
    assert await eta(measured, urgent) == pytest.approx(WORK_S)
    assert await eta(measured, usual[-1]) >= 5 * WORK_S


async def test_the_time_shrinks_as_the_queue_does(measured: JobQueue, clock: Clock) -> None:
    first, second = [(await measured.submit(sample_job())).job for _ in range(2)]
    before = await eta(measured, second)
    (job,) = await measured.claim("w", [MODEL], 1)
    assert job.id == first.id
    assert await measured.outlook(first.id) is None  # it is not queued any more
    assert await eta(measured, second) < before
    await measured.finish("w", job.attempt, job.id, [])
    assert await eta(measured, second) == pytest.approx(WORK_S)


async def test_who_follows_another_job_ends_with_it(measured: JobQueue, clock: Clock) -> None:
    for _ in range(3):
        await measured.submit(sample_job())
    leader, follower = [(await measured.submit(sample_job(reuse=True), reuse_fingerprint="f")).job for _ in range(2)]
    assert await measured.outlook(follower.id) == await measured.outlook(leader.id)
    for _ in range(4):
        (job,) = await measured.claim("w", [MODEL], 1)
        await measured.progress("w", job.attempt, job.id, 15)
    outlook = await measured.outlook(follower.id)  # a quarter of its leader is left, and so of the three beside it
    assert outlook is not None and outlook.position == 0
    assert outlook.eta_s == pytest.approx(4 * WORK_S / 4)


async def test_nobody_else_has_an_outlook(measured: JobQueue) -> None:
    assert await measured.outlook("nobody") is None
    job = (await measured.submit(sample_job())).job
    await measured.cancel(job.id)
    assert await measured.outlook(job.id) is None


async def test_a_full_queue_says_whose_bound_was_met(redis: Redis) -> None:
    queue = JobQueue(redis, max_queued=3, max_queued_per_client=2)
    for client in ("ada", "ada", "bob"):
        await queue.submit(sample_job(client))
    with pytest.raises(QueueFull) as all_of_it:
        await queue.submit(sample_job("bob"))
    assert not all_of_it.value.of_client
    queue = JobQueue(redis, max_queued=10, max_queued_per_client=2)
    with pytest.raises(QueueFull) as own:
        await queue.submit(sample_job("ada"))
    assert own.value.of_client
    await queue.submit(sample_job("bob"))


@pytest.mark.parametrize("reuse", [False, True])
async def test_submit_tells_what_a_question_right_after_it_would(measured: JobQueue, clock: Clock, reuse: bool) -> None:
    """One call instead of two; also where the job waits for another one's result, or has it at once."""
    equal = {"reuse": reuse, "service_class": "batch"}
    jobs = [sample_job("ada"), sample_job("bob"), sample_job("ada", **equal), sample_job("ada", **equal), sample_job("bob", priority=9)]
    for job in jobs:
        submitted = await measured.submit(job, reuse_fingerprint="same" if job.reuse else "", deadline_s=100 if job.priority else None)
        assert submitted.outlook is not None and submitted.outlook == await measured.outlook(job.id)
        again = await measured.submit(job)
        assert not again.created and again.outlook is None
    for job in await measured.claim("w", [MODEL], 9):
        await measured.finish("w", 1, job.id, [sample_image(job)])
    done = await measured.submit(sample_job("ada", **equal), reuse_fingerprint="same" if reuse else "")
    assert (done.outlook is None) == done.job.done == reuse
