"""`celadon webhook-secret`: what a receiver needs to check that a webhook comes from this service."""

from __future__ import annotations

import asyncio

from celadon.settings import of_gateway, without_secret
from celadon.supervisor import StartRefused


def run() -> str:
    """The secret, as receivers keep it; made if nobody has asked for it before. Raises StartRefused when Redis cannot be asked."""
    from redis import RedisError

    from jobs import valkey
    from jobs.connection import connect
    from jobs.hook_signature import show_secret
    from jobs.registry import Registry

    settings = of_gateway()
    url = settings.redis_url or valkey.url(settings.data_dir)

    async def ask() -> bytes:
        async with connect(url) as server:
            return await Registry(server).webhook_secret()

    try:
        return show_secret(asyncio.run(ask()))
    except (RedisError, OSError, ValueError) as error:
        raise StartRefused(f"no answer from Redis at {without_secret(url)}: {type(error).__name__}") from error
