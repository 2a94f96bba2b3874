"""How to reach the Redis or Valkey server, and which servers are fit to keep jobs."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

MAX_BLOCK_S = 2.0  # of blocking reads; must stay well below SOCKET_TIMEOUT_S
SOCKET_TIMEOUT_S = 5.0
OLDEST = (7, 0)

# redis-py retries ten times by default, and a command whose reply came late would be executed twice; here a broken
# connection is an error at once, and the caller, who knows what may be repeated, decides.
OPTIONS: Mapping[str, Any] = {
    "protocol": 2,
    "decode_responses": True,
    "socket_timeout": SOCKET_TIMEOUT_S,
    "socket_connect_timeout": SOCKET_TIMEOUT_S,
    "max_connections": 4096,  # of scripts at one time; who follows events shares one (jobs.followers)
}


class ServerUnfit(RuntimeError):
    """The server would lose jobs or lacks a command; the message says what to change."""


def connect(url: str) -> Redis:
    """A client of one server: `redis://`, `rediss://` or `unix://`. Nothing is sent until the first command."""
    return Redis.from_url(url, retry=Retry(NoBackoff(), 0), **OPTIONS)


def heed_cancel() -> None:
    """Call it after a command in a loop that is ended by cancelling: raises CancelledError if that was asked for.

    redis-py sends through `asyncio.wait_for`, which in Python 3.11 returns normally when the send is done in the very turn of the
    loop in which the task was cancelled; the task still knows of it.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


async def check_server(redis: Redis, *, in_cluster: bool = False) -> None:
    """Raises ServerUnfit when the server is older than 7.0, may evict keys, or is a node of a Cluster and should not be."""
    info = await redis.info()  # of all sections: an old server knows no list of them
    version = str(info.get("valkey_version") or info["redis_version"])
    if tuple(int(n) for n in str(info["redis_version"]).split(".")[:2]) < OLDEST:
        raise ServerUnfit(f"Redis 7.0 or Valkey 7.2 is the oldest server that can hold the queue; this one is {version}.")
    if info.get("cluster_enabled") and not in_cluster:
        raise ServerUnfit("This is a node of a Cluster, which is written redis+cluster://host:port,host:port.")
    policy = info.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        raise ServerUnfit(f"The server may evict jobs (maxmemory-policy is {policy}): set maxmemory-policy noeviction.")
