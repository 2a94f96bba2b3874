"""Whose turn it is: clients share the workers by predicted work, not by the number of their jobs."""

from __future__ import annotations

from collections import Counter

import pytest
from redis.asyncio import Redis

from benchmarks.depth import commands
from jobs.job_queue import JobQueue
from tests.job_samples import MODEL, Clock, sample_image, sample_job


async def test_one_job_overtakes_the_thousand_of_another_client(queue: JobQueue) -> None:
    for _ in range(100):
        await queue.submit(sample_job("greedy"))
    assert len(await queue.claim("w1", [MODEL], 16)) == 16
    modest = sample_job("modest")
    await queue.submit(modest)
    assert modest.id in {job.id for job in await queue.claim("w1", [MODEL], 2)}


async def test_clients_alternate_whatever_they_have_waiting(queue: JobQueue) -> None:
    for client, jobs in (("a", 30), ("b", 5), ("c", 5)):
        for _ in range(jobs):
            await queue.submit(sample_job(client))
    order = [(await queue.claim(f"w{n}", [MODEL], 1))[0].client for n in range(40)]
    assert Counter(order[:15]) == {"a": 5, "b": 5, "c": 5}
    assert set(order[15:]) == {"a"}


async def test_shares_are_by_work(queue: JobQueue) -> None:
    """Pictures of twice the side cost four times as much."""
    for _ in range(40):
        await queue.submit(sample_job("large", size=128))
        await queue.submit(sample_job("small", size=64))
    served = Counter([(await queue.claim(f"w{n}", [MODEL], 1))[0].client for n in range(25)])
    assert served == {"large": 5, "small": 20}


async def test_a_pause_saves_nothing_up(queue: JobQueue) -> None:
    for _ in range(50):
        await queue.submit(sample_job("steady"))
    await queue.claim("w1", [MODEL], 20)
    for _ in range(10):
        await queue.submit(sample_job("late"))
    served = Counter([job.client for job in await queue.claim("w1", [MODEL], 10)])
    assert served in ({"steady": 5, "late": 5}, {"steady": 4, "late": 6})


async def test_a_lead_in_one_model_counts_in_the_other(queue: JobQueue) -> None:
    for _ in range(10):
        await queue.submit(sample_job("both", model="m1"))
        await queue.submit(sample_job("both", model="m2"))
        await queue.submit(sample_job("one", model="m2"))
    await queue.claim("w1", ["m1"], 1)
    assert (await queue.claim("w2", ["m2"], 1))[0].client == "one"
    served = Counter([j.client for j in await queue.claim("w3", ["m1", "m2"], 6)])
    assert served == {"one": 3, "both": 3}


async def test_a_model_without_workers_is_not_served_twice_over_later(queue: JobQueue) -> None:
    """Its clients waited long, but they compete with those who come now as if all had just come."""
    for model in ("rare", "common"):
        for _ in range(30):
            await queue.submit(sample_job("patient" if model == "rare" else "busy", model=model))
    await queue.claim("w1", ["common"], 20)
    for model in ("rare", "common"):
        for _ in range(10):
            await queue.submit(sample_job("new", model=model))
    rare = Counter([j.client for j in await queue.claim("w2", ["rare"], 6)])
    assert rare == {"patient": 3, "new": 3}
    served = Counter([j.client for j in await queue.claim("w3", ["rare", "common"], 9)])
    assert served == {"busy": 3, "patient": 3, "new": 3}


async def test_submitting_more_moves_nobody_forward(queue: JobQueue) -> None:
    for _ in range(10):
        await queue.submit(sample_job("first", model="rare"))
    await queue.claim("w1", ["rare"], 3)
    for _ in range(30):
        await queue.submit(sample_job("second", model="rare"))
        await queue.submit(sample_job("third", model="common"))
    await queue.claim("w2", ["common"], 30)
    await queue.submit(sample_job("first", model="rare"))
    assert [j.client for j in await queue.claim("w3", ["rare"], 2)] == ["second", "first"]


async def test_a_job_is_charged_once(queue: JobQueue) -> None:
    """Being released is no fault of the client."""
    for client in ("a", "b"):
        for _ in range(4):
            await queue.submit(sample_job(client))
    [first, second] = await queue.claim("w1", [MODEL], 2)
    assert (first.client, second.client) == ("a", "b")
    for job in (first, second):
        await queue.release("w1", job.attempt, job.id)
    again = [(await queue.claim("w1", [MODEL], 1))[0] for _ in range(4)]
    assert [job.client for job in again] == ["a", "a", "b", "b"]
    assert {job.id for job in again if job.attempt == 2} == {first.id, second.id}


