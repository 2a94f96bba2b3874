"""`celadon webhook-secret`: what a receiver needs to check that a webhook comes from this service."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

from celadon.settings import of_gateway
from celadon.supervisor import StartRefused


def run() -> str:
    """The secret, as receivers keep it; made if nobody has asked for it before. Raises StartRefused when Redis cannot be asked."""
    from redis import RedisError

    from jobs import valkey
    from jobs.address import without_secret
    from jobs.hook_signature import show_secret
    from jobs.registry import Registry
    from jobs.shards import open_shards

    settings = of_gateway()
    url = settings.redis_url or valkey.url(settings.data_dir)

    async def ask() -> bytes:
        async with aclosing(open_shards(url, settings.shards)) as shards:
            return await Registry(shards).webhook_secret()

    try:
        return show_secret(asyncio.run(ask()))
    except (RedisError, OSError, ValueError) as error:
        raise StartRefused(f"no answer from Redis at {without_secret(url)}: {type(error).__name__}") from error
