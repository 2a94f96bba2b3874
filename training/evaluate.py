"""Measure a checkpoint: `python -m training.evaluate` writes one JSON, one page of tables and one contact sheet.

Each set of scenes is asked for in one plain wording and drawn three times, with the defaults of the model's card. What is drawn is
kept under `<root>/evaluation`, as is all that is found on the way, so an interrupted run goes on where it stopped, and a run of other
settings than the defaults writes under `<root>/other`. `--sweep` compares other steps and guidance instead.
"""

from __future__ import annotations

import argparse
import json
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch

from training.artist import Artist
from training.captions import STYLED
from training.checkpoint import save_grid
from training.compositor import SIZE, Compositor
from training.evaluation_attributes import attributes
from training.evaluation_kept import Kept
from training.evaluation_report import DRAWN, Bar, about, page, sheet_of_pairs
from training.evaluation_sets import autoencoder, distribution, memorisation
from training.evaluation_sweep import chosen, settings, sweep
from training.features import load_features
from training.judge import TOTAL, judge_for
from training.lpips import load_lpips
from training.scene_sets import scene_sets
from training.words import STYLES

PART = 16  # pictures drawn at a time: one batch
LEAST = 0.1  # minutes that the judge gets, so that it goes on in each run, however short
MODEL, PICTURE = Path("models/celadon-mini"), Path("docs/pictures/celadon-mini.png")
SETTINGS = (
    "size", "seeds", "pictures", "training", "reconstructions", "judge_total", "steps", "guidance", "rescale", "sweep_scenes",
)  # fmt: skip
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

    After the deadline (of time.monotonic) one part at most is drawn, and then SystemExit raised.
    """

    def __init__(self, artist: Artist, folder: Path, bar: Bar, part: int = PART, deadline: float = float("inf")) -> None:
        self.artist, self.part, self.kept = artist, part, Kept(folder, bar, deadline)

    def draw(self, prompts: list[str], seed: int) -> np.ndarray:
        """[n, h, w, 3] uint8; picture i has seed `seed + i`."""
        parts = [self._part(prompts[i : i + self.part], seed + i) for i in range(0, len(prompts), self.part)]
        return np.concatenate(parts)

    def _part(self, prompts: list[str], seed: int) -> np.ndarray:
        draw = partial(self.artist.draw, prompts, seed, drawn=self.kept.bar.advance)
        return self.kept.array(self.artist.key, [seed, prompts], DRAWN * len(prompts), draw)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--root", type=Path, default=Path(".training"), help="sprites, training pictures, judge; what is drawn is kept there"
    )
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--size", type=int, default=100, help="scenes of each set")
    parser.add_argument("--seeds", type=int, default=3, help="pictures of each scene")
    parser.add_argument("--pictures", type=int, default=1000, help="drawn pictures for the Frechet distance, precision and recall")
    parser.add_argument("--training", type=int, default=12_000, help="training pictures among which the nearest is looked for")
    parser.add_argument("--reconstructions", type=int, default=200, help="pictures of each style for the autoencoder")
    parser.add_argument("--minutes", type=float, default=1e9, help="end cleanly after this time; the same command goes on")
    parser.add_argument("--judge-total", type=int, default=TOTAL, help="renders the judge is trained on, if it must be trained")
    parser.add_argument("--steps", type=int, help="instead of the card's default")
    parser.add_argument("--guidance", type=float, help="instead of the card's default")
    parser.add_argument("--rescale", type=float, help="instead of the card's default")
    parser.add_argument("--sweep", action="store_true", help="steps, guidance and rescale against each other on fewer scenes")
    parser.add_argument("--sweep-scenes", type=int, default=48)
    parser.add_argument("--out", type=Path, help="the figures; default <root>/evaluation.json, or <root>/other/evaluation.json")
    parser.add_argument("--table", type=Path, help="the page of tables; default EVALUATION.md in the model's folder, or in <root>/other")
    parser.add_argument("--sheet", type=Path, help=f"the contact sheet; default {PICTURE}, or <root>/other/sheet.png")
    args = parser.parse_args()
    places(args, usual=all(getattr(args, name) == parser.get_default(name) for name in SETTINGS))
    return args


def places(args: argparse.Namespace, usual: bool) -> None:
    """Where the results go, unless it was said: beside the model and into the docs only with the usual settings."""
    other = args.root / "other"
    args.out = args.out or (args.root if usual else other) / "evaluation.json"
    args.table = args.table or (args.model if usual else other) / "EVALUATION.md"
    args.sheet = args.sheet or (PICTURE if usual and args.model.resolve() == MODEL.resolve() else other / "sheet.png")


def evaluate(
    args: argparse.Namespace, artist: Artist, compositor: Compositor, judge: torch.nn.Module, deadline: float
) -> dict[str, object]:
    """Every figure; draws the sheets on the way. Raises SystemExit when the time is over, and goes on from there when called again."""
    folder = args.root / "evaluation"
    sets = scene_sets(compositor, args.size)
    drawn = args.seeds * sum(map(len, sets.values())) + args.pictures + len(SHEET)
    training = np.load(args.root / "data" / "pictures.npy", mmap_mode="r")
    seen = args.pictures * 3 + min(args.training, len(training))
    with Bar("evaluate", drawn, seen, args.reconstructions * len(STYLES)) as bar:
        studio, features = Studio(artist, folder, bar, deadline=deadline), load_features(args.root, args.device)
        kept, lpips = studio.kept, load_lpips(args.root, device=args.device)
        save_grid(args.sheet, studio.draw(sheet_prompts(), seed=0), 8)
        found: dict[str, object] = {"autoencoder": autoencoder(artist, compositor, lpips, args.reconstructions, kept)}
        found |= attributes(studio, compositor, judge, sets, args.seeds, kept)
        found["distribution"], clouds = distribution(studio, compositor, features, args.pictures, kept)
        found["memorisation"], pairs = memorisation(clouds, training, features, args.training, kept)
        sheet_of_pairs(folder / "nearest.png", pairs)
    return found


def compare(args: argparse.Namespace, artist: Artist, compositor: Compositor, judge: torch.nn.Module, deadline: float) -> list[dict]:
    """The sweep."""
    scenes = chosen(compositor, args.sweep_scenes)
    with Bar("sweep", len(scenes) * len(settings(artist.defaults))) as bar:
        return sweep(Studio(artist, args.root / "evaluation", bar, deadline=deadline), artist, judge, scenes)


def earlier(path: Path, now: dict[str, object]) -> dict[str, object]:
    """Figures that may stand under one heading with those of now: of the same weights, defaults of the card and settings."""
    figures = json.loads(path.read_text()) if path.exists() else {}
    same = all(figures.get("about", {}).get(name) == now[name] for name in ("weights", "defaults", "settings"))
    return figures if same else {}


def main() -> None:
    args = arguments()
    deadline = time.monotonic() + 60 * args.minutes
    compositor = Compositor(np.load(args.root / "data" / "sprites.npy"))
    left = (deadline - time.monotonic()) / 60
    judge = judge_for(compositor, args.root, args.device, args.judge_total, max(LEAST, left))
    artist = Artist(args.model, args.device, steps=args.steps, guidance=args.guidance, guidance_rescale=args.rescale)
    now = about(args.model, artist, SIZE) | {"settings": {name: getattr(args, name) for name in SETTINGS}}
    figures = earlier(args.out, now)
    if args.sweep:
        figures["sweep"] = compare(args, artist, compositor, judge, deadline)
    else:
        figures |= evaluate(args, artist, compositor, judge, deadline)
    figures["about"] = now
    for path, text in ((args.out, json.dumps(figures, indent=1) + "\n"), (args.table, page(figures))):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    print(page(figures))


if __name__ == "__main__":
    main()
