"""Dead letters and their retry, the list of a client's jobs, and what is remembered of those that expired."""

from __future__ import annotations

import asyncio

import pytest
from redis.asyncio import Redis

from jobs.events import EventLog
from jobs.job import Job, JobError, JobStatus, Loss
from jobs.job_queue import Admission, JobQueue, QueueFull, QuotaSpent, RateLimited
from tests.job_samples import MODEL, Clock, sample_job


async def dead_letter(queue: JobQueue, clock: Clock, **fields: object) -> Job:
    """A job that killed five workers."""
    job = (await queue.submit(sample_job(**fields))).job  # type: ignore[arg-type]
    for n in range(5):
        assert [j.id for j in await queue.claim(f"w{n}", [MODEL], 1)] == [job.id]
        await clock.advance(15)
        await queue.reap()
    return job


async def ended(queue: JobQueue, client: str = "ada") -> Job:
    await queue.submit(sample_job(client))
    [job] = await queue.claim("w1", [MODEL], 1)
    await queue.finish("w1", 1, job.id, [])
    return job


async def test_dead_letters_are_kept_with_the_reasons(queue: JobQueue, redis: Redis, clock: Clock) -> None:
    first = await dead_letter(queue, clock)
    second = await dead_letter(queue, clock)
    assert [job.id for job in await queue.dead()] == [second.id, first.id]
    [newest] = await queue.dead(limit=1)
    assert newest.error is not None and newest.error.code == "worker_lost"
    assert newest.losses == tuple(Loss(f"w{n}", n + 1, clock.now - 15 * (4 - n)) for n in range(5))
    assert 600_000 < await redis.ttl("{q0}:j:" + first.id) <= 604_800  # longer than other jobs


async def test_the_dead_letters_of_a_client_are_not_hidden_by_those_of_others(queue: JobQueue, clock: Clock) -> None:
    mine = await dead_letter(queue, clock, client="ada")
    for _ in range(2):
        await dead_letter(queue, clock, client="bob")
    assert [job.id for job in await queue.dead(1, "ada")] == [mine.id]
    assert [job.client for job in await queue.dead(2)] == ["bob", "bob"]


async def test_other_failures_are_no_dead_letters(queue: JobQueue, clock: Clock) -> None:
    await queue.submit(sample_job(), deadline_s=5)
    await clock.advance(6)
    await queue.reap()
    await queue.submit(sample_job())
    [job] = await queue.claim("w1", [MODEL], 1)
    await queue.fail("w1", 1, job.id, JobError("broken", "It broke."))
    assert await queue.dead() == []
    assert await queue.retry(job.id) is None
    assert await queue.retry("unknown") is None


async def test_a_retry_is_a_new_job_and_the_old_one_stays_as_it_ended(queue: JobQueue, redis: Redis, clock: Clock) -> None:
    job = await dead_letter(queue, clock, priority=3, service_class="batch")
    before = await queue.get(job.id)
    successor = await queue.retry(job.id)
    assert successor is not None and successor.id != job.id
    assert (successor.status, successor.failures, successor.attempt, successor.losses, successor.error) == (
        JobStatus.QUEUED,
        0,
        0,
        (),
        None,
    )
    assert (successor.params, successor.client, successor.service_class) == (job.params, job.client, "batch")
    assert await queue.get(job.id) == before
    assert await queue.dead() == []
    assert [e.type for e in await EventLog(redis).read(successor.id)] == ["queued"]
    [running] = await queue.claim("w9", [MODEL], 1)
    assert (running.id, running.attempt) == (successor.id, 1)
    assert await queue.finish("w9", 1, running.id, [])


async def test_who_followed_a_poison_is_a_dead_letter_too_and_each_can_be_retried(queue: JobQueue, redis: Redis, clock: Clock) -> None:
    leader, *followers = [(await queue.submit(sample_job(reuse=True), reuse_fingerprint="f")).job for _ in range(3)]
    for n in range(5):
        assert [job.id for job in await queue.claim(f"w{n}", [MODEL], 1)] == [leader.id]
        await clock.advance(15)
        await queue.reap()
    dead = {job.id: job for job in await queue.dead()}
    assert dead.keys() == {job.id for job in (leader, *followers)}
    for job in followers:
        assert dead[job.id].losses == dead[leader.id].losses and len(dead[job.id].losses) == 5
        assert dead[job.id].error == dead[leader.id].error
        assert 600_000 < await redis.ttl("{q0}:j:" + job.id) <= 604_800
    retried = [await queue.retry(job.id) for job in (leader, *followers)]
    assert len({job.id for job in retried if job}) == 3
    assert await queue.dead() == []
    for job in await queue.claim("w9", [MODEL], 9):
        assert await queue.finish("w9", job.attempt, job.id, [])
    ends = [await queue.get(job.id) for job in retried if job]
    assert [end.status for end in ends if end] == [JobStatus.SUCCEEDED] * 3


async def test_retrying_twice_is_one_job(queue: JobQueue, clock: Clock) -> None:
    job = await dead_letter(queue, clock)
    found = await asyncio.gather(*(queue.retry(job.id) for _ in range(5)))
    assert len({again.id for again in found if again}) == 1
    assert (await queue.depth())["queued"] == 1


