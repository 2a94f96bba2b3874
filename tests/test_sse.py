"""Server-sent events of a job. The test plays the worker through the queue; every reader is a real HTTP client."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fastapi.routing
import httpx2
import pytest
from redis.asyncio import Redis

from cards import card
from jobs.job import Job, JobError
from jobs.job_queue import JobQueue
from live_gateway import Live, assert_error, running

MODEL = "celadon-test"


@pytest.fixture
def gateway(redis_url: str, tmp_path: Path) -> Iterator[Live]:
    with running(redis_url, tmp_path, card(), max_streams=3) as live:
        yield live


@pytest.fixture
async def http(gateway: Live) -> AsyncIterator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient(base_url=gateway.url, trust_env=False, timeout=20) as client:
        yield client


@dataclass(frozen=True)
class Seen:
    """One event as it came over the wire."""

    id: str
    event: str
    data: dict[str, Any]


async def parse(lines: AsyncIterator[str]) -> AsyncIterator[Seen]:
    """A reader of its own, so that the wire format is what is tested."""
    fields: dict[str, str] = {}
    async for line in lines:
        if line:
            name, _, value = line.partition(":")
            fields[name] = value.removeprefix(" ")
        elif "event" in fields:
            yield Seen(fields["id"], fields["event"], json.loads(fields["data"]))
            fields = {}


@asynccontextmanager
async def following(http: httpx2.AsyncClient, job_id: str, last: str = "") -> AsyncIterator[AsyncIterator[Seen]]:
    headers = {"Last-Event-ID": last} if last else {}
    async with http.stream("GET", f"/jobs/{job_id}/events", headers=headers) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        yield parse(answer.aiter_lines())


async def read_all(http: httpx2.AsyncClient, job_id: str, last: str = "") -> list[Seen]:
    """Until the server ends the answer."""
    async with following(http, job_id, last) as events:
        return [event async for event in events]


async def submit(http: httpx2.AsyncClient, **fields: Any) -> str:
    answer = await http.post("/generate", json={"prompt": "a red apple"} | fields)
    return str(answer.json()["id"])


async def claim(queue: JobQueue) -> Job:
    (job,) = await queue.claim("w1", [MODEL], 1)
    return job


async def test_the_whole_story_comes_in_order_and_the_answer_ends(http: httpx2.AsyncClient, queue: JobQueue) -> None:
    job_id = await submit(http)
    reading = asyncio.create_task(read_all(http, job_id))
    job = await claim(queue)
    for steps in (5, 10, 15):
        await queue.progress("w1", job.attempt, job.id, steps)
    await queue.finish("w1", job.attempt, job.id, [])
    seen = await reading
    assert [e.event for e in seen] == ["queued", "started", "progress", "progress", "progress", "succeeded"]
    assert [e.data["steps_done"] for e in seen if e.event == "progress"] == [5, 10, 15]
    assert all(e.data["steps_total"] == 20 for e in seen)
    ids = [tuple(map(int, e.id.split("-"))) for e in seen]
    assert ids == sorted(set(ids))


async def test_events_come_as_they_happen(http: httpx2.AsyncClient, queue: JobQueue) -> None:
    """The worker only goes on when the reader has seen the step before: nothing is held back."""
    job_id = await submit(http)
    async with following(http, job_id) as events:
        assert (await anext(events)).event == "queued"
        job = await claim(queue)
        assert (await anext(events)).event == "started"
        for steps in (1, 2, 3):
            await queue.progress("w1", job.attempt, job.id, steps)
            assert (await anext(events)).data["steps_done"] == steps
        await queue.finish("w1", job.attempt, job.id, [])
        assert (await anext(events)).event == "succeeded"
        assert [event async for event in events] == []


async def test_coming_back_in_the_middle_misses_nothing_and_repeats_nothing(http: httpx2.AsyncClient, queue: JobQueue) -> None:
    job_id = await submit(http)
    job = await claim(queue)
    await queue.progress("w1", job.attempt, job.id, 4)
    async with following(http, job_id) as events:
        before = [await anext(events) for _ in range(3)]
    for steps in (8, 12):  # while nobody listens
        await queue.progress("w1", job.attempt, job.id, steps)
    reading = asyncio.create_task(read_all(http, job_id, before[-1].id))
    await queue.progress("w1", job.attempt, job.id, 16)
    await queue.finish("w1", job.attempt, job.id, [])
    after = await reading
    assert [e.data["steps_done"] for e in before + after if e.event == "progress"] == [4, 8, 12, 16]
    assert (before + after) == await read_all(http, job_id)


async def test_every_place_of_the_story_can_be_come_back_to(http: httpx2.AsyncClient, queue: JobQueue) -> None:
    job_id = await submit(http)
    job = await claim(queue)
    for steps in (7, 14):
        await queue.progress("w1", job.attempt, job.id, steps)
    await queue.finish("w1", job.attempt, job.id, [])
    story = await read_all(http, job_id)
    for place, event in enumerate(story[:-1]):
        assert await read_all(http, job_id, event.id) == story[place + 1 :]


async def test_the_final_event_comes_even_to_who_has_seen_it(http: httpx2.AsyncClient, queue: JobQueue) -> None:
    job_id = await submit(http)
    job = await claim(queue)
    await queue.fail("w1", job.attempt, job.id, JobError("out_of_memory", "It does not fit.", True))
    final = (await read_all(http, job_id))[-1]
    assert final.event == "failed"
    assert final.data["error"] == {"code": "out_of_memory", "message": "It does not fit.", "retryable": True}
    (again,) = await read_all(http, job_id, final.id)
    assert (again.id, again.event, again.data["error"]) == (final.id, "failed", final.data["error"])


async def test_the_final_event_comes_even_when_the_stream_is_gone(http: httpx2.AsyncClient, queue: JobQueue, redis: Redis) -> None:
    job_id = await submit(http)
    await queue.cancel(job_id)
    await redis.delete(f"{{q0}}:e:{job_id}")
    (final,) = await read_all(http, job_id)
    assert final.event == "canceled" and final.data["steps_total"] == 20


async def test_cancel_and_requeue_are_told(http: httpx2.AsyncClient, queue: JobQueue) -> None:
    job_id = await submit(http)
    job = await claim(queue)
    await queue.release("w1", job.attempt, job.id)
    await http.delete(f"/jobs/{job_id}")
    assert [e.event for e in await read_all(http, job_id)] == ["queued", "started", "requeued", "canceled"]


async def test_a_preview_rides_on_progress(http: httpx2.AsyncClient, queue: JobQueue) -> None:
    job_id = await submit(http, preview=True)
    async with following(http, job_id) as events:
        job = await claim(queue)
        await queue.progress("w1", job.attempt, job.id, 10, preview="data:image/webp;base64,AAAA")
        seen = [await anext(events) for _ in range(3)]
    assert seen[-1].data["preview"] == "data:image/webp;base64,AAAA"


async def test_several_readers_read_the_same(http: httpx2.AsyncClient, queue: JobQueue) -> None:
    job_id = await submit(http)
    reading = [asyncio.create_task(read_all(http, job_id)) for _ in range(3)]
    job = await claim(queue)
    await queue.finish("w1", job.attempt, job.id, [])
    first, *others = await asyncio.gather(*reading)
    assert all(other == first for other in others) and first[-1].event == "succeeded"


async def test_silence_is_filled_with_comments(http: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fastapi.routing, "_PING_INTERVAL", 0.05)
    job_id = await submit(http)
    async with http.stream("GET", f"/jobs/{job_id}/events") as answer:
        async for line in answer.aiter_lines():
            if line == ": ping":
                break
        else:
            pytest.fail("no comment came")


async def test_streams_are_bounded_and_a_reader_that_left_makes_room(http: httpx2.AsyncClient, gateway: Live) -> None:
    job_id = await submit(http)
    async with following(http, job_id) as one, following(http, job_id) as two:
        async with following(http, job_id) as three:
            for events in (one, two, three):
                assert (await anext(events)).event == "queued"
            queued = await http.post("/generate", json={"prompt": "a"}, headers={"Prefer": "wait=60"})
            assert queued.status_code == 202 and "preference-applied" not in queued.headers
            refused = await http.get(f"/jobs/{job_id}/events")
            assert_error(refused, 429, "too_many_streams")
            assert int(refused.headers["retry-after"]) >= 1
        async with asyncio.timeout(10):
            while True:
                async with http.stream("GET", f"/jobs/{job_id}/events") as answer:
                    if answer.status_code == 200:
                        break


@pytest.mark.parametrize("last", ["abc", "1", "1-2-3", "-1", "9" * 30 + "-0", "$", "+", "1-1\t2", "١-٠".encode().decode("latin-1")])
async def test_a_bad_last_event_id_is_refused(http: httpx2.AsyncClient, last: str) -> None:
    job_id = await submit(http)
    answer = await http.get(f"/jobs/{job_id}/events", headers=[(b"Last-Event-ID", last.encode("latin-1"))])
    assert_error(answer, 400, "invalid_header", "Last-Event-ID")


async def test_an_id_of_the_future_waits_for_the_end(http: httpx2.AsyncClient, queue: JobQueue) -> None:
    job_id = await submit(http)
    reading = asyncio.create_task(read_all(http, job_id, f"{'9' * 18}-0"))
    job = await claim(queue)
    await queue.finish("w1", job.attempt, job.id, [])
    (final,) = await reading
    assert final.event == "succeeded"
