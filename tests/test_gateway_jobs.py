"""The jobs of a client over HTTP: listed, expired, dead, queued again."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from cards import card
from job_samples import Clock, sample_job
from jobs.job import JobError
from jobs.job_queue import JobQueue
from live_gateway import Live, assert_error, running

PROMPT: dict[str, Any] = {"prompt": "a red apple"}
MODEL = "celadon-test"
LEASE_S = 15.0


@pytest.fixture
def gateway(redis_url: str, tmp_path: Path) -> Iterator[Live]:
    with running(redis_url, tmp_path, card()) as live:
        yield live


async def ask(live: Live, path: str, method: str = "GET") -> Any:
    return await asyncio.to_thread(live.http.request, method, path)


async def submit(live: Live, **fields: Any) -> str:
    return str((await asyncio.to_thread(live.post, PROMPT | fields)).json()["id"])


async def ids(live: Live, query: str = "") -> list[str]:
    return [job["id"] for job in (await ask(live, f"/jobs{query}")).json()["jobs"]]


async def kill(queue: JobQueue, clock: Clock) -> str:
    """Every worker that takes the only job is lost with it, until it is given up."""
    for attempt in range(1, 100):
        claimed = await queue.claim(f"w{attempt}", [MODEL], 1)
        if not claimed:
            break
        await clock.advance(LEASE_S + 1)
        await queue.reap()
        job = await queue.get(claimed[0].id)
        if job and job.done:
            return job.id
    raise AssertionError("the job was never given up")


async def test_the_jobs_of_a_client_the_newest_first(gateway: Live, queue: JobQueue, clock: Clock) -> None:
    made = []
    for _ in range(3):
        made.append(await submit(gateway))
        await clock.advance(1)
    answer = (await ask(gateway, "/jobs")).json()
    assert [job["id"] for job in answer["jobs"]] == made[::-1]
    assert answer["cursor"] is None
    assert answer["jobs"][0] == (await ask(gateway, f"/jobs/{made[-1]}")).json()


async def test_a_long_list_comes_in_pages_that_miss_nothing(gateway: Live, clock: Clock) -> None:
    made = []
    for _ in range(7):
        made.append(await submit(gateway))
        await clock.advance(1)
    seen, cursor = [], ""
    while True:
        page = (await ask(gateway, f"/jobs?limit=3{f'&cursor={cursor}' if cursor else ''}")).json()
        assert len(page["jobs"]) <= 3
        seen += [job["id"] for job in page["jobs"]]
        cursor = page["cursor"]
        if not cursor:
            break
        made.append(await submit(gateway))  # what comes meanwhile shifts nothing
    assert seen == made[:7][::-1]


async def test_jobs_by_status(gateway: Live, queue: JobQueue) -> None:
    made = {name: await submit(gateway) for name in ("failed", "running", "canceled", "queued")}
    await ask(gateway, f"/jobs/{made['canceled']}", "DELETE")
    failed, running_ = await queue.claim("w", [MODEL], 2)
    assert (failed.id, running_.id) == (made["failed"], made["running"])
    await queue.fail("w", failed.attempt, failed.id, JobError("out_of_memory", "The picture does not fit."))
    for status, job_id in made.items():
        assert await ids(gateway, f"?status={status}") == [job_id]
    assert await ids(gateway, "?status=succeeded") == []
    assert await ids(gateway, "?status=dead") == []


async def test_jobs_of_others_are_not_listed(gateway: Live, queue: JobQueue) -> None:
    await queue.submit(sample_job("somebody-else", model=MODEL))
    mine = await submit(gateway)
    assert await ids(gateway) == [mine]


async def test_a_job_whose_time_is_over_is_gone_and_one_that_never_was_is_not_found(gateway: Live, queue: JobQueue, redis: Redis) -> None:
    job_id = await submit(gateway)
    await ask(gateway, f"/jobs/{job_id}", "DELETE")
    assert 0 < await redis.ttl(f"{{q0}}:j:{job_id}") <= gateway.settings.retention_s
    await redis.delete(f"{{q0}}:j:{job_id}", f"{{q0}}:e:{job_id}")  # as the server does when the time has come
    for method, path in (("GET", ""), ("DELETE", ""), ("DELETE", "/images"), ("GET", "/events"), ("POST", "/retry")):
        assert_error(await ask(gateway, f"/jobs/{job_id}{path}", method), 410, "job_expired")
        assert_error(await ask(gateway, f"/jobs/{job_id[::-1]}{path}", method), 404, "job_not_found")
    keyed = (await asyncio.to_thread(gateway.post, {"prompt": "a red apple"}, Idempotency_Key="k")).json()["id"]
    await ask(gateway, f"/jobs/{keyed}", "DELETE")
    await redis.delete(f"{{q0}}:j:{keyed}")
    assert_error(await asyncio.to_thread(gateway.post, {"prompt": "a red apple"}, Idempotency_Key="k"), 410, "job_expired")
    assert await ids(gateway) == []


async def test_a_dead_letter_tells_its_reasons_and_lives_again(gateway: Live, queue: JobQueue, redis: Redis, clock: Clock) -> None:
    job_id = await submit(gateway)
    assert await kill(queue, clock) == job_id
    job = (await ask(gateway, f"/jobs/{job_id}")).json()
    assert job["status"] == "failed" and job["error"]["code"] == "worker_lost"
    losses = job["losses"]
    assert [loss["worker"] for loss in losses] == [f"w{n}" for n in range(1, len(losses) + 1)]
    assert [loss["attempt"] for loss in losses] == list(range(1, len(losses) + 1))
    assert all(job["created_at"] < loss["at"] <= job["finished_at"] for loss in losses)
    assert await ids(gateway, "?status=dead") == [job_id]
    answer = await ask(gateway, f"/jobs/{job_id}/retry", "POST")
    assert answer.status_code == 202
    new = answer.json()
    assert answer.headers["location"] == f"{gateway.url}/jobs/{new['id']}" and new["id"] != job_id
    assert new["status"] == "queued" and new["error"] is None and new["losses"] == [] and new["params"] == job["params"]
    assert await ids(gateway, "?status=dead") == []
    assert (await ask(gateway, f"/jobs/{job_id}")).json()["status"] == "failed"  # what has ended stays as it ended
    assert (await ask(gateway, f"/jobs/{job_id}/retry", "POST")).json()["id"] == new["id"]
    (again,) = await queue.claim("w-new", [MODEL], 1)
    assert again.id == new["id"]
    assert await queue.finish("w-new", again.attempt, again.id, [])
    assert (await ask(gateway, f"/jobs/{new['id']}")).json()["status"] == "succeeded"
    await redis.delete(f"{{q0}}:j:{new['id']}")  # a dead letter is kept for longer than what was made of it
    assert_error(await ask(gateway, f"/jobs/{job_id}/retry", "POST"), 410, "job_expired")


async def test_only_dead_letters_are_tried_again(gateway: Live, queue: JobQueue) -> None:
    job_id = await submit(gateway)
    assert_error(await ask(gateway, f"/jobs/{job_id}/retry", "POST"), 409, "job_not_dead")
    (job,) = await queue.claim("w", [MODEL], 1)
    assert_error(await ask(gateway, f"/jobs/{job_id}/retry", "POST"), 409, "job_not_dead")
    await queue.fail("w", job.attempt, job.id, JobError("out_of_memory", "The picture does not fit."))
    assert_error(await ask(gateway, f"/jobs/{job_id}/retry", "POST"), 409, "job_not_dead")
