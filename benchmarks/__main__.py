"""`make bench`: side-by-side figures, bounded to a few minutes, written to benchmarks/RESULTS.md with machine, commit and date."""

from __future__ import annotations

import argparse
import datetime
import tempfile
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from rich.console import Console

from benchmarks import plots
from benchmarks.drawing import Result, compare, workload
from benchmarks.serving import Gateway, Start, measure_gateway, measure_start
from benchmarks.stamp import commit, machine
from pipelines.checkpoint_folder import describe
from workers.model import open_backend
from workers.settings import DEFAULT_MODEL, WorkerSettings

RESULTS = Path(__file__).parent / "RESULTS.md"
SIDES = (("torch", "float32"), ("torch", "bfloat16"), ("openvino", "float32"), ("openvino", "bfloat16"))
console = Console()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=DEFAULT_MODEL)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--submits", type=int, default=3000)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--plot", type=Path, default=plots.PICTURES / "bench.svg")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    card = describe(options.model).card
    with tempfile.TemporaryDirectory() as folder:
        results = {name: found for backend, dtype in SIDES for name, found in [drawing(options, backend, dtype, Path(folder))]}
        console.print("gateway: start, memory, accepted jobs ...")
        gateway = measure_gateway(Path(folder) / "gateway", card, options.submits)
        console.print("service: from `celadon up` to the first picture ...")
        start = measure_start(Path(folder) / "start", options.model)
    text = report(options, results, gateway, start)
    options.out.write_text(text)
    plots.ratios(
        options.plot, {backend: {work: r.diffusers_s / r.celadon_s for work, r in found.items()} for backend, found in results.items()}
    )
    console.print(text)


def drawing(options: argparse.Namespace, backend: str, dtype: str, folder: Path) -> tuple[str, dict[str, Result]]:
    """One image and sixteen mixed jobs on one backend, against eager float32 diffusers on the same threads."""
    settings = WorkerSettings(
        redis_url="redis://localhost", backend=backend, device="cpu", dtype=dtype, model=str(options.model), threads=options.threads,
        data_dir=folder,
    )  # fmt: skip
    opened = open_backend(settings)
    pipe = StableDiffusionPipeline.from_pretrained(options.model, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    found = {}
    for name, count in (("one image", 1), ("16 mixed jobs", 16)):
        console.print(f"{opened.name}: {name} ...")
        jobs = workload(opened.stages.card, count, options.steps)
        found[name] = compare(opened.stages, opened.denoiser, pipe, jobs, options.repeats)
    return opened.name, found


def report(options: argparse.Namespace, results: dict[str, dict[str, Result]], gateway: Gateway, start: Start) -> str:
    lines = [
        "# Results",
        "",
        f"Made by `make bench` on {datetime.date.today().isoformat()}, commit {commit()}, {machine()}, model {options.model.name}, "
        f"{options.threads} thread(s), {options.steps} steps, best of {options.repeats}. "
        "Ratios are of one run; seconds are of this machine alone.",
        "",
        "## Engine against diffusers' pipeline in eager float32, same weights, threads and seeds",
        "",
        "| backend | work | diffusers s | Celadon s | ratio | outside U-Net, VAE, text | relative L2 of latents | of pixels | "
        "largest pixel | rows of a call |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for backend, rows in results.items():
        for name, r in rows.items():
            lines.append(
                f"| {backend} | {name} | {r.diffusers_s:.2f} | {r.celadon_s:.2f} | {r.diffusers_s / r.celadon_s:.2f} | "
                f"{r.outside:.1%} | {r.latents:.1e} | {r.relative:.1e} | {r.difference:.4f} | {r.rows} |"
            )
    lines += [
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
        f"| worker: resident memory after it | {start.worker_mb:.0f} MB |",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
