"""Calls of many in one write: they agree with calls one by one, and none of them touches its neighbours."""

from __future__ import annotations

import asyncio
import dataclasses

import pytest
from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from job_samples import sample_job
from jobs.job_queue import JobQueue
from jobs.pipe import Pipe

MANY = 50


async def test_those_who_call_at_one_time_share_a_write_and_get_their_own_answers(redis: Redis) -> None:
    pipe = Pipe(redis)
    await pipe.call("PING")
    before = (await redis.info("stats"))["total_reads_processed"]
    answers = await asyncio.gather(*(pipe.call("ECHO", f"é{n}") for n in range(MANY)))
    reads = (await redis.info("stats"))["total_reads_processed"] - before
    assert answers == [f"é{n}" for n in range(MANY)]
    assert reads < 6  # the question after them is one


async def test_a_refusal_is_its_callers_alone(redis: Redis) -> None:
    pipe = Pipe(redis)
    good, bad, last = await asyncio.gather(pipe.call("PING"), pipe.call("HGET", "a"), pipe.call("ECHO", 7), return_exceptions=True)
    assert (good, last) == ("PONG", "7") and isinstance(bad, ResponseError)


async def test_a_caller_that_goes_away_takes_nothing_with_it(redis: Redis) -> None:
    pipe = Pipe(redis)
    calls = [asyncio.create_task(pipe.call("ECHO", n)) for n in range(10)]
    await asyncio.sleep(0)
    for call in calls[::2]:
        call.cancel()
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert answers[1::2] == ["1", "3", "5", "7", "9"]
    assert all(isinstance(answer, asyncio.CancelledError) for answer in answers[::2])
    assert await pipe.call("ECHO", "still") == "still"


async def test_a_connection_that_breaks_fails_those_on_their_way_and_the_next_call_works(redis: Redis) -> None:
    pipe = Pipe(redis)
    number = await pipe.call("CLIENT", "ID")
    waiting = asyncio.create_task(pipe.call("BLPOP", "nothing", 30))
    behind = asyncio.create_task(pipe.call("PING"))
    async with asyncio.timeout(10):
        while not (await redis.info("clients"))["blocked_clients"]:
            await asyncio.sleep(0.01)
    await redis.client_kill_filter(_id=number)
    for failed in await asyncio.gather(waiting, behind, return_exceptions=True):
        assert isinstance(failed, RedisError)
    assert await pipe.call("PING") == "PONG"


async def test_a_server_that_has_forgotten_the_scripts_gets_them_again(redis: Redis) -> None:
    queue = JobQueue(redis)
    for _ in range(2):
        await redis.script_flush()
        jobs = [sample_job(id=queue.new_id("ann")) for _ in range(MANY)]
        assert all(told.created for told in await asyncio.gather(*(queue.submit(job) for job in jobs)))
    assert (await queue.depth())["queued"] == 2 * MANY


async def test_run_beside_agrees_with_run(redis: Redis) -> None:
    """The plain way is the measure: the same jobs, submitted together on one server and one by one on another shard."""
    queue = JobQueue(redis)
    plain = JobQueue(redis)
    for shard in plain._shards.all:
        shard.run_beside = shard.run  # type: ignore[method-assign]
    jobs = [sample_job(id=f"{n:032x}", client="ann") for n in range(20)]
    together = await asyncio.gather(*(queue.submit(job, idempotency_key=job.id, deadline_s=1e6) for job in jobs))
    again = [await plain.submit(job, idempotency_key=job.id, deadline_s=1e6) for job in jobs]
    assert [told.created for told in together] == [True] * 20 and [told.created for told in again] == [False] * 20
    assert [told.job for told in together] == [told.job for told in again]  # what was pieced together is what lies there
    assert sorted(told.outlook.position for told in together if told.outlook) == list(range(20))
    await redis.flushall()
    singly = [await plain.submit(job, idempotency_key=job.id, deadline_s=1e6) for job in jobs]
    timeless = {"created_at": 0.0, "deadline_at": 0.0}
    assert [dataclasses.replace(t.job, **timeless) for t in singly] == [dataclasses.replace(t.job, **timeless) for t in together]


@pytest.mark.parametrize("wrong", [None, object()])
async def test_what_cannot_be_sent_is_its_callers_fault(redis: Redis, wrong: object) -> None:
    pipe = Pipe(redis)
    with pytest.raises(TypeError):
        await pipe.call("ECHO", wrong)  # type: ignore[arg-type]
    assert await pipe.call("PING") == "PONG"
