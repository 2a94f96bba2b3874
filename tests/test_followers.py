"""All who follow jobs share one blocking read: nobody misses an event, nobody waits for the end of somebody else's read."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from redis.asyncio import Redis
from redis.exceptions import RedisError

import jobs.followers
from jobs.events import EventLog
from jobs.followers import Followers
from jobs.job_queue import JobQueue
from jobs.shards import Shards
from tests.cards import card
from tests.job_samples import MODEL, sample_job
from tests.live_gateway import running

LIMIT_S = 20.0


@pytest.fixture
async def followers(redis: Redis) -> AsyncIterator[Followers]:
    followers = Followers(Shards.of(redis))
    yield followers
    await followers.aclose()


async def blocked(redis: Redis) -> list[dict[str, Any]]:
    """The connections that wait in a blocking command."""
    return [told for told in await redis.client_list() if "b" in told["flags"]]


async def until(redis: Redis, count: int) -> None:
    async with asyncio.timeout(LIMIT_S):
        while len(await blocked(redis)) != count:
            await asyncio.sleep(0.01)


async def submitted(queue: JobQueue, count: int) -> list[str]:
    found = [sample_job() for _ in range(count)]
    for job in found:
        await queue.submit(job)
    return [job.id for job in found]


async def test_many_wait_in_one_read(queue: JobQueue, redis: Redis, followers: Followers) -> None:
    ids = await submitted(queue, 200)
    last = [(await EventLog(redis).read(id_))[-1].id for id_ in ids]
    waits = [asyncio.create_task(followers.wait(id_, after, LIMIT_S)) for id_, after in zip(ids, last, strict=True)]
    await until(redis, 1)
    assert (await blocked(redis))[0]["cmd"] == "xread"
    for id_ in ids:
        await queue.cancel(id_)
    assert await asyncio.gather(*waits) == [True] * 200
    await until(redis, 0)  # nobody waits, and nothing is read


async def test_who_comes_while_it_blocks_is_not_kept_waiting(
    queue: JobQueue, redis: Redis, followers: Followers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs.followers, "BLOCK_MS", 4500)  # as long as a connection may be silent
    first, second = await submitted(queue, 2)
    after = {id_: (await EventLog(redis).read(id_))[-1].id for id_ in (first, second)}
    early = asyncio.create_task(followers.wait(first, after[first], LIMIT_S))
    await until(redis, 1)
    late = asyncio.create_task(followers.wait(second, after[second], LIMIT_S))
    await queue.cancel(second)
    assert await asyncio.wait_for(late, 4.0)
    assert not early.done()
    await queue.cancel(first)
    assert await early


async def test_an_event_that_is_there_already_is_told_at_once_and_none_after_the_time(
    queue: JobQueue, redis: Redis, followers: Followers
) -> None:
    (id_,) = await submitted(queue, 1)
    assert await followers.wait(id_, "0-0", LIMIT_S)
    (event,) = await EventLog(redis).read(id_)
    assert not await followers.wait(id_, event.id, 0.05)
    assert not await followers.wait("unknown", "0-0", 0.05)


async def test_each_follower_sees_what_a_reader_of_its_own_sees(queue: JobQueue, redis: Redis, followers: Followers) -> None:
    """Twenty of them at five jobs, that come at different places."""
    log = EventLog(redis)
    ids = await submitted(queue, 5)

    async def follow(id_: str, after: str) -> list[str]:
        seen: list[str] = []
        while True:
            for event in await log.read(id_, after):
                seen.append(event.id)
                after = event.id
                if event.terminal:
                    return seen
            await followers.wait(id_, after, LIMIT_S)

    following = []
    for number in range(4):
        following += [asyncio.create_task(follow(id_, "0-0")) for id_ in ids]
        for job in await queue.claim("w", [MODEL], 5) if number == 0 else ():
            assert job.id in ids
        for id_ in ids:
            await queue.progress("w", 1, id_, number + 1)
    for id_ in ids:
        await queue.finish("w", 1, id_, [])
    async with asyncio.timeout(LIMIT_S):
        seen = await asyncio.gather(*following)
    whole = {id_: [event.id for event in await log.read(id_)] for id_ in ids}
    assert all(found == whole[id_] for found, id_ in zip(seen, ids * 4, strict=True))
    assert all(len(found) == 7 for found in seen)  # queued, started, four of progress, succeeded


async def test_a_connection_that_breaks_is_told_to_all_and_the_next_read_has_another(
    queue: JobQueue, redis: Redis, followers: Followers
) -> None:
    ids = await submitted(queue, 2)
    waits = [asyncio.create_task(followers.wait(id_, "9999999999999-0", LIMIT_S)) for id_ in ids]
    await until(redis, 1)
    await redis.client_kill_filter(_id=(await blocked(redis))[0]["id"])
    for result in await asyncio.gather(*waits, return_exceptions=True):
        assert isinstance(result, (RedisError, OSError))
    assert await followers.wait(ids[0], "0-0", LIMIT_S)


async def test_streams_and_waits_of_a_gateway_share_it(valkey: str, redis: Redis, tmp_path: Path) -> None:
    with running(valkey, tmp_path, card()) as live:
        async with httpx2.AsyncClient(base_url=live.url, trust_env=False, timeout=LIMIT_S) as http, contextlib.AsyncExitStack() as stack:
            ids = [(await http.post("/generate", json={"prompt": "a red apple"})).json()["id"] for _ in range(10)]
            streams = [await stack.enter_async_context(http.stream("GET", f"/jobs/{id_}/events")) for id_ in ids]
            lines = [stream.aiter_lines() for stream in streams]
            assert [await anext(line) for line in lines] == ["event: queued"] * 10
            waits = [
                asyncio.create_task(http.post("/generate", json={"prompt": "a cat"}, headers={"Prefer": "wait=20"})) for _ in range(10)
            ]
            await until(redis, 1)
            for job in (await http.get("/jobs", params={"limit": 100})).json()["jobs"]:
                await http.delete(f"/jobs/{job['id']}")
            assert [[line async for line in rest if line.startswith("event:")] for rest in lines] == [["event: canceled"]] * 10
            for wait in waits:  # those that were queued later are canceled here
                while not wait.done():
                    for job in (await http.get("/jobs", params={"status": "queued"})).json()["jobs"]:
                        await http.delete(f"/jobs/{job['id']}")
                assert (await wait).json()["status"] == "canceled"
