"""Webhooks: tells receivers what happened to their jobs, beside the other loops of a worker and never in their way.

A delivery waits in the queue's own list, so that it survives every process; a worker takes some, posts them at the same time and
writes down how each went. Whatever is not written down is delivered again: at least once, under one `webhook-id`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import structlog

from jobs.guarded_network import Refused, Unreachable
from jobs.hook_signature import sign
from jobs.hook_url import parse_url
from jobs.hooks import Delivery, HookQueue
from workers.hook_post import GuardedPost
from workers.insist import insist

Secrets = Callable[[str], Awaitable[Sequence[bytes]]]  # of a client, the newest first: all of them sign
Post = Callable[[str, Mapping[str, str], bytes], Awaitable[tuple[int, Mapping[str, str]]]]

log = structlog.get_logger("webhooks")

RETRIES_S = (5, 30, 120, 600, 3600, 21_600)  # after the first, second ... attempt that failed; then the delivery is dead
GONE = 410  # the receiver wants no more of this


@dataclass(frozen=True, slots=True)
class HookSettings:
    """How webhooks are delivered. `timeout_s` is for one request as a whole, `idle_s` passes between two looks at an empty queue."""

    allow_private: bool = False
    timeout_s: float = 10.0
    at_once: int = 32
    idle_s: float = 1.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one attempt went. `retry_in_s` None: not again."""

    delivered: bool
    reason: str
    retry_in_s: float | None = None


async def deliver(
    hooks: HookQueue,
    secrets: Secrets,
    settings: HookSettings,
    worker: str,
    *,
    post: Post | None = None,
    count: Callable[[str], None] = lambda outcome: None,
) -> None:
    """Delivers whatever falls due, forever; while Redis is away it waits. Cancel it to stop: what is under way comes again elsewhere.
    `count` hears how each attempt went: delivered, failed or dead."""
    courier = Courier(secrets, post or GuardedPost(allow_private=settings.allow_private, timeout_s=settings.timeout_s))
    flying: set[asyncio.Task[None]] = set()
    async with asyncio.TaskGroup() as group:
        while True:
            if len(flying) >= settings.at_once:
                await asyncio.wait(flying, return_when=asyncio.FIRST_COMPLETED)
            due = await insist(hooks.due, worker, settings.at_once - len(flying))
            for delivery in due:
                task = group.create_task(_settle(hooks, courier, delivery, worker, count))
                flying.add(task)
                task.add_done_callback(flying.discard)
            if not due:
                await asyncio.sleep(settings.idle_s)


async def _settle(hooks: HookQueue, courier: Courier, delivery: Delivery, worker: str, count: Callable[[str], None]) -> None:
    outcome = await courier.attempt(delivery)
    told = {"job": delivery.job_id, "what": delivery.event, "delivery": delivery.id, "attempt": delivery.attempt}
    if delivery.request_id:
        told["request_id"] = delivery.request_id
    if outcome.delivered:
        await insist(hooks.delivered, worker, delivery.id)
        log.info("delivered", **told)
        count("delivered")
    else:
        await insist(partial(hooks.failed, worker, delivery.id, outcome.reason, retry_in_s=outcome.retry_in_s))
        log.warning("not_delivered", **told, reason=outcome.reason, retry_in_s=outcome.retry_in_s)
        count("dead" if outcome.retry_in_s is None else "failed")


class Courier:
    """Posts deliveries, signed, and says how it went. Neither URL, body nor secret gets into an outcome or a log line."""

    def __init__(
        self, secrets: Secrets, post: Post, *, now: Callable[[], float] = time.time, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._secrets, self._post, self._now = secrets, post, now
        self._silences = Silences(clock)

    async def attempt(self, delivery: Delivery) -> Outcome:
        url = parse_url(delivery.url)
        receiver = url.netloc.lower() if url else ""
        if self._silences.resting(receiver):
            return _failure(delivery, "receiver is silent")
        body, secrets = delivery.body.encode(), await insist(self._secrets, delivery.client)
        try:
            status, headers = await self._post(delivery.url, self._headers(delivery.id, body, secrets), body)
        except Refused as error:
            return Outcome(False, str(error))
        except Unreachable as error:
            self._silences.missed(receiver)
            return _failure(delivery, str(error))
        except Exception as error:  # one delivery that breaks the program takes neither its neighbours nor the worker with it
            log.error("broken", job=delivery.job_id, delivery=delivery.id, error=type(error).__name__)
            return _failure(delivery, "internal error")
        self._silences.answered(receiver)
        return _judge(delivery, status, headers)

    def _headers(self, delivery_id: str, body: bytes, secrets: Sequence[bytes]) -> dict[str, str]:
        timestamp = int(self._now())
        message_id = delivery_id.replace(".", "_")  # dots part what is signed
        return {
            "content-type": "application/json",
            "user-agent": "celadon",
            "webhook-id": message_id,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": " ".join(sign(secret, message_id, timestamp, body) for secret in secrets),
        }


class Silences:
    """Receivers that leave one delivery after the other without an answer are left alone for a while.

    Otherwise a few thousand deliveries to one dead host, ten seconds each, would hold up those of everybody else.
    """

    PATIENCE = 3  # unanswered in a row
    REST_S = 30.0
    MOST = 1024  # receivers remembered

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._missed: dict[str, tuple[int, float]] = {}  # receiver -> how many in a row, until when it rests

    def resting(self, receiver: str) -> bool:
        return self._missed.get(receiver, (0, 0.0))[1] > self._clock()

    def missed(self, receiver: str) -> None:
        count = self._missed.pop(receiver, (0, 0.0))[0] + 1
        self._missed[receiver] = (count, self._clock() + self.REST_S if count >= self.PATIENCE else 0.0)
        if len(self._missed) > self.MOST:
            del self._missed[next(iter(self._missed))]

    def answered(self, receiver: str) -> None:
        self._missed.pop(receiver, None)


def _judge(delivery: Delivery, status: int, headers: Mapping[str, str]) -> Outcome:
    if 200 <= status < 300:
        return Outcome(True, f"status {status}")
    if status == GONE:
        return Outcome(False, f"status {status}")
    wish = headers.get("retry-after", "")
    return _failure(delivery, f"status {status}", int(wish) if wish.isascii() and wish.isdigit() and len(wish) < 10 else 0)


def _failure(delivery: Delivery, reason: str, at_least_s: int = 0) -> Outcome:
    """The next attempt by the table, later if the receiver asks for it, at most the table's longest wait away."""
    if delivery.attempt > len(RETRIES_S):
        return Outcome(False, reason)
    return Outcome(False, reason, min(max(RETRIES_S[delivery.attempt - 1], at_least_s), RETRIES_S[-1]))
