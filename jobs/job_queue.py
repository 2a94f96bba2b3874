"""The durable queue: thin methods over one Lua script per atomic move. The protocol is written down in docs/queue.md.

A job is worked on at least once and settled exactly once. Whoever holds a job proves it by (worker, attempt); every
move of somebody who does not, changes nothing and returns False. All times are the server's.

    queued --claim--> running --finish--> succeeded
      ^                  |----fail------> failed
      |--release, reap---|----cancel----> canceled     (a queued job is canceled at once, and fails at its deadline)

Methods raise redis.exceptions.RedisError when the server cannot be reached or refuses; each may be repeated then.
"""

from __future__ import annotations

import heapq
import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from typing import cast

from redis.asyncio import Redis
from redis.client import NEVER_DECODE
from redis.exceptions import RedisError

from jobs.arguments import fingerprint_of, is_number, name, place, queue_name, queue_names, record_of, seconds_of
from jobs.connection import MAX_BLOCK_S, ServerUnfit, check_server, connect
from jobs.job import SCHEMA, ImageRef, Job, JobError, JobStatus, JobWarning
from jobs.outcomes import (
    Admission,
    Checkpoint,
    CheckpointTooLarge,
    DeadlineUnmeetable,
    Forecast,
    IdempotencyConflict,
    JobGone,
    Page,
    QueueFull,
    QuotaSpent,
    RateLimited,
    Renewal,
    Standing,
    Submitted,
    raise_refusal,
)
from jobs.scripts import Scripts
from jobs.shards import Shards, make_id, shard_of

__all__ = [
    "Admission",
    "Checkpoint",
    "CheckpointTooLarge",
    "DeadlineUnmeetable",
    "Forecast",
    "IdempotencyConflict",
    "JobGone",
    "JobQueue",
    "Page",
    "QueueFull",
    "QuotaSpent",
    "RateLimited",
    "Renewal",
    "ServerUnfit",
    "Standing",
    "Submitted",
    "check_server",
    "connect",
]

IDEMPOTENCY_S = 86_400
ALONE_FROM = 2  # lost workers, from which on a job shares a worker with nobody; as in lua/prelude.lua
REAP_AT_ONCE = 100  # jobs in one script, so that it stays short
MAX_PAGE = 200  # jobs of one page of a list
RELEASES = frozenset({"released", "paused"})

WORKER_LOST = JobError("worker_lost", "The workers that ran this job were lost, five times over, without progress.")
DEADLINE = JobError("deadline", "The deadline passed while the job waited.")


