"""Webhooks from the event to the receiver: real Valkey, real HTTP. The server's clock is turned by hand."""

from __future__ import annotations

import asyncio
import base64
import json
import re
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest
import structlog
from redis.asyncio import Redis
from redis.exceptions import ConnectionError

from jobs import hook_secrets
from jobs.guarded_network import Unreachable
from jobs.hook_signature import show_secret, sign
from jobs.hooks import Delivery, HookQueue
from jobs.job import Job, JobError, Webhook
from jobs.job_queue import JobQueue
from tests.job_samples import MODEL, Clock, sample_image, sample_job
from tests.test_docs import ROOT, rows
from tests.webhook_receiver import receiving, status
from workers.webhooks import RETRIES_S, Courier, HookSettings, Outcome, deliver

SECRET = bytes(range(32))
LOCAL = HookSettings(allow_private=True, timeout_s=5.0, idle_s=0.01)


async def secret_of(client: str) -> list[bytes]:
    return [SECRET]


@pytest.fixture
def hooks(redis: Redis, clock: Clock) -> HookQueue:
    return HookQueue(redis)


@asynccontextmanager
async def delivering(hooks: HookQueue, settings: HookSettings = LOCAL, **parts: Any) -> AsyncIterator[None]:
    task = asyncio.create_task(deliver(hooks, secret_of, settings, "w1", **parts))
    try:
        yield
        assert not task.done(), task.exception()
    finally:
        task.cancel()
        await asyncio.wait({task})


async def until(fact: Callable[[], Any]) -> None:
    async with asyncio.timeout(10):
        while not fact():
            await asyncio.sleep(0.005)


async def ended(queue: JobQueue, url: str, *, events: tuple[str, ...] = ("succeeded",)) -> Job:
    """A job that has run and succeeded."""
    job = (await queue.submit(sample_job(webhook=Webhook(url, events)))).job
    (running,) = await queue.claim("w0", [MODEL], 1)
    assert running.id == job.id
    assert await queue.finish("w0", running.attempt, job.id, [sample_image(job)])
    return job


async def settled(redis: Redis, but: int = 0) -> None:
    """No delivery, but for so many, is left that could be tried now or later."""
    async with asyncio.timeout(10):
        while await redis.zcard("{q0}:hooks") != but:
            await asyncio.sleep(0.005)


async def tried(redis: Redis, clock: Clock, after_s: float) -> None:
    """The only delivery has failed and waits for so long."""
    async with asyncio.timeout(10):
        while [score for _, score in await redis.zrange("{q0}:hooks", 0, -1, withscores=True)] != [clock.now + after_s]:
            await asyncio.sleep(0.005)


def snippet() -> dict[str, Any]:
    """The receiver's Python of docs/webhooks.md."""
    code = re.search(r"```python\n(.*?)```", (ROOT / "docs" / "webhooks.md").read_text(), re.DOTALL)
    assert code
    namespace: dict[str, Any] = {}
    exec(code[1], namespace)
    return namespace


