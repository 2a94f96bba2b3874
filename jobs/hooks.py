"""Deliveries to webhooks that wait: written by the script that makes the event, in the same move, so none is missed.

A worker takes what is due, posts it, and says how it went. What it does not settle within its lease falls due again, so
that a delivery may come twice, under one id, but is never lost with its worker.
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from redis.asyncio import Redis
from redis.exceptions import RedisError

from jobs.hook_secrets import HookSecrets
from jobs.scripts import Scripts
from jobs.shards import Shards

LEASE_S = 60.0  # must exceed the time of one attempt to deliver


@dataclass(frozen=True, slots=True)
class Delivery:
    """One event on its way to one URL. `body` is JSON and the same at every attempt; `attempt` counts from 1."""

    id: str
    job_id: str
    event: str
    url: str
    body: str
    attempt: int
    reason: str = ""  # why the last attempt failed
    at: float = 0.0  # when the event happened, in Unix seconds
    request_id: str = ""  # of the HTTP request that made the job
    client: str = "default"  # whose job it is


class HookQueue:
    """The deliveries, each in the shard of its job. Methods raise redis.exceptions.RedisError; each may be repeated then."""

    def __init__(self, redis: Redis | Shards, *, lease_s: float = LEASE_S) -> None:
        self._shards = Shards.of(redis)
        self.secrets = HookSecrets(self._shards)
        self._lease_s = lease_s
        self._turn = 0

    async def due(self, worker: str, limit: int) -> list[Delivery]:
        """Up to `limit` deliveries whose time has come, of a shard oldest first, now this worker's until its lease ends."""
        taken: list[Delivery] = []
        failures: list[RedisError | OSError] = []
        for _, shard in self._shards.beginning_with(self._turn):
            if len(taken) >= limit:
                break
            try:
                found = await shard.run("hooks_due", worker, self._lease_s, limit - len(taken))
            except (RedisError, OSError) as error:  # the others' deliveries go on
                failures.append(error)
            else:
                taken += [_delivery(*entry) for entry in found]
        if failures and not taken:
            raise failures[0]
        self._turn += 1
        return taken

    async def delivered(self, worker: str, delivery_id: str) -> bool:
        """It has arrived and is forgotten. False if the delivery is not this worker's (any more)."""
        return bool(await self._of(delivery_id).run("hooks_settle", worker, delivery_id, "", ""))

    async def failed(self, worker: str, delivery_id: str, reason: str, *, retry_in_s: float | None) -> bool:
        """It has not arrived: due again after `retry_in_s`, or dead if that is None. False if it is not this worker's."""
        retry = "" if retry_in_s is None else max(retry_in_s, 0.0)
        return bool(await self._of(delivery_id).run("hooks_settle", worker, delivery_id, reason or "failed", retry))

    async def dead(self, limit: int = 50, client: str = "") -> list[Delivery]:
        """Deliveries that were given up, of this client's jobs alone if one is named, newest first; kept for a week, at most
        10,000 of them."""
        found = await self._shards.each(lambda shard: shard.run("hooks_dead", max(1, limit), client))
        dead = [[_delivery(*entry) for entry in entries] for entries in found]
        return list(heapq.merge(*dead, key=lambda delivery: delivery.at, reverse=True))[:limit]

    async def redeliver(self, delivery_id: str, client: str = "") -> bool:
        """Makes a dead delivery due now, with all its attempts before it. False if it is not dead, or not of this client's job
        where one is named."""
        return bool(await self._of(delivery_id).run("hooks_redeliver", delivery_id, client))

    def _of(self, delivery_id: str) -> Scripts:
        """A delivery is named after its job."""
        return self._shards.of_job(delivery_id.partition(".")[0])


def _delivery(id_: str, pairs: Sequence[str]) -> Delivery:
    fields = dict(zip(pairs[::2], pairs[1::2], strict=True))
    data = {"id": fields["job_id"], "status": fields["status"], "images": json.loads(fields["images"]), **json.loads(fields["data"])}
    at = float(fields["at"])
    time = datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    body = json.dumps({"type": f"job.{fields['event']}", "timestamp": time, "data": data}, ensure_ascii=False)
    told = (int(fields["attempt"]), fields.get("reason", ""), at, fields.get("request_id", ""), fields["client"])
    return Delivery(id_, fields["job_id"], fields["event"], fields["url"], body, *told)
