"""Deliveries to webhooks: one for each event that was asked for, written with the event, and never lost with a worker."""

from __future__ import annotations

import asyncio
import json

import pytest
from redis.asyncio import Redis

from jobs.hooks import Delivery, HookQueue
from jobs.job import Job, JobError, Webhook
from jobs.job_queue import JobQueue
from jobs.registry import Registry
from tests.job_samples import MODEL, Clock, sample_image, sample_job

URL = "https://example.org/hook?x=/ü"


@pytest.fixture
def hooks(redis: Redis) -> HookQueue:
    return HookQueue(redis)


async def claimed(queue: JobQueue, *events: str, worker: str = "w1") -> Job:
    webhook = Webhook(URL, events) if events else Webhook(URL)
    await queue.submit(sample_job(webhook=webhook))
    [job] = await queue.claim(worker, [MODEL], 1)
    assert job.webhook == webhook
    return job


async def test_each_event_that_was_asked_for_is_a_delivery(queue: JobQueue, hooks: HookQueue, clock: Clock) -> None:
    job = await claimed(queue)
    await queue.progress("w1", 1, job.id, 5)
    await clock.advance(1.5)
    await queue.finish("w1", 1, job.id, [sample_image(job)])
    started, succeeded = await hooks.due("h1", 10)
    assert (started.event, succeeded.event) == ("started", "succeeded")
    assert (succeeded.job_id, succeeded.url, succeeded.attempt) == (job.id, URL, 1)
    assert json.loads(started.body)["data"]["status"] == "running"
    assert json.loads(succeeded.body) == {
        "type": "job.succeeded",
        "timestamp": "1970-01-12T13:46:41.500Z",
        "data": {
            "id": job.id,
            "status": "succeeded",
            "images": [{"key": f"{job.id}/1-0.png", "width": 64, "height": 64, "seed": 1, "media_type": "image/png"}],
            "steps_done": 20,
            "steps_total": 20,
            "attempt": 1,
        },
    }


async def test_what_was_not_asked_for_is_not_told(queue: JobQueue, hooks: HookQueue) -> None:
    job = await claimed(queue, "failed", "canceled")
    await queue.finish("w1", 1, job.id, [])
    await queue.submit(sample_job())
    [job] = await queue.claim("w1", [MODEL], 1)
    await queue.finish("w1", 1, job.id, [])
    assert await hooks.due("h1", 10) == []


async def test_failures_cancels_and_deadlines_are_told(queue: JobQueue, hooks: HookQueue, clock: Clock) -> None:
    failed = await claimed(queue, "failed", "canceled")
    await queue.fail("w1", 1, failed.id, JobError("broken", "It broke."))
    canceled = (await queue.submit(sample_job(webhook=Webhook(URL)))).job
    await queue.cancel(canceled.id)
    late = (await queue.submit(sample_job(webhook=Webhook(URL)), deadline_s=5)).job
    await clock.advance(5)
    await queue.reap()
    told = {d.job_id: (d.event, json.loads(d.body)["data"].get("error", {}).get("code")) for d in await hooks.due("h1", 10)}
    assert told == {failed.id: ("failed", "broken"), canceled.id: ("canceled", None), late.id: ("failed", "deadline")}


async def test_only_the_first_start_is_told(queue: JobQueue, hooks: HookQueue) -> None:
    job = await claimed(queue, "started")
    [started] = await hooks.due("h1", 10)
    assert await hooks.delivered("h1", started.id)
    await queue.release("w1", 1, job.id)
    await queue.claim("w2", [MODEL], 1)
    assert await hooks.due("h1", 10) == []


async def delivery(queue: JobQueue, hooks: HookQueue) -> Delivery:
    await claimed(queue, "started")
    [due] = await hooks.due("h1", 10)
    return due


async def test_a_delivery_belongs_to_one_worker_until_it_is_settled(queue: JobQueue, hooks: HookQueue, redis: Redis, clock: Clock) -> None:
    due = await delivery(queue, hooks)
    assert await hooks.due("h2", 10) == []
    assert not await hooks.delivered("h2", due.id)
    assert await hooks.delivered("h1", due.id)
    assert not await hooks.delivered("h1", due.id)
    assert await redis.exists("{q0}:h:" + due.id, "{q0}:hooks") == 0


