"""Batches in the queue: in whole or not at all, each line once, counted as its jobs go, gone with them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from redis.asyncio import Redis

from jobs.batches import BadLine, Batch, Batches, Line, Stopped, line_id
from jobs.job import Job, JobError, JobStatus
from jobs.job_queue import Admission, IdempotencyConflict, JobGone, JobQueue, QueueFull, QuotaSpent, RateLimited
from tests.job_samples import MODEL, Clock, sample_image, sample_job

LINES = [1, 2, 3, 5]
JOB = sample_job(service_class="batch")


@pytest.fixture
def batches(redis: Redis) -> Batches:
    return Batches(redis, retention_s=600)


async def put(batches: Batches, batch: Batch, lines: list[int], job: Job = JOB) -> int:
    return await batches.put(batch, [Line(line, job) for line in lines])


async def filled(batches: Batches, lines: list[int] = LINES) -> Batch:
    batch, new = await batches.open("ada", lines, JOB)
    assert new and await put(batches, batch, lines) == len(lines)
    await batches.seal(batch.id)
    return batch


def counts(batch: Batch | None) -> dict[str, int]:
    assert batch
    told = {s: getattr(batch, s) for s in ("left", "queued", "running", "succeeded", "failed", "canceled")}
    return {name: count for name, count in told.items() if count}


async def test_a_batch_counts_its_jobs_as_they_go(batches: Batches, queue: JobQueue, redis: Redis) -> None:
    batch = await filled(batches)
    assert counts(await batches.get(batch.id)) == {"queued": 4}
    jobs = await queue.claim("w1", [MODEL], 3)
    assert [job.id for job in jobs] == [line_id(batch.id, line) for line in (1, 2, 3)], "in the order of the lines"
    assert {job.batch for job in jobs} == {batch.id} and {job.service_class for job in jobs} == {"batch"}
    await queue.progress("w1", 1, jobs[0].id, 10)
    found = await batches.get(batch.id)
    assert found and counts(found) == {"queued": 1, "running": 3} and (found.steps_done, found.steps_total) == (10, 80)
    assert found.eta_s and found.lines == (range(1, 4), range(5, 6))
    assert await queue.finish("w1", 1, jobs[0].id, [sample_image(jobs[0])])
    assert await queue.fail("w1", 1, jobs[1].id, JobError("engine_error", "broke"))
    assert await queue.release("w1", 1, jobs[2].id)
    await queue.cancel(line_id(batch.id, 5))
    assert counts(await batches.get(batch.id)) == {"queued": 1, "succeeded": 1, "failed": 1, "canceled": 1}
    assert await redis.ttl(f"{{q0}}:b:{batch.id}") == -1, "kept as long as a job is open"
    await queue.cancel(jobs[2].id)
    found = await batches.get(batch.id)
    assert found and found.finished_at and found.eta_s is None and counts(found) == {"succeeded": 1, "failed": 1, "canceled": 2}
    assert 0 < await redis.ttl(f"{{q0}}:b:{batch.id}") <= 86_400
    await redis.delete(f"{{q0}}:b:{batch.id}")
    assert await batches.get(batch.id) is None
    assert await batches.was_here(batch.id, "ada") and not await batches.was_here(batch.id, "bob")


async def test_a_batch_comes_in_whole_or_not_at_all(redis: Redis, queue: JobQueue) -> None:
    batches, six = Batches(redis, max_queued=10), {"admission": Admission(6)}
    await queue.submit(sample_job())
    with pytest.raises(QueueFull) as full:
        await batches.open("ada", range(6), JOB, **six)
    assert full.value.of_client and await queue.depth() == {"queued": 1, "running": 0} and not await batches.of_client("ada", 9)
    batch, _ = await batches.open("ada", range(1, 6), JOB, **six)
    with pytest.raises(QueueFull):  # its places are kept, although none of its jobs is here yet
        await JobQueue(redis, max_queued=6).submit(sample_job("bob"))
    with pytest.raises(QueueFull):
        await batches.open("bob", range(5), sample_job("bob"))
    assert await put(batches, batch, [*range(1, 6)]) == 5
    await JobQueue(redis, max_queued=7).submit(sample_job("bob"))


async def test_places_of_a_batch_that_nobody_fills_are_given_back(redis: Redis, queue: JobQueue, clock: Clock) -> None:
    batches = Batches(redis, max_queued=3)
    batch, _ = await batches.open("ada", range(1, 4), JOB)
    await clock.advance(40)
    await put(batches, batch, [1])
    await clock.advance(40)
    found, bob = await batches.get(batch.id), sample_job("bob")
    assert found and found.filling, "each line keeps the places of the next ones"
    with pytest.raises(QueueFull):
        await JobQueue(redis, max_queued=3).submit(bob)
    await clock.advance(21)
    assert (await JobQueue(redis, max_queued=3).submit(bob)).created
    found = await batches.get(batch.id)
    assert found and not found.filling and found.left == 2


async def test_a_key_stands_for_one_batch_and_a_repeat_completes_it(batches: Batches, queue: JobQueue) -> None:
    key = {"idempotency_key": "k", "fingerprint": "f"}
    batch, new = await batches.open("ada", LINES, JOB, **key)
    await put(batches, batch, LINES[:2])  # and then its gateway is killed
    again, new_again = await batches.open("ada", LINES, JOB, **key)
    assert new and not new_again and again.id == batch.id and again.left == 2
    [first] = await queue.claim("w1", [MODEL], 1)
    assert await queue.finish("w1", 1, first.id, [sample_image(first)])
    assert await put(batches, again, LINES) == 2
    await batches.seal(batch.id)
    assert counts(await batches.get(batch.id)) == {"queued": 3, "succeeded": 1}
    with pytest.raises(IdempotencyConflict):
        await batches.open("ada", LINES, JOB, idempotency_key="k", fingerprint="other")
    with pytest.raises(IdempotencyConflict):
        await queue.submit(sample_job(), idempotency_key="k", fingerprint="a job's")


async def test_a_line_whose_record_has_expired_is_not_done_again(batches: Batches, queue: JobQueue, redis: Redis) -> None:
    batch, _ = await batches.open("ada", LINES, JOB, idempotency_key="k", fingerprint="f")
    await put(batches, batch, [1])
    await queue.cancel(line_id(batch.id, 1))
    await redis.delete(f"{{q0}}:j:{line_id(batch.id, 1)}")
    assert await put(batches, batch, LINES) == 3 and await batches.ended(batch, 1) and not await batches.ended(batch, 2)
    await redis.delete(f"{{q0}}:b:{batch.id}")
    with pytest.raises(JobGone):
        await batches.open("ada", LINES, JOB, idempotency_key="k", fingerprint="f")


async def test_a_canceled_batch_takes_no_more_lines(batches: Batches, queue: JobQueue) -> None:
    batch, _ = await batches.open("ada", LINES, JOB)
    await put(batches, batch, [1, 2])
    [running] = await queue.claim("w1", [MODEL], 1)
    await batches.cancel(batch, LINES)
    with pytest.raises(Stopped):
        await put(batches, batch, [3, 5])
    await batches.seal(batch.id)
    found = await batches.get(batch.id)
    assert found and found.stopped and counts(found) == {"running": 1, "canceled": 1} and not found.finished_at
    assert (await queue.renew("w1", {running.id: 1})).canceled == {running.id}
    assert await queue.cancel_running("w1", 1, running.id)
    found = await batches.get(batch.id)
    assert found and found.finished_at and counts(found) == {"canceled": 2}


async def test_a_batch_is_paid_for_after_it_came_in(redis: Redis, queue: JobQueue, clock: Clock) -> None:
    batches, slow = Batches(redis), {"admission": Admission(99, rate_per_s=1, burst=2)}
    await batches.open("ada", LINES, JOB, **slow)
    with pytest.raises(RateLimited) as limited:
        await batches.open("ada", LINES, JOB, **slow)
    assert limited.value.retry_after_s == 3
    await clock.advance(3)
    assert (await JobQueue(redis, rate_per_s=1, burst=2).submit(sample_job())).created


async def test_a_batch_counts_by_its_pictures_of_the_day(redis: Redis, clock: Clock) -> None:
    batches, few = Batches(redis), {"admission": Admission(99, per_day=10), "pictures": 6}
    job = replace(JOB, reuse=True)
    batch, _ = await batches.open("ada", LINES, job, **few)
    with pytest.raises(QuotaSpent):
        await batches.open("ada", LINES, job, **few)
    await batches.put(batch, [Line(line, job, "same") for line in LINES])  # three of them share what the first one draws
    assert (await batches.open("ada", LINES, job, **few))[1]


async def test_bad_lines_are_kept_with_the_batch(batches: Batches) -> None:
    bad = [BadLine(4, "unknown_sampler", "There is no sampler “x”.", "sampler"), BadLine(9, "missing_field", "prompt", None)]
    batch, _ = await batches.open("ada", LINES, JOB, bad)
    assert batch.refused == 2 and await batches.bad_lines(batch.id) == bad
    assert [b.id for b in await batches.of_client("ada", 5)] == [batch.id] and not await batches.of_client("bob", 5)


async def test_a_dead_letter_that_is_tried_again_leaves_its_batch(batches: Batches, queue: JobQueue, clock: Clock) -> None:
    batch = await filled(batches, [1])
    for number in range(5):
        await queue.claim(f"w{number}", [MODEL], 1)
        await clock.advance(20)
        await queue.reap()
    assert counts(await batches.get(batch.id)) == {"failed": 1}
    retried = await queue.retry(line_id(batch.id, 1))
    assert retried and retried.status is JobStatus.QUEUED and not retried.batch
    await queue.cancel(retried.id)
    assert counts(await batches.get(batch.id)) == {"failed": 1}


async def test_equal_lines_may_share_their_work(batches: Batches, queue: JobQueue) -> None:
    job = replace(JOB, reuse=True)
    batch, _ = await batches.open("ada", [1, 2], job)
    await batches.put(batch, [Line(line, job, "same") for line in (1, 2)])
    await batches.seal(batch.id)
    [first] = await queue.claim("w1", [MODEL], 5)
    assert await queue.finish("w1", 1, first.id, [sample_image(first)])
    assert counts(await batches.get(batch.id)) == {"succeeded": 2}


async def test_a_deadline_of_a_line_is_kept_or_told(batches: Batches, queue: JobQueue, redis: Redis, clock: Clock) -> None:
    await queue.report_cost(MODEL, 64, 64, 1.0)  # 20 s a line
    batch, _ = await batches.open("ada", [1, 2, 3], JOB)
    await batches.put(batch, [Line(1, JOB, deadline_s=25.0), Line(2, JOB, deadline_s=5.0), Line(3, JOB)])
    assert await batches.put(batch, [Line(2, JOB, deadline_s=5.0)]) == 0  # once more: it is known
    await batches.seal(batch.id)
    kept, late, free = await batches.jobs(batch, [1, 2, 3])
    assert kept and late and free and kept.deadline_at == clock.now + 25 and free.deadline_at is None
    assert (late.status, late.error.code if late.error else "") == (JobStatus.FAILED, "deadline_unmeetable")
    assert late.error and late.error.message == "The job would be done in about 40 s; deadline_s is 5."
    seen = await batches.get(batch.id)
    assert seen and (seen.queued, seen.failed, seen.left) == (2, 1, 0)
    await clock.advance(26)
    await queue.reap()
    [first] = await batches.jobs(batch, [1])
    assert first and first.error and first.error.code == "deadline"
    [job] = await queue.claim("w1", [MODEL], 9)
    assert job.id == line_id(batch.id, 3)
    assert await queue.finish("w1", 1, job.id, [sample_image(job)])
    seen = await batches.get(batch.id)
    assert seen and (seen.succeeded, seen.failed) == (1, 2) and seen.finished_at
    assert await redis.zcard("{q0}:deadline") == 0
