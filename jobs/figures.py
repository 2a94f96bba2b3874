"""What there is to count in the queue as it is now, over all shards: asked for by /metrics, and by nobody in a hurry."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from redis.asyncio import Redis

from jobs.job import SERVICE_CLASSES, ServiceClass
from jobs.scripts import Scripts
from jobs.shards import Shards

Told = tuple[list[str], list[Any]]  # of one shard: lanes, and what lies in its keys


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueFigures:
    """Numbers of jobs, and of webhook deliveries. `ended` counts ends by status and error code since the queue began; `ready` and
    `oldest_s` are of each class, `costs` the seconds of one U-Net evaluation by model and size, as workers measured it last."""

    queued: int = 0
    running: int = 0
    ready: Mapping[ServiceClass, int]
    oldest_s: Mapping[ServiceClass, float]
    ended: Mapping[tuple[str, str], int]
    hooks_waiting: int = 0
    hooks_dead: int = 0
    costs: Mapping[tuple[str, str], float]


async def read_figures(redis: Redis | Shards) -> QueueFigures:
    """Raises RedisError."""
    shards = Shards.of(redis)
    costs = cast(dict[str, str], await shards.first.redis.hgetall(shards.first.key("cost")))  # the same in all shards
    return _add(await shards.each(_read), costs)


async def _read(shard: Scripts) -> Told:
    lanes = await shard.run("lanes")
    async with shard.redis.pipeline(transaction=False) as pipe:
        pipe.scard(shard.key("pending"))
        pipe.zcard(shard.key("lease"))
        pipe.zcard(shard.key("hooks"))
        pipe.zcard(shard.key("hooksdead"))
        pipe.hgetall(shard.key("ended"))
        return lanes, await pipe.execute()


async def oldest(redis: Redis | Shards) -> dict[str, float]:
    """Model -> seconds for which the oldest of its jobs that wait has waited. Raises RedisError."""
    found: dict[str, float] = {}
    for lanes in await Shards.of(redis).each(lambda shard: shard.run("lanes")):
        for lane, age in zip(lanes[::3], lanes[2::3], strict=True):
            model = lane.partition("@")[0]
            found[model] = max(found.get(model, 0.0), float(age))
    return found


def _add(told: list[Told], costs: Mapping[str, str]) -> QueueFigures:
    ready, ended, oldest = Counter[ServiceClass](), Counter[tuple[str, str]](), dict.fromkeys(SERVICE_CLASSES, 0.0)
    for lanes, (*_, ends) in told:
        for lane, count, age in zip(lanes[::3], lanes[1::3], lanes[2::3], strict=True):
            kind = _class_of(lane)
            ready[kind] += int(count)
            oldest[kind] = max(oldest[kind], float(age))
        for end, count in ends.items():
            status, _, code = end.partition(":")
            ended[status, code] += int(count)
    sums = [sum(numbers[place] for _, numbers in told) for place in range(4)]
    return QueueFigures(
        queued=sums[0],
        running=sums[1],
        ready={kind: ready[kind] for kind in SERVICE_CLASSES},
        oldest_s=oldest,
        ended=ended,
        hooks_waiting=sums[2],
        hooks_dead=sums[3],
        costs={(model, size): float(s) for name, s in costs.items() for model, _, size in [name.partition(":")] if size},
    )


def _class_of(lane: str) -> ServiceClass:
    """A lane of the normal class names none."""
    last = lane.rpartition("@")[2]
    return last if "@" in lane and last in SERVICE_CLASSES else "normal"
