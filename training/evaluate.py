"""Score a checkpoint with the judge and draw the contact sheet: `python -m training.evaluate` (first `--train-judge`).

Each set of scenes is asked for in one plain wording, drawn by diffusers' own pipeline with the model's defaults.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline, UniPCMultistepScheduler
from rich.progress import track

from training.captions import article, plural
from training.checkpoint import save_grid
from training.compositor import BACKGROUND_NAMES, COLOUR_NAMES, Compositor, Scene, allowed, held_out
from training.judge import load_judge, train_judge, verdicts
from training.words import STYLES, THINGS

SHEET = (
    "a red apple", "a car", "a cat", "a dog on a blue background", "a frog on a pink background", "a banana", "pizza", "a castle",
    "a purple octopus", "a tree", "a house on a yellow background", "two green hearts", "a flat icon of a cat",
    "a cartoon of a car on a green background", "a drawing of a fish", "a blue star on a black background",
    "a rocket", "a yellow umbrella", "a guitar on an orange background", "a penguin", "a birthday cake", "two pink balloons",
    "a green car", "a flat icon of a sunflower",
    "a robot on a purple background", "a bicycle", "a teddy bear", "a blue butterfly", "a burger", "a crown on a red background",
    "a cactus", "a smiley",
)  # fmt: skip


def plain_wording(scene: Scene) -> str:
    """ "a flat icon of two red apples on a blue background"."""
    thing = THINGS[scene.thing]
    words = thing.name if scene.count == 1 else plural(thing.name)
    words = f"{COLOUR_NAMES[scene.colour]} {words}" if scene.colour >= 0 else words
    if scene.count == 2:
        words = f"two {words}"
    elif thing.countable:
        words = f"{article(words)} {words}"
    if scene.background >= 0:
        name = BACKGROUND_NAMES[scene.background]
        words += f" on {article(name)} {name} background"
    return words if scene.style == 0 else f"a flat icon of {words}"


def scene_sets(compositor: Compositor, size: int, seed: int = 7) -> dict[str, list[Scene]]:
    """What is asked, by name of the table row."""
    rng = np.random.default_rng(seed)
    things = range(len(THINGS))
    coloured = [Scene(0, t, colour=c) for t in things for c in range(len(COLOUR_NAMES)) if compositor.recolourable[0, t]]
    countable = [t for t in things if THINGS[t].countable]

    def some(scenes: list[Scene]) -> list[Scene]:
        return [scenes[i] for i in rng.permutation(len(scenes))[:size]]

    return {
        "thing": some([Scene(0, t) for t in things]),
        "thing, flat style": some([Scene(1, t) for t in things if allowed(Scene(1, t))]),
        "thing, flat style, held out": some([Scene(1, t) for t in things if held_out("style", STYLES[1], THINGS[t].name)]),
        "thing on background": some([Scene(0, t, background=int(rng.integers(len(BACKGROUND_NAMES)))) for t in things]),
        "coloured thing": some([s for s in coloured if allowed(s)]),
        "coloured thing, held out": some([s for s in coloured if not allowed(s)]),
        "two things": some([Scene(0, t, count=2) for t in countable]),
    }


class Artist:
    """Plain diffusers with the defaults of celadon.json, or with `changes` to them."""

    def __init__(self, folder: Path, **changes: float | None) -> None:
        self.pipe = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
        self.pipe.scheduler = UniPCMultistepScheduler.from_config(self.pipe.scheduler.config)
        self.pipe.set_progress_bar_config(disable=True)
        self.defaults = json.loads((folder / "celadon.json").read_text())["defaults"]
        self.defaults |= {name: value for name, value in changes.items() if value is not None}

    def draw(self, prompts: list[str], seed: int, batch: int = 16) -> np.ndarray:
        """[n, 128, 128, 3] uint8; picture i has seed `seed + i`."""
        out = []
        for start in range(0, len(prompts), batch):
            some = prompts[start : start + batch]
            generators = [torch.Generator().manual_seed(seed + start + i) for i in range(len(some))]
            with torch.autocast("cpu", torch.bfloat16):
                pictures = self.pipe(
                    some, num_inference_steps=self.defaults["steps"], guidance_scale=self.defaults["guidance"],
                    guidance_rescale=self.defaults["guidance_rescale"], generator=generators, output_type="np",
                ).images  # fmt: skip
            out.append((pictures * 255).round().astype(np.uint8))
        return np.concatenate(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, default=Path(".training"))
    parser.add_argument("--model", type=Path, default=Path("models/celadon-mini"))
    parser.add_argument("--size", type=int, default=100, help="scenes of each set")
    parser.add_argument("--train-judge", action="store_true")
    parser.add_argument("--guidance", type=float, help="instead of the default")
    parser.add_argument("--rescale", type=float, help="instead of the default")
    parser.add_argument("--out", type=Path, help="where the figures go; <root>/evaluation.json")
    parser.add_argument("--sheet", type=Path, default=Path("docs/pictures/celadon-mini.png"))
    args = parser.parse_args()
    sprites = np.load(args.root / "data" / "sprites.npy")
    if args.train_judge:
        train_judge(sprites, args.root)
    judge, compositor = load_judge(args.root), Compositor(sprites)
    artist = Artist(args.model, guidance=args.guidance, guidance_rescale=args.rescale)
    save_grid(args.sheet, artist.draw(list(SHEET), seed=0), 8)
    report: dict[str, dict[str, float]] = {}
    rng = np.random.default_rng(99)
    fresh = [compositor.random_scene(rng) for _ in range(400)]
    report["fresh renders (the judge's ceiling)"] = verdicts(judge, np.stack([compositor.draw(s, rng) for s in fresh]), fresh)
    for name, scenes in track(list(scene_sets(compositor, args.size).items()), "evaluate"):
        report[name] = {"n": len(scenes)} | verdicts(judge, artist.draw([plain_wording(s) for s in scenes], seed=1000), scenes)
        print(name, {k: round(v, 3) for k, v in report[name].items()}, flush=True)
    (args.out or args.root / "evaluation.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
