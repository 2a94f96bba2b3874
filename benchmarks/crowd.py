"""A crowd before the queue: thousands of clients, several models, classes and sizes mixed, a thousand workers. Seeded."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import islice
from typing import Any, cast

from redis.asyncio import Redis
from redis.client import Redis as BlockingRedis

from jobs.job import Job, ServiceClass
from jobs.job_queue import JobQueue
from jobs.registry import Registry, WorkerInfo
from jobs.scripts import sources
from jobs.shards import Shards
from pipelines.params import GenerationParams

MODELS = ("mini", "small", "large", "fast")
CLASSES: tuple[ServiceClass, ...] = ("interactive", *["normal"] * 7, "batch", "batch")
CLIENTS = 10_000
WORKERS = 1_000
BOUND = 10_000_000  # queued jobs: nothing is refused here
AT_ONCE = 500  # submits in one message
DAY_S = 86_400.0
PROMPT = "a red apple and a blue car on a yellow background, seen from above, in the evening light"


class Kept(Exception):
    """There is no answer yet."""


class Mailbag:
    """Stands before Redis towards a JobQueue and keeps the calls of its scripts, so that they can go out many at a time."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self.calls: list[tuple[str | int | float | bytes, ...]] = []

    def register_script(self, text: str) -> Any:
        digest = hashlib.sha1(text.encode()).hexdigest()

        async def call(keys: Sequence[str], args: Sequence[Any]) -> None:
            self.calls.append((digest, len(keys), *keys, *args))
            raise Kept

        return call

    def __getattr__(self, name: str) -> Any:
        return getattr(self._redis, name)


def crowd(seed: int, *, restless: bool) -> Iterator[tuple[Job, float | None]]:
    """Endless jobs, with their deadline if they have one. A client keeps to one model and class, unless it is restless."""
    rng = random.Random(seed)
    while True:
        client, size, steps = rng.randrange(CLIENTS), rng.choice((64, 96, 128)), rng.randint(10, 50)
        model, service_class = (rng.choice(MODELS), rng.choice(CLASSES)) if restless else (MODELS[client % 4], CLASSES[client // 4 % 10])
        params = GenerationParams(
            prompt=PROMPT,
            model=model,
            width=size,
            height=size,
            steps=steps,
            guidance=5.0,
            sampler="dpmpp_2m",
            schedule="karras",
            seed=rng.randrange(2**32),
        )
        job = Job(
            id=f"{rng.getrandbits(128):032x}",
            client=f"client-{client}",
            params=params,
            steps_total=steps,
            priority=rng.choice((0, 0, 0, 5)),
            service_class=service_class,
        )
        yield job, DAY_S if rng.random() < 0.02 else None


async def fill(url: str, jobs: Iterator[tuple[Job, float | None]], count: int) -> None:
    """Submits so many jobs through the script, the next message being written while the server works on the last one."""
    sent = None
    async with Redis.from_url(url, decode_responses=True) as redis:
        bag = Mailbag(redis)
        shards = Shards.of(cast(Redis, bag))
        shards.first.run_beside = shards.first.run  # type: ignore[method-assign]
        queue = JobQueue(shards, max_queued=BOUND)
        with BlockingRedis.from_url(url) as client, ThreadPoolExecutor(1) as pool:
            client.script_load(sources()["submit"])
            while count > 0:
                for job, deadline_s in islice(jobs, min(count, AT_ONCE)):
                    with suppress(Kept):
                        await queue.submit(job, deadline_s=deadline_s)
                count -= len(bag.calls)
                if sent:
                    sent.result()
                sent, bag.calls = pool.submit(_send, client, bag.calls), []
            if sent:
                sent.result()


def _send(client: BlockingRedis, calls: Sequence[tuple[Any, ...]]) -> None:
    with client.pipeline(transaction=False) as pipe:
        for call in calls:
            pipe.execute_command("EVALSHA", *call)
        refused = [answer[0] for answer in pipe.execute() if answer[0] != b"created"]
    if refused:
        raise RuntimeError(f"{len(refused)} of {len(calls)} submits were refused: {refused[0]!r}")


def models_of(worker: int) -> tuple[str, ...]:
    """Every worker serves one model, every tenth two."""
    return tuple(MODELS[(worker + i) % len(MODELS)] for i in range(2 if worker % 10 == 0 else 1))


async def gather_workers(redis: Redis, count: int) -> None:
    """They tell that they are there."""
    registry = Registry(redis)
    for n in range(count):
        info = WorkerInfo(
            id=f"worker-{n}", models=models_of(n), device="none", backend="none", slots=4, busy=0, version="0", started_at=0.0, ready=True
        )
        await registry.beat(info, ttl_s=DAY_S)
