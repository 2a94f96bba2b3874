"""A fleet in simulated time on the real scripts: workers share their device among the jobs they hold, clients come as told."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

from redis.asyncio import Redis

from jobs.job import Job
from jobs.job_queue import DeadlineUnmeetable, JobQueue
from jobs.registry import Registry
from tests.job_samples import MODEL, Clock, sample_job
from tests.test_registry import worker


@dataclass
class Device:
    """One worker: `left` holds the U-Net seconds still to do of each job; n jobs at once each run n times slower."""

    name: str
    slots: int
    left: dict[str, float] = field(default_factory=dict)
    attempts: dict[str, int] = field(default_factory=dict)

    def pass_time(self, seconds: float) -> None:
        for id_ in self.left:
            self.left[id_] -= seconds / len(self.left)

    @property
    def next_end_s(self) -> float:
        return min(self.left.values()) * len(self.left) if self.left else float("inf")


@dataclass
class Told:
    """What became of one job."""

    job: Job
    at: float
    eta_s: float
    started: float = 0.0
    ended: float = 0.0


class Simulation:
    """Runs until every job that was submitted has ended. A job of size 1000 takes a U-Net second per evaluation."""

    def __init__(self, redis: Redis, clock: Clock, *, workers: int, slots: int) -> None:
        self.queue, self.clock = JobQueue(redis, max_queued=1_000_000, lease_s=1e6), clock
        self._registry = Registry(redis)
        self.devices = [Device(f"w{n}", slots) for n in range(workers)]
        self.told: dict[str, Told] = {}
        self.claims: list[str] = []  # ids in the order of their claims
        self.refused: dict[str, tuple[float, float]] = {}  # id -> its deadline, and the time it would have taken
        self._arrivals: list[tuple[float, int, Job, float | None]] = []
        self._numbers = itertools.count()

    def arrive(self, after_s: float, client: str, seconds: int = 1, *, deadline_s: float | None = None, **fields: object) -> str:
        """A client submits a job of so many U-Net seconds. The id of the job."""
        job = sample_job(client, size=1000, steps_total=seconds, **fields)  # type: ignore[arg-type]
        heapq.heappush(self._arrivals, (self.clock.now + after_s, next(self._numbers), job, deadline_s))
        return job.id

    async def run(self) -> None:
        for device in self.devices:
            await self._registry.beat(worker(device.name, models=(MODEL,)), ttl_s=1e6)
        while self._arrivals or any(device.left for device in self.devices):
            next_end = min(device.next_end_s for device in self.devices)
            next_arrival = self._arrivals[0][0] - self.clock.now if self._arrivals else float("inf")
            step = min(next_end, next_arrival)
            for device in self.devices:
                device.pass_time(step)
            await self.clock.advance(step)
            await self._end()
            await self._submit()
            await self._claim()

    async def _end(self) -> None:
        for device in self.devices:
            for id_ in [id_ for id_, left in device.left.items() if left <= 1e-6]:
                del device.left[id_]
                assert await self.queue.finish(device.name, device.attempts[id_], id_, [])
                self.told[id_].ended = self.clock.now

    async def _submit(self) -> None:
        while self._arrivals and self._arrivals[0][0] <= self.clock.now + 1e-6:
            _, _, job, deadline_s = heapq.heappop(self._arrivals)
            forecast = await self.queue.forecast(job, deadline_s=deadline_s)
            try:
                submitted = await self.queue.submit(job, deadline_s=deadline_s)
            except DeadlineUnmeetable as refusal:
                self.refused[job.id] = deadline_s or 0, refusal.eta_s
            else:
                self.told[job.id] = Told(submitted.job, self.clock.now, forecast.eta_s)

    async def _claim(self) -> None:
        """One job after the other, as workers do; whoever holds least comes first."""
        while free := [device for device in self.devices if len(device.left) < device.slots]:
            device = min(free, key=lambda device: len(device.left))
            jobs = await self.queue.claim(device.name, [MODEL], 1)
            if not jobs:
                return
            for job in jobs:
                device.left[job.id], device.attempts[job.id] = float(job.steps_total), job.attempt
                self.told[job.id].started = self.clock.now
                self.claims.append(job.id)


def served(simulation: Simulation, clients: Sequence[str]) -> list[dict[str, int]]:
    """U-Net seconds that each client had been given after each claim."""
    sums, after = dict.fromkeys(clients, 0), []
    for id_ in simulation.claims:
        job = simulation.told[id_].job
        sums[job.client] += job.steps_total
        after.append(dict(sums))
    return after
