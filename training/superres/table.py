"""Judge every trained variant on all 10,000 test pictures of CIFAR-10: `python -m training.superres.table`.

Writes `RESULTS.md` beside this file and the contact sheet. What was measured is kept, so the same command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from pipelines.superres import area
from training.checkpoint import load
from training.lpips import load_lpips
from training.measures import psnr
from training.superres.measures import lpips, ssim
from training.superres.report import SHEET, contact_sheet, report
from training.superres.restore import TURNS, pixels, restored, sampled
from training.superres.sets import cifar10
from training.superres.train import Restorer, as_numbers, bicubic, trained
from training.superres.variants import VARIANTS

TIMED, ROUNDS = 10, 9
LONGEST = ("cosine", 50)  # timed alone: what few steps are compared with
SHOWN = "cosine"  # in the contact sheet


def judged(drawn: np.ndarray, true: np.ndarray, distance: Any) -> dict[str, float]:
    blocks = [slice(i, i + 500) for i in range(0, len(true), 500)]
    return {
        "psnr": float(psnr(drawn, true).mean()),
        "ssim": float(np.concatenate([ssim(drawn[b], true[b]) for b in blocks]).mean()),
        "lpips": float(lpips(distance, drawn, true).mean()),
    }


def rows(root: Path) -> Iterator[tuple[str, int]]:
    """Of bicubic and of every variant whose training has ended."""
    yield "bicubic", 0
    for name, variant in VARIANTS.items():
        if ended(root / "superres" / f"cifar10-{name}.pt"):
            for steps in variant.steps:
                yield name, steps


def ended(path: Path) -> bool:
    if not path.exists():
        return False
    state = load(path)
    return bool(state["images"] >= state["total"])


def measure(root: Path, true: np.ndarray) -> dict[str, Any]:
    """Figures by row, and what is known of each variant. Rows whose weights are those of an earlier run are not drawn again."""
    low, distance = area(true), load_lpips(root)
    path = root / "superres" / f"figures-{len(true)}.json"
    kept = json.loads(path.read_text()) if path.exists() else {}
    figures: dict[str, Any] = {}
    for name, steps in rows(root):
        model, about = (None, {}) if name == "bicubic" else described(root, name)
        key, of = f"{name}-{steps}", {k: about.get(k) for k in ("images", "digest")}
        if kept.get(key, {}).get("of") != of:
            kept[key] = {"of": of} | figures_of(model, low, true, steps, distance)
            path.write_text(json.dumps(kept, indent=1) + "\n")
            print(key, kept[key], flush=True)
        figures[key] = kept[key] | about
    return figures


def figures_of(model: Restorer | None, low: np.ndarray, true: np.ndarray, steps: int, distance: Any) -> dict[str, Any]:
    if model is None:
        return {"single": judged(pixels(bicubic(as_numbers(low))), true, distance)}
    averaged = steps in model.variant.mean_at
    single, mean = restored(model, low, steps, TURNS if averaged else TURNS[:1])
    found = {"single": judged(single, true, distance)}
    return found | ({"mean": judged(mean, true, distance)} if averaged else {})


def described(root: Path, name: str) -> tuple[Restorer, dict[str, Any]]:
    model, state = trained(root / "superres", "cifar10", name)
    digest = float(sum(p.detach().double().abs().sum() for p in model.parameters()))
    parameters = sum(p.numel() for p in model.parameters())
    return model, {"images": state["images"], "cpu_min": state["cpu_s"] / 60, "parameters": parameters, "digest": digest}


def timings(root: Path, true: np.ndarray) -> dict[str, float]:
    """Milliseconds of CPU time for one picture alone, in one thread and single precision: the median of rounds in turn."""
    low = as_numbers(area(true[:1]))
    rng = np.random.default_rng(0)
    tasks: dict[str, Callable[[], object]] = {"bicubic-0": lambda: bicubic(low)}
    for name, steps in (*rows(root), LONGEST):
        if name != "bicubic":
            model = trained(root / "superres", "cifar10", name)[0]
            tasks[f"{name}-{steps}"] = lambda m=model, s=steps: sampled(m, low, s, rng)
    spent: dict[str, list[float]] = {key: [] for key in tasks}
    for _ in range(ROUNDS):
        for key, task in tasks.items():
            began = time.process_time()
            for _ in range(TIMED):
                task()
            spent[key].append((time.process_time() - began) / TIMED * 1e3)
    return {key: float(np.median(values)) for key, values in spent.items()}


def draw_sheet(root: Path, true: np.ndarray) -> None:
    """From above: what is given, bicubic, one step, five steps, the mean of eight of these, the truth."""
    low = area(true)
    model = trained(root / "superres", "cifar10", SHOWN)[0]
    one, (five, mean) = restored(model, low, 1, TURNS[:1])[0], restored(model, low, 5)
    rows = [low.repeat(2, 1).repeat(2, 2), pixels(bicubic(as_numbers(low))), one, five, mean, true]
    SHEET.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(contact_sheet(rows)).save(SHEET, optimize=True)


def where() -> str:
    """Date, commit and machine."""
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent, check=False)
    names = [x.partition(":")[2].strip() for x in Path("/proc/cpuinfo").read_text().splitlines() if x.startswith("model name")]
    return f"{datetime.now(UTC).date()}, commit {done.stdout.strip()}, {os.cpu_count()} x {names[0]}, torch {torch.__version__}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, default=Path(".training"))
    parser.add_argument("--count", type=int, default=10_000, help="test pictures")
    args = parser.parse_args()
    torch.set_num_threads(1)
    true = cifar10(args.root, "test").all[: args.count]
    figures = measure(args.root, true)
    Path(__file__).with_name("RESULTS.md").write_text(report(figures, timings(args.root, true), len(true), where()))
    draw_sheet(args.root, true[:12])


if __name__ == "__main__":
    main()
