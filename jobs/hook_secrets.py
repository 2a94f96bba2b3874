"""The secrets that sign webhooks: each client has its own, so that none can pretend to another's receiver to be this service.

They lie in the first shard, `hooksecrets`: client -> secrets in hex by commas, the newest first. While one is replaced there are
two, and both sign.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from typing import cast

from redis.asyncio import Redis
from redis.asyncio.client import Pipeline

from jobs.shards import Shards

Change = Callable[[tuple[bytes, ...]], tuple[bytes, ...]]

FRESH_S = 5.0  # after which a replaced secret counts everywhere
MOST = 1000  # clients that are remembered
BYTES = 32


class HookSecrets:
    """Raises redis.exceptions.RedisError."""

    def __init__(self, redis: Redis | Shards) -> None:
        first = Shards.of(redis).first
        self._redis, self._key = first.redis, first.key("hooksecrets")
        self._known: dict[str, tuple[float, tuple[bytes, ...]]] = {}

    async def of(self, client: str) -> tuple[bytes, ...]:
        """The newest first; one is made for a client that has none yet. What is known already is told by a full server, too."""
        if not (kept := await self._redis.hget(self._key, client)):
            await self._redis.hsetnx(self._key, client, secrets.token_hex(BYTES))
            kept = await self._redis.hget(self._key, client)
        return tuple(map(bytes.fromhex, cast(str, kept).split(",")))

    async def lately(self, client: str) -> tuple[bytes, ...]:
        """The same, as it was at most FRESH_S seconds ago."""
        until, known = self._known.get(client, (0.0, ()))
        if time.monotonic() >= until:
            known = await self.of(client)
            self._known.pop(client, None)
            self._known[client] = time.monotonic() + FRESH_S, known
            if len(self._known) > MOST:
                del self._known[next(iter(self._known))]
        return known

    async def rotate(self, client: str) -> tuple[bytes, ...]:
        """From now on a new one signs, and beside it the newest before it until `retire`."""
        return await self._change(client, lambda kept: (secrets.token_bytes(BYTES), kept[0]))

    async def retire(self, client: str) -> tuple[bytes, ...]:
        """Only the newest signs."""
        return await self._change(client, lambda kept: kept[:1])

    async def _change(self, client: str, change: Change) -> tuple[bytes, ...]:
        await self.of(client)

        async def move(pipe: Pipeline) -> tuple[bytes, ...]:
            kept = change(tuple(map(bytes.fromhex, cast(str, await pipe.hget(self._key, client)).split(","))))
            pipe.multi()  # type: ignore[no-untyped-call]
            pipe.hset(self._key, client, ",".join(secret.hex() for secret in kept))
            return kept

        self._known.pop(client, None)
        return cast(tuple[bytes, ...], await self._redis.transaction(move, self._key, value_from_callable=True))