async def test_the_memory_of_clients_that_left_is_bounded(queue: JobQueue, redis: Redis) -> None:
    for n in range(100):
        await queue.submit(sample_job(f"visitor-{n}"))
        [job] = await queue.claim("w1", [MODEL], 1)
        await queue.finish("w1", 1, job.id, [])
    assert await redis.zcard("{q0}:spent") <= 1
    assert await redis.exists(f"{{q0}}:ring:{MODEL}") == 0


async def test_a_claim_stays_short_when_many_clients_were_served_elsewhere(queue: JobQueue, redis: Redis) -> None:
    """The ring of the other model learns only now where each of them stands: some in this claim, the rest in the next."""
    clients = [f"client-{n}" for n in range(400)]
    for model in ("common", "rare"):
        for client in clients:
            await queue.submit(sample_job(client, model=model))
    await queue.claim("w1", ["common"], len(clients) - 1)
    served = []
    for _ in range(2):
        before = await commands(redis)
        served += await queue.claim("w2", ["rare"], 1)
        assert await commands(redis) - before < 100
    [unserved] = [job.client for job in await queue.claim("w1", ["common"], 1)]
    assert unserved in {job.client for job in served}


@pytest.mark.parametrize("others", [["ada"], ["ada", "abe"]])
async def test_a_slow_lane_starves_no_client(queue: JobQueue, others: list[str]) -> None:
    """Better classes get eight turns of nine. Who comes back to the batch lane before its next turn waits for those who are there."""
    for _ in range(100):
        await queue.submit(sample_job("cyd", service_class="interactive"))
    for client in ("bob", "bob", *others):
        await queue.submit(sample_job(client, service_class="batch"))
    served: list[str] = []
    for turn in range(90):
        [job] = await queue.claim("w", [MODEL], 1)
        await queue.finish("w", job.attempt, job.id, [])
        if job.service_class == "batch":
            served.append(job.client)
        if turn % 9 == 4 and served and served[-1] != "bob":
            await queue.submit(sample_job(served[-1], service_class="batch"))
    assert Counter(served[: len(others) + 1]) == Counter(["bob", *others])
    assert Counter(served[len(others) + 1 :])["bob"] == 1
    assert served.index("bob", served.index("bob") + 1) <= 2 * len(others) + 1


@pytest.mark.parametrize("how", ["cancel_running", "release", "reap", "cancel"])
async def test_who_takes_over_a_canceled_job_is_charged_for_the_rest_alone(queue: JobQueue, redis: Redis, clock: Clock, how: str) -> None:
    """20 evaluations of half a second: 10 were done and are paid for, the checkpoint holds 8 of them, 12 remain."""
    await queue.report_cost(MODEL, 64, 64, 0.5)
    wanted = {"reuse": True, "service_class": "interactive"}
    leader, heir = [(await queue.submit(sample_job(**wanted), reuse_fingerprint="f")).job for _ in range(2)]
    await queue.submit(sample_job("bob"))  # as long as anybody waits, accounts are kept
    await queue.claim("w1", [MODEL], 1)
    assert await redis.zscore("{q0}:spent", "ada") == 10e6
    await queue.progress("w1", 1, leader.id, 10)
    await queue.checkpoint("w1", 1, leader.id, b"state", steps_done=8)
    paid = 5e6
    if how == "cancel":  # of a job that was given back: what it did after its checkpoint is nobody's
        assert await queue.release("w1", 1, leader.id)
        paid = 4e6
    await queue.cancel(leader.id)
    if how == "reap":
        await clock.advance(15)
        await queue.reap()
    elif how != "cancel":
        assert await getattr(queue, how)("w1", 1, leader.id)
    assert await redis.zscore("{q0}:spent", "ada") == paid
    [job] = await queue.claim("w2", [MODEL], 1)
    assert (job.id, job.steps_done) == (heir.id, 8)
    assert await redis.zscore("{q0}:spent", "ada") == paid + 6e6
    assert await queue.finish("w2", 1, heir.id, [sample_image(heir)])
    assert await redis.zscore("{q0}:spent", "ada") == paid + 6e6


async def test_who_takes_over_what_is_gone_is_charged_for_all_of_it(queue: JobQueue, redis: Redis) -> None:
    await queue.report_cost(MODEL, 64, 64, 0.5)
    leader, heir = [(await queue.submit(sample_job(reuse=True, priority=1), reuse_fingerprint="f")).job for _ in range(2)]
    await queue.submit(sample_job())
    await queue.claim("w1", [MODEL], 1)
    await queue.checkpoint("w1", 1, leader.id, b"state", steps_done=8)
    await queue.cancel(leader.id)
    await queue.cancel_running("w1", 1, leader.id)
    await redis.delete("{q0}:k:" + heir.id)  # as its time was over
    [job] = await queue.claim("w2", [MODEL], 1)
    assert (job.id, job.steps_done) == (heir.id, 0)
    assert await redis.zscore("{q0}:spent", "ada") == 4e6 + 10e6
