"""How long a worker takes to go: SIGTERM in the middle of a long job, until its record says queued again and until the process has ended.

Real workers with the shipped model, each killed once and followed by the next, which goes on with the same job where the one before
left it.
"""

from __future__ import annotations

import signal
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from redis.client import Redis
from rich.console import Console

import jobs.valkey
from tests.fleet import Fleet
from workers.settings import DEFAULT_MODEL, WorkerSettings

WORKERS = 10
LONG = {"steps": 150, "sampler": "heun", "num_images": 8}  # more evaluations than all of them can do
TIGHT_S = 0.002  # between two looks at the record
console = Console()


@dataclass(frozen=True, slots=True)
class Farewell:
    """Seconds after SIGTERM, and the evaluations in the record before and after."""

    queued: float
    ended: float
    done_before: int
    done_after: int


def farewell(fleet: Fleet, redis: Redis, drain_s: float) -> Farewell:
    worker = fleet.worker(CELADON_DRAIN_S=str(drain_s))
    job = fleet.client.get("/jobs?status=running").json()["jobs"] or [fleet.submit(**LONG)]
    key = f"{{q0}}:j:{job[0]['id']}"
    begun = int(redis.hget(key, "steps_done") or 0)
    fleet.until(lambda: int(redis.hget(key, "steps_done") or 0) > begun + 8)  # in full swing
    before = int(redis.hget(key, "steps_done") or 0)
    told = time.monotonic()
    worker.send_signal(signal.SIGTERM)
    while (status := redis.hget(key, "status")) != "queued":
        if status != "running" or time.monotonic() - told > 120:
            raise RuntimeError(f"the job is {status}, {time.monotonic() - told:.1f} s after SIGTERM")
        time.sleep(TIGHT_S)
    queued = time.monotonic() - told
    if worker.wait(120) != 0:
        raise RuntimeError(f"the worker ended with status {worker.returncode}")
    return Farewell(queued, time.monotonic() - told, before, int(redis.hget(key, "steps_done") or 0))


def row(drain_s: float, rounds: list[Farewell]) -> str:
    cells = []
    for seconds in ([r.queued for r in rounds], [r.ended for r in rounds]):
        cells.append(f"{statistics.median(seconds):.2f}, {max(seconds):.2f}")
    lost = sum(r.done_after < r.done_before for r in rounds)
    return f"| {drain_s:g} | {cells[0]} | {cells[1]} | {lost} of {len(rounds)} |"


async def report() -> list[str]:
    default = float(WorkerSettings.model_fields["drain_s"].default)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        server = jobs.valkey.start(root)
        fleet = Fleet(jobs.valkey.url(root), root, DEFAULT_MODEL)
        try:
            fleet.gateway()
            with Redis.from_url(jobs.valkey.url(root), decode_responses=True) as redis:
                rows = [row(drain_s, [farewell(fleet, redis, drain_s) for _ in range(WORKERS)]) for drain_s in (0.0, default)]
                [tick] = [float(cost) for name, cost in redis.hgetall("{q0}:cost").items() if ":" in name]
        finally:
            fleet.close()
            server.terminate()
            server.wait()
    images = LONG["num_images"]
    return [
        f"SIGTERM to {WORKERS} workers one after the other, each in the middle of a job of {images} images, shipped model. Seconds until "
        "the record says queued again, and until the process has ended: median, longest. Work is lost where the record falls back.",
        "",
        "| `CELADON_DRAIN_S` | queued again | ended | lost work |",
        "|---|---|---|---|",
        *rows,
        "",
        f"One evaluation of one image took {tick:.3f} s, so a tick of all {images} takes {images * tick:.2f} s.",
        "The machine was shared with other work.",
    ]
