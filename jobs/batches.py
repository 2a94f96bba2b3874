"""Batches: a name for many jobs of one client, and a bounded record that counts them.

A batch comes in whole or not at all: `open` keeps the places of all its jobs, `put` brings them a few at a time, `seal` says that
those were all. The id of a line's job follows from the batch and the line, so whoever is cut short may put every line again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple, cast

from redis.asyncio import Redis

from jobs.arguments import fingerprint_of, name, place, record_of, seconds_of
from jobs.job import Job
from jobs.job_queue import IDEMPOTENCY_S
from jobs.outcomes import Admission, raise_refusal
from jobs.scripts import Scripts
from jobs.shards import Shards, make_id, shard_of

MAX_LIST = 100  # batches of one look
NO_BOUNDS = (0, 0, 0, 0, 0)  # of a job whose batch was let in


@dataclass(frozen=True, slots=True)
class BadLine:
    """A line that was not queued, and why."""

    line: int
    code: str
    message: str
    param: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """How it stands. `left` lines are still on their way into the queue, of `lines` that were let in; `refused` were not.

    Steps are U-Net evaluations of all its jobs, `eta_s` seconds until the last of them will be done.
    """

    id: str
    client: str
    created_at: float
    finished_at: float | None
    lines: tuple[range, ...]
    refused: int
    left: int
    queued: int
    running: int
    succeeded: int
    failed: int
    canceled: int
    stopped: bool
    filling: bool
    steps_done: int
    steps_total: int
    eta_s: float | None


class Line(NamedTuple):
    """A line's number, its job, what stands for its pictures where they may be shared, and its deadline, from when it is put."""

    number: int
    job: Job
    reuse_fingerprint: str = ""
    deadline_s: float | None = None


class Batches:
    """The batches of a queue; `max_queued` bounds each shard of it, as in JobQueue.

    Methods raise redis.exceptions.RedisError; each may be repeated then.
    """

    def __init__(
        self,
        redis: Redis | Shards,
        *,
        max_queued: int = 10_000,
        retention_s: int = 86_400,
    ) -> None:
        self._shards = Shards.of(redis)
        self._max_queued, self._retention_s = max_queued, retention_s

    async def open(
        self,
        client: str,
        lines: Iterable[int],
        first: Job,
        bad: Sequence[BadLine] = (),
        *,
        admission: Admission | None = None,
        pictures: int | None = None,
        idempotency_key: str | None = None,
        fingerprint: str = "",
    ) -> tuple[Batch, bool]:
        """Lets these lines in, all or none, and says whether the batch is new. `first` is the job of one of them, `pictures` those
        of all (one a line if it is None), `admission` the client's bounds.

        The same key of the same client within 24 h gives the batch of the first call. Raises QueueFull, RateLimited, QuotaSpent,
        IdempotencyConflict, JobGone (the batch has ended and expired), ValueError as `JobQueue.submit` does.
        """
        await self._shards.agree()
        shard, numbers = self._shards.of_client(client), list(lines)
        _, queue, service_class, *_ = place(first)
        key = (idempotency_key or "", IDEMPOTENCY_S, fingerprint)
        may = admission or Admission(self._max_queued)
        bounds = (self._max_queued, may.max_queued, may.rate_per_s, may.burst, may.per_day)
        told = (name(client), queue, service_class, len(numbers), *key, *bounds, pictures or len(numbers), _dump(bad))
        fields = ("lines", _spans(numbers), "refused", len(bad))
        outcome, *rest = await shard.run("batch_open", self._shards.new_id(client), *told, *fields)
        raise_refusal(outcome, rest)
        return _batch(rest[0], filling=True), outcome == "created"

    async def put(self, batch: Batch, jobs: Sequence[Line]) -> int:
        """Queues the jobs of some lines, each once however often it is put. Says how many are new. One whose deadline cannot be
        met has failed with that.

        Raises Stopped where the batch was canceled meanwhile, and what `JobQueue.submit` raises but for bounds.
        """
        shard, calls = self._at(batch.id), list[list[str | int | float]]()
        for line, job, reuse_fingerprint, deadline_s in jobs:
            reuse = fingerprint_of(reuse_fingerprint) if job.reuse else ""
            known = ("", IDEMPOTENCY_S, "", reuse, *NO_BOUNDS, job.params.num_images, self._retention_s, batch.id)
            record = (*record_of(job), "id", line_id(batch.id, line), "batch", batch.id)  # the last of two equal fields counts
            calls.append([line_id(batch.id, line), *place(job), seconds_of(deadline_s), *known, *record])
        outcomes = [outcome for outcome, *_ in await shard.run_each("submit", calls)]
        if "canceled" in outcomes:
            raise Stopped("The batch was canceled.")
        return outcomes.count("created")

    async def seal(self, batch_id: str) -> None:
        """All lines have come; of those that have not, no more is expected."""
        await self._at(batch_id).run("batch_seal", batch_id, self._retention_s)

    async def get(self, batch_id: str) -> Batch | None:
        """The batch; None if it is unknown or has expired, which `was_here` tells apart."""
        found = await self._at(batch_id).run("batch_look", batch_id)
        if not found:
            return None
        record, running, steps, eta, filling = found
        return _batch(record, running=running, steps=steps, eta_s=float(eta), filling=bool(filling))

    async def bad_lines(self, batch_id: str) -> list[BadLine]:
        """Those that were not let in, in their order."""
        shard = self._at(batch_id)
        return [BadLine(**one) for one in json.loads(await shard.redis.get(shard.key(f"bad:{batch_id}")) or "[]")]

    async def was_here(self, batch_id: str, client: str) -> bool:
        """Whether a batch of this client ended and its record has expired since, up to a week ago."""
        shard = self._at(batch_id)
        return cast(str | None, await shard.redis.get(shard.key(f"bt:{batch_id}"))) == client

    async def of_client(self, client: str, limit: int) -> list[Batch]:
        """Its newest batches, the newest first; those that expired are left out."""
        shard = self._shards.of_client(client)
        ids = await shard.redis.zrevrange(shard.key(f"bc:{client}"), 0, min(limit, MAX_LIST) - 1)
        return [batch for id_ in ids if (batch := await self.get(cast(str, id_)))]

    async def jobs(self, batch: Batch, lines: Sequence[int]) -> list[Job | None]:
        """The jobs of these lines; None where there is none, or none any more."""
        shard = self._at(batch.id)
        async with shard.redis.pipeline(transaction=False) as pipe:
            for line in lines:
                pipe.hgetall(shard.key(f"j:{line_id(batch.id, line)}"))
            records = cast(list[dict[str, str]], await pipe.execute())
        return [Job.from_hash(record) if record else None for record in records]

    async def ended(self, batch: Batch, line: int) -> bool:
        """Whether the line had a job that ended and whose record has expired."""
        shard = self._at(batch.id)
        return bool(await shard.redis.exists(shard.key(f"t:{line_id(batch.id, line)}")))

    async def cancel(self, batch: Batch, lines: Sequence[int]) -> None:
        """No more of its lines come in; the jobs of these are canceled as `JobQueue.cancel` does it."""
        ids = [line_id(batch.id, line) for line in lines]
        await self._at(batch.id).run("batch_cancel", batch.id, self._retention_s, *ids)

    def _at(self, batch_id: str) -> Scripts:
        return self._shards.of_job(batch_id)


