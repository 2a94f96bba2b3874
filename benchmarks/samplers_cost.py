"""What samplers cost: the engine's tick against one diffusers scheduler object per job, without any model.

`python -m benchmarks.samplers_cost` writes benchmarks/SAMPLERS.md. The model is replaced by a constant answer, so that what
is left is guidance, the update, and the keeping of books; both sides run the same jobs in the same process, by turns. The
batch is full at every tick, as in a service that has work: whoever ends is followed by the next job, outside the clock. The first
jobs come a few a tick, so that in every batch, whatever its samplers, about as many end at each tick: were all alike to end together,
their usual tick would hold no end, and a mixture, in which someone always ends, would seem to cost more.
It is measured with one sampler for all jobs, and with as many different ones as there are jobs. What a sampler adds as noise
is no part of its update, and drawing it costs more than that: both sides are given noise that is drawn before.
"""

from __future__ import annotations

import argparse
import copy
import datetime
import inspect
import itertools
import statistics
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import array_api_compat.numpy
import diffusers
import numpy as np
import torch

from benchmarks.stamp import commit, machine
from pipelines.engine.engine import Engine
from pipelines.engine.events import Progress
from pipelines.engine.sample import Sample
from pipelines.ladder import Ladder
from pipelines.noise import NormalStream
from pipelines.samplers import compile_table

OUT = Path(__file__).parent / "SAMPLERS.md"
CONFIG = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1, "timestep_spacing": "leading"}
GUIDANCE = 5.0
SDE = {"algorithm_type": "sde-dpmsolver++"}
CLASSES: dict[str, tuple[str, dict[str, Any]]] = {  # sampler -> class of diffusers, and its options
    "dpmpp_2m": ("DPMSolverMultistep", {}),
    "euler": ("EulerDiscrete", {}),
    "ddim": ("DDIM", {"clip_sample": False, "set_alpha_to_one": False}),
    "unipc": ("UniPCMultistep", {}),
    "heun": ("HeunDiscrete", {}),
    "lms": ("LMSDiscrete", {}),
    "euler_a": ("EulerAncestralDiscrete", {}),
    "pndm": ("PNDM", {"skip_prk_steps": True}),
    "dpmpp_2s": ("DPMSolverSinglestep", {}),
    "sa_solver": ("SASolver", {}),
    "deis": ("DEISMultistep", {}),
    "dpm2": ("KDPM2Discrete", {}),
    "dpmpp_3m": ("DPMSolverMultistep", {"solver_order": 3}),
    "lcm": ("LCM", {}),
    "dpmpp_2m_sde": ("DPMSolverMultistep", SDE),
    "dpm2_a": ("KDPM2AncestralDiscrete", {}),
    "ddpm": ("DDPM", {"clip_sample": False}),
    "ipndm": ("IPNDM", {}),
    "dpmpp_1s": ("DPMSolverSinglestep", {"solver_order": 1}),
    "tcd": ("TCD", {}),
    "dpmpp_2m_sde_heun": ("DPMSolverMultistep", {**SDE, "solver_type": "heun"}),
    "dpmpp_3s": ("DPMSolverSinglestep", {"solver_order": 3}),
}
ALIKE, MIXED = ("dpmpp_2m",), tuple(CLASSES)


Tick = tuple[float, Sequence[str]]  # CPU seconds, and the sampler of each evaluation in it


class Answer:
    """A model that answers the same whatever it is asked: no work of its own."""

    xp, device = array_api_compat.numpy, "cpu"

    def __init__(self, rows: int, shape: tuple[int, int, int]) -> None:
        self.out = np.random.default_rng(0).standard_normal((rows, *shape), dtype=np.float32)

    def __call__(self, x: np.ndarray, timestep: np.ndarray, context: np.ndarray) -> np.ndarray:
        return self.out[: len(x)]


def noise_drawn_before(shape: tuple[int, int, int]) -> ExitStack:
    """While it is open, nobody draws noise."""
    drawn, stack = np.random.default_rng(1).standard_normal(shape, dtype=np.float32), ExitStack()
    stack.enter_context(patch.object(NormalStream, "draw", lambda *_: drawn))
    modules = {inspect.getmodule(getattr(diffusers, f"{name}Scheduler")) for name, _ in CLASSES.values()}
    for module in (m for m in modules if hasattr(m, "randn_tensor")):
        stack.enter_context(patch.object(module, "randn_tensor", lambda *_, **__: torch.from_numpy(drawn)[None]))
    return stack


def engine_ticks(names: Sequence[str], jobs: int, shape: tuple[int, int, int], steps: int) -> Iterator[Tick]:
    """Full batches in the engine, without end."""
    engine = Engine(Answer(2 * jobs, shape), slots=jobs, max_rows=2 * jobs, preview_interval_s=float("inf"))
    ladder, nothing, waiting = Ladder.from_config(CONFIG), np.zeros((1, 1), np.float32), _line(names)
    for room in _arrivals(jobs, steps):
        for i, name in itertools.islice(waiting, min(room, engine.free_slots)):
            # A table of its own each: jobs that share one find it in the CPU's cache, whatever the sampler.
            table = copy.deepcopy(compile_table(ladder, name, "auto", steps))
            engine.add(Sample(id=f"{name} {i}", table=table, shape=shape, seed=i, cond=nothing, uncond=nothing, guidance=GUIDANCE))
        start = time.process_time()
        events = engine.step(0.0)
        yield time.process_time() - start, [event.sample_id.split()[0] for event in events if isinstance(event, Progress)]


