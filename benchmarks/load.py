"""Open-loop load: short and long jobs arrive at random, whether the server keeps up or not. `python -m benchmarks.load`.

The same arrivals go to the plain server of `benchmarks.peers` and to Celadon, one after the other on one machine; the rate is a share of
what the plain server can do, measured first. A latency counts from the planned arrival to the last byte of the picture.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import datetime
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx2
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console

from benchmarks import plots
from benchmarks.serving import free_port, service, wait_for
from benchmarks.stamp import commit, machine
from workers.settings import DEFAULT_MODEL

RESULTS = Path(__file__).parent / "LOAD.md"
SUBJECTS = ("a red apple", "a car on a blue background", "a cat", "a green tree", "two frogs", "a house", "pizza", "a dog")
SHORT, LONG = 8, 50  # steps
LONG_SHARE = 0.2
GIVE_UP_S = 600.0
console = Console()


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request: when it comes, in seconds from the start, and what it asks for."""

    at: float
    prompt: str
    steps: int
    seed: int


@dataclass(frozen=True, slots=True)
class Answer:
    steps: int
    latency: float
    ended: float  # seconds from the start


def arrivals(rate: float, count: int, seed: int = 0) -> list[Arrival]:
    """`count` requests of a Poisson process, `rate` a second on average; the same ones for the same seed."""
    rng, at, found = random.Random(seed), 0.0, []
    for i in range(count):
        at += rng.expovariate(rate)
        found.append(Arrival(at, rng.choice(SUBJECTS), LONG if rng.random() < LONG_SHARE else SHORT, i))
    return found


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of all do not exceed. Raises ValueError where there are none."""
    if not values:
        raise ValueError("no values")
    ordered = sorted(values)
    return ordered[max(0, -(-int(share * 1000) * len(ordered) // 1000) - 1)]


async def play(url: str, plan: Sequence[Arrival], *, plain: bool) -> list[Answer]:
    """Send everything at its time; raises RuntimeError where a request is not answered with a picture."""
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=64)
    async with httpx2.AsyncClient(base_url=url, timeout=GIVE_UP_S, limits=limits, trust_env=False) as client:
        began = time.perf_counter()

        async def one(arrival: Arrival) -> Answer:
            await asyncio.sleep(arrival.at - (time.perf_counter() - began))
            picture = await (plain_picture if plain else celadon_picture)(client, arrival)
            if not picture.startswith(b"\x89PNG"):
                raise RuntimeError(f"request {arrival.seed} brought no picture")
            ended = time.perf_counter() - began
            return Answer(arrival.steps, ended - arrival.at, ended)

        return list(await asyncio.gather(*(one(arrival) for arrival in plan)))


async def plain_picture(client: httpx2.AsyncClient, arrival: Arrival) -> bytes:
    answer = await client.post("/generate", json={"prompt": arrival.prompt, "steps": arrival.steps, "seed": arrival.seed})
    answer.raise_for_status()
    return answer.content


async def celadon_picture(client: httpx2.AsyncClient, arrival: Arrival) -> bytes:
    asked = {"prompt": arrival.prompt, "steps": arrival.steps, "seed": arrival.seed, "sampler": "dpmpp_2m", "guidance": 3.0}
    answer = await client.post("/generate", json=asked, headers={"Prefer": "wait=60"})
    answer.raise_for_status()
    while answer.json()["status"] in ("queued", "running"):
        answer = await client.get(f"/jobs/{answer.json()['id']}", headers={"Prefer": "wait=60"})
        answer.raise_for_status()
    picture = await client.get(answer.json()["images"][0]["url"])
    picture.raise_for_status()
    return picture.content


@contextlib.contextmanager
def plain_server(model: Path, threads: int) -> Iterator[str]:
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.peers.plain_server", str(model), str(port), str(threads)]
    process = subprocess.Popen(command, env={k: v for k, v in os.environ.items() if not k.startswith("OMP_")})  # as people start it
    try:
        wait_for(f"http://127.0.0.1:{port}/healthz")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(timeout=60)


def capacity(url: str, count: int = 20) -> float:
    """Requests a second that the plain server can do at most, from a row of the same mix."""
    plan = [Arrival(0.0, a.prompt, a.steps, a.seed) for a in arrivals(1.0, count, seed=1)]
    asyncio.run(play(url, plan[:2], plain=True))  # warm
    return count / max(a.ended for a in asyncio.run(play(url, plan, plain=True)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=DEFAULT_MODEL)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--load", type=float, nargs="+", default=[0.8], help="shares of the plain server's capacity")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--plot", type=Path, default=plots.PICTURES / "load.svg")
    options = parser.parse_args()
    found: dict[tuple[float, str], list[Answer]] = {}
    fill: dict[float, Fill] = {}
    with plain_server(options.model, options.threads) as url:
        most = capacity(url)
        console.print(f"the plain server does {most:.2f} requests a second")
        for load in options.load:
            console.print(f"plain server at {load:.0%} of that ...")
            found[load, "plain server"] = asyncio.run(play(url, arrivals(load * most, options.count), plain=True))
            options.out.write_text(report(options, most, found, fill))  # who stops it keeps what was measured
    port = free_port()
    with tempfile.TemporaryDirectory() as folder, service(Path(folder), options.model, worker_metrics_port=str(port)) as (url, _):
        wait_for(f"{url}/readyz")
        asyncio.run(play(url, arrivals(100.0, 2), plain=False))  # warm
        for load in options.load:
            console.print(f"Celadon at the same {load:.0%} ...")
            before = Fill.of(port)
            found[load, "Celadon"] = asyncio.run(play(url, arrivals(load * most, options.count), plain=False))
            fill[load] = Fill.of(port).since(before)
            options.out.write_text(report(options, most, found, fill))
    kinds = {f"{steps} steps": steps for steps in (SHORT, LONG)}
    plots.latencies(
        options.plot,
        {key: {kind: [a.latency for a in answers if a.steps == steps] for kind, steps in kinds.items()} for key, answers in found.items()},
    )
    console.print(options.out.read_text())


@dataclass(frozen=True, slots=True)
class Fill:
    """What a worker tells of its ticks: how many, how many pictures moved in them, and seconds in them and in all."""

    ticks: float
    images: float
    ticking_s: float
    all_s: float

    @classmethod
    def of(cls, port: int) -> Fill:
        families = {f.name: f for f in text_string_to_metric_families(httpx2.get(f"http://127.0.0.1:{port}/metrics").text)}
        ticks = {s.name.rpartition("_")[2]: s.value for s in families["celadon_worker_tick_images"].samples if "le" not in s.labels}
        stages = {s.labels["stage"]: s.value for s in families["celadon_worker_stage_seconds"].samples if "stage" in s.labels}
        return cls(ticks["count"], ticks["sum"], stages.get("tick", 0.0), sum(stages.values()))

    def since(self, before: Fill) -> Fill:
        return Fill(*(getattr(self, name) - getattr(before, name) for name in self.__slots__))


def report(options: argparse.Namespace, most: float, found: dict[tuple[float, str], list[Answer]], fill: dict[float, Fill]) -> str:
    lines = [
        "# Load",
        "",
        f"Made by `python -m benchmarks.load` on {datetime.date.today().isoformat()}, commit {commit()}, {machine()}, "
        f"model {options.model.name}, {options.threads} threads. {options.count} requests a run arrive at random (open loop), "
        f"{1 - LONG_SHARE:.0%} of {SHORT} steps and {LONG_SHARE:.0%} of {LONG}, guidance 3; the plain server (FastAPI, diffusers in eager "
        f"float32, a lock) does {most:.2f} of them a second at most. "
        "Seconds from the planned arrival to the last byte of the picture.",
        "",
        "| load | server | answered a second | short: p50 | p95 | p99 | long: p50 | p95 | p99 |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for (load, server), answers in sorted(found.items(), key=lambda item: item[0][0]):
        cells = []
        for steps in (SHORT, LONG):
            latencies = [a.latency for a in answers if a.steps == steps]
            cells += [f"{percentile(latencies, share):.2f}" for share in (0.5, 0.95, 0.99)]
        lines.append(f"| {load:.0%} | {server} | {len(answers) / max(a.ended for a in answers):.2f} | {' | '.join(cells)} |")
    lines += [
        "",
        "| load | pictures that moved in one tick of Celadon's worker, on average | share of its time in ticks |",
        "|---|---|---|",
    ]
    lines += [f"| {load:.0%} | {f.images / f.ticks:.1f} | {f.ticking_s / f.all_s:.0%} |" for load, f in fill.items()]
    return "\n".join([*lines, "", "![Latencies](../docs/pictures/load.svg)", ""])


if __name__ == "__main__":
    main()
