"""What happened to a job, in order: one capped stream per job, written by the queue's scripts, read here by followers."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, cast

from redis.asyncio import Redis

from jobs.connection import MAX_BLOCK_S
from jobs.shards import Shards

EVENT_TYPES = frozenset({"queued", "started", "progress", "requeued", "succeeded", "failed", "canceled"})
TERMINAL_EVENTS = frozenset({"succeeded", "failed", "canceled"})

Entries = list[tuple[str, dict[str, str]]]  # as the server gives them: id, fields

_ID = re.compile(r"[0-9]{1,19}(-[0-9]{1,19})?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Event:
    """One event. `data` holds steps_done, steps_total and attempt, and by type preview, preview_at, reason or error."""

    id: str
    type: str
    data: dict[str, Any]

    @property
    def terminal(self) -> bool:
        return self.type in TERMINAL_EVENTS


class EventLog:
    """Reads the events of jobs."""

    def __init__(self, redis: Redis | Shards) -> None:
        self._shards = Shards.of(redis)

    async def read(self, job_id: str, after: str = "", block_ms: int = 0, count: int = 100) -> list[Event]:
        """The next events behind the id `after` ("": from the first), oldest first.

        With `block_ms` it waits so long for the first one, two seconds at most. An unknown or expired job has no
        events. Raises ValueError if `after` is no event id.
        """
        if after and not _ID.fullmatch(after):
            raise ValueError("not an event id")
        entries = await self._entries(job_id, after or "0-0", block_ms, count)
        events = [Event(id_, fields["type"], json.loads(fields["data"])) for id_, fields in entries]
        if any("preview" in event.data for event in events):
            await self._attach_preview(job_id, events)
        return events

    async def preview(self, job_id: str) -> str | None:
        """The newest preview of a job that runs, a data URL."""
        shard = self._shards.of_job(job_id)
        return cast(str | None, await shard.redis.hget(shard.key(f"p:{job_id}"), "data"))

    async def _entries(self, job_id: str, after: str, block_ms: int, count: int) -> Entries:
        shard = self._shards.of_job(job_id)
        key = shard.key(f"e:{job_id}")
        if block_ms <= 0:
            return cast(Entries, await shard.redis.xrange(key, min=f"({after}", count=count))
        streams = await shard.redis.xread({key: after}, count=count, block=min(block_ms, int(MAX_BLOCK_S * 1000)))
        return cast(list[tuple[str, Entries]], streams)[0][1] if streams else []

    async def _attach_preview(self, job_id: str, events: list[Event]) -> None:
        """Of a job that runs the newest is kept, and for a minute longer those at steps that it names; other events come without."""
        shard = self._shards.of_job(job_id)
        named = [event.id for event in events if "preview_at" in event.data]
        newest, data, *pictures = await shard.redis.hmget(shard.key(f"p:{job_id}"), ["event", "data", *named])
        kept: dict[Any, Any] = {newest: data, **dict(zip(named, pictures, strict=True))}
        for event in events:
            if event.data.pop("preview", False) and (picture := kept.get(event.id)):
                event.data["preview"] = picture
