"""Who waits how long: simulated traffic through the real scripts, fair turns beside first come, first served. Seeded.

First come, first served is the same queue when everybody goes by one name: within a client, jobs go in the order of submit.
"""

from __future__ import annotations

import random
import statistics
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jobs import valkey
from jobs.connection import connect
from tests.job_samples import Clock
from tests.queue_simulation import Simulation

PICTURES = Path(__file__).parent.parent / "docs" / "pictures"
START = 1_000_000.0
WORKERS, SLOTS, LONGEST_S = 2, 8, 3
BATCH_S = SLOTS * LONGEST_S  # until a worker that has just filled all slots has a free one, at the latest
WEIGHTS = {"a": 0.5, "b": 1.0, "c": 1.0, "d": 2.0}
LONGEST_OF = {"a": 5, "b": 2, "c": 20, "d": 7}  # U-Net seconds of one job
STYLE = {"svg.hashsalt": "celadon", "svg.fonttype": "path", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}


@dataclass(frozen=True, slots=True)
class Wait:
    at: float  # of the submit, since the first one
    seconds: float  # to the start


@asynccontextmanager
async def simulation(workers: int, slots: int) -> AsyncIterator[Simulation]:
    """A fleet before an empty server."""
    with tempfile.TemporaryDirectory() as folder:
        process = valkey.start(Path(folder))
        try:
            async with connect(valkey.url(Path(folder))) as redis:
                clock = Clock(redis, START)
                await clock.advance(0)
                yield Simulation(redis, clock, workers=workers, slots=slots)
        finally:
            process.kill()
            process.wait()


async def waits(*, fair: bool, greedy: int = 1000, modest: int = 60, seed: int = 1) -> list[Wait]:
    """One client submits `greedy` jobs at once, others one job each while those are drawn: how long the others waited."""
    rng = random.Random(seed)
    async with simulation(WORKERS, SLOTS) as play:
        for _ in range(greedy):
            play.arrive(0, "greedy" if fair else "everybody", rng.randint(1, LONGEST_S))
        until = greedy * (1 + LONGEST_S) / 2 / WORKERS
        arrivals = sorted(rng.uniform(0, until) for _ in range(modest))
        ids = [play.arrive(at, f"modest-{n}" if fair else "everybody", 2) for n, at in enumerate(arrivals)]
        await play.run()
        told = [play.told[id_] for id_ in ids]
        return [Wait(t.at - START, t.started - t.at) for t in told]


async def shares(seed: int = 1) -> dict[str, list[tuple[float, float]]]:
    """Clients of unlike weights and unlike jobs, all with plenty of them: (seconds, U-Net seconds served) of each."""
    rng = random.Random(seed)
    async with simulation(workers=3, slots=4) as play:
        for client, weight in WEIGHTS.items():
            await play.queue.set_weight(client, weight)
            for _ in range(2 * 600 // LONGEST_OF[client]):
                play.arrive(0, client, rng.randint(1, LONGEST_OF[client]))
        await play.run()
        served = {client: [(0.0, 0.0)] for client in WEIGHTS}
        for told in sorted((play.told[id_] for id_ in play.claims), key=lambda t: t.started):
            line = served[told.job.client]
            line.append((told.started - START, line[-1][1] + told.job.steps_total))
        return served


def draw_waits(path: Path, fair: list[Wait], first_come: list[Wait]) -> None:
    def draw(axes: Axes) -> None:
        for points, colour, name in ((first_come, "#b5533c", "first come, first served"), (fair, "#3f8f7b", "fair turns")):
            axes.plot([w.at for w in points], [max(w.seconds, 0.1) for w in points], "o", ms=4, color=colour, label=name)
        axes.axhline(BATCH_S, ls=":", lw=1, color="black")
        axes.text(0, BATCH_S * 1.1, "one batch", va="bottom")
        axes.set(yscale="log", xlabel="single job submitted, s after the other client's 1,000 jobs", ylabel="wait for a slot, s")
        axes.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 1), ncols=2)

    _save(path, draw)


def draw_shares(path: Path, served: Mapping[str, list[tuple[float, float]]]) -> None:
    def draw(axes: Axes) -> None:
        for (client, line), colour in zip(served.items(), ("#c9a227", "#3f8f7b", "#2f5d8a", "#b5533c"), strict=True):
            axes.step(*zip(*line, strict=True), where="post", lw=1.4, color=colour, label=f"{client}, weight {WEIGHTS[client]:g}")
        axes.axvline(backlog_end(served), ls=":", lw=1, color="black")
        axes.set(xlabel="simulated s", ylabel="U-Net seconds served", xlim=(0, None), ylim=(0, None))
        axes.legend(frameon=False)

    _save(path, draw)


def _save(path: Path, draw: Callable[[Axes], None]) -> None:
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 3.4), layout="constrained")
        draw(figure.subplots())
        figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})


def backlog_end(served: Mapping[str, list[tuple[float, float]]]) -> float:
    """Until when all clients had jobs that waited: the first of their last starts."""
    return min(line[-1][0] for line in served.values())


def gap(served: Mapping[str, list[tuple[float, float]]]) -> float:
    """The greatest difference of two clients' work by weight while all had jobs that waited."""
    end = backlog_end(served)
    moments = sorted({at for line in served.values() for at, _ in line if at < end})
    at_each = [[max(w for t, w in line if t <= at) / WEIGHTS[client] for client, line in served.items()] for at in moments]
    return max(max(works) - min(works) for works in at_each)


def bound() -> float:
    """Of start-time fair queueing (Goyal, Vin, Cheng 1996, theorem 1) for the two clients of the longest jobs by weight."""
    return sum(sorted(LONGEST_OF[client] / weight for client, weight in WEIGHTS.items())[-2:])


async def report(pictures: Path = PICTURES) -> list[str]:
    fair, first_come, served = await waits(fair=True), await waits(fair=False), await shares()
    draw_waits(pictures / "fairness.svg", fair, first_come)
    draw_shares(pictures / "weights.svg", served)
    lines = [
        f"{WORKERS} workers of {SLOTS} slots. One client submits 1,000 jobs of 1 to {LONGEST_S} U-Net seconds, sixty others one job each "
        f"while those are drawn. One batch takes {BATCH_S} s.",
        "",
        "| wait of the single jobs, s | median | 95th percentile | longest |",
        "|---|---|---|---|",
    ]
    for name, told in (("fair turns", fair), ("first come, first served", first_come)):
        seconds = [w.seconds for w in told]
        lines.append(f"| {name} | {statistics.median(seconds):.1f} | {statistics.quantiles(seconds, n=20)[-1]:.1f} | {max(seconds):.1f} |")
    lines += [
        "",
        f"Four clients with plenty of jobs of 1 to {max(LONGEST_OF.values())} s and weights 0.5, 1, 1 and 2, over "
        f"{backlog_end(served):.0f} s in which all had jobs that waited: their work divided by weight never differed by more than "
        f"{gap(served):.0f} U-Net seconds; the bound of start-time fair queueing is {bound():.0f}.",
    ]
    return lines
