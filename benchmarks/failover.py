"""What a failover costs: a primary is killed with -9 while jobs come and run, under Sentinel and in a Cluster, all real processes.

A client submits all the time, each job under an idempotency key of its own, and repeats what was not answered. A server that
takes over may lack what its primary had acknowledged and not yet handed on; the client asks for all its jobs once more with the
same keys at the end, as the documents tell it to.
"""

from __future__ import annotations

import contextlib
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from benchmarks.customers import Customer
from tests.fleet import Fleet
from tests.redis_farm import DOWN_MS, ClusterFarm, SentinelFarm
from training.toy import write_toy

BEFORE_S, AFTER_S, EACH_S = 5.0, 20.0, 0.05
LIMIT_S = 300.0
WORKERS = 2
FARMS: dict[str, Callable[[Path], SentinelFarm | ClusterFarm]] = {
    "Sentinel: one replica, three sentinels": SentinelFarm,
    "Cluster: three primaries with a replica each": ClusterFarm,
}
console = Console()


@dataclass(slots=True)
class Tally:
    """One failover. Times are seconds."""

    accepted: list[float] = field(default_factory=list)  # when each submit was answered
    gone: int = 0  # jobs that were accepted and are unknown afterwards
    ended: int = 0  # in the end, with those that were submitted again
    failed: int = 0

    @property
    def silence(self) -> float:
        """The longest time in which no submit was accepted."""
        return max(later - earlier for earlier, later in zip(self.accepted, self.accepted[1:], strict=False))


def play(make: Callable[[Path], SentinelFarm | ClusterFarm]) -> Tally:
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        root = Path(folder)
        farm = make(root)
        stack.callback(farm.close)
        fleet = Fleet(farm.url, root, write_toy(root / "toy"))
        stack.callback(fleet.close)
        fleet.gateway()
        for _ in range(WORKERS):
            fleet.start("worker")
        limit = time.monotonic() + LIMIT_S
        while len(fleet.workers()) < WORKERS:
            if time.monotonic() > limit:
                raise TimeoutError("the workers did not come up")
            time.sleep(0.5)
        customer = stack.enter_context(contextlib.closing(Customer(fleet.url, LIMIT_S)))
        return watch(customer, lambda first: kill(farm, first))


def kill(farm: SentinelFarm | ClusterFarm, job_id: str) -> None:
    """The server that holds this job, which is that of all its client's jobs."""
    shard = int(job_id.partition("s")[2] or 0)
    node = farm.primary if isinstance(farm, SentinelFarm) else farm.primary_of("{" + f"q{shard}" + "}")
    node.kill()


def submit(customer: Customer, number: int) -> str:
    body = {"prompt": "a red apple", "steps": 3 + number % 5, "seed": number}
    job_id = customer.submit(f"failover-{number}", body)
    assert job_id, "only a deadline is refused, and there is none"
    return job_id


def watch(customer: Customer, harm: Callable[[str], None]) -> Tally:
    tally, ids, began, harmed = Tally(), list[str](), time.monotonic(), False
    while (now := time.monotonic() - began) < BEFORE_S + AFTER_S:
        if now > BEFORE_S and not harmed:
            harm(ids[0])
            harmed = True
        ids.append(submit(customer, len(ids)))
        tally.accepted.append(time.monotonic() - began)
        time.sleep(EACH_S)
    tally.gone = sum(customer.ask("GET", f"/jobs/{job_id}").status_code == 404 for job_id in ids)
    for number in range(len(ids)):
        job = customer.ended(submit(customer, number))
        tally.ended += job is not None
        tally.failed += job is not None and job["status"] != "succeeded"
    return tally


def row(name: str, tallies: list[Tally]) -> str:
    silences = sorted(t.silence for t in tallies)
    accepted, gone, ended, failed = (sum(n) for n in zip(*((len(t.accepted), t.gone, t.ended, t.failed) for t in tallies), strict=True))
    return f"| {name} | {statistics.median(silences):.1f}, {silences[-1]:.1f} | {accepted} | {gone} | {accepted - ended} | {failed} |"


async def report(rounds: int = 3) -> list[str]:
    rows = []
    for name, make in FARMS.items():
        console.print(f"{name} ...")
        rows.append(row(name, [play(make) for _ in range(rounds)]))
        console.print(rows[-1])
    return [
        f"The primary of the client's shard is killed with -9, {rounds} times over, {BEFORE_S:.0f} s after the first submit of a steady "
        f"stream; servers are taken for dead after {DOWN_MS / 1000} s. A gateway, {WORKERS} workers, replicas as they are by "
        "default (asynchronous, `min-replicas-to-write` 0).",
        "",
        "| servers | no service, s: median, longest | jobs accepted | unknown afterwards | not ended after a repeat | failed |",
        "|---|---|---|---|---|---|",
        *rows,
    ]
