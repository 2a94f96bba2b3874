"""Measures of many pictures at once: the autoencoder, the distance to real pictures, and whether training pictures come back."""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from training.artist import Artist
from training.compositor import Compositor
from training.evaluation_attributes import Draws
from training.evaluation_report import Bar
from training.features import Features
from training.lpips import Lpips
from training.measures import frechet, mean_interval, nearest, precision_recall, psnr
from training.scene_sets import plain_wording, random_scenes, renders
from training.words import STYLES

HELD_OUT, REAL, ASKED = 6_000_003, 6_000_004, 6_000_005  # seeds, far from those of training pictures and of the judge
SEED = 2_000_000  # of the first drawn picture
SIDE = 32  # of the pictures that are compared pixel by pixel


class Clouds(NamedTuple):
    """The drawn pictures, fresh renders of the same scenes, and the features [n, d] of both."""

    drawn: np.ndarray
    fresh: np.ndarray
    drawn_features: np.ndarray
    fresh_features: np.ndarray


def autoencoder(artist: Artist, compositor: Compositor, lpips: Lpips, args: argparse.Namespace, bar: Bar) -> dict[str, object]:
    """PSNR in dB and LPIPS (AlexNet), with intervals, of fresh renders of each style through the model's autoencoder."""
    n, out = args.reconstructions, {}
    pool = random_scenes(compositor, 4 * n * len(STYLES), HELD_OUT)
    for style, name in enumerate(STYLES):
        scenes = [scene for scene in pool if scene.style == style][:n]
        real = renders(compositor, scenes, HELD_OUT + style)
        made = artist.reconstruct(real)
        bar.reconstructed(len(real))
        values = np.concatenate([lpips(to_unit(a), to_unit(b)).numpy() for a, b in zip(parts(real), parts(made), strict=True)])
        out[name] = {"pictures": len(real), "psnr": list(mean_interval(psnr(real, made))), "lpips": list(mean_interval(values))}
    return out


def parts(pictures: np.ndarray, size: int = 50) -> list[np.ndarray]:
    return [pictures[i : i + size] for i in range(0, len(pictures), size)]


def to_unit(pictures: np.ndarray) -> torch.Tensor:
    """[n, h, w, 3] uint8 -> [n, 3, h, w] in -1..1."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1


def distribution(studio: Draws, compositor: Compositor, features: Features, n: int, bar: Bar) -> tuple[dict[str, float], Clouds]:
    """Frechet distance, precision and recall of n drawn pictures to n renders, and of n other renders to the same: the floor.

    The drawn pictures and the other renders show the same scenes, so nothing but the drawing differs.
    """
    scenes = random_scenes(compositor, n, ASKED)
    drawn = studio.draw([plain_wording(s) for s in scenes], SEED)
    fresh = renders(compositor, scenes, ASKED)
    real = renders(compositor, random_scenes(compositor, n, REAL), REAL)
    clouds = []
    for pictures in (real, fresh, drawn):
        clouds.append(features(pictures))
        bar.seen(n)
    r, f, d = clouds
    precision, recall = precision_recall(r, d)
    best_precision, best_recall = precision_recall(r, f)
    figures = {
        "pictures": n, "frechet": frechet(r, d), "frechet floor": frechet(r, f), "precision": precision,
        "precision of renders": best_precision, "recall": recall, "recall of renders": best_recall,
    }  # fmt: skip
    return figures, Clouds(drawn, fresh, d, f)


def pixels(pictures: np.ndarray) -> np.ndarray:
    """[n, h, h, 3] uint8 -> [n, 3072] in 0..1: means over squares."""
    n, side = len(pictures), pictures.shape[1] // SIDE
    return (pictures.reshape(n, SIDE, side, SIDE, side, 3).mean((2, 4), dtype=np.float32) / 255).reshape(n, -1)


def training_features(training: np.ndarray, rows: np.ndarray, features: Features, folder: Path, bar: Bar, part: int = 1000) -> np.ndarray:
    """Features of these training pictures, kept on disk by part."""
    found = []
    for start in range(0, len(rows), part):
        some = np.asarray(training[rows[start : start + part]])
        path = folder / "training" / f"{hashlib.sha256(some.tobytes()).hexdigest()[:20]}.npy"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path.with_suffix(".tmp.npy"), features(some))
            path.with_suffix(".tmp.npy").rename(path)
        found.append(np.load(path))
        bar.seen(len(some))
    return np.concatenate(found)


def compared(drawn: np.ndarray, fresh: np.ndarray, cloud: np.ndarray) -> tuple[dict[str, float], np.ndarray, np.ndarray]:
    """How far drawn pictures and renders lie from the nearest of the cloud, in units of the renders' median; distance and row of each."""
    (near, row), (usual, _) = nearest(drawn, cloud), nearest(fresh, cloud)
    unit = float(np.median(usual))
    low = float(np.quantile(usual, 0.01))
    figures = {
        "median": float(np.median(near)) / unit, "1 %": float(np.quantile(near, 0.01)) / unit, "1 % of renders": low / unit,
        "nearer than 1 % of renders": float((near < low).mean()),
    }  # fmt: skip
    return figures, near, row


def memorisation(
    clouds: Clouds, training: np.ndarray, features: Features, folder: Path, count: int, bar: Bar
) -> tuple[dict[str, object], list[tuple[np.ndarray, np.ndarray]]]:
    """Nearest-training-picture ratios in features and in pixels, and the eight drawn pictures nearest to a training picture with that one.

    A model that gives training pictures back lies nearer to them than fresh renders of the same scenes do: ratios far below 1.
    """
    rows = np.linspace(0, len(training) - 1, min(count, len(training))).astype(int)
    cloud = training_features(training, rows, features, folder, bar)
    by_features, near, row = compared(clouds.drawn_features, clouds.fresh_features, cloud)
    small = np.concatenate([pixels(np.asarray(training[rows[i : i + 1000]])) for i in range(0, len(rows), 1000)])
    by_pixels, _, _ = compared(pixels(clouds.drawn), pixels(clouds.fresh), small)
    closest = np.argsort(near)[:8]
    pairs = [(clouds.drawn[i], np.asarray(training[rows[row[i]]])) for i in closest]
    return {"training pictures": len(rows), "of": len(training), "features": by_features, "pixels": by_pixels}, pairs
