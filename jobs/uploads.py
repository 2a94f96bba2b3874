"""How many pictures of its own each client has in the store, so that it can be bounded. The pictures themselves say whose they are."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Any

from redis.asyncio import Redis

from jobs.outcomes import Admission, RateLimited
from jobs.shards import Shards

LEAVING_S = 0.05  # between two looks at a picture that is being deleted
LOOKS = 40


class TooManyKept(Exception):
    """The client has as many pictures here as it may; the first of them is forgotten in `retry_after_s`."""

    def __init__(self, retry_after_s: int) -> None:
        super().__init__(f"Too many pictures are kept. Try again in {retry_after_s} s.")
        self.retry_after_s = retry_after_s


class StillLeaving(Exception):
    """A picture is being deleted, and this takes longer than anybody should wait."""


class UploadCount:
    """Raises redis.exceptions.RedisError."""

    def __init__(self, redis: Redis | Shards) -> None:
        self._shards = Shards.of(redis)

    async def admit(self, client: str, most: int, may: Admission) -> None:
        """One more is about to come. Raises RateLimited, TooManyKept."""
        outcome, *rest = await self._shards.of_client(client).run("upload", client, most, may.rate_per_s, may.burst)
        if outcome == "limited":
            raise RateLimited(rest[0])
        if outcome == "full":
            raise TooManyKept(rest[0])

    async def hold(self, client: str, keys: Collection[str], most: int, ttl_s: int) -> list[str]:
        """Places for what is about to be stored, for all or none, each until `keep` or `drop`. Returns those of the keys that are not
        kept already. Raises TooManyKept, StillLeaving."""
        outcome, *rest = await self._when_left("upload_hold", client, most, ttl_s, *keys)
        if outcome == "full":
            raise TooManyKept(rest[0])
        return [str(key) for key in rest[0]]

    async def keep(self, client: str, key: str, ttl_s: int) -> float:
        """It is there. Returns until when (Unix seconds)."""
        return float(await self._shards.of_client(client).run("upload_keep", client, key, ttl_s))

    async def drop(self, client: str, key: str, *, held: bool = True) -> bool:
        """What it came for is refused. True where nobody else wants it: it is to be deleted, and `forget` called, or `stay`. Not `held`
        is what was kept already when `hold` was asked. Raises StillLeaving."""
        return bool((await self._when_left("upload_drop", client, key, int(held)))[0] == "yours")

    async def leave(self, client: str, key: str) -> None:
        """Its client deletes it: now, with `forget` to follow, or `stay`. Raises StillLeaving."""
        await self._when_left("upload_leave", client, key)

    async def forget(self, client: str, key: str) -> None:
        """It is there no longer."""
        await self._shards.of_client(client).run("upload_forget", client, key)

    async def stay(self, client: str, key: str) -> None:
        """It could not be deleted, and counts."""
        await self._shards.of_client(client).run("upload_stay", client, key)

    async def _when_left(self, script: str, client: str, *args: str | int) -> list[Any]:
        """Its answer, once nobody is deleting a picture that it is about."""
        for _ in range(LOOKS):
            answer: list[Any] = await self._shards.of_client(client).run(script, client, *args)
            if answer[0] != "leaving":
                return answer
            await asyncio.sleep(LEAVING_S)
        raise StillLeaving("A picture is being deleted. Try again.")
