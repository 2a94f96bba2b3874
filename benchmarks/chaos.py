"""`make chaos`: kill, stop and restart everything at random while jobs run, then count what was lost, doubled or changed.

One gateway, three workers with a small random model, and Valkey with its append-only file, all real processes. The jobs are
mixed: samplers, sizes, classes, priorities, deadlines, cancels, equal requests, repeated submits. The random choices are
seeded; what they hit depends on the machine's timing, which is the point.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.customers import FAULTLESS, KINDS, Customer, References, Shop, Tally, request
from jobs import valkey
from tests.fleet import Fleet
from training.toy import write_toy

WORKERS = 3
CHECKPOINT_S = "0.2"
PAUSE_S = (0.5, 1.5)  # between two faults
STOPPED_S = 3.0  # longer than a lease of the fleet
WEIGHTS = {"worker killed": 4, "worker stopped past its lease": 3, "gateway killed": 2, "Valkey killed": 1, "Valkey stopped": 1}
HAPPENS = ("submit repeated", "canceled while it ran", "shared by reuse")  # in every play
HAPPENS_IN_LONG = (*HAPPENS, "canceled while it waited", "resumed from a checkpoint")
console = Console()


class Stage:
    """The processes under attack."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.folder = folder
        self.server = valkey.start(folder)
        self.fleet = Fleet(valkey.url(folder), folder, model)
        try:
            self.fleet.gateway()
            self.workers = [self.start_worker() for _ in range(WORKERS)]
        except BaseException:
            self.close()
            raise

    def start_worker(self) -> subprocess.Popen[bytes]:
        return self.fleet.start("worker", CELADON_CHECKPOINT_S=CHECKPOINT_S)

    def resumed(self) -> int:
        """How often a worker went on from a checkpoint."""
        return len(re.findall(r"event='claimed'.* resumed=[1-9]", (self.folder / "log").read_text()))

    def close(self) -> None:
        self.fleet.close()
        self.server.kill()
        self.server.wait()


class Monkey:
    """Does harm. Its calls belong to the main thread: Valkey dies with the thread that started it."""

    def __init__(self, stage: Stage, rng: random.Random, tally: Tally) -> None:
        self._stage, self._rng, self._tally = stage, rng, tally
        self._faults: dict[str, Callable[[], None]] = {
            "worker killed": self._kill_worker,
            "worker stopped past its lease": self._stop_worker,
            "gateway killed": self._kill_gateway,
            "Valkey killed": self._kill_server,
            "Valkey stopped": self._stop_server,
        }

    def play(self, faults: list[str], shop: Shop, work: Future[None]) -> None:
        """One fault after the other, each among its part of the jobs; everything runs again then."""
        jobs, let_in = self._tally.jobs, 0
        for number, name in enumerate(faults, 1):
            if work.done():
                break  # it went wrong; its result says how
            part = jobs * number // len(faults)
            shop.let_in(part - let_in)
            let_in = part
            time.sleep(self._rng.uniform(*PAUSE_S))
            self._faults[name]()
            self._tally.faults[name] += 1

    def _kill_worker(self) -> None:
        index = self._rng.randrange(WORKERS)
        self._stage.workers[index].kill()
        self._stage.workers[index].wait()
        self._stage.workers[index] = self._stage.start_worker()

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


def plan(rng: random.Random, rounds: int) -> list[str]:
    """The faults of a play: each kind in every round, by its weight; without rounds each kind once."""
    faults = [name for name, weight in WEIGHTS.items() for _ in range(weight * rounds or 1)]
    rng.shuffle(faults)
    return faults


def run(jobs: int, seed: int, rounds: int, limit_s: float) -> Tally:
    """The whole play: faults among the jobs, then calm. A job that has not ended `limit_s` after the start counts as late."""
    tally, rng = Tally(jobs), random.Random(seed)
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.closing(Stage(Path(folder), write_toy(Path(folder) / "toy"))) as stage,
        contextlib.closing(Customer(stage.fleet.url, limit_s)) as customer,
    ):
        references = drawn_in_peace(customer, stage)
        began, shop = time.monotonic(), Shop(customer, tally, seed)
        with ThreadPoolExecutor(1) as pool:
            work = pool.submit(shop.work)
            try:
                Monkey(stage, rng, tally).play(plan(rng, rounds), shop, work)
            finally:
                shop.let_in(jobs)  # whatever happened, the thread comes to its end
            work.result()
        for number, job_id in track(shop.jobs, description="checking", console=console):
            shop.judge(number, job_id, references)
        tally.happened["resumed from a checkpoint"] = stage.resumed()
        tally.seconds = time.monotonic() - began
    return tally


def drawn_in_peace(customer: Customer, stage: Stage) -> References:
    """Every picture that is asked for later, by its seed; then all workers are there."""
    while not stage.fleet.client.get("/models").json():
        time.sleep(0.2)  # until the first worker has told of its model
    ids = [customer.submit(f"reference-{kind}", request(kind)) for kind in range(KINDS)]
    references: References = {}
    for job_id in ids:
        references |= customer.pictures((job_id and customer.ended(job_id)) or {"images": []})
    while len(stage.fleet.workers()) < WORKERS:
        time.sleep(0.2)
    return references


def missing(tally: Tally, wanted: tuple[str, ...]) -> list[str]:
    """What did not happen, so that the play shows nothing of it."""
    return [name for name in WEIGHTS if not tally.faults[name]] + [name for name in wanted if not tally.happened[name]]


def show(tally: Tally) -> None:
    table = Table("what", "count", title=f"{tally.jobs} jobs, {sum(tally.faults.values())} faults, {tally.seconds:.0f} s")
    for name, count in sorted(tally.faults.items()) + sorted(tally.happened.items()):
        table.add_row(name, str(count))
    for attempts, count in sorted(tally.attempts.items()):
        table.add_row(f"ended in attempt {attempts}", str(count))
    for name in FAULTLESS:
        count = getattr(tally, name)
        table.add_row(name, f"[red]{count}[/]" if count else "0")
    console.print(table)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=4, help="of eleven faults each")
    parser.add_argument("--limit", type=float, default=280.0, help="seconds")
    options = parser.parse_args()
    tally = run(options.jobs, options.seed, options.rounds, options.limit)
    show(tally)
    if absent := missing(tally, HAPPENS_IN_LONG):
        console.print(f"[red]did not happen: {', '.join(absent)}[/]")
    return 0 if tally.clean and not absent else 1


if __name__ == "__main__":
    sys.exit(main())
