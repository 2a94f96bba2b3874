"""The pictures that super-resolution learns from and is judged on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from pipelines.superres import area, bicubic
from training.compositor import COLOUR_NAMES, SPRITE, Compositor, Scene, allowed
from training.data import rasterise
from training.sources import fetch
from training.superres import cifar
from training.words import STYLES

PATCH = 64  # pixels of a square that is cut from a render
RENDERS = {"train": 2000, "test": 300}


@dataclass(frozen=True)
class Pictures:
    """[n, H, W, 3] uint8, H and W multiples of 4. Training draws squares of `side` pixels, at even places, from them."""

    all: np.ndarray
    side: int
    deviation: float  # of what bicubic lacks, pictures being 0..1

    def draw(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """[count, side, side, 3] uint8, with replacement."""
        rows = rng.integers(len(self.all), size=count)
        if self.all.shape[1] == self.side:
            return self.all[rows]
        top, left = (2 * rng.integers((size - self.side) // 2 + 1, size=count) for size in self.all.shape[1:3])
        return np.stack([self.all[r, y : y + self.side, x : x + self.side] for r, y, x in zip(rows, top, left, strict=True)])


def deviation(pictures: np.ndarray) -> float:
    """Of what bicubic lacks, to three digits."""
    low = area(pictures).transpose(0, 3, 1, 2).astype(np.float32)
    return float(f"{(pictures.transpose(0, 3, 1, 2) - bicubic(low)).std() / 255:.3g}")


def cifar10(root: Path, part: str) -> Pictures:
    found = cifar.pictures(root / "superres", part)
    return Pictures(found, cifar.SIDE, deviation(found[:5000]))


def renders(root: Path, part: str) -> Pictures:
    """Scenes in twice the size that the model draws, [n, 256, 256, 3]. Those of "test" show pairs that are never drawn in training."""
    path = root / "superres" / f"renders-{part}.npy"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, composed(Compositor(rasterise(fetch(root / "npm"), 2 * SPRITE)), part, RENDERS[part]))
    found = np.load(path, mmap_mode="r")
    return Pictures(found, PATCH, deviation(found[:200]))


def composed(compositor: Compositor, part: str, count: int) -> np.ndarray:
    pictures = []
    for i in range(count):
        rng = np.random.default_rng((part == "test", i))
        pictures.append(compositor.draw(held_out_scene(compositor, rng) if part == "test" else compositor.random_scene(rng), rng))
    return np.stack(pictures)


def held_out_scene(compositor: Compositor, rng: np.random.Generator) -> Scene:
    """One thing in a style, or in a colour, in which training never draws it."""
    while True:
        scene = compositor.random_scene(rng)
        scene = replace(scene, style=int(rng.integers(len(STYLES))), colour=int(rng.integers(-1, len(COLOUR_NAMES))))
        at = scene.style, scene.thing
        if not allowed(scene) and compositor.present[at] and (scene.colour < 0 or compositor.recolourable[at]):
            return scene


SETS: dict[str, Callable[[Path, str], Pictures]] = {"cifar10": cifar10, "renders": renders}
