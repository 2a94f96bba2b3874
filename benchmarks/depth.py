"""What the queue's moves cost the server when a thousand jobs wait, and when a million do.

One server for each depth, filled by the crowd; the same play on each of them in turns, so that whatever else the machine does
hits all alike. Times are the server's own, of each call of a script (SLOWLOG), so neither client nor network is in them.
What leaves the queue is replaced: the depth stays.
"""

from __future__ import annotations

import contextlib
import hashlib
import random
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from redis.asyncio import Redis
from rich.console import Console

from benchmarks.crowd import BOUND, CLIENTS, MODELS, WORKERS, crowd, fill, gather_workers, models_of
from jobs import valkey
from jobs.job import Job
from jobs.job_queue import JobQueue
from jobs.scripts import sources

SLOTS = 4
PATIENCE_S = 120  # a machine that does much else may leave a server without a processor for longer than the service waits
BLOCK = 100  # rounds on one server before it is the next one's turn
SHOWN = ("submit", "claim", "finish", "renew", "forecast", "outlook", "cancel", "reap")
ROUNDS = 1_000  # on each server
SETTING = (
    f"{len(MODELS)} models, {CLIENTS:,} clients, {WORKERS:,} workers of {SLOTS} slots, three classes, one job in fifty with a deadline; "
    f"{ROUNDS:,} rounds on each server. Microseconds of the server for one call: median, 95th percentile (SLOWLOG)."
)
NAMES = {hashlib.sha1(text.encode()).hexdigest(): name for name, text in sources().items()}
console = Console()


@dataclass
class Site:
    """One server with its workers."""

    redis: Redis
    restless: bool  # whether each client asks for all models and classes
    seed: int = 1
    workers: int = WORKERS
    bytes_per_job: float = 0.0
    held: dict[int, list[Job]] = field(default_factory=lambda: defaultdict(list))
    times_us: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    cpu_us: list[float] = field(default_factory=list)  # of a claim, the mean of each block

    def __post_init__(self) -> None:
        self.queue = JobQueue(self.redis, max_queued=BOUND, lease_s=86_400)
        self.jobs, self._rng = crowd(self.seed, restless=self.restless), random.Random(self.seed)

    async def open(self, url: str, depth: int) -> None:
        """Workers that all hold as much as they can, and so many jobs that wait."""
        await gather_workers(self.redis, self.workers)
        before = (await self.redis.info("memory"))["used_memory"]
        await fill(url, self.jobs, depth + self.workers * SLOTS)
        self.bytes_per_job = ((await self.redis.info("memory"))["used_memory"] - before) / (depth + self.workers * SLOTS)
        for worker in range(self.workers):
            self.held[worker] = await self.queue.claim(f"worker-{worker}", models_of(worker), SLOTS)

    async def end_one(self) -> int:
        """A worker that is full ends its oldest job. Who it was."""
        worker = self._rng.randrange(self.workers)
        if len(self.held[worker]) == SLOTS:
            job = self.held[worker].pop(0)
            if not await self.queue.finish(f"worker-{worker}", job.attempt, job.id, []):
                raise RuntimeError("a job was lost")
        return worker

    async def claim(self, worker: int) -> None:
        self.held[worker] += await self.queue.claim(f"worker-{worker}", models_of(worker), 1)

    async def play(self, rounds: int) -> None:
        for _ in range(rounds):
            worker = await self.end_one()
            await self.claim(worker)
            await self.queue.renew(f"worker-{worker}", {job.id: job.attempt for job in self.held[worker]})
            for leaves in (False, True):
                job, deadline_s = next(self.jobs)
                await self.queue.forecast(job)
                await self.queue.submit(job, deadline_s=deadline_s)
                await self.queue.outlook(job.id)
                if leaves:
                    await self.queue.cancel(job.id)
            await self.queue.reap()

    async def measure(self, rounds: int) -> None:
        """Adds the times of every script's calls in these rounds."""
        await self.redis.config_set("slowlog-max-len", 1_000_000)
        await self.redis.slowlog_reset()
        await self.redis.config_set("slowlog-log-slower-than", 0)
        await self.play(rounds)
        await self.redis.config_set("slowlog-log-slower-than", -1)
        for entry in await self.redis.slowlog_get(1_000_000):
            words = entry["command"].split()
            if words[0] == b"EVALSHA":
                self.times_us[NAMES[words[1].decode()]].append(entry["duration"])

    async def measure_cpu(self, claims: int) -> None:
        """Adds the server's CPU time of a claim with its protocol: other processes are not in it, whatever they do."""
        workers = [await self.end_one() for _ in range(claims)]
        before = await cpu_s(self.redis)
        for worker in workers:
            await self.claim(worker)
        self.cpu_us.append((await cpu_s(self.redis) - before) / claims * 1e6)
        for _ in workers:
            job, deadline_s = next(self.jobs)
            await self.queue.submit(job, deadline_s=deadline_s)

    async def count_claims(self, claims: int) -> list[int]:
        """How many commands each of so many claims ran on the server."""
        counts = []
        for _ in range(claims):
            worker = await self.end_one()
            before = await commands(self.redis)
            await self.claim(worker)
            counts.append(await commands(self.redis) - before)
            await self.queue.submit(next(self.jobs)[0])
        return counts