def _arrivals(jobs: int, steps: int) -> Iterator[int]:
    """How many may come before each tick: a share of the batch in the first `steps`, then all that find a place."""
    return itertools.chain((jobs * (i + 1) // steps - jobs * i // steps for i in range(steps)), itertools.repeat(jobs))


def _line(names: Sequence[str]) -> Iterator[tuple[int, str]]:
    """Jobs without end: their number and their sampler."""
    return enumerate(itertools.cycle(names))


@dataclass
class Flying:
    """A job with a scheduler object of its own."""

    sampler: str
    scheduler: Any
    x: torch.Tensor
    row: int = 0

    def step(self, out: torch.Tensor) -> None:
        t = self.scheduler.timesteps[self.row]
        self.scheduler.scale_model_input(torch.cat([self.x] * 2), t)
        uncond, cond = out[0:1], out[1:2]
        self.x = self.scheduler.step(uncond + GUIDANCE * (cond - uncond), t, self.x).prev_sample
        self.row += 1

    @property
    def done(self) -> bool:
        return self.row == len(self.scheduler.timesteps)


def flying(number: int, name: str, shape: tuple[int, int, int], steps: int) -> Flying:
    kind, options = CLASSES[name]
    scheduler = getattr(diffusers, f"{kind}Scheduler").from_config({**CONFIG, **options})
    scheduler.set_timesteps(steps)
    x = torch.randn((1, *shape), generator=torch.Generator().manual_seed(number)) * scheduler.init_noise_sigma
    return Flying(name, scheduler, x)


def objects_ticks(names: Sequence[str], jobs: int, shape: tuple[int, int, int], steps: int) -> Iterator[Tick]:
    """The same jobs with one scheduler object each."""
    out, waiting = torch.from_numpy(Answer(2, shape).out), _line(names)
    resident: list[Flying] = []
    for room in _arrivals(jobs, steps):
        resident = [job for job in resident if not job.done]
        resident += [flying(*job, shape, steps) for job in itertools.islice(waiting, min(room, jobs - len(resident)))]
        start = time.process_time()
        for job in resident:
            job.step(out)
        yield time.process_time() - start, [job.sampler for job in resident]


def measure(jobs: int, shape: tuple[int, int, int], steps: int, ticks: int) -> dict[str, float]:
    """Microseconds of one evaluation of one job, the median of the ticks.

    All sides take turns tick by tick: what else the machine does meets all of them, and a batch finds the caches as cold as a
    model's call would leave them.
    """
    sides = {
        "engine, one sampler": engine_ticks(ALIKE, jobs, shape, steps),
        "engine, mixed": engine_ticks(MIXED, jobs, shape, steps),
        "objects, one sampler": objects_ticks(ALIKE, jobs, shape, steps),
        "objects, mixed": objects_ticks(MIXED, jobs, shape, steps),
        **{name: engine_ticks((name,), jobs, shape, steps) for name in MIXED},
    }
    found: dict[str, list[float]] = {name: [] for name in sides}
    shares = Counter[str]()
    with torch.inference_mode(), noise_drawn_before(shape):
        for side in sides.values():
            for _ in itertools.islice(side, steps):
                pass  # until it is full
        for _ in range(ticks):
            for name, side in sides.items():
                seconds, moved = next(side)
                found[name].append(1e6 * seconds / len(moved))
                shares.update(moved if name == "engine, mixed" else ())
    usual = {name: statistics.median(costs) for name, costs in found.items()}
    return usual | {"expected": sum(usual[name] * count for name, count in shares.items()) / shares.total()}


def report(sizes: list[tuple[int, int, int]], counts: list[int], steps: int, ticks: int) -> str:
    lines = [
        "# What samplers cost",
        "",
        f"Made by `python -m benchmarks.samplers_cost` on {datetime.date.today().isoformat()}, commit {commit()}, {machine()}, one thread, "
        f"{steps} steps, guided, medians of {ticks} ticks that the sides took by turns. CPU microseconds of one evaluation of one job in a "
        "full batch into which jobs come one after the other, without the model: guidance, update, books, but no drawing of noise; each "
        "job has a table of its own. "
        f"One sampler is {ALIKE[0]}; mixed are {len(MIXED)} by turns ({', '.join(MIXED)}); *expected* is the mean of what each "
        "evaluation of the mixed batch costs where all jobs have that sampler, so mixed / expected near 1 says that different "
        "samplers in one batch cost nothing extra. What a mixture may cost follows from the update's form: it adds the k-th terms of all "
        "sums together, so its operations are as many as the longest sum of the batch has terms (at most 5 in these, 3 on average), with "
        "two samplers or with forty. Objects: one diffusers scheduler per job. One job is no mixture.",
        "",
        "| latent | jobs | engine, one sampler | engine, mixed | expected | mixed / expected | objects, one sampler | objects, mixed "
        "| objects / engine, one sampler | objects / engine, mixed |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for shape, jobs in itertools.product(sizes, counts):
        found = measure(jobs, shape, steps, ticks)
        one, mixed, expected = found["engine, one sampler"], found["engine, mixed"], found["expected"]
        ours, theirs = found["objects, one sampler"], found["objects, mixed"]
        rest = [f"{mixed:.0f}", f"{expected:.0f}", f"{mixed / expected:.2f}", f"{theirs:.0f}", f"{theirs / mixed:.1f}"]
        a, b, c, d, e = rest if jobs > 1 else ["–"] * 5
        lines.append(f"| {'x'.join(map(str, shape))} | {jobs} | {one:.0f} | {a} | {b} | {c} | {ours:.0f} | {d} | {ours / one:.1f} | {e} |")
        print(lines[-1], flush=True)
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--ticks", type=int, default=60)
    parser.add_argument("--jobs", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    torch.set_num_threads(1)
    diffusers.utils.logging.set_verbosity_error()
    options.out.write_text(report([(4, 16, 16), (4, 64, 64)], options.jobs, options.steps, options.ticks))


if __name__ == "__main__":
    main()
