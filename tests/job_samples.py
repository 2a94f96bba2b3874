"""Jobs for tests of the queue, and a clock that tests turn by hand."""

from __future__ import annotations

import itertools
from typing import Any

from redis.asyncio import Redis

from jobs.job import ImageRef, Job
from pipelines.params import GenerationParams

_numbers = itertools.count(1)

MODEL = "toy"


def sample_job(client: str = "ada", *, model: str = MODEL, size: int = 64, **fields: Any) -> Job:
    """A small job of 20 evaluations; every call has a new id unless one is given."""
    params = GenerationParams(
        prompt="a red apple", model=model, width=size, height=size, steps=20, guidance=5.0, sampler="ddim", schedule="auto", seed=1
    )
    return Job(**{"id": f"job-{next(_numbers)}", "client": client, "params": params, "steps_total": 20, **fields})


def sample_image(job: Job, attempt: int = 1, index: int = 0) -> ImageRef:
    return ImageRef(f"{job.id}/{attempt}-{index}.png", 64, 64, 1, "image/png")


class Clock:
    """The server's clock as the scripts see it, standing still until it is moved."""

    def __init__(self, redis: Redis, now: float) -> None:
        self._redis = redis
        self.now = now

    async def advance(self, seconds: float) -> None:
        self.now += seconds
        await self._redis.set("{q0}:clock", repr(self.now))
