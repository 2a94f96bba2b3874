"""Measures of many pictures at once: the autoencoder, the distance to real pictures, and whether training pictures come back."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import NamedTuple

import numpy as np
import torch

from training.artist import Artist
from training.compositor import Compositor
from training.evaluation_attributes import Draws
from training.evaluation_kept import Kept, mark, parts
from training.evaluation_report import RECONSTRUCTED, SEEN
from training.features import Features
from training.lpips import Lpips
from training.measures import frechet, mean_interval, nearest, precision_recall, psnr
from training.scene_sets import plain_wording, random_scenes, renders
from training.words import STYLES

HELD_OUT, REAL, ASKED = 6_000_003, 6_000_004, 6_000_005  # seeds, far from those of training pictures and of the judge
SEED = 2_000_000  # of the first drawn picture
SIDE = 32  # of the pictures that are compared pixel by pixel
READ, LOOKED = 20, 200  # pictures at a time, for the autoencoder and for features


class Clouds(NamedTuple):
    """The drawn pictures, fresh renders of the same scenes, and the features [n, d] of both."""

    drawn: np.ndarray
    fresh: np.ndarray
    drawn_features: np.ndarray
    fresh_features: np.ndarray


def autoencoder(artist: Artist, compositor: Compositor, lpips: Lpips, n: int, kept: Kept) -> dict[str, object]:
    """PSNR in dB and LPIPS (AlexNet), with intervals, of n fresh renders of each style through the model's autoencoder."""
    out = {}
    pool = random_scenes(compositor, 4 * n * len(STYLES), HELD_OUT)
    for style, name in enumerate(STYLES):
        scenes = [scene for scene in pool if scene.style == style][:n]
        real = renders(compositor, scenes, HELD_OUT + style)
        found = []
        for some in parts(real, READ):
            both = partial(losses, artist, lpips, some)
            found.append(kept.array(artist.weights[:12], ["autoencoder", mark(some)], RECONSTRUCTED * len(some), both))
        noise, seen = np.concatenate(found, axis=1)
        out[name] = {"pictures": len(real), "psnr": list(mean_interval(noise)), "lpips": list(mean_interval(seen))}
    return out


def losses(artist: Artist, lpips: Lpips, real: np.ndarray) -> np.ndarray:
    """PSNR and LPIPS [2, n] of pictures that went through the autoencoder."""
    made = artist.reconstruct(real)
    return np.stack([psnr(real, made), lpips(to_unit(real), to_unit(made)).numpy()])


def to_unit(pictures: np.ndarray) -> torch.Tensor:
    """[n, h, w, 3] uint8 -> [n, 3, h, w] in -1..1."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1


def distribution(studio: Draws, compositor: Compositor, features: Features, n: int, kept: Kept) -> tuple[dict[str, float], Clouds]:
    """Frechet distance, precision and recall of n drawn pictures to n renders, and of n other renders to the same: the floor.

    The drawn pictures and the other renders show the same scenes, so nothing but the drawing differs.
    """
    scenes = random_scenes(compositor, n, ASKED)
    drawn = studio.draw([plain_wording(s) for s in scenes], SEED)
    fresh = renders(compositor, scenes, ASKED)
    real = renders(compositor, random_scenes(compositor, n, REAL), REAL)
    r, f, d = (looked(parts(pictures, LOOKED), features, kept) for pictures in (real, fresh, drawn))
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


def looked(pictures: Iterable[np.ndarray], features: Features, kept: Kept) -> np.ndarray:
    """Features [n, d] of pictures that come in parts, kept by part."""
    return np.concatenate([kept.array("features", mark(some), SEEN * len(some), partial(features, some)) for some in pictures])


def neighbours(points: np.ndarray, cloud: np.ndarray, kept: Kept) -> tuple[np.ndarray, np.ndarray]:
    """Distance and row of the nearest of the cloud, kept."""
    distance, row = kept.array("nearest", [mark(points), mark(cloud)], 0, lambda: np.stack(nearest(points, cloud)))
    return distance, row.astype(int)


def compared(drawn: np.ndarray, fresh: np.ndarray, cloud: np.ndarray, kept: Kept) -> tuple[dict[str, float], np.ndarray, np.ndarray]:
    """How far drawn pictures and renders lie from the nearest of the cloud, in units of the renders' median; distance and row of each."""
    (near, row), (usual, _) = neighbours(drawn, cloud, kept), neighbours(fresh, cloud, kept)
    unit = float(np.median(usual))
    low = float(np.quantile(usual, 0.01))
    figures = {
        "median": float(np.median(near)) / unit, "1 %": float(np.quantile(near, 0.01)) / unit, "1 % of renders": low / unit,
        "nearer than 1 % of renders": float((near < low).mean()),
    }  # fmt: skip
    return figures, near, row


def memorisation(
    clouds: Clouds, training: np.ndarray, features: Features, count: int, kept: Kept
) -> tuple[dict[str, object], list[tuple[np.ndarray, np.ndarray]]]:
    """Nearest-training-picture ratios in features and in pixels, and the eight drawn pictures nearest to a training picture with that one.

    A model that gives training pictures back lies nearer to them than fresh renders of the same scenes do: ratios far below 1. Only
    pixels tell: in features, copies that went through the autoencoder hardly lie nearer than fresh renders.
    """
    rows = np.linspace(0, len(training) - 1, min(count, len(training))).astype(int)
    cloud = looked((np.asarray(training[some]) for some in parts(rows, LOOKED)), features, kept)
    by_features, near, row = compared(clouds.drawn_features, clouds.fresh_features, cloud, kept)
    small = np.concatenate([pixels(np.asarray(training[some])) for some in parts(rows, LOOKED)])
    by_pixels, _, _ = compared(pixels(clouds.drawn), pixels(clouds.fresh), small, kept)
    closest = np.argsort(near)[:8]
    pairs = [(clouds.drawn[i], np.asarray(training[rows[row[i]]])) for i in closest]
    return {"training pictures": len(rows), "of": len(training), "features": by_features, "pixels": by_pixels}, pairs
