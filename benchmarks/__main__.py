"""`make bench`: side-by-side figures, bounded to minutes, written to benchmarks/RESULTS.md with machine, commit and date.

Both sides have the same threads: one, where every microsecond outside the model counts, and then all cores, as a worker has them.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import os
import tempfile
import threading
from dataclasses import replace
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from rich.console import Console

from benchmarks import depth, plots
from benchmarks.drawing import Result, compare, workload
from benchmarks.serving import CROWD, Gateway, Memory, Start, measure_gateway, measure_start
from benchmarks.stamp import commit, machine
from pipelines.checkpoint_folder import describe
from workers.model import open_backend
from workers.model_openvino import SETTLE
from workers.settings import DEFAULT_MODEL, WorkerSettings

RESULTS = Path(__file__).parent / "RESULTS.md"
DEPTHS, ROUNDS = (1_000, 10_000), 200  # of the queue; a million takes half an hour: benchmarks/QUEUE.md
SIDES = (("torch", "float32"), ("torch", "bfloat16"), ("openvino", "float32"), ("openvino", "bfloat16"))
console = Console()

Results = dict[tuple[int, str], dict[str, Result]]  # by threads and backend, then by work


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=DEFAULT_MODEL)
    parser.add_argument(
        "--threads", type=int, nargs="+", default=sorted({1, len(os.sched_getaffinity(0))}), help="one pass for each number"
    )
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--submits", type=int, default=3000)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--plot", type=Path, default=plots.PICTURES / "bench.svg")
    options = parser.parse_args()
    card = describe(options.model).card
    with tempfile.TemporaryDirectory() as folder:
        results = {}
        for threads in options.threads:
            for backend, dtype in SIDES if threads == options.threads[0] else SIDES[2:]:
                results |= drawing(options, threads, backend, dtype, Path(folder))
        results = against_their_best(results)
        console.print("gateway: start, memory, accepted jobs ...")
        gateway = measure_gateway(Path(folder) / "gateway", card, options.submits)
        console.print("service: from `celadon up` to the first picture ...")
        start = measure_start(Path(folder) / "start", options.model)
    console.print("queue: what its calls cost by depth ...")
    queue = depth.table(asyncio.run(depth.measure(DEPTHS, ROUNDS, restless=False)))
    text = report(options, results, gateway, start, queue)
    options.out.write_text(text)
    bars = {
        f"{backend}, {threads} thread{'s' * (threads > 1)}": {work: r.diffusers_s / r.celadon_s for work, r in found.items()}
        for (threads, backend), found in results.items()
    }
    plots.ratios(options.plot, bars)
    console.print(text)


def against_their_best(results: Results) -> Results:
    """diffusers may have its time with fewer threads: more of them wait for each other where a machine is not idle."""
    found: Results = {}
    for (threads, backend), rows in results.items():
        for name, one in rows.items():
            theirs = min(of[name].diffusers_s for (number, _), of in results.items() if number <= threads)
            found.setdefault((threads, backend), {})[name] = replace(one, diffusers_s=theirs)
    return found


def drawing(options: argparse.Namespace, threads: int, backend: str, dtype: str, folder: Path) -> Results:
    """One image and sixteen mixed jobs on one backend, against eager float32 diffusers on the same threads."""
    torch.set_num_threads(threads)
    settings = WorkerSettings(
        redis_url="redis://localhost", backend=backend, device="cpu", dtype=dtype, model=str(options.model), threads=threads,
        data_dir=folder,
    )  # fmt: skip
    opened = open_backend(settings)
    for thread in threading.enumerate():
        if thread.name == SETTLE:
            thread.join()
    pipe = StableDiffusionPipeline.from_pretrained(options.model, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    found = {}
    for name, count in (("one image", 1), ("16 mixed jobs", 16)):
        console.print(f"{opened.name}, {threads} thread{'s' * (threads > 1)}: {name} ...")
        jobs = workload(opened.stages.card, count, options.steps)
        found[name] = compare(opened.stages, opened.denoiser, pipe, jobs, options.repeats)
    return {(threads, opened.name.partition(",")[0]): found}


def report(options: argparse.Namespace, results: Results, gateway: Gateway, start: Start, queue: list[str]) -> str:
    lines = [
        "# Results",
        "",
        f"Made by `make bench` on {datetime.date.today().isoformat()}, commit {commit()}, {machine()}, model {options.model.name}, "
        f"{options.steps} steps, best of {options.repeats}. "
        "Ratios are of one run; seconds are of this machine alone.",
        "",
        "## Engine against diffusers' pipeline in eager float32, same weights, threads and seeds",
        "",
        "diffusers has its best time with so many threads or fewer. A stream of OpenVINO has one thread. Time outside U-Net, VAE and text "
        "encoder is one thread's, whatever they have.",
        "",
        "| backend | threads | work | diffusers s | Celadon s | ratio | outside U-Net, VAE, text | relative L2 of latents | of pixels | "
        "largest pixel | rows of a call |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for (threads, backend), rows in results.items():
        for name, r in rows.items():
            lines.append(
                f"| {backend} | {threads} | {name} | {r.diffusers_s:.2f} | {r.celadon_s:.2f} | {r.diffusers_s / r.celadon_s:.2f} | "
                f"{r.outside:.1%} | {r.latents:.1e} | {r.relative:.1e} | {r.difference:.4f} | {r.rows} |"
            )
    return "\n".join([*lines, *around(gateway, start, queue)])


def told(memory: Memory) -> str:
    return f"{memory.resident:.0f}, {memory.own:.0f} MB"


def around(gateway: Gateway, start: Start, queue: list[str]) -> list[str]:
    """What is no drawing, and where the rest is."""
    return [
        "",
        "![Diffusers' time over Celadon's](../docs/pictures/bench.svg)",
        "",
        "## Gateway and service",
        "",
        "| what | figure |",
        "|---|---|",
        f"| gateway: process start to first healthy answer | {gateway.start_s:.2f} s |",
        f"| gateway: resident memory after {gateway.jobs} submits | {gateway.rss_mb:.0f} MB |",
        f"| gateway: accepted jobs per second of its own CPU time | {gateway.jobs_per_core_s:.0f} |",
        f"| `celadon up` on an empty data directory to the first picture | {start.first_s:.1f} s |",
        f"| `celadon up` with the compiled model in its cache to the first picture | {start.again_s:.1f} s |",
        f"| worker, settled, after one more: resident memory, and what of it is no page of a file | {told(start.alone)} |",
        f"| worker, after {CROWD} jobs at once: the same | {told(start.crowd)} |",
        "",
        "## Queue",
        "",
        f"Microseconds of the server for one call by jobs queued, {ROUNDS} rounds each: median, 95th percentile (SLOWLOG).",
        "",
        *queue,
        "",
        "## On other pages",
        "",
        "* Open-loop load of short and long jobs against the plain server, latencies, batch fill: [LOAD.md](LOAD.md), which `make bench` "
        "makes next (`python -m benchmarks.load`).",
        "* A million jobs queued, fairness, told times: [QUEUE.md](QUEUE.md), by `make bench-queue`.",
        "* Submits at a fixed rate, open loop: `python -m benchmarks.submits` prints them; runs stand in [the log](../docs/LOG.md).",
        "* GPUs: `make bench-gpu` writes GPU.md.",
        "",
    ]


if __name__ == "__main__":
    main()