async def test_a_worker_that_dies_with_a_delivery_leaves_it_to_others(queue: JobQueue, hooks: HookQueue, clock: Clock) -> None:
    due = await delivery(queue, hooks)
    await clock.advance(60)
    [again] = await hooks.due("h2", 10)
    assert (again.id, again.body, again.attempt) == (due.id, due.body, 2)
    assert not await hooks.failed("h1", due.id, "too late", retry_in_s=None)
    assert await hooks.delivered("h2", due.id)


async def test_a_failed_attempt_comes_back_when_it_should(queue: JobQueue, hooks: HookQueue, clock: Clock) -> None:
    due = await delivery(queue, hooks)
    assert await hooks.failed("h1", due.id, "status 500", retry_in_s=30)
    assert not await hooks.failed("h1", due.id, "status 500", retry_in_s=None)  # it is nobody's now
    await clock.advance(29)
    assert await hooks.due("h1", 10) == []
    await clock.advance(1)
    [again] = await hooks.due("h1", 10)
    assert (again.attempt, again.reason, again.body) == (2, "status 500", due.body)


async def test_dead_deliveries_are_kept_and_can_be_sent_again(queue: JobQueue, hooks: HookQueue, redis: Redis, clock: Clock) -> None:
    due = await delivery(queue, hooks)
    assert await hooks.failed("h1", due.id, "status 410", retry_in_s=None)
    await clock.advance(100_000)
    assert await hooks.due("h1", 10) == []
    [dead] = await hooks.dead()
    assert (dead.id, dead.reason) == (due.id, "status 410")
    assert await redis.ttl("{q0}:h:" + due.id) > 600_000
    assert await hooks.dead(client="ada") == [dead] and await hooks.dead(client="bob") == []
    assert not await hooks.redeliver(due.id, "bob")  # it is another's
    assert await hooks.redeliver(due.id, "ada")
    assert not await hooks.redeliver(due.id)
    assert await hooks.dead() == []
    [again] = await hooks.due("h1", 10)
    assert (again.body, again.attempt, again.reason) == (due.body, 1, "")
    assert await redis.ttl("{q0}:h:" + due.id) == -1


async def test_the_oldest_come_first_and_no_more_than_asked_for(queue: JobQueue, hooks: HookQueue, clock: Clock) -> None:
    jobs = []
    for _ in range(3):
        jobs.append((await claimed(queue, "started")).id)
        await clock.advance(1)
    assert await hooks.due("h1", 0) == []
    assert [d.job_id for d in await hooks.due("h1", 2)] == jobs[:2]
    assert [d.job_id for d in await hooks.due("h2", 9)] == jobs[2:]


async def test_every_client_has_a_secret_of_its_own_which_all_workers_share(redis: Redis) -> None:
    (ada,), (again,), (bob,) = [await HookQueue(redis).secrets.of(client) for client in ("ada", "ada", "bob")]
    assert ada == again and len(ada) == len(bob) == 32
    assert len({ada, bob, await Registry(redis).image_secret()}) == 3


async def test_a_secret_is_replaced_in_two_moves(redis: Redis) -> None:
    secrets = HookQueue(redis).secrets
    (first,) = await secrets.of("ada")
    second, beside = await secrets.rotate("ada")
    assert beside == first != second and await secrets.lately("ada") == await secrets.of("ada") == (second, first)
    third, beside = await secrets.rotate("ada")  # once more: the oldest is gone
    assert beside == second
    assert await secrets.retire("ada") == await secrets.of("ada") == await secrets.retire("ada") == (third,)
    rotated = await asyncio.gather(*(HookQueue(redis).secrets.rotate("ada") for _ in range(5)))
    assert await secrets.of("ada") in rotated  # nobody overwrites what another has just made
    assert len({newest for newest, _ in rotated}) == 5 and sum(old == third for _, old in rotated) == 1
