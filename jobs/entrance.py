"""Whether a submit would be let in, asked before anything is done for it that would have to be undone."""

from __future__ import annotations

from redis.asyncio import Redis

from jobs.arguments import fingerprint_of, name, place
from jobs.job import Job
from jobs.outcomes import Admission, raise_refusal
from jobs.shards import Shards

UNBOUNDED = 10**9  # jobs that wait


class Entrance:
    """Of a queue; `max_queued` bounds each shard of it, as in JobQueue. Raises redis.exceptions.RedisError."""

    def __init__(self, redis: Redis | Shards, *, max_queued: int) -> None:
        self._shards, self._max_queued = Shards.of(redis), max_queued

    async def knock(
        self, client: str, may: Admission, *, idempotency_key: str | None = None, fingerprint: str = "", pictures: int = 1
    ) -> None:
        """Do rate and day of the client leave room for a job of so many pictures? For when there is no job yet; `ask` says the rest.

        Raises RateLimited, QuotaSpent, IdempotencyConflict.
        """
        known = (idempotency_key or "", fingerprint, "")
        bounds = (UNBOUNDED, UNBOUNDED, may.rate_per_s, may.burst, may.per_day)
        outcome, *rest = await self._shards.of_client(name(client)).run("may", client, "", "", *known, *bounds, 1, pictures)
        raise_refusal(outcome, rest)

    async def ask(
        self,
        job: Job,
        may: Admission,
        *,
        idempotency_key: str | None = None,
        fingerprint: str = "",
        reuse_fingerprint: str = "",
        count: int = 1,
        pictures: int | None = None,
    ) -> bool:
        """Would this job be taken now, or a batch of `count` such with so many `pictures`? Its deadline is not judged, and another
        may be faster: `JobQueue.submit` and `Batches.open` decide. True where it is a repeat, for which nothing is to be done any more.

        Raises QueueFull, RateLimited, QuotaSpent, IdempotencyConflict, and ValueError as they do.
        """
        client, queue, service_class, *_ = place(job)
        reuse = fingerprint_of(reuse_fingerprint) if job.reuse else ""
        bounds = (self._max_queued, may.max_queued, may.rate_per_s, may.burst, may.per_day)
        asked = (count, job.params.num_images if pictures is None else pictures)
        known = (idempotency_key or "", fingerprint, reuse)
        outcome, *rest = await self._shards.of_client(client).run("may", client, queue, service_class, *known, *bounds, *asked)
        raise_refusal(outcome, rest)
        return bool(outcome == "known")
