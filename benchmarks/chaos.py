"""`make chaos`: kill, stop and restart everything at random while jobs run, then count what was lost, doubled or changed.

One gateway, three workers with a small random model, and Valkey with its append-only file, all real processes. The random
choices are seeded; what they hit depends on the machine's timing, which is the point.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
from rich.console import Console
from rich.progress import track
from rich.table import Table

from jobs import valkey
from tests.fleet import Fleet
from training.toy import write_toy

WORKERS = 3
KINDS = 24  # different requests; every job is one of them
PAUSE_S = (0.5, 2.0)  # between two faults
STOPPED_S = 3.0  # longer than a lease of the fleet
TERMINAL = {"succeeded", "failed", "canceled"}
console = Console()


@dataclass(slots=True)
class Tally:
    """What is counted at the end; all of lost, doubled, failed and changed must be 0."""

    jobs: int
    faults: collections.Counter[str] = field(default_factory=collections.Counter)
    attempts: collections.Counter[int] = field(default_factory=collections.Counter)
    lost: int = 0
    doubled: int = 0
    failed: int = 0
    changed: int = 0
    seconds: float = 0.0

    @property
    def clean(self) -> bool:
        return not (self.lost or self.doubled or self.failed or self.changed)


class Stage:
    """The processes under attack."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.folder = folder
        self.server = valkey.start(folder)
        self.fleet = Fleet(valkey.url(folder), folder, model)
        self.fleet.gateway()
        self.workers = [self.fleet.worker() for _ in range(WORKERS)]

    def close(self) -> None:
        self.fleet.close()
        self.server.kill()
        self.server.wait()


class Monkey:
    """Does harm. Its calls belong to the main thread: Valkey dies with the thread that started it."""

    def __init__(self, stage: Stage, rng: random.Random, tally: Tally) -> None:
        self._stage, self._rng, self._tally = stage, rng, tally
        self._faults: dict[str, tuple[int, Callable[[], None]]] = {
            "worker killed": (4, self._kill_worker),
            "worker stopped past its lease": (3, self._stop_worker),
            "gateway killed": (2, self._kill_gateway),
            "Valkey killed": (1, self._kill_server),
            "Valkey stopped": (1, self._stop_server),
        }

    def play(self, enough: threading.Event, seconds: float) -> None:
        """One fault after the other until it is enough, at most so long; everything runs again then."""
        weights = [weight for weight, _ in self._faults.values()]
        end = time.monotonic() + seconds
        while not enough.wait(self._rng.uniform(*PAUSE_S)) and time.monotonic() < end:
            [name] = self._rng.choices(list(self._faults), weights)
            self._faults[name][1]()
            self._tally.faults[name] += 1

    def _kill_worker(self) -> None:
        index = self._rng.randrange(WORKERS)
        self._stage.workers[index].kill()
        self._stage.workers[index].wait()
        self._stage.workers[index] = self._stage.fleet.start("worker")

    def _stop_worker(self) -> None:
        frozen(self._rng.choice(self._stage.workers), STOPPED_S)

    def _kill_gateway(self) -> None:
        self._stage.fleet.restart_gateway(wait=False)

    def _kill_server(self) -> None:
        self._stage.server.kill()
        self._stage.server.wait()
        self._stage.server = valkey.start(self._stage.folder)

    def _stop_server(self) -> None:
        frozen(self._stage.server, 1.0)


def frozen(process: subprocess.Popen[bytes], seconds: float) -> None:
    process.send_signal(signal.SIGSTOP)
    time.sleep(seconds)
    process.send_signal(signal.SIGCONT)


def request(kind: int) -> dict[str, Any]:
    """One of KINDS different requests: samplers, schedules, lengths, sizes and counts mixed."""
    samplers = ("ddim", "euler", "euler_a", "heun", "dpm2", "dpmpp_2m", "dpmpp_2m_sde", "unipc", "lcm", "ddpm")
    return {
        "prompt": f"a red apple {kind}",
        "sampler": samplers[kind % len(samplers)],
        "schedule": ("auto", "karras", "cosine")[kind % 3],
        "steps": 3 + kind % 9,
        "guidance": (1.0, 3.0, 7.5)[kind % 3],
        "width": (64, 96)[kind % 2],
        "height": 64,
        "seed": kind,
        "num_images": 1 + kind % 2,
    }


