"""The durable queue: thin methods over one Lua script per atomic move. The protocol is written down in docs/queue.md.

A job is worked on at least once and settled exactly once. Whoever holds a job proves it by (worker, attempt); every
move of somebody who does not, changes nothing and returns False. All times are the server's.

    queued --claim--> running --finish--> succeeded
      ^                  |----fail------> failed
      |--release, reap---|----cancel----> canceled     (a queued job is canceled at once)

Methods raise redis.exceptions.RedisError when the server cannot be reached or refuses; each may be repeated then.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import IntEnum
from typing import Any, cast

from redis.asyncio import Redis

from jobs.connection import MAX_BLOCK_S, ServerUnfit, check_server, connect
from jobs.job import SCHEMA, ImageRef, Job, JobError, JobWarning
from jobs.scripts import Scripts

__all__ = ["IdempotencyConflict", "JobQueue", "QueueFull", "Renewal", "ServerUnfit", "Standing", "Submitted", "check_server", "connect"]

IDEMPOTENCY_S = 86_400
MAX_PRIORITY = 900  # beyond, priority and order no longer fit a double exactly
REAP_AT_ONCE = 100  # jobs in one script, so that it stays short

WORKER_LOST = JobError("worker_lost", "The workers that ran this job were lost, five times over.")


class QueueFull(Exception):
    """The queue is at its bound; come back after `retry_after_s`."""

    def __init__(self, retry_after_s: int) -> None:
        super().__init__(f"The queue is full. Try again in {retry_after_s} s.")
        self.retry_after_s = retry_after_s


class IdempotencyConflict(Exception):
    """The idempotency key belongs to an earlier request that asked for something else."""


@dataclass(frozen=True, slots=True)
class Submitted:
    """The job as it stands; `created` is False where an earlier submit had already made it."""

    job: Job
    created: bool


@dataclass(frozen=True, slots=True)
class Renewal:
    """What a worker learns when it renews: jobs it no longer holds, and jobs whose cancel is wished."""

    lost: frozenset[str]
    canceled: frozenset[str]


class Standing(IntEnum):
    """How a worker stands to a job after reporting progress; LOST is falsy."""

    LOST = 0
    HELD = 1
    CANCEL = 2  # held, and its client wishes to cancel


class JobQueue:
    """One shard of the queue. `lease_s` must exceed the interval of `renew` several times."""

    def __init__(
        self, redis: Redis, *, shard: str = "q0", lease_s: float = 15.0, max_queued: int = 10_000, retention_s: int = 86_400
    ) -> None:
        self._redis = redis
        self._scripts = Scripts(redis, shard)
        self._lease_s = lease_s
        self._max_queued = max_queued
        self._retention_s = retention_s

    async def submit(self, job: Job, *, idempotency_key: str | None = None, fingerprint: str = "") -> Submitted:
        """Queues a job once: the same id, or the same key of the same client within 24 h, gives the job of the first submit.

        `fingerprint` stands for the client's request behind the key. Raises QueueFull, IdempotencyConflict, and
        ValueError on a name or priority that the keys cannot hold.
        """
        if not -MAX_PRIORITY <= job.priority <= MAX_PRIORITY:
            raise ValueError(f"Priority {job.priority} is outside {-MAX_PRIORITY} .. {MAX_PRIORITY}.")
        names = (job.id, _name(job.client), _queue_name(job.params.model, job.schema))
        bounds = (job.priority, predicted_work(job), self._max_queued)
        record = [text for pair in job.to_hash().items() for text in pair]
        outcome, *rest = await self._run("submit", *names, *bounds, idempotency_key or "", IDEMPOTENCY_S, fingerprint, *record)
        if outcome == "full":
            raise QueueFull(rest[0])
        if outcome == "conflict":
            raise IdempotencyConflict("The idempotency key was used for a different request.")
        return Submitted(_job(rest[0]), outcome == "created")

    async def claim(self, worker: str, models: Sequence[str], limit: int) -> list[Job]:
        """Up to `limit` jobs of these models, now running and leased to this worker, fairest first.

        `worker` must be unique to the process. A job whose workers crashed twice comes alone, and while it is held,
        or while this worker is chosen to become idle for it, nothing else comes.
        """
        records = await self._run("claim", worker, self._lease_s, limit, *_queue_names(models))
        return [_job(record) for record in records]

    async def renew(self, worker: str, held: Mapping[str, int]) -> Renewal:
        """Extends the leases of these jobs (id -> attempt). What comes back as lost must be dropped at once."""
        pairs = [text for pair in held.items() for text in pair]
        lost, canceled = await self._run("renew", worker, self._lease_s, *pairs)
        return Renewal(frozenset(lost), frozenset(canceled))

    async def progress(self, worker: str, attempt: int, job_id: str, steps_done: int, *, preview: str | None = None) -> Standing:
        """Records U-Net evaluations done, with a picture as data URL if there is one, and tells them to followers."""
        return Standing(await self._run("progress", worker, attempt, job_id, steps_done, preview or ""))

    async def finish(self, worker: str, attempt: int, job_id: str, images: Sequence[ImageRef], warnings: Sequence[JobWarning] = ()) -> bool:
        """Running -> succeeded. The images must be stored already; warnings found while drawing join the job's own."""
        found = (json.dumps([asdict(item) for item in items]) for items in (images, warnings))
        return bool(await self._run("finish", worker, attempt, job_id, self._retention_s, *found))

    async def fail(self, worker: str, attempt: int, job_id: str, error: JobError) -> bool:
        """Running -> failed."""
        return bool(await self._run("fail", worker, attempt, job_id, self._retention_s, _dump(error)))

    async def cancel_running(self, worker: str, attempt: int, job_id: str) -> bool:
        """Running -> canceled: the worker has stopped and the client's wish becomes a fact. False if nobody wished it."""
        return bool(await self._run("cancel_running", worker, attempt, job_id, self._retention_s))

    async def release(self, worker: str, attempt: int, job_id: str) -> bool:
        """Running -> queued, at its old place, without counting a failure; canceled if that was wished."""
        return bool(await self._run("release", worker, attempt, job_id, self._retention_s))

    async def cancel(self, job_id: str) -> Job | None:
        """The job afterwards: canceled if it was queued, flagged if it runs, unchanged if it has ended; None if unknown."""
        return _job_or_none(await self._run("cancel", job_id, self._retention_s))

    async def reap(self) -> int:
        """Moves on jobs whose lease ran out: queued again at their old place, canceled if wished, failed after the fifth
        loss. Every process calls this each second. Returns how many were moved."""
        return int(await self._run("reap", REAP_AT_ONCE, self._retention_s, SCHEMA, _dump(WORKER_LOST)))

    async def get(self, job_id: str) -> Job | None:
        record = cast(dict[str, str], await self._redis.hgetall(self._scripts.key(f"j:{job_id}")))
        return Job.from_hash(record) if record else None

    async def position(self, job_id: str) -> int | None:
        """How many ready jobs of the same client and model go before this one; None if it is not queued."""
        place = await self._run("position", job_id)
        return None if place is None else int(place)

    async def depth(self) -> dict[str, int]:
        """Numbers of jobs queued and running."""
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.zcard(self._scripts.key("pending"))
            pipe.zcard(self._scripts.key("lease"))
            queued, running = await pipe.execute()
        return {"queued": queued, "running": running}

    async def erase_images(self, job_id: str) -> Job | None:
        """Forgets the images of a job that has ended (their bytes are the store's); the job afterwards, None if unknown."""
        return _job_or_none(await self._run("erase", job_id))

    async def wait_for_work(self, models: Sequence[str], timeout_s: float = MAX_BLOCK_S) -> None:
        """Returns when there may be work for these models, at the latest after `timeout_s` (at most 2 seconds)."""
        keys = [self._scripts.key(f"wake:{name}") for name in _queue_names(models)]
        await self._redis.blpop(keys, timeout=min(timeout_s, MAX_BLOCK_S))

    async def _run(self, script: str, *args: str | int | float) -> Any:
        return await self._scripts.run(script, *args)


def predicted_work(job: Job) -> int:
    """What a job is charged in its client's virtual time: U-Net evaluations x pixels, a first measure of seconds.

    A whole number, so that the scripts add and compare virtual times exactly.
    """
    return max(job.steps_total, 1) * max(job.params.width * job.params.height, 1)


def _name(text: str) -> str:
    """Names are joined by ':' in keys, and '@' marks schemas."""
    if not text or ":" in text or "@" in text:
        raise ValueError(f"{text!r} cannot be part of a key: it is empty or holds ':' or '@'.")
    return text


def _queue_name(model: str, schema: int) -> str:
    """Records of a newer schema wait in queues of their own, so an older worker never meets them."""
    return _name(model) if schema == 1 else f"{_name(model)}@{schema}"


def _queue_names(models: Iterable[str]) -> list[str]:
    return [_queue_name(model, schema) for model in models for schema in range(1, SCHEMA + 1)]


def _dump(error: JobError) -> str:
    return json.dumps(asdict(error), ensure_ascii=False)


def _job(record: Sequence[str]) -> Job:
    return Job.from_hash(dict(zip(record[::2], record[1::2], strict=True)))


def _job_or_none(record: Sequence[str] | None) -> Job | None:
    return _job(record) if record else None
