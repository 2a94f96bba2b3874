"""Keys of clients, made as `celadon keys add` makes them, and HTTP clients that show them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx2

from jobs.clients import Clients, ClientTerms
from jobs.connection import connect
from live_gateway import Live, run_apart


def make_key(redis_url: str, client: str, *, days: float | None = None, **terms: Any) -> str:
    """A key of this client, which from now on may what the terms say."""

    async def make() -> str:
        redis = connect(redis_url)
        try:
            if terms:
                await Clients(redis).set_terms(client, ClientTerms(**terms))
            now = time.time()
            return await Clients(redis).add_key(client, now, now + days * 86_400 if days else None)
        finally:
            await redis.aclose()

    return run_apart(make)


@contextmanager
def asking(live: Live, key: str) -> Iterator[httpx2.Client]:
    """Over HTTP, with this key."""
    with httpx2.Client(base_url=live.url, headers={"Authorization": f"Bearer {key}"}, trust_env=False, timeout=30) as http:
        yield http
