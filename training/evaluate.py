"""Measure a checkpoint: `python -m training.evaluate` writes one JSON, one page of tables and one contact sheet.

Each set of scenes is asked for in one plain wording and drawn three times, with the defaults of the model's card. What is drawn is
kept under `<root>/evaluation`, so an interrupted run goes on where it stopped. `--sweep` compares other steps and guidance instead.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from pathlib import Path

import numpy as np
import torch

from training.artist import Artist
from training.captions import STYLED
from training.checkpoint import save_grid
from training.compositor import SIZE, Compositor
from training.evaluation_attributes import attributes
from training.evaluation_report import Bar, about, page, sheet_of_pairs
from training.evaluation_sets import autoencoder, distribution, memorisation
from training.evaluation_sweep import chosen, settings, sweep
from training.features import load_features
from training.judge import TOTAL, judge_for
from training.lpips import load_lpips
from training.scene_sets import scene_sets
from training.words import STYLES

SHEET = (
    "a red apple", "a car", "a cat", "a dog on a blue background", "a frog on a pink background", "a banana", "pizza", "a castle",
    "a purple octopus", "a tree", "a house on a yellow background", "two green hearts", "a penguin", "a bicycle on a green background",
    "a fish", "a blue star on a black background", "a rocket", "a yellow umbrella", "a guitar on an orange background", "two rabbits",
    "a birthday cake", "two pink balloons", "a green car", "a sunflower", "a robot on a purple background", "a horse", "a teddy bear",
    "a blue butterfly", "a burger", "a crown on a red background", "a cactus", "a smiley",
)  # fmt: skip


def sheet_prompts() -> list[str]:
    """The prompts of the contact sheet: every third names one of the styles beyond the default, in turn."""
    others = [STYLED[style][0] for style in STYLES[1:]]
    return [others[i // 3 % len(others)].format(words) if i % 3 == 2 else words for i, words in enumerate(SHEET)]


class Studio:
    """An artist who remembers: what was drawn before with the same weights, settings, prompts and seeds is read from the disk.

    Draws nothing new once the time is over, and raises SystemExit instead.
    """

    def __init__(self, artist: Artist, folder: Path, bar: Bar, part: int = 100, minutes: float = 1e9) -> None:
        self.artist, self.folder, self.bar, self.part = artist, folder, bar, part
        self.deadline = time.monotonic() + 60 * minutes

    def draw(self, prompts: list[str], seed: int) -> np.ndarray:
        """[n, h, w, 3] uint8; picture i has seed `seed + i`."""
        parts = [self._part(prompts[i : i + self.part], seed + i) for i in range(0, len(prompts), self.part)]
        return np.concatenate(parts)

    def _part(self, prompts: list[str], seed: int) -> np.ndarray:
        name = hashlib.sha256(json.dumps([seed, prompts]).encode()).hexdigest()[:20]
        path = self.folder / self.artist.key / f"{name}.npy"
        if path.exists():
            self.bar.skip(len(prompts))
            return np.load(path)
        if time.monotonic() > self.deadline:
            raise SystemExit(f"evaluate: {self.bar.share:.0%}; the same command goes on from there")
        pictures = self.artist.draw(prompts, seed, drawn=self.bar.advance)
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path.with_suffix(".tmp.npy"), pictures)
        path.with_suffix(".tmp.npy").rename(path)
        return pictures


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--root", type=Path, default=Path(".training"), help="sprites, training pictures, judge; what is drawn is kept there"
    )
    parser.add_argument("--model", type=Path, default=Path("models/celadon-mini"))
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--size", type=int, default=100, help="scenes of each set")
    parser.add_argument("--seeds", type=int, default=3, help="pictures of each scene")
    parser.add_argument("--pictures", type=int, default=1000, help="drawn pictures for the Frechet distance, precision and recall")
    parser.add_argument("--training", type=int, default=12_000, help="training pictures among which the nearest is looked for")
    parser.add_argument("--reconstructions", type=int, default=200, help="pictures of each style for the autoencoder")
    parser.add_argument("--minutes", type=float, default=1e9, help="end cleanly after this time of drawing; the same command goes on")
    parser.add_argument("--judge-total", type=int, default=TOTAL, help="renders the judge is trained on, if it must be trained")
    parser.add_argument("--steps", type=int, help="instead of the card's default")
    parser.add_argument("--guidance", type=float, help="instead of the card's default")
    parser.add_argument("--rescale", type=float, help="instead of the card's default")
    parser.add_argument("--sweep", action="store_true", help="steps, guidance and rescale against each other on fewer scenes")
    parser.add_argument("--sweep-scenes", type=int, default=48)
    parser.add_argument("--out", type=Path, help="the figures; default <root>/evaluation.json")
    parser.add_argument("--table", type=Path, help="the page of tables; default EVALUATION.md in the model's folder")
    parser.add_argument("--sheet", type=Path, default=Path("docs/pictures/celadon-mini.png"))
    return parser.parse_args()


def evaluate(args: argparse.Namespace, artist: Artist, compositor: Compositor, judge: torch.nn.Module) -> dict[str, object]:
    """Every figure; draws the sheets on the way."""
    folder = args.root / "evaluation"
    sets = scene_sets(compositor, args.size)
    drawn = args.seeds * sum(map(len, sets.values())) + args.pictures + len(SHEET)
    with Bar("evaluate", drawn, args.pictures * 3 + args.training, args.reconstructions * len(STYLES)) as bar:
        studio, features = Studio(artist, folder, bar, minutes=args.minutes), load_features(args.root, args.device)
        save_grid(args.sheet, studio.draw(sheet_prompts(), seed=0), 8)
        found: dict[str, object] = {"autoencoder": autoencoder(artist, compositor, load_lpips(args.root, device=args.device), args, bar)}
        found |= attributes(studio, compositor, judge, sets, args.seeds)
        figures, clouds = distribution(studio, compositor, features, args.pictures, bar)
        found["distribution"] = figures
        training = np.load(args.root / "data" / "pictures.npy", mmap_mode="r")
        found["memorisation"], pairs = memorisation(clouds, training, features, folder, args.training, bar)
        sheet_of_pairs(folder / "nearest.png", pairs)
    return found


def compare(args: argparse.Namespace, artist: Artist, compositor: Compositor, judge: torch.nn.Module) -> list[dict]:
    """The sweep."""
    scenes = chosen(compositor, args.sweep_scenes)
    with Bar("sweep", len(scenes) * len(settings(artist.defaults))) as bar:
        return sweep(Studio(artist, args.root / "evaluation", bar, minutes=args.minutes), artist, judge, scenes)


def main() -> None:
    args = arguments()
    out, table = args.out or args.root / "evaluation.json", args.table or args.model / "EVALUATION.md"
    compositor = Compositor(np.load(args.root / "data" / "sprites.npy"))
    judge = judge_for(compositor, args.root, args.device, args.judge_total, args.minutes)
    artist = Artist(args.model, args.device, steps=args.steps, guidance=args.guidance, guidance_rescale=args.rescale)
    figures = json.loads(out.read_text()) if out.exists() else {}
    if figures.get("about", {}).get("weights") != artist.weights:
        figures = {}
    if args.sweep:
        figures["sweep"] = compare(args, artist, compositor, judge)
    else:
        figures |= evaluate(args, artist, compositor, judge)
    figures["about"] = about(args.model, artist, SIZE)
    out.write_text(json.dumps(figures, indent=1) + "\n")
    table.write_text(page(figures), encoding="utf-8")
    print(page(figures))


if __name__ == "__main__":
    main()