class JobQueue:
    """The queue, in one shard or several. `lease_s` must exceed the interval of `renew` several times.

    `max_queued` bounds each shard, `max_queued_per_client` (None: no bound) each client's part of it. With `rate_per_s`
    above 0 a client may submit so many jobs a second, and up to `burst` of them at once. A checkpoint takes at most
    `max_checkpoint_bytes` and is kept for `checkpoint_s` after it was made.
    """

    def __init__(
        self,
        redis: Redis | Shards,
        *,
        lease_s: float = 15.0,
        max_queued: int = 10_000,
        max_queued_per_client: int | None = None,
        rate_per_s: float = 0.0,
        burst: int = 10,
        retention_s: int = 86_400,
        checkpoint_s: int = 3600,
        max_checkpoint_bytes: int = 16_777_216,
    ) -> None:
        self._shards = Shards.of(redis)
        self._turn = 0  # the shard with which the next claim begins
        self._waiting: dict[Scripts, int] = {}  # jobs, when it was last reaped
        self._lease_s = lease_s
        self._max_queued = max_queued
        self._admission = Admission(max_queued if max_queued_per_client is None else max_queued_per_client, rate_per_s, burst)
        self._retention_s = retention_s
        self._checkpoint_s = checkpoint_s
        self._max_checkpoint_bytes = max_checkpoint_bytes

    # jobs in

    def new_id(self, client: str) -> str:
        """An id for a job of this client; it tells the job's shard."""
        return self._shards.new_id(client)

    async def submit(
        self,
        job: Job,
        *,
        idempotency_key: str | None = None,
        fingerprint: str = "",
        deadline_s: float | None = None,
        reuse_fingerprint: str = "",
        admission: Admission | None = None,
    ) -> Submitted:
        """Queues a job once: the same id, or the same key of the same client within 24 h, gives the job of the first submit.

        `fingerprint` stands for the client's request behind the key. `deadline_s` is the time from now in which the job
        must be done. `reuse_fingerprint` stands for everything that decides the pictures: with `job.reuse` an equal job
        of the client that waits, runs, or has just ended well, answers for this one too. `admission` is this client's, in
        place of that of all.

        Raises QueueFull, RateLimited, QuotaSpent, DeadlineUnmeetable, IdempotencyConflict, JobGone, and ValueError on a name, class,
        priority or time that the queue cannot hold, or an id that belongs elsewhere.
        """
        shard = self._shards.of_client(job.client)
        if self._shards.of_job(job.id) is not shard:
            raise ValueError(f"{job.id!r} is not in the shard of its client: `new_id` makes ids.")
        await self._shards.agree()  # before that, a client's jobs might go where nobody looks for them
        wanted = (*place(job), seconds_of(deadline_s))
        reuse = fingerprint_of(reuse_fingerprint) if job.reuse else ""
        may = admission or self._admission
        bounds = (self._max_queued, may.max_queued, may.rate_per_s, may.burst, may.per_day, job.params.num_images)
        known = (idempotency_key or "", IDEMPOTENCY_S, fingerprint, reuse, *bounds, self._retention_s)
        outcome, *rest = await shard.run_beside("submit", name(job.id), *wanted, *known, "", *record_of(job))
        raise_refusal(outcome, rest)
        if outcome == "created" and len(rest) > 1:
            return Submitted(job.stamped(_pairs(rest[0])), True, _forecast(*rest[1:4]))
        return Submitted(_job(rest[0]), outcome == "created")

    async def forecast(self, job: Job, *, deadline_s: float | None = None, reuse_fingerprint: str = "") -> Forecast:
        """What the job would meet if it were submitted now; nothing is written. With `deadline_s` its `eta_s` is the one
        by which submit decides. Raises ValueError as submit does."""
        reuse = fingerprint_of(reuse_fingerprint) if job.reuse else ""
        shard = self._shards.of_client(job.client)
        predicted, position, eta = await shard.run("forecast", *place(job), seconds_of(deadline_s), reuse)
        return Forecast(float(predicted), int(position), float(eta))

    async def retry(self, job_id: str, *, admission: Admission | None = None) -> Job | None:
        """A new job that does what this dead letter should have done; None if it is none. Repeated, it tells the same job.
        It counts as a submit of its client: raises QueueFull, RateLimited, QuotaSpent; JobGone where the new job has expired."""
        may = admission or self._admission
        bounds = (self._max_queued, may.max_queued, may.rate_per_s, may.burst, may.per_day)
        outcome, *rest = await self._at(job_id).run("retry", job_id, make_id(shard_of(job_id)), *bounds)
        raise_refusal(outcome, rest)
        return _job(rest[0]) if rest else None

    async def set_weight(self, client: str, weight: float) -> None:
        """The client's share of the workers, 1 by default: with 2 it gets twice as much work done as others."""
        if not 0 < weight < math.inf:
            raise ValueError("A weight is a number above 0.")
        shard = self._shards.of_client(client)
        await shard.redis.hset(shard.key("weight"), name(client), repr(float(weight)))

    # a worker's moves

    async def claim(self, worker: str, models: Sequence[str], limit: int, held: Collection[Job] = ()) -> list[Job]:
        """Up to `limit` jobs of these models, now running and leased to this worker, in the order that docs/queue.md gives.

        `worker` must be unique to the process, `held` what it holds already (needed with several shards). A job whose
        workers crashed twice comes alone, and while it is held, or while this worker is chosen to become idle for it,
        nothing else comes. A shard that is away is left out, unless nothing comes from the others.
        """
        names, jobs, failures = queue_names(models), list[Job](), list[RedisError | OSError]()
        for number, shard in self._shards.beginning_with(self._turn):
            elsewhere = [job for job in (*held, *jobs) if self._at(job.id) is not shard]
            if len(jobs) >= limit or any(job.failures >= ALONE_FROM for job in elsewhere):
                break
            try:
                records = await shard.run("claim", worker, self._lease_s, limit - len(jobs), len(elsewhere), *names)
            except (RedisError, OSError) as error:
                failures.append(error)
                continue
            if records is None:  # it must be, or become, alone with a job of this shard
                self._turn = number
                break
            if records:
                self._turn = number + 1
            jobs += map(_job, records)
        if failures and not jobs:
            raise failures[0]
        return jobs

    async def renew(self, worker: str, held: Mapping[str, int]) -> Renewal:
        """Extends the leases of these jobs (id -> attempt). What comes back as lost must be dropped at once.

        Jobs of a shard that is away are told neither lost nor canceled, unless all are away."""
        pairs: dict[Scripts, list[str | int]] = {}
        for job_id, attempt in held.items():
            pairs.setdefault(self._at(job_id), []).extend((job_id, attempt))
        told = await self._shards.some(lambda shard: shard.run("renew", worker, self._lease_s, *pairs[shard]), pairs)
        lost, canceled, pausable = ([id_ for answer in told for id_ in answer[part]] for part in range(3))
        return Renewal(frozenset(lost), frozenset(canceled), tuple(pausable))

    async def progress(
        self, worker: str, attempt: int, job_id: str, steps_done: int, *, preview: str | None = None, preview_at: int | None = None
    ) -> Standing:
        """Records U-Net evaluations done, with a picture as data URL if there is one, and tells them to followers.

        Of previews only the newest is kept, but those of `preview_at`, one of the job's `preview_steps`, all are."""
        shown = (preview or "", "" if preview_at is None else preview_at)
        return Standing(await self._at(job_id).run("progress", worker, attempt, job_id, steps_done, *shown))

    async def checkpoint(
        self, worker: str, attempt: int, job_id: str, data: bytes, images: Sequence[ImageRef] = (), *, steps_done: int | None = None
    ) -> bool:
        """Keeps the state of a running job for whoever runs it next, in place of the one before; False if it is not held.

        `images` are finished and stored already. `steps_done` is how far the state has come, as far as was last
        reported if it is None. Raises CheckpointTooLarge, and OutOfMemoryError when the server is full.
        """
        if len(data) > self._max_checkpoint_bytes:
            raise CheckpointTooLarge(f"The checkpoint has {len(data)} bytes; at most {self._max_checkpoint_bytes} are kept.")
        steps = "" if steps_done is None else steps_done
        found = _dump_all(images)
        return bool(await self._at(job_id).run("checkpoint", worker, attempt, job_id, self._checkpoint_s, steps, found, data))

    async def load_checkpoint(self, job_id: str) -> Checkpoint | None:
        """The newest state of a job that has not ended; None if there is none, or its time was over."""
        shard, fields = self._at(job_id), ("data", "images", "attempt", "steps")
        found = await shard.redis.execute_command("HMGET", shard.key(f"k:{job_id}"), *fields, **{NEVER_DECODE: True})  # type: ignore[no-untyped-call]
        data, images, attempt, steps = found
        if data is None:
            return None
        return Checkpoint(data, tuple(ImageRef(**image) for image in json.loads(images)), int(attempt), int(steps))

    async def finish(
        self,
        worker: str,
        attempt: int,
        job_id: str,
        images: Sequence[ImageRef],
        warnings: Sequence[JobWarning] = (),
        *,
        seconds: float | None = None,
    ) -> bool:
        """Running -> succeeded. The images must be stored already; warnings found while drawing join the job's own.

        `seconds` of U-Net time correct what the client was charged; None stands for the evaluations at today's cost.
        """
        found = (_dump_all(items) for items in (images, warnings))
        return bool(await self._at(job_id).run("finish", worker, attempt, job_id, self._retention_s, *found, seconds_of(seconds or None)))

    async def fail(self, worker: str, attempt: int, job_id: str, error: JobError) -> bool:
        """Running -> failed."""
        return bool(await self._at(job_id).run("fail", worker, attempt, job_id, self._retention_s, _dump(error)))

    async def cancel_running(self, worker: str, attempt: int, job_id: str) -> bool:
        """Running -> canceled: the worker has stopped and the client's wish becomes a fact. False if nobody wished it."""
        return bool(await self._at(job_id).run("cancel_running", worker, attempt, job_id, self._retention_s))

    async def release(self, worker: str, attempt: int, job_id: str, *, reason: str = "released") -> bool:
        """Running -> queued, at its old place and with its checkpoint, without counting a failure; canceled if that was
        wished. The reason is "released" or "paused" (for somebody urgent); raises ValueError on others."""
        if reason not in RELEASES:
            raise ValueError(f"A job is {' or '.join(sorted(RELEASES))}, not {reason!r}.")
        return bool(await self._at(job_id).run("release", worker, attempt, job_id, self._retention_s, reason))

    async def report_cost(self, model: str, width: int, height: int, seconds_per_evaluation: float) -> None:
        """What one U-Net evaluation of one picture of this size took of the device: the time of a batch divided by the
        evaluations in it. Raises ValueError unless it is above 0."""
        if not 0 < seconds_per_evaluation < math.inf or min(width, height) < 1:
            raise ValueError("A cost is a number of seconds above 0, at a size of at least one pixel.")
        told = (queue_name(model, SCHEMA), f"{width}x{height}", seconds_per_evaluation)
        await self._shards.each(lambda shard: shard.run("report_cost", *told))

    # everybody's moves

    async def cancel(self, job_id: str) -> Job | None:
        """The job afterwards: canceled if it was queued, flagged if it runs, unchanged if it has ended; None if unknown."""
        return _job_or_none(await self._at(job_id).run("cancel", job_id, self._retention_s))

    async def reap(self) -> int:
        """Moves on jobs whose lease ran out (queued again at their old place, canceled if wished, failed after the fifth
        loss without progress) or whose deadline passed while they waited (failed). Every process calls this each second.
        Returns how many were moved."""

        async def reap(shard: Scripts) -> int:
            others = sum(waiting > 0 for other, waiting in self._waiting.items() if other is not shard)
            told = (REAP_AT_ONCE, self._retention_s, SCHEMA, others, _dump(WORKER_LOST), _dump(DEADLINE))
            moved, self._waiting[shard] = await shard.run("reap", *told)
            return int(moved)

        return sum(await self._shards.each(reap))

    async def erase_images(self, job_id: str) -> Job | None:
        """Forgets the images of a job that has ended (their bytes are the store's); the job afterwards, None if unknown."""
        return _job_or_none(await self._at(job_id).run("erase", job_id))

    async def wait_for_work(self, models: Sequence[str], timeout_s: float = MAX_BLOCK_S) -> None:
        """Returns when there may be work for these models, at the latest after `timeout_s` (at most 2 seconds)."""
        names = queue_names(models)

        async def wait(shard: Scripts) -> None:
            await shard.redis.blpop([shard.key(f"wake:{name}") for name in names], timeout=min(timeout_s, MAX_BLOCK_S))

        await self._shards.first_of(wait)

    # questions

    async def get(self, job_id: str) -> Job | None:
        """The job; None if it is unknown or its record has expired, which `was_here` tells apart."""
        shard = self._at(job_id)
        record = cast(dict[str, str], await shard.redis.hgetall(shard.key(f"j:{job_id}")))
        return Job.from_hash(record) if record else None

    async def was_here(self, job_id: str, client: str = "") -> bool:
        """Whether a job of this id, and of this client if one is named, ended and its record has expired since, up to a week ago."""
        shard = self._at(job_id)
        async with shard.redis.pipeline(transaction=True) as pipe:
            pipe.get(shard.key(f"t:{job_id}"))
            pipe.exists(shard.key(f"j:{job_id}"))
            owner, kept = await pipe.execute()
        return owner is not None and not kept and client in ("", owner)

    async def list_jobs(self, client: str, status: JobStatus | None = None, limit: int = 50, cursor: str = "") -> Page:
        """The client's jobs, newest first, `limit` (at most 200) on a page. Many jobs of other states make a page shorter,
        even empty; only an empty cursor ends the list. Raises ValueError if `cursor` is not of an earlier page."""
        if cursor and not is_number(cursor):
            raise ValueError("not a cursor of this list")
        shard = self._shards.of_client(client)
        following, *records = await shard.run("list", client, status or "", max(1, min(limit, MAX_PAGE)), cursor)
        return Page(tuple(_job(record) for record in records), following)

    async def dead(self, limit: int = 50, client: str = "") -> list[Job]:
        """Dead letters, newest first: jobs that failed because workers were lost, and not yet retried; kept for a week.
        Of all clients unless one is named."""
        found = await self._shards.each(lambda shard: shard.run("dead", max(1, limit), client))
        letters = heapq.merge(*([_job(r) for r in records] for records in found), key=lambda job: job.finished_at or 0.0, reverse=True)
        return list(letters)[: max(1, limit)]

    async def position(self, job_id: str) -> int | None:
        """How many ready jobs of the same client, model and class go before this one; None if it is not queued."""
        place = await self._at(job_id).run("position", job_id)
        return None if place is None else int(place)

    async def outlook(self, job_id: str) -> Forecast | None:
        """What lies before a queued job: its work, its position, and in how many seconds it will be done; None for others."""
        found = await self._at(job_id).run("outlook", job_id)
        return _forecast(*found) if found else None

    async def depth(self) -> dict[str, int]:
        """Numbers of jobs queued and running."""

        async def count(shard: Scripts) -> list[int]:
            async with shard.redis.pipeline(transaction=False) as pipe:
                pipe.scard(shard.key("pending"))
                pipe.zcard(shard.key("lease"))
                return await pipe.execute()

        queued, running = map(sum, zip(*await self._shards.each(count), strict=True))
        return {"queued": queued, "running": running}

    def _at(self, job_id: str) -> Scripts:
        return self._shards.of_job(job_id)


def _forecast(predicted: str, position: int, eta: str) -> Forecast:
    return Forecast(float(predicted), int(position), float(eta))


def _dump(error: JobError) -> str:
    return json.dumps(asdict(error), ensure_ascii=False)


def _dump_all(items: Sequence[ImageRef] | Sequence[JobWarning]) -> str:
    return json.dumps([asdict(item) for item in items])


def _pairs(record: Sequence[str]) -> dict[str, str]:
    return dict(zip(record[::2], record[1::2], strict=True))


def _job(record: Sequence[str]) -> Job:
    return Job.from_hash(_pairs(record))


def _job_or_none(record: Sequence[str] | None) -> Job | None:
    return _job(record) if record else None
