"""How wrong the time is that a client is told: simulated traffic through the real scripts, where costs are known exactly; and a
real gateway and worker with a small random model, where everything else takes time, too. Mixed jobs at several loads.

A load is the part of what the worker can do, measured first with a full queue. Jobs come at random times (Poisson). Each asks
with a dry run, then is submitted; a job that has to wait is told a time with the answer, too. Both are held against what it took.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx2
from rich.console import Console

from benchmarks.fairness import simulation
from jobs import valkey
from tests.fleet import Fleet
from training.toy import write_toy

LOADS = (0.5, 1.0, 1.5)
WARM_UP = 80  # jobs, at once: they tell the worker its costs, and us its capacity
LIMIT_S = 400.0  # for what was submitted to end
console = Console()


@dataclass(frozen=True, slots=True)
class Told:
    """One job: what the dry run said, what the submit said if the job had to wait, and what it took. Seconds."""

    before: float
    at_submit: float | None
    real: float


def request(rng: random.Random) -> dict[str, Any]:
    """Sizes, lengths, counts and classes mixed; one in ten is guided by nothing and costs half."""
    return {
        "prompt": f"a red apple {rng.randrange(50)}",
        "sampler": rng.choice(("ddim", "euler_a", "dpmpp_2m", "unipc")),
        "steps": rng.randint(10, 60),
        "guidance": rng.choice((1.0, *[5.0] * 9)),
        "width": rng.choice((64, 96, 128)),
        "height": rng.choice((64, 96)),
        "num_images": rng.choice((1, 1, 1, 2)),
        "service_class": rng.choice(("normal", "normal", "normal", "batch")),
    }


@contextlib.asynccontextmanager
async def service() -> AsyncIterator[httpx2.AsyncClient]:
    """A client of a gateway with one worker."""
    with tempfile.TemporaryDirectory() as folder:
        server = valkey.start(Path(folder))
        fleet = Fleet(valkey.url(Path(folder)), Path(folder), write_toy(Path(folder) / "toy"))
        try:
            fleet.gateway()
            fleet.worker()
            async with httpx2.AsyncClient(base_url=fleet.url, timeout=60) as client:
                yield client
        finally:
            fleet.close()
            server.kill()
            server.wait()


async def ask(client: httpx2.AsyncClient, body: dict[str, Any], query: str = "") -> dict[str, Any]:
    answer = await client.post(f"/generate{query}", json=body)
    answer.raise_for_status()
    said: dict[str, Any] = answer.json()
    return said


async def ended(client: httpx2.AsyncClient, job_id: str) -> float:
    """Seconds from submit to end. Raises TimeoutError, and RuntimeError for a job that did not succeed."""
    limit = time.monotonic() + LIMIT_S
    while time.monotonic() < limit:
        job = (await client.get(f"/jobs/{job_id}")).json()
        if job["status"] == "succeeded":
            return (datetime.fromisoformat(job["finished_at"]) - datetime.fromisoformat(job["created_at"])).total_seconds()
        if job["finished_at"]:
            raise RuntimeError(f"job {job_id} ended as {job['status']}: {job['error']}")
        await asyncio.sleep(0.5)
    raise TimeoutError(f"job {job_id} did not end in {LIMIT_S} s")


async def capacity(client: httpx2.AsyncClient, rng: random.Random) -> float:
    """Jobs a second, with a full queue."""
    began = time.monotonic()
    ids = [(await ask(client, request(rng)))["id"] for _ in range(WARM_UP)]
    for job_id in ids:
        await ended(client, job_id)
    return WARM_UP / (time.monotonic() - began)


async def at_load(client: httpx2.AsyncClient, rng: random.Random, jobs_per_s: float, jobs: int) -> list[Told]:
    """What those were told who came."""
    told, arrival, began = [], 0.0, time.monotonic()
    while len(told) < jobs:
        await asyncio.sleep(max(0.0, began + arrival - time.monotonic()))
        body = request(rng)
        before, job = await ask(client, body, "?dry_run=true"), await ask(client, body)
        told.append((before["eta_s"], job))
        arrival += rng.expovariate(jobs_per_s)
    return [Told(eta, job["eta_s"], await ended(client, job["id"])) for eta, job in told]


def errors(told: Sequence[tuple[float, float]]) -> str:
    """Median and 90th percentile of |told - real| / real, and the median of told / real."""
    if len(told) < 10:
        return "few waited | |"
    wrong = [abs(eta - real) / real for eta, real in told]
    ratio = statistics.median(eta / real for eta, real in told)
    return f"{statistics.median(wrong):.0%}, {statistics.quantiles(wrong, n=10)[-1]:.0%} | {ratio:.2f} |"


async def simulated(load: float, seed: int = 1, seconds: float = 1000.0) -> str:
    """A row: two workers of eight slots, seven clients, jobs of 1 to 4 U-Net seconds in two classes."""
    rng = random.Random(seed)
    async with simulation(workers=2, slots=8) as play:
        at = 0.0
        while (at := at + rng.expovariate(load * 2 / 2.5)) < seconds:
            play.arrive(at, f"client-{rng.randrange(7)}", rng.randint(1, 4), service_class=rng.choice(("normal", "batch")))
        await play.run()
        told = [(t.eta_s, t.ended - t.at) for t in play.told.values()]
    return f"| simulated, {load:.0%} | {len(told)} | {statistics.median(real for _, real in told):.1f} | {errors(told)} | | |"


async def report(jobs: int = 100, seed: int = 1) -> list[str]:
    rng, rows = random.Random(seed), [await simulated(load) for load in LOADS]
    async with service() as client:
        most = await capacity(client, rng)
        for load in LOADS:
            console.print(f"{jobs} jobs at {load:.0%} of {most:.1f} a second ...")
            told = await at_load(client, rng, load * most, jobs)
            real = statistics.median(t.real for t in told)
            first, second = [(t.before, t.real) for t in told], [(t.at_submit, t.real) for t in told if t.at_submit is not None]
            rows.append(f"| real, {load:.0%} | {len(told)} | {real:.2f} | {errors(first)} {len(second)} | {errors(second)}")
    return [
        "Simulated: two workers of eight slots, seven clients, jobs of 1 to 4 U-Net seconds in two classes, whose costs are known "
        f"exactly. Real: a gateway, a worker on one core with a small random model ({most:.1f} mixed jobs a second at most). "
        "The error is |told - real| / real: median, 90th percentile; beside it the median of told / real.",
        "",
        "| load | jobs | real s, median | error of the dry run | told / real | jobs that waited | error at submit | told / real |",
        "|---|---|---|---|---|---|---|---|",
        *rows,
    ]
