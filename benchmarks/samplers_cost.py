"""What samplers cost: the engine's tick against one diffusers scheduler object per job, without any model.

`python -m benchmarks.samplers_cost` writes benchmarks/SAMPLERS.md. The model is replaced by a constant answer, so that what
is left is guidance, the update, and the keeping of books; both sides run the same jobs in the same process, by turns. It
is measured with one sampler for all jobs and with as many different ones as there are.
"""

from __future__ import annotations

import argparse
import datetime
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import array_api_compat.numpy
import numpy as np
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LMSDiscreteScheduler,
    UniPCMultistepScheduler,
)

from benchmarks.stamp import commit, machine
from pipelines.engine.engine import Engine
from pipelines.engine.sample import Sample
from pipelines.ladder import Ladder
from pipelines.sampler_list import SAMPLERS
from pipelines.samplers import compile_table

OUT = Path(__file__).parent / "SAMPLERS.md"
CONFIG = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1, "timestep_spacing": "leading"}
GUIDANCE = 5.0
CLASSES: dict[str, Callable[[], Any]] = {
    "dpmpp_2m": lambda: DPMSolverMultistepScheduler(**CONFIG),
    "euler": lambda: EulerDiscreteScheduler(**CONFIG),
    "ddim": lambda: DDIMScheduler(**CONFIG, clip_sample=False, set_alpha_to_one=False),
    "unipc": lambda: UniPCMultistepScheduler(**CONFIG),
    "heun": lambda: HeunDiscreteScheduler(**CONFIG),
    "lms": lambda: LMSDiscreteScheduler(**CONFIG),
}
ALIKE = ("dpmpp_2m",)
MIXED = tuple(name for name in CLASSES if name in SAMPLERS)


class Answer:
    """A model that answers the same whatever it is asked: no work of its own."""

    xp, device = array_api_compat.numpy, "cpu"

    def __init__(self, rows: int, shape: tuple[int, int, int]) -> None:
        self.out = np.random.default_rng(0).standard_normal((rows, *shape), dtype=np.float32)

    def __call__(self, x: np.ndarray, timestep: np.ndarray, context: np.ndarray) -> np.ndarray:
        return self.out[: len(x)]


def engine_seconds(names: tuple[str, ...], jobs: int, shape: tuple[int, int, int], steps: int) -> float:
    """CPU seconds of one evaluation of one job in the engine."""
    engine = Engine(Answer(2 * jobs, shape), slots=jobs, max_rows=2 * jobs, preview_interval_s=float("inf"))
    ladder, nothing = Ladder.from_config(CONFIG), np.zeros((1, 1), np.float32)
    evaluations = 0
    for i in range(jobs):
        table = compile_table(ladder, names[i % len(names)], "auto", steps)
        evaluations += len(table)
        engine.add(Sample(id=str(i), table=table, shape=shape, seed=i, cond=nothing, uncond=nothing, guidance=GUIDANCE))
    start = time.process_time()
    while engine.busy:
        engine.step(0.0)
    return (time.process_time() - start) / evaluations


def objects_seconds(names: tuple[str, ...], jobs: int, shape: tuple[int, int, int], steps: int) -> float:
    """CPU seconds of one evaluation of one job with a scheduler object of its own."""
    out = torch.from_numpy(Answer(2, shape).out)
    flying = []
    for i in range(jobs):
        scheduler = CLASSES[names[i % len(names)]]()
        scheduler.set_timesteps(steps)
        x = torch.randn((1, *shape), generator=torch.Generator().manual_seed(i)) * scheduler.init_noise_sigma
        flying.append((scheduler, [x]))
    evaluations = sum(len(scheduler.timesteps) for scheduler, _ in flying)
    start = time.process_time()
    for k in range(max(len(scheduler.timesteps) for scheduler, _ in flying)):
        for scheduler, held in flying:
            if k < len(scheduler.timesteps):
                t = scheduler.timesteps[k]
                scheduler.scale_model_input(torch.cat([held[0]] * 2), t)
                uncond, cond = out[0:1], out[1:2]
                held[0] = scheduler.step(uncond + GUIDANCE * (cond - uncond), t, held[0]).prev_sample
    return (time.process_time() - start) / evaluations


def measure(jobs: int, shape: tuple[int, int, int], steps: int, repeats: int) -> dict[str, float]:
    """Microseconds of one evaluation of one job, the best of the repeats; the sides take turns."""
    work = {
        "engine, one sampler": lambda: engine_seconds(ALIKE, jobs, shape, steps),
        "engine, mixed": lambda: engine_seconds(MIXED, jobs, shape, steps),
        "objects, one sampler": lambda: objects_seconds(ALIKE, jobs, shape, steps),
        "objects, mixed": lambda: objects_seconds(MIXED, jobs, shape, steps),
        **{f"alone {name}": lambda n=name: engine_seconds((n,), jobs, shape, steps) for name in MIXED},
    }
    found: dict[str, list[float]] = {name: [] for name in work}
    with torch.inference_mode():
        for _ in range(repeats):
            for name, run in work.items():
                found[name].append(run())
    return {name: 1e6 * min(seconds) for name, seconds in found.items()}


def report(sizes: list[tuple[int, int, int]], counts: list[int], steps: int, repeats: int) -> str:
    lines = [
        "# What samplers cost",
        "",
        f"Made by `python -m benchmarks.samplers_cost` on {datetime.date.today().isoformat()}, commit {commit()}, {machine()}, one thread, "
        f"{steps} steps, guided, best of {repeats}. CPU microseconds of one evaluation of one job without the model: guidance, update, "
        "books. "
        f"Mixed is {', '.join(MIXED)} by turns; *expected* is the mean of what each of them costs in a batch of its own, so "
        "mixed / expected near 1 says that different samplers in one batch cost nothing extra. Objects: one diffusers scheduler per job.",
        "",
        "| latent | jobs | engine, one sampler | engine, mixed | expected | mixed / expected | objects, one sampler | objects, mixed "
        "| objects / engine, one sampler | objects / engine, mixed |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for shape in sizes:
        for jobs in counts:
            found = measure(jobs, shape, steps, repeats)
            expected = _expected(found, jobs, steps)
            one, mixed = found["engine, one sampler"], found["engine, mixed"]
            lines.append(
                f"| {'x'.join(map(str, shape))} | {jobs} | {one:.0f} | {mixed:.0f} | {expected:.0f} | {mixed / expected:.2f} "
                f"| {found['objects, one sampler']:.0f} | {found['objects, mixed']:.0f} "
                f"| {found['objects, one sampler'] / one:.1f} | {found['objects, mixed'] / mixed:.1f} |"
            )
            print(lines[-1], flush=True)
    return "\n".join([*lines, ""])


def _expected(found: dict[str, float], jobs: int, steps: int) -> float:
    """The mean over the evaluations of a mixed batch, each at the cost of its sampler alone."""
    names = [MIXED[i % len(MIXED)] for i in range(jobs)]
    weights = [len(compile_table(Ladder.from_config(CONFIG), name, "auto", steps)) for name in names]
    return sum(w * found[f"alone {name}"] for w, name in zip(weights, names, strict=True)) / sum(weights)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--jobs", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.out.write_text(report([(4, 16, 16), (4, 64, 64)], options.jobs, options.steps, options.repeats))


if __name__ == "__main__":
    main()
