"""Webhook deliveries that were given up, over HTTP: listed, and delivered again. The test is the worker that could not deliver."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from cards import card
from jobs.hooks import HookQueue
from live_gateway import Live, assert_error, running

PROMPT: dict[str, Any] = {"prompt": "a red apple"}
HOOK = "https://hooks.example.com/celadon"


@pytest.fixture
def gateway(redis_url: str, tmp_path: Path) -> Iterator[Live]:
    with running(redis_url, tmp_path, card()) as live:
        yield live


async def ask(live: Live, path: str, method: str = "GET") -> Any:
    return await asyncio.to_thread(live.http.request, method, path)


async def give_up(live: Live, hooks: HookQueue, reason: str) -> str:
    """A canceled job whose receiver does not answer; returns the id of its delivery."""
    job = (await asyncio.to_thread(live.post, PROMPT | {"webhook": {"url": HOOK}})).json()
    await ask(live, f"/jobs/{job['id']}", "DELETE")
    (delivery,) = await hooks.due("w", 10)
    assert delivery.job_id == job["id"]
    assert await hooks.failed("w", delivery.id, reason, retry_in_s=None)
    return delivery.id


async def test_what_was_given_up_is_listed_with_the_reason(gateway: Live, redis: Redis) -> None:
    assert (await ask(gateway, "/webhooks/deliveries")).json() == []
    delivery = await give_up(gateway, HookQueue(redis), "500")
    (told,) = (await ask(gateway, "/webhooks/deliveries?state=dead")).json()
    assert told == {
        "id": delivery,
        "job_id": delivery.partition(".")[0],
        "event": "canceled",
        "url": HOOK,
        "attempt": 1,
        "reason": "500",
    }


async def test_what_was_given_up_is_delivered_again_once(gateway: Live, redis: Redis) -> None:
    hooks = HookQueue(redis)
    delivery = await give_up(gateway, hooks, "timeout")
    answer = await ask(gateway, f"/webhooks/deliveries/{delivery}/redeliver", "POST")
    assert answer.status_code == 202 and answer.json() == {"id": delivery, "state": "due"}
    assert (await ask(gateway, "/webhooks/deliveries")).json() == []
    assert [due.id for due in await hooks.due("w", 10)] == [delivery]
    assert_error(await ask(gateway, f"/webhooks/deliveries/{delivery}/redeliver", "POST"), 404, "delivery_not_found")


async def test_the_newest_are_told_when_there_are_many(gateway: Live, redis: Redis) -> None:
    made = [await give_up(gateway, HookQueue(redis), "410") for _ in range(3)]
    assert [one["id"] for one in (await ask(gateway, "/webhooks/deliveries?limit=2")).json()] == made[:0:-1]


async def test_a_webhook_hears_only_of_what_it_asked_for(gateway: Live, redis: Redis) -> None:
    job = (await asyncio.to_thread(gateway.post, PROMPT | {"webhook": {"url": HOOK, "events": ["succeeded"]}})).json()
    await ask(gateway, f"/jobs/{job['id']}", "DELETE")
    assert await HookQueue(redis).due("w", 10) == []
