"""Numbers of a client's equal requests: an automatic repeat that says so finds the job of its first try.

Some clients repeat a request whose answer was lost without any key of their own, but say that it is a repeat (the OpenAI SDK sends
`x-stainless-retry-count`). A first try takes the next number of its fingerprint, a repeat the number that was taken last; fingerprint and
number together make an idempotency key. Two equal first tries are two jobs; a repeat after both joins the later one.
"""

from __future__ import annotations

from redis.asyncio import Redis

from jobs.shards import Shards

KEPT_S = 3600  # after the last first try: longer than any SDK goes on repeating


class Tries:
    """Raises RedisError."""

    def __init__(self, redis: Redis | Shards) -> None:
        self._shards = Shards.of(redis)

    async def number(self, client: str, fingerprint: str, *, repeat: bool) -> int:
        """Of this request. A repeat whose first try never arrived takes a new one."""
        shard = self._shards.of_client(client)
        key = shard.key(f"try:{client}:{fingerprint}")
        if repeat and (last := await shard.redis.get(key)):
            return int(last)
        async with shard.redis.pipeline() as both:
            both.incr(key)
            both.expire(key, KEPT_S)
            number, _ = await both.execute()
        return int(number)
