"""Judge what a checkpoint enlarges with on renders that nobody trained on: `python -m training.superres.held_out models/celadon-mini`.

Scenes of pairs that are never drawn in training, composed at 256 pixels, halved, and doubled again. Writes `RENDERS.md` beside this file.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from pipelines.superres import area
from pipelines.tiny_unet import load_network
from pipelines.upscaler import PART, Recipe, Upscaler
from training.lpips import Lpips, load_lpips
from training.measures import psnr
from training.superres.measures import lpips, ssim
from training.superres.report import contact_sheet
from training.superres.restore import pixels
from training.superres.sets import renders
from training.superres.table import where
from training.superres.train import as_numbers, bicubic

SHEET = Path(__file__).parents[2] / "docs" / "pictures" / "superres-renders.png"
STEPS = (1, 2, 3, 4, 5)
CORNER = slice(48, 112)  # of the small pictures in the contact sheet
Doubler = Callable[[np.ndarray, int], np.ndarray]  # picture, seed


def enlarged_bicubic(picture: np.ndarray, _: int) -> np.ndarray:
    return pixels(bicubic(as_numbers(picture[None])))[0]


def enlarged_lanczos(picture: np.ndarray, _: int) -> np.ndarray:
    return np.asarray(Image.fromarray(picture).resize((2 * picture.shape[1], 2 * picture.shape[0]), Image.Resampling.LANCZOS))


def doublers(folder: Path) -> dict[str, Doubler]:
    """By what a line of the table says."""
    config = json.loads((folder / PART / "config.json").read_text())
    network, recipe = load_network(folder / PART, config, torch.device("cpu")), Recipe.from_config(config)
    found: dict[str, Doubler] = {"bicubic": enlarged_bicubic, "Lanczos": enlarged_lanczos}
    for steps in STEPS:
        name = f"superres, {steps} step{'s' * (steps > 1)}{' (as shipped)' * (steps == recipe.steps)}"
        found[name] = Upscaler(network, replace(recipe, steps=steps))
    return found


def line(name: str, double: Doubler, low: np.ndarray, true: np.ndarray, distance: Lpips) -> str:
    began = time.process_time()
    drawn = np.stack([double(picture, seed) for seed, picture in enumerate(low)])
    ms = (time.process_time() - began) / len(low) * 1e3
    figures = psnr(drawn, true).mean(), np.mean([ssim(d[None], t[None])[0] for d, t in zip(drawn, true, strict=True)])
    return f"| {name} | {figures[0]:.2f} | {figures[1]:.4f} | {lpips(distance, drawn, true, 20).mean():.4f} | {ms:.1f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="of the checkpoint")
    parser.add_argument("--root", type=Path, default=Path(".training"))
    parser.add_argument("--count", type=int, default=150)
    args = parser.parse_args()
    torch.set_num_threads(1)
    true = np.asarray(renders(args.root, "test").all[: args.count])
    low, distance = area(true), load_lpips(args.root)
    lines = [
        "# Renders, 128 to 256 pixels", "",
        f"{where()}.",
        f"`python -m training.superres.held_out {args.folder}` wrote this: {len(true)} scenes of pairs that are never drawn in training,",
        "composed at 256 pixels and halved (means of 2 x 2). PSNR in dB, LPIPS of AlexNet (lower is better), ms of CPU time for a picture,",
        "in torch and one thread.", "",
        "| | PSNR | SSIM | LPIPS | ms |", "|---|---|---|---|---|",
    ]  # fmt: skip
    found = doublers(args.folder)
    for name, double in found.items():
        lines.append(line(name, double, low, true, distance))
        print(lines[-1], flush=True)
    Path(__file__).with_name("RENDERS.md").write_text("\n".join(lines) + "\n")
    shown, large = low[:8, CORNER, CORNER], slice(2 * CORNER.start, 2 * CORNER.stop)
    best = next(double for name, double in found.items() if "shipped" in name)
    rows = [shown.repeat(2, 1).repeat(2, 2), *(np.stack([d(p, 0)[large, large] for p in low[:8]]) for d in (enlarged_bicubic, best))]
    Image.fromarray(contact_sheet([*rows, true[:8, large, large]], 1)).save(SHEET, optimize=True)


if __name__ == "__main__":
    main()