async def test_a_client_lists_its_own_jobs_newest_first(queue: JobQueue) -> None:
    jobs = [(await queue.submit(sample_job(priority=-n))).job for n in range(5)]
    await queue.submit(sample_job("bob"))
    page = await queue.list_jobs("ada")
    assert ([j.id for j in page.jobs], page.cursor) == ([j.id for j in reversed(jobs)], "")
    assert page.jobs[-1] == jobs[0]
    assert await queue.list_jobs("nobody") == type(page)((), "")


@pytest.mark.parametrize(("count", "expected_pages"), [(6, 2), (7, 3), (1, 1)])
async def test_pages_follow_each_other_without_gap(queue: JobQueue, count: int, expected_pages: int) -> None:
    jobs = [(await queue.submit(sample_job())).job.id for _ in range(count)]
    seen, cursor, pages = [], "", 0
    while True:
        page = await queue.list_jobs("ada", limit=3, cursor=cursor)
        seen += [j.id for j in page.jobs]
        cursor, pages = page.cursor, pages + 1
        await queue.submit(sample_job())  # what comes meanwhile moves nothing
        if not cursor:
            break
    assert (seen, pages) == (jobs[::-1], expected_pages)
    for nonsense in ("x", "nan", "1 2", "-inf"):
        with pytest.raises(ValueError, match="cursor"):
            await queue.list_jobs("ada", cursor=nonsense)


async def test_a_list_by_status_ends_although_others_are_many(queue: JobQueue) -> None:
    wanted = await ended(queue)
    for _ in range(1200):
        await queue.submit(sample_job())
    page = await queue.list_jobs("ada", JobStatus.SUCCEEDED)
    assert page.jobs == () and page.cursor  # looked at its thousand
    page = await queue.list_jobs("ada", JobStatus.SUCCEEDED, cursor=page.cursor)
    assert [j.id for j in page.jobs] == [wanted.id] and not page.cursor


async def test_jobs_that_expired_leave_the_list(queue: JobQueue, redis: Redis) -> None:
    old = [await ended(queue) for _ in range(6)]
    await redis.delete(*("{q0}:j:" + job.id for job in old))  # as their time was over
    assert (await queue.list_jobs("ada")).jobs == ()
    for _ in range(3):
        await queue.submit(sample_job())
    assert await redis.zcard("{q0}:c:ada") == 3  # nor do they take memory
    assert await redis.ttl("{q0}:c:ada") == -1
    for job in await queue.claim("w1", [MODEL], 3):
        await queue.finish("w1", 1, job.id, [])
    assert await redis.ttl("{q0}:c:ada") > 86_400


async def test_an_expired_job_was_here_and_an_unknown_one_was_not(queue: JobQueue, redis: Redis) -> None:
    job = await ended(queue)
    waiting = (await queue.submit(sample_job())).job
    assert not await queue.was_here(job.id)  # it still is
    await redis.delete("{q0}:j:" + job.id)
    assert await queue.was_here(job.id) and await queue.was_here(job.id, "ada")
    assert not await queue.was_here(job.id, "bob")
    assert 690_000 < await redis.ttl("{q0}:t:" + job.id) <= 691_200
    assert not await queue.was_here(waiting.id)
    assert not await queue.was_here("unknown")


@pytest.mark.parametrize("poisoned", [1, 2])
async def test_neighbours_of_a_crash_are_no_dead_letters(queue: JobQueue, clock: Clock, poisoned: int) -> None:
    """Whoever takes a poisoned job dies with all that it holds; the others come to their end, however often they were beside it."""
    jobs = [(await queue.submit(sample_job())).job for _ in range(10)]
    poison = {job.id for job in jobs[3 : 3 + poisoned]}
    for n in range(60):
        held = await queue.claim(f"w{n}", [MODEL], 8)
        if poison & {job.id for job in held}:
            await clock.advance(15)
            await queue.reap()
        else:
            for job in held:
                assert await queue.finish(f"w{n}", job.attempt, job.id, [])
    ends = {job.id: await queue.get(job.id) for job in jobs}
    assert {id_ for id_, end in ends.items() if end and end.status is JobStatus.FAILED} == poison
    assert {job.id for job in await queue.dead()} == poison
    assert {end.status for id_, end in ends.items() if end and id_ not in poison} == {JobStatus.SUCCEEDED}
    assert any(end.failures for id_, end in ends.items() if end and id_ not in poison), "they were beside it"


async def test_a_retry_counts_as_a_submit(queue: JobQueue, clock: Clock) -> None:
    first, second, third = [await dead_letter(queue, clock) for _ in range(3)]
    once, daily = Admission(max_queued=10, rate_per_s=0.001, burst=1), Admission(max_queued=10, per_day=1)
    new = await queue.retry(first.id, admission=once)
    assert new is not None and (await queue.retry(first.id, admission=once)) == new  # told again, not counted again
    with pytest.raises(RateLimited):
        await queue.retry(second.id, admission=once)
    assert await queue.retry(second.id, admission=daily) is not None
    with pytest.raises(QuotaSpent):
        await queue.retry(third.id, admission=daily)
    with pytest.raises(QueueFull) as full:
        await queue.retry(third.id, admission=Admission(max_queued=2))
    assert full.value.of_client
    assert [job.id for job in await queue.dead()] == [third.id]  # what was refused has changed nothing
    assert await queue.retry(third.id) is not None
