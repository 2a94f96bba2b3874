"""What was measured of super-resolution, as RESULTS.md and a contact sheet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from training.superres.variants import VARIANTS

SHEET = Path(__file__).parents[2] / "docs" / "pictures" / "superres-cifar10.png"
SEED = (  # what the study that this repeats reports of CIFAR-10, 16 to 32 pixels: steps, million parameters, ms, PSNR, SSIM
    ("SinSR", 1, 2.1, 12.4, 27.2, 0.83),
    ("ResShift", 15, 1.7, 20.2, 28.9, 0.85),
    ("ResDiff", 50, 3.4, 45.5, 29.8, 0.86),
    ("TinyUNet", 5, 0.15, 6.8, 28.5, 0.84),
)

HEADS = (
    "", "parameters", "pictures seen (CPU min)", "steps", "ms", "x bicubic", "x 50 steps", "PSNR single", "mean", "SSIM single", "mean",
    "LPIPS single", "mean",
)  # fmt: skip


def report(figures: Mapping[str, Any], spent: Mapping[str, float], count: int, where: str) -> str:
    longest = spent["cosine-50"]
    lines = [
        "# Super-resolution of CIFAR-10, 16 to 32 pixels",
        "",
        f"{where}. All {count:,} test pictures. `python -m training.superres.table` wrote this; [how](README.md).",
        "",
        "Single: one drawn picture. Mean, where it was made: of eight, each of the small picture turned and mirrored in another way, and",
        "of noise of its own, which takes eight times as long. PSNR (dB) and SSIM as `measures.py` has them, LPIPS of AlexNet: lower is",
        "better.",
        f"ms: CPU time of one picture alone in one thread; then as a multiple of bicubic's {spent['bicubic-0']:.3f} ms, and of the",
        f"{longest:.0f} ms of 50 steps of the same network, all in one run.",
        "",
        f"| {' | '.join(HEADS)} |",
        "|---" * len(HEADS) + "|",
    ]
    for key, row in figures.items():
        name, _, steps = key.rpartition("-")
        lines.append(_line(name, int(steps), row, spent[key], spent["bicubic-0"], longest))
    shown = {key.rpartition("-")[0] for key in figures}
    lines += ["", *(f"* Not here, since it is not trained yet: {v.about}." for name, v in VARIANTS.items() if name not in shown)]
    return "\n".join([*lines, "", *_theirs(), "", *_read(figures)]) + "\n"


def _line(name: str, steps: int, row: Mapping[str, Any], ms: float, bicubic: float, longest: float) -> str:
    about = VARIANTS[name].about if name in VARIANTS else "bicubic"
    seen = f"{row['images']:,} ({row['cpu_min']:.1f})" if "images" in row else ""
    cells = [about, f"{row['parameters']:,}" if "parameters" in row else "", seen, str(steps or ""), f"{ms:.2f}", f"{ms / bicubic:.0f}",
             f"{ms / longest:.3f}"]  # fmt: skip
    for measure, digits in (("psnr", 2), ("ssim", 4), ("lpips", 4)):
        for kind in ("single", "mean"):
            cells.append(f"{row[kind][measure]:.{digits}f}" if kind in row else "")
    return f"| {' | '.join(cells)} |"


def _theirs() -> list[str]:
    lines = [
        "## The figures of the study that this repeats",
        "",
        "| | steps | parameters (million) | ms | PSNR | SSIM |",
        "|---|---|---|---|---|---|",
    ]
    lines += [f"| {name} | {steps} | {size} | {ms} | {psnr} | {ssim} |" for name, steps, size, ms, psnr, ssim in SEED]
    return lines


def _read(figures: Mapping[str, Any]) -> list[str]:
    plain = figures["bicubic-0"]["single"]
    return [
        "They contradict each other in places, and cannot be compared with ours line by line:",
        "",
        f"* An SSIM of .83 to .86 lies below bicubic's {plain['ssim']:.3f} (at {plain['psnr']:.2f} dB), although every PSNR there lies",
        "  above it. On pictures of this size the two rise together: its SSIM or its downsampling is another than ours; which, it does not",
        "  say.",
        "* It takes 3 to 5 steps in its text and 5 in its table.",
        "* A step of SinSR takes 12.4 ms with 2.1 million parameters, one of ResShift 1.3 with 1.7 million, one of ResDiff 0.9 with 3.4:",
        "  the largest network is the quickest. No machine is named.",
        "* The network ends in a sigmoid, which is never negative, and restores a residual, which must be.",
        "* Parameters are counted in MB in its text and in millions in its table.",
        "* The networks compared there have 1.7 to 3.4 million parameters, TinyUNet 0.15; here each has at most 0.15, and costs as much to",
        "  train, but where the pictures seen are others.",
    ]


def contact_sheet(rows: Sequence[np.ndarray], scale: int = 3) -> np.ndarray:
    """Rows of as many pictures [n, h, w, 3] -> one picture, each pixel `scale` pixels wide."""
    lines = [np.concatenate(list(row), axis=1) for row in rows]
    return np.concatenate(lines).repeat(scale, 0).repeat(scale, 1)