async def test_a_client_is_told_under_its_own_secret_and_under_both_while_one_is_replaced(
    queue: JobQueue, hooks: HookQueue, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    verify, secrets = snippet()["verify"], hooks.secrets
    monkeypatch.setattr(hook_secrets, "FRESH_S", 0.0)
    monkeypatch.setitem(globals(), "secret_of", secrets.lately)
    with receiving(status(200)) as receiver:
        async with delivering(hooks):
            for n, move in enumerate((secrets.of, secrets.rotate, secrets.retire), 1):
                kept, others = await move("ada"), await secrets.of("bob")
                await ended(queue, receiver.url())
                await settled(redis)
                got = receiver.got[n - 1]
                assert len(got.headers["webhook-signature"].split()) == len(kept)
                assert all(verify(show_secret(secret), got.headers, got.body) for secret in kept)
                assert not verify(show_secret(others[0]), got.headers, got.body)


async def test_a_receiver_is_told_and_can_verify_it(queue: JobQueue, hooks: HookQueue, redis: Redis) -> None:
    """With the code of the documentation, as a receiver would."""
    verify = snippet()["verify"]
    with receiving(status(200)) as receiver:
        job = await ended(queue, receiver.url(), events=("started", "succeeded"))
        async with delivering(hooks):
            await settled(redis)
    assert len(receiver.got) == 2
    for got in receiver.got:
        assert verify(show_secret(SECRET), got.headers, got.body)
        assert not verify(show_secret(SECRET), got.headers, got.body + b" ")
        assert not verify(show_secret(bytes(32)), got.headers, got.body)
        assert not verify(show_secret(SECRET), got.headers | {"webhook-id": "other"}, got.body)
        old = str(int(got.headers["webhook-timestamp"]) - 3600)
        assert not verify(show_secret(SECRET), got.headers | {"webhook-timestamp": old}, got.body)
        assert got.headers["content-type"] == "application/json"
    bodies = {body["type"]: body for body in (json.loads(got.body) for got in receiver.got)}
    assert bodies.keys() == {"job.started", "job.succeeded"}
    assert len({got.headers["webhook-id"] for got in receiver.got}) == 2
    assert not any("." in got.headers["webhook-id"] for got in receiver.got)
    assert bodies["job.succeeded"]["data"]["id"] == job.id
    assert bodies["job.succeeded"]["data"]["status"] == "succeeded"


async def test_the_body_is_as_documented(queue: JobQueue, hooks: HookQueue, redis: Redis) -> None:
    told = {name.strip("`") for cell in rows("webhooks.md") for name in cell.split(", ") if name.strip("`").startswith("data.")}
    with receiving(status(200)) as receiver:
        await ended(queue, receiver.url())
        failing = (await queue.submit(sample_job(webhook=Webhook(receiver.url(), ("failed",))))).job
        (running,) = await queue.claim("w0", [MODEL], 1)
        await queue.fail("w0", running.attempt, failing.id, JobError("engine_error", "It broke."))
        async with delivering(hooks):
            await settled(redis)
    bodies = [json.loads(got.body) for got in receiver.got]
    assert {key for body in bodies for key in body} == {"type", "timestamp", "data"}
    assert {f"data.{key}" for body in bodies for key in body["data"]} == told
    (example,) = re.findall(r"```json\n(\{\n.*?)```", (ROOT / "docs" / "webhooks.md").read_text(), re.DOTALL)
    succeeded = next(body for body in bodies if body["type"] == "job.succeeded")
    assert json.loads(example)["data"].keys() == succeeded["data"].keys()
    assert json.loads(example)["data"]["images"][0].keys() == succeeded["data"]["images"][0].keys()


def test_the_signature_is_that_of_the_specification() -> None:
    """The example of the Standard Webhooks specification."""
    secret = base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    body = b'{"test": 2432232314}'
    assert sign(secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, body) == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    assert show_secret(secret) == "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


async def test_after_an_error_it_comes_again(queue: JobQueue, hooks: HookQueue, redis: Redis, clock: Clock) -> None:
    with receiving(status(500, 503, 204)) as receiver:
        await ended(queue, receiver.url())
        async with delivering(hooks):
            await tried(redis, clock, 5)
            await clock.advance(4.9)
            assert await hooks.due("other", 1) == []
            await clock.advance(0.1)
            await tried(redis, clock, 30)
            await clock.advance(30)
            await settled(redis)
    assert len(receiver.got) == 3
    assert len({(got.headers["webhook-id"], got.body) for got in receiver.got}) == 1
    assert await hooks.dead() == []


async def test_in_the_end_it_is_dead_and_can_be_delivered_again(queue: JobQueue, hooks: HookQueue, redis: Redis, clock: Clock) -> None:
    told = [
        int(n) * {"s": 1, "min": 60, "h": 3600}[unit] for n, unit in (cell.split() for (cell,) in list(rows("webhooks.md").values())[-7:-1])
    ]
    assert tuple(told) == RETRIES_S
    with receiving(status(*[500] * 7, 200)) as receiver:
        await ended(queue, receiver.url())
        async with delivering(hooks):
            for wait in RETRIES_S:
                await tried(redis, clock, wait)
                await clock.advance(wait)
            await settled(redis)
            (dead,) = await hooks.dead()
            assert (dead.attempt, dead.reason, len(receiver.got)) == (7, "status 500", 7)
            assert await hooks.redeliver(dead.id)
            await settled(redis)
    assert len(receiver.got) == 8
    assert await hooks.dead() == []


async def test_gone_is_final(queue: JobQueue, hooks: HookQueue, redis: Redis) -> None:
    with receiving(status(410)) as receiver:
        await ended(queue, receiver.url())
        async with delivering(hooks):
            await settled(redis)
    assert [delivery.reason for delivery in await hooks.dead()] == ["status 410"]
    assert len(receiver.got) == 1


async def test_a_redirect_is_a_failed_attempt(queue: JobQueue, hooks: HookQueue, redis: Redis, clock: Clock) -> None:
    with receiving(status(200)) as elsewhere, receiving(status(302, location=elsewhere.url())) as receiver:
        await ended(queue, receiver.url())
        async with delivering(hooks):
            await tried(redis, clock, 5)
    assert (len(receiver.got), elsewhere.got) == (1, [])


async def test_private_addresses_are_refused(queue: JobQueue, hooks: HookQueue, redis: Redis) -> None:
    """Although the gateway has let the URL pass, as it would a name."""
    with receiving(status(200)) as receiver:
        await ended(queue, receiver.url(scheme="https"))
        async with delivering(hooks, replace(LOCAL, allow_private=False)):
            await settled(redis)
    (dead,) = await hooks.dead()
    assert (dead.attempt, receiver.got) == (1, [])
    assert dead.reason == "The host is not an address on the public internet."


async def test_a_slow_receiver_holds_up_nobody(queue: JobQueue, hooks: HookQueue, redis: Redis, clock: Clock) -> None:
    def silent(request: BaseHTTPRequestHandler, before: int) -> None:
        slow.closing.wait()

    with receiving(silent) as slow, receiving(status(200)) as quick:
        await ended(queue, slow.url())
        async with delivering(hooks, replace(LOCAL, at_once=2)):
            await until(lambda: slow.got)
            for _ in range(20):
                await ended(queue, quick.url())
            await until(lambda: len(quick.got) == 20)  # all of them while the first still waits for its answer
            await settled(redis, but=1)
        await clock.advance(61)  # the delivery that was cut short was nobody's, and comes again
        async with delivering(hooks, replace(LOCAL, timeout_s=0.1)):
            await tried(redis, clock, 30)
    assert len(slow.got) == 2


async def test_no_more_at_once_than_allowed(queue: JobQueue, hooks: HookQueue, redis: Redis) -> None:
    flying: list[int] = []
    busy = 0

    async def post(url: str, headers: Mapping[str, str], body: bytes) -> tuple[int, Mapping[str, str]]:
        nonlocal busy
        busy += 1
        flying.append(busy)
        await asyncio.sleep(0)
        busy -= 1
        return 200, {}

    for _ in range(10):
        await ended(queue, "https://example.com/")
    async with delivering(hooks, replace(LOCAL, at_once=3), post=post):
        await settled(redis)
    assert (len(flying), max(flying)) == (10, 3)


async def test_a_bug_costs_one_attempt_of_one_delivery(queue: JobQueue, hooks: HookQueue, redis: Redis, clock: Clock) -> None:
    async def post(url: str, headers: Mapping[str, str], body: bytes) -> tuple[int, Mapping[str, str]]:
        if "broken" in url:
            raise ZeroDivisionError("broken")
        return 200, {}

    await ended(queue, "https://example.com/broken")
    await ended(queue, "https://example.com/")
    async with delivering(hooks, post=post):
        await tried(redis, clock, 5)


class Shaky(HookQueue):
    """Every second call fails."""

    calls = 0

    async def _shaken(self) -> None:
        self.calls += 1
        if self.calls % 2:
            raise ConnectionError("away")

    async def due(self, worker: str, limit: int) -> list[Delivery]:
        await self._shaken()
        return await super().due(worker, limit)

    async def delivered(self, worker: str, delivery_id: str) -> bool:
        await self._shaken()
        return await super().delivered(worker, delivery_id)

    async def failed(self, worker: str, delivery_id: str, reason: str, *, retry_in_s: float | None) -> bool:
        await self._shaken()
        return await super().failed(worker, delivery_id, reason, retry_in_s=retry_in_s)


async def test_redis_may_go_and_come_back(queue: JobQueue, redis: Redis, clock: Clock) -> None:
    """And what was posted meanwhile is written down, not posted again."""
    with receiving(status(200, 500)) as receiver:
        await ended(queue, receiver.url())
        async with delivering(Shaky(redis)):
            await settled(redis)
            await ended(queue, receiver.url())
            await tried(redis, clock, 5)
    assert len(receiver.got) == 2


async def test_it_stops_whenever_it_is_told_to(hooks: HookQueue) -> None:
    """Also in the middle of talking to Redis, again and again, at any point of its loop."""
    for steps in range(60):
        task = asyncio.create_task(deliver(hooks, secret_of, replace(LOCAL, idle_s=0.0), "w1", post=courier([])._post))
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        done, _ = await asyncio.wait({task}, timeout=5)
        assert done and task.cancelled()


async def test_neither_secret_nor_url_nor_body_is_logged(queue: JobQueue, hooks: HookQueue, redis: Redis, clock: Clock) -> None:
    with receiving(status(200, 500, 410)) as receiver, structlog.testing.capture_logs() as lines:
        for _ in range(3):
            await ended(queue, receiver.url(path="/hook/token?key=123"))
        await ended(queue, "https://10.0.0.1/hook/token")
        async with delivering(hooks):
            await until(lambda: sum("delivery" in line for line in lines) >= 3)
        await clock.advance(100)
        async with delivering(hooks, replace(LOCAL, allow_private=False)):
            await settled(redis)
    said = repr(lines)
    assert said.count("'delivery':") >= 4
    for hidden in ("token", "key=", "127.0.0.1", "10.0.0.1", "media_type", show_secret(SECRET), SECRET.hex(), "v1,"):
        assert hidden not in said


def courier(outcomes: list[Any], clock: Callable[[], float] = lambda: 0.0) -> Courier:
    async def post(url: str, headers: Mapping[str, str], body: bytes) -> tuple[int, Mapping[str, str]]:
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome  # type: ignore[no-any-return]

    return Courier(secret_of, post, now=lambda: 1_614_265_330.9, clock=clock)


def delivery(attempt: int = 1, url: str = "https://example.com/") -> Delivery:
    return Delivery("job-1.succeeded", "job-1", "succeeded", url, "{}", attempt)


@pytest.mark.parametrize(
    ("attempt", "wish", "wait"),
    [
        (1, "60", 60),
        (1, "1", 5),
        (6, "1", 21_600),
        (1, "99999999", 21_600),
        (1, "9" * 5000, 5),
        (1, "soon", 5),
        (1, "-60", 5),
        (1, "٣٠٠", 5),
    ],
)
async def test_the_receiver_may_ask_for_more_time(attempt: int, wish: str, wait: int) -> None:
    assert await courier([(429, {"retry-after": wish})]).attempt(delivery(attempt)) == Outcome(False, "status 429", wait)


async def test_a_silent_receiver_rests() -> None:
    now = 0.0
    silence, answered = Unreachable("timeout"), (500, {})
    outcomes: list[Any] = [silence, silence, answered, silence, silence, silence, silence, (200, {})]
    sender = courier(outcomes, lambda: now)
    for _ in range(6):  # three in a row: those before the answer do not count
        await sender.attempt(delivery())
    assert len(outcomes) == 2
    assert await sender.attempt(delivery()) == Outcome(False, "receiver is silent", 5)
    assert len(outcomes) == 2, "it was not asked"
    now = 30.1
    assert (await sender.attempt(delivery())).reason == "timeout"
    assert (await sender.attempt(delivery())).reason == "receiver is silent", "one more silence and it rests again"
    assert (await sender.attempt(delivery(url="https://other.example.com/"))).delivered
    assert outcomes == []
