"""What Redis is there, told in one line: for `celadon doctor`, and for the start of `celadon up`."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from jobs.primary import Cluster, Sentinels
from jobs.shards import Shards, open_shards

UNBOUND = "a failover may lose jobs accepted a moment before: set min-replicas-to-write 1 and min-replicas-max-lag 10 on every server"


@dataclass(frozen=True, slots=True)
class Seen:
    """What answers, and what could be better about it; nothing there stands in the way of a start."""

    text: str
    remedy: str = ""


async def look(url: str, count: int = 0) -> Seen:
    """Raises ServerUnfit if what is there cannot keep jobs, RedisError or OSError if nothing answers."""
    async with aclosing(open_shards(url, count)) as shards:
        await shards.each(shards.check_server)
        if (await shards.laid_out()) not in (0, len(shards.all)):
            await shards.agree()  # says why not; where nothing is kept, looking keeps nothing
        infos: list[dict[str, Any]] = await asyncio.gather(*(client.info() for client in shards.clients))
        text = f"{_version(infos[0])}{await _layout(shards, infos[0])}"
    bound = all("min_slaves_good_slaves" in info for info in infos)  # told only where a number is set
    return Seen(text, "" if bound or shards.guide is None else UNBOUND)


def _version(info: Mapping[str, Any]) -> str:
    name = "valkey" if "valkey_version" in info else "redis"
    return f"{name.capitalize()} {info[f'{name}_version']}"


async def _layout(shards: Shards, info: Mapping[str, Any]) -> str:
    match shards.guide:
        case Sentinels():
            host, port = await shards.guide.primary()
            return f", the primary {shards.guide.name} at {host}:{port} with {info['connected_slaves']} replicas, by Sentinel"
        case Cluster():
            owners = set((await shards.guide.layout()).values())
            primaries, replicas = {hosts[0] for hosts in owners}, {host for hosts in owners for host in hosts[1:]}
            return f", a Cluster of {len(primaries)} primaries and {len(replicas)} replicas, {len(shards.all)} shards"
    return f", {len(shards.all)} shards" if len(shards.all) > 1 else ""