class Customer:
    """A careful client: what is not answered is asked again, until `limit` (monotonic seconds)."""

    def __init__(self, url: str, limit_s: float) -> None:
        self._client = httpx2.Client(base_url=url, timeout=30)
        self._limit = time.monotonic() + limit_s

    def close(self) -> None:
        self._client.close()

    def ask(self, method: str, path: str, **arguments: Any) -> httpx2.Response:
        """Raises TimeoutError past the limit."""
        while time.monotonic() < self._limit:
            with contextlib.suppress(httpx2.TransportError):
                answer = self._client.request(method, path, **arguments)
                if answer.status_code not in (429, 502, 503):
                    return answer
            time.sleep(0.05)
        raise TimeoutError(f"{method} {path} had no answer in time")

    def submit(self, number: int) -> str:
        answer = self.ask("POST", "/generate", json=request(number % KINDS), headers={"Idempotency-Key": f"chaos-{number}"})
        if answer.status_code not in (200, 202):
            raise RuntimeError(f"job {number} was refused: {answer.text}")
        job_id: str = answer.json()["id"]
        return job_id

    def ended(self, job_id: str) -> dict[str, Any] | None:
        """The job once it has ended; None if it is unknown. Raises TimeoutError."""
        while True:
            answer = self.ask("GET", f"/jobs/{job_id}")
            if answer.status_code != 200:
                return None
            job: dict[str, Any] = answer.json()
            if job["status"] in TERMINAL:
                return job
            time.sleep(0.1)

    def pictures(self, job: dict[str, Any]) -> list[bytes]:
        return [self.ask("GET", image["url"]).content for image in job["images"]]

    def endings(self, job_id: str) -> tuple[int, int]:
        """How often the event stream tells an end, and the number of attempts."""
        answer = self.ask("GET", f"/jobs/{job_id}/events")
        kinds = [line.partition(": ")[2] for line in answer.text.splitlines() if line.startswith("event: ")]
        return sum(kind in TERMINAL for kind in kinds), kinds.count("started")


def judge(customer: Customer, job_id: str, references: dict[int, list[bytes]], tally: Tally) -> None:
    try:
        job = customer.ended(job_id)
    except TimeoutError:
        job = None
    if job is None:
        tally.lost += 1
        return
    ends, attempts = customer.endings(job_id)
    tally.attempts[attempts] += 1
    tally.doubled += ends != 1
    if job["status"] != "succeeded":
        tally.failed += 1
    elif customer.pictures(job) != references[job["params"]["seed"]]:
        tally.changed += 1


def run(jobs: int, seed: int, harm_s: float, limit_s: float) -> Tally:
    """The whole play: `harm_s` of faults, then calm; a job that has not ended `limit_s` after the first submit counts as lost."""
    tally = Tally(jobs)
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.closing(Stage(Path(folder), write_toy(Path(folder) / "toy"))) as stage,
        contextlib.closing(Customer(stage.fleet.url, limit_s)) as customer,
    ):
        first = {kind: customer.submit(kind) for kind in range(KINDS)}
        references = {kind: customer.pictures(customer.ended(job_id) or {"images": []}) for kind, job_id in first.items()}
        began = time.monotonic()
        enough = threading.Event()
        with ThreadPoolExecutor(1) as pool:
            work = pool.submit(shop, customer, jobs, enough)
            try:
                Monkey(stage, random.Random(seed), tally).play(enough, harm_s)
            finally:
                enough.set()
            submitted = work.result()
        for job_id in track(submitted, description="checking", console=console):
            judge(customer, job_id, references, tally)
        tally.seconds = time.monotonic() - began
    return tally


def shop(customer: Customer, jobs: int, enough: threading.Event) -> list[str]:
    """Submit everything and wait for the newest job to end; then it is enough."""
    try:
        submitted = [customer.submit(KINDS + number) for number in track(range(jobs), description="submitting", console=console)]
        with contextlib.suppress(TimeoutError):
            customer.ended(submitted[-1])
        return submitted
    finally:
        enough.set()


def show(tally: Tally) -> None:
    table = Table("what", "count", title=f"{tally.jobs} jobs, {sum(tally.faults.values())} faults, {tally.seconds:.0f} s")
    for name, count in sorted(tally.faults.items()):
        table.add_row(name, str(count))
    for attempts, count in sorted(tally.attempts.items()):
        table.add_row(f"done in attempt {attempts}", str(count))
    for name in ("lost", "doubled", "failed", "changed"):
        count = getattr(tally, name)
        table.add_row(name, f"[red]{count}[/]" if count else "0")
    console.print(table)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--harm", type=float, default=90.0, help="seconds of faults")
    parser.add_argument("--limit", type=float, default=280.0, help="seconds")
    options = parser.parse_args()
    tally = run(options.jobs, options.seed, options.harm, options.limit)
    show(tally)
    return 0 if tally.clean else 1


if __name__ == "__main__":
    sys.exit(main())