class Stopped(Exception):
    """The batch was canceled while its lines were coming in."""


def line_id(batch_id: str, line: int) -> str:
    """The id of a line's job: always the same, and in the shard of the batch."""
    stem = hashlib.sha256(f"{batch_id}:{line}".encode()).hexdigest()[:32]
    return make_id(shard_of(batch_id), stem)


def _batch(record: Sequence[str], *, running: int = 0, steps: int = 0, eta_s: float | None = None, filling: bool = False) -> Batch:
    f = dict(zip(record[::2], record[1::2], strict=True))
    succeeded, failed, canceled, left = (int(f[what]) for what in ("succeeded", "failed", "canceled", "left"))
    open_jobs = int(f["count"]) - left - succeeded - failed - canceled
    return Batch(
        id=f["id"],
        client=f["client"],
        created_at=float(f["created_at"]),
        finished_at=float(f["finished_at"]) if f["finished_at"] else None,
        lines=_ranges(f["lines"]),
        refused=int(f["refused"]),
        left=left,
        queued=max(open_jobs - running, 0),
        running=running,
        succeeded=succeeded,
        failed=failed,
        canceled=canceled,
        stopped="stopped" in f,
        filling=filling,
        steps_done=int(f["steps_done"]) + steps,
        steps_total=int(f["steps_total"]),
        eta_s=eta_s if open_jobs else None,
    )


def _spans(lines: Sequence[int]) -> str:
    """Rising numbers as `2-9,11-11`: short where few are missing."""
    cuts = [0, *(i for i, (a, b) in enumerate(pairwise(lines), 1) if b != a + 1), len(lines)]
    return ",".join(f"{lines[a]}-{lines[b - 1]}" for a, b in pairwise(cuts))


def _ranges(spans: str) -> tuple[range, ...]:
    ends = (span.partition("-")[::2] for span in spans.split(","))
    return tuple(range(int(first), int(last) + 1) for first, last in ends)


def _dump(bad: Sequence[BadLine]) -> str:
    told: list[dict[str, Any]] = [{"line": b.line, "code": b.code, "message": b.message, "param": b.param} for b in bad]
    return json.dumps(told, ensure_ascii=False) if told else ""