async def commands(redis: Redis) -> int:
    """What scripts have called so far."""
    stats = await redis.info("commandstats")
    return sum(s["calls"] for name, s in stats.items() if name not in ("cmdstat_evalsha", "cmdstat_info"))


async def cpu_s(redis: Redis) -> float:
    told = await redis.info("cpu")
    return float(told["used_cpu_user_main_thread"] + told["used_cpu_sys_main_thread"])


async def measure(depths: Sequence[int], rounds: int, *, restless: bool) -> dict[int, Site]:
    async with contextlib.AsyncExitStack() as stack:
        sites = {}
        for depth in depths:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            process = valkey.start(folder)
            stack.callback(process.wait)
            stack.callback(process.kill)
            redis = await stack.enter_async_context(Redis.from_url(valkey.url(folder), decode_responses=True, socket_timeout=PATIENCE_S))
            await redis.config_set("appendonly", "no")  # a million jobs are gigabytes of it, and it costs the scripts no time
            sites[depth] = Site(redis, restless)
            began = time.monotonic()
            await sites[depth].open(valkey.url(folder), depth)
            console.print(f"{depth:,} jobs queued in {time.monotonic() - began:.0f} s")
        for block in range(rounds // BLOCK):
            for depth in depths if block % 2 else reversed(depths):
                await sites[depth].measure(BLOCK)
                await sites[depth].measure_cpu(BLOCK)
        return sites


async def report() -> list[str]:
    sites = await measure((1_000, 100_000, 1_000_000), ROUNDS, restless=False)
    return [f"Each client keeps to one model and class. {SETTING}", "", *table(sites)]


async def report_rings() -> list[str]:
    sites = await measure((1_000, 1_000_000), ROUNDS, restless=True)
    about = "Each client asks for all models and classes: it stands in twelve rings, and whoever was served in one moves in all of them. "
    return [about + SETTING, "", *table(sites)]


def table(sites: Mapping[int, Site]) -> list[str]:
    depths = sorted(sites)
    lines = [
        "| script | " + " | ".join(f"{depth:,} queued" for depth in depths) + " | median, last to first |",
        "|---|" + "---|" * (len(depths) + 1),
    ]
    for name in SHOWN:
        times = [sites[depth].times_us[name] for depth in depths]
        middle = [statistics.median(t) for t in times]
        cells = [f"{m:.0f}, {statistics.quantiles(t, n=20)[-1]:.0f}" for m, t in zip(middle, times, strict=True)]
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {middle[-1] / middle[0]:.2f} |")
    cpu = [statistics.median(sites[depth].cpu_us) for depth in depths]
    lines.append("| claim: CPU time with its protocol | " + " | ".join(f"{us:.0f}" for us in cpu) + f" | {cpu[-1] / cpu[0]:.2f} |")
    sizes = " | ".join(f"{sites[depth].bytes_per_job / 1000:.2f} kB" for depth in depths)
    return [*lines, f"| memory of the server for each job | {sizes} | |"]
