"""How a job is to be served, over HTTP: priority, class, deadline, webhook, reuse; and dry runs. The test is the worker."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from cards import card
from job_samples import Clock, sample_image
from jobs.job_queue import JobQueue
from live_gateway import Live, assert_error, depth, running

PROMPT: dict[str, Any] = {"prompt": "a red apple"}
MODEL = "celadon-test"
HOOK = "https://hooks.example.com/celadon?for=me"


@pytest.fixture
def gateway(redis_url: str, tmp_path: Path) -> Iterator[Live]:
    with running(redis_url, tmp_path, card()) as live:
        yield live


def dry_run(live: Live, body: dict[str, Any]) -> Any:
    return live.http.post("/generate", params={"dry_run": "true"}, json=body)


async def measured(queue: JobQueue, seconds_per_evaluation: float) -> None:
    """Workers have told how long the small model takes."""
    await queue.report_cost(MODEL, 64, 64, seconds_per_evaluation)


def test_a_job_tells_how_it_is_served(gateway: Live) -> None:
    terms = {"priority": -3, "service_class": "batch", "deadline_s": 3600, "webhook": {"url": HOOK, "events": ["failed"]}, "reuse": True}
    answer = gateway.post(PROMPT | terms | {"seed": 1})
    assert answer.status_code == 202, answer.text
    job = answer.json()
    assert (job["priority"], job["service_class"], job["reuse"]) == (-3, "batch", True)
    assert job["webhook"] == {"url": HOOK, "events": ["failed"]}
    left = datetime.fromisoformat(job["deadline_at"]) - datetime.fromisoformat(job["created_at"])
    assert abs(left - timedelta(hours=1)) < timedelta(seconds=1)
    again = gateway.http.get(f"/jobs/{job['id']}").json()
    assert {name: again[name] for name in terms if name != "deadline_s"} == {name: job[name] for name in terms if name != "deadline_s"}
    assert not set(job["params"]) & set(terms)  # they decide nothing of the picture


def test_what_is_not_said_is_the_usual(gateway: Live) -> None:
    job = gateway.post(PROMPT | {"webhook": None, "deadline_s": None}).json()
    assert (job["priority"], job["service_class"], job["reuse"]) == (0, "normal", False)
    assert job["webhook"] is None and job["deadline_at"] is None


def test_a_webhook_hears_of_everything_unless_told_otherwise(gateway: Live) -> None:
    job = gateway.post(PROMPT | {"webhook": {"url": HOOK}}).json()
    assert job["webhook"]["events"] == ["started", "succeeded", "failed", "canceled"]


def test_inside_one_network_webhooks_may_stay_there(redis_url: str, tmp_path: Path) -> None:
    inside = PROMPT | {"webhook": {"url": "http://127.0.0.1:8080/hook"}}
    with running(redis_url, tmp_path, card()) as live:
        assert_error(live.post(inside), 400, "webhook_refused", "webhook.url")
    with running(redis_url, tmp_path, card(), webhook_allow_private=True) as live:
        assert live.post(inside).status_code == 202


async def test_priority_orders_the_jobs_of_one_client(gateway: Live, queue: JobQueue) -> None:
    low, usual, high = [(await asyncio.to_thread(gateway.post, PROMPT | {"priority": p})).json()["id"] for p in (-1, 0, 100)]
    assert [job.id for job in await queue.claim("w", [MODEL], 3)] == [high, usual, low]


async def test_interactive_goes_before_normal_and_normal_before_batch(gateway: Live, queue: JobQueue) -> None:
    batch, normal, interactive = [
        (await asyncio.to_thread(gateway.post, PROMPT | {"service_class": name})).json()["id"]
        for name in ("batch", "normal", "interactive")
    ]
    assert [job.id for job in await queue.claim("w", [MODEL], 3)] == [interactive, normal, batch]


async def test_a_deadline_that_cannot_be_met_is_refused_with_the_time_it_would_take(gateway: Live, queue: JobQueue, redis_url: str) -> None:
    await measured(queue, 1.0)
    message = assert_error(await asyncio.to_thread(gateway.post, PROMPT | {"deadline_s": 0.5}), 422, "deadline_unmeetable", "deadline_s")
    assert "20" in message and "0.5" in message, message  # 20 evaluations of one second
    assert_error(await asyncio.to_thread(dry_run, gateway, PROMPT | {"deadline_s": 0.5}), 422, "deadline_unmeetable", "deadline_s")
    assert depth(redis_url) == {"queued": 0, "running": 0}
    assert (await asyncio.to_thread(gateway.post, PROMPT | {"deadline_s": 60})).status_code == 202


async def test_a_waiting_job_tells_when_it_will_be_done_and_a_running_one_does_not(gateway: Live, queue: JobQueue) -> None:
    await measured(queue, 0.5)
    first, second = [(await asyncio.to_thread(gateway.post, PROMPT)).json() for _ in range(2)]
    assert first["predicted_s"] == second["predicted_s"] == pytest.approx(10)
    assert (first["position"], second["position"]) == (0, 1)
    assert first["eta_s"] >= 10 and second["eta_s"] > first["eta_s"]
    await queue.claim("w", [MODEL], 1)
    told = (await asyncio.to_thread(gateway.http.get, f"/jobs/{first['id']}")).json()
    assert told["status"] == "running" and told["position"] is None and told["eta_s"] is None
    assert (await asyncio.to_thread(gateway.http.get, f"/jobs/{second['id']}")).json()["position"] == 0


async def test_a_dry_run_says_what_would_be_and_leaves_nothing(gateway: Live, queue: JobQueue, redis: Redis) -> None:
    await measured(queue, 0.25)
    await asyncio.to_thread(gateway.post, PROMPT)
    before = {key: await redis.dump(key) for key in await redis.keys("*")}
    answer = await asyncio.to_thread(dry_run, gateway, PROMPT | {"steps": 8, "negative_prompt": "zebra", "seed": 5})
    assert answer.status_code == 200
    said = answer.json()
    assert set(said) == {"valid", "predicted_s", "position", "eta_s", "params", "warnings"}
    assert said["valid"] is True and said["position"] == 1
    assert said["predicted_s"] == pytest.approx(2.0)
    assert said["eta_s"] >= said["predicted_s"]
    assert said["params"]["steps"] == 8 and said["params"]["sampler"] == "dpmpp_2m"
    assert [warning["code"] for warning in said["warnings"]] == ["unknown_words"]
    assert {key: await redis.dump(key) for key in await redis.keys("*")} == before


def test_a_dry_run_refuses_what_a_request_would(gateway: Live) -> None:
    assert_error(dry_run(gateway, PROMPT | {"sampler": "eulre"}), 400, "unknown_sampler", "sampler")
    assert_error(dry_run(gateway, PROMPT | {"webhook": {"url": "https://10.0.0.1/"}}), 400, "webhook_refused", "webhook.url")
    assert_error(dry_run(gateway, PROMPT | {"reuse": True}), 400, "invalid_value", "reuse")


def test_whether_it_is_a_dry_run_is_said_once(gateway: Live, redis_url: str) -> None:
    for query in ("dry_run=true&dry_run=false", "dry_run=false&dry_run=true"):
        assert_error(gateway.http.post(f"/generate?{query}", json=PROMPT), 400, "invalid_value", "dry_run")
    assert depth(redis_url)["queued"] == 0


def test_without_dry_run_a_job_is_queued(gateway: Live, redis_url: str) -> None:
    assert gateway.http.post("/generate", params={"dry_run": "false"}, json=PROMPT).status_code == 202
    assert depth(redis_url)["queued"] == 1


async def test_equal_requests_that_may_share_are_drawn_once(gateway: Live, queue: JobQueue) -> None:
    body = PROMPT | {"seed": 7, "reuse": True}
    first, second, other = [(await asyncio.to_thread(gateway.post, b)).json() for b in (body, body, body | {"seed": 8})]
    claimed = await queue.claim("w", [MODEL], 4)
    assert len(claimed) == 2 and {job.params.seed for job in claimed} == {7, 8}
    leader = next(job for job in claimed if job.params.seed == 7)
    assert await queue.finish("w", leader.attempt, leader.id, [])
    for job in (first, second):
        assert (await asyncio.to_thread(gateway.http.get, f"/jobs/{job['id']}")).json()["status"] == "succeeded"
    assert (await asyncio.to_thread(gateway.http.get, f"/jobs/{other['id']}")).json()["status"] == "running"


async def test_what_was_drawn_just_now_answers_at_once(gateway: Live, queue: JobQueue) -> None:
    body = PROMPT | {"seed": 7, "reuse": True}
    first = (await asyncio.to_thread(gateway.post, body)).json()
    (job,) = await queue.claim("w", [MODEL], 1)
    assert await queue.finish("w", job.attempt, job.id, [sample_image(job)])
    answer = await asyncio.to_thread(gateway.post, body)
    assert answer.status_code == 200
    again = answer.json()
    assert again["status"] == "succeeded" and again["id"] != first["id"]
    assert [image["key"] for image in again["images"]] == [sample_image(job).key]


async def test_a_deadline_that_passes_in_the_queue_ends_the_job(gateway: Live, queue: JobQueue, clock: Clock) -> None:
    job = (await asyncio.to_thread(gateway.post, PROMPT | {"deadline_s": 60})).json()
    await clock.advance(61)
    await queue.reap()
    told = (await asyncio.to_thread(gateway.http.get, f"/jobs/{job['id']}")).json()
    assert told["status"] == "failed" and told["error"]["code"] == "deadline"


async def test_a_request_that_does_not_allow_it_shares_nothing(gateway: Live, queue: JobQueue) -> None:
    for reuse in (True, False):
        await asyncio.to_thread(gateway.post, PROMPT | {"seed": 7, "reuse": reuse})
    assert len(await queue.claim("w", [MODEL], 4)) == 2
