"""The judge of drawn pictures: a small network that names the thing, and pixel rules for background, colour and count.

It is trained on fresh renders, never on drawn pictures, blurred at random so that softness alone is no fault. Its own score on
renders it has not seen is the ceiling of every figure it gives.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy import ndimage
from torch import nn
from torch.nn import functional as F

from training.checkpoint import Clock, descend, generator, learning_rate, load, save, to_the_end
from training.compositor import BACKGROUND_NAMES, COLOUR_NAMES, Compositor, Scene, hue_distance, rivalry, to_hsv
from training.machine import autocast
from training.words import BACKGROUNDS, COLOURS, STYLES, THINGS

SIDE = 128
SEED = 1_000_003  # far from the training pictures' seed
TOTAL = 72_000  # renders
SAVE_EVERY = 8_000


class Judge(nn.Module):
    """[n, 3, 128, 128] in 0..1 -> logits of thing, style and count."""

    SIZES = (len(THINGS), len(STYLES), 2)

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        widths = (3, width, 2 * width, 4 * width, 4 * width, 8 * width, 8 * width)
        for a, b, stride in zip(widths, widths[1:], (2, 2, 2, 1, 2, 1), strict=False):
            layers += [nn.Conv2d(a, b, 3, stride, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU()]
        self.features = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(0.1))
        self.head = nn.Linear(32 * width, sum(self.SIZES))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.head(self.features(x)).float().split(self.SIZES, dim=1)


def shrink(pictures: np.ndarray) -> torch.Tensor:
    """[n, h, h, 3] uint8, h a multiple of 128 -> [n, 3, 128, 128] in 0..1."""
    x = torch.from_numpy(np.array(pictures)).permute(0, 3, 1, 2).float() / 255
    return F.avg_pool2d(x, x.shape[-1] // SIDE)


def soften(x: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """A random blur, so that the judge looks at shapes and colours, not at crispness."""
    side = int(rng.integers(3 * SIDE // 8, SIDE + 1))
    return F.interpolate(F.interpolate(x, side, mode="bilinear", antialias=True), SIDE, mode="bilinear")


def any_scene(compositor: Compositor, rng: np.random.Generator) -> Scene:
    """A scene to learn from, of pairs held out from the model too: a judge must know what it judges. Half of what can be is recoloured."""
    scene = compositor.random_scene(rng)
    style = int(rng.choice(np.flatnonzero(compositor.present[: len(STYLES), scene.thing])))
    coloured = compositor.recolourable[style, scene.thing] and rng.random() < 0.5
    return replace(scene, style=style, colour=int(rng.integers(len(COLOUR_NAMES))) if coloured else -1)


def train_judge(
    compositor: Compositor, folder: Path, total: int = TOTAL, batch: int = 32, device: str = "cpu", minutes: float = 1e9
) -> Judge:
    """The judge of these sprites; what an earlier call began goes on. Raises SystemExit when the minutes are over before it is whole."""
    torch.manual_seed(0)
    judge = Judge().to(device, memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(judge.parameters(), lr=2e-3, weight_decay=0.01)
    images, path, of = 0, folder / "judge.training.pt", identity(compositor, total)
    if path.exists() and (state := load(path))["of"] == of:
        judge.load_state_dict(state["judge"])
        optimiser.load_state_dict(state["optimiser"])
        images = state["images"]
    saved_at = images
    with Clock("judge", total, images, minutes) as clock:
        while images < total and not clock.out_of_time:
            torch.manual_seed(images)  # of the dropout
            rng = generator(SEED, images)
            scenes = [any_scene(compositor, rng) for _ in range(batch)]
            x = soften(shrink(np.stack([compositor.draw(s, rng) for s in scenes])), rng).to(device, memory_format=torch.channels_last)
            targets = torch.tensor([(s.thing, s.style, s.count - 1) for s in scenes], device=device)
            with autocast(device):
                logits = judge(x)
            loss = sum(F.cross_entropy(part, target) for part, target in zip(logits, targets.T, strict=True))
            descend(optimiser, loss, partial(learning_rate, images / total, hold=0.3), longest=float("inf"))
            images += batch
            clock.tick(images, float(loss.detach()))
            if images < total and (images - saved_at >= SAVE_EVERY or clock.out_of_time):
                save(path, judge=judge.state_dict(), optimiser=optimiser.state_dict(), images=images, of=of)
                saved_at = images
    to_the_end("judge", images, total)
    path.unlink(missing_ok=True)
    save(folder / "judge.pt", judge=judge.state_dict(), of=of)
    return judge.eval().requires_grad_(False)


def identity(compositor: Compositor, total: int) -> str:
    """What a judge must have been trained on to judge pictures of these sprites, and for how long."""
    return f"{compositor.identity}-{total}"


def judge_for(compositor: Compositor, folder: Path, device: str = "cpu", total: int = TOTAL, minutes: float = 1e9) -> Judge:
    """The judge of the compositor's sprites, trained now (some minutes) unless it lies in the folder.

    Raises SystemExit when the minutes are over before it is trained.
    """
    path = folder / "judge.pt"
    if not path.exists() or load(path).get("of") != identity(compositor, total):
        return train_judge(compositor, folder, total, device=device, minutes=minutes)
    judge = Judge().to(device)
    judge.load_state_dict(load(path)["judge"])
    return judge.eval().requires_grad_(False)


def background_of(picture: np.ndarray) -> str:
    """The named background nearest to the median of the outermost pixels."""
    strips = (picture[:3], picture[-3:], picture[:, :3], picture[:, -3:])
    ring = np.concatenate([strip.reshape(-1, 3) for strip in strips])
    median = np.median(ring, axis=0)
    return min(BACKGROUND_NAMES, key=lambda name: float(np.abs(median - BACKGROUNDS[name]).sum()))


def colour_of(picture: np.ndarray) -> str:
    """The named colour nearest to the hue that covers most of whatever is not background.

    "none" for what is grey, "mixed" where another hue covers more than four fifths of what that one does: a green frog with a
    blue mouth is not blue.
    """
    picture = np.asarray(Image.fromarray(picture).convert("RGB"))
    ground = np.array(BACKGROUNDS[background_of(picture)])
    hsv = to_hsv(picture)
    vivid = (np.abs(picture.astype(int) - ground).sum(-1) > 90) & (hsv[..., 1] > 0.25) & (hsv[..., 2] > 0.35)
    if vivid.sum() < 50:
        return "none"
    if rivalry(hsv[..., 0][vivid]) > 0.8:
        return "mixed"
    histogram, _ = np.histogram(hsv[..., 0][vivid], bins=36, range=(0, 360))
    peak = float(np.argmax(histogram + np.roll(histogram, 1) + np.roll(histogram, -1)) * 10 + 5)
    near = vivid & (np.abs(hue_distance(hsv[..., 0], peak)) < 25)
    hue = peak + float(hue_distance(hsv[..., 0][near], peak).mean())
    saturation, value = float(hsv[..., 1][near].mean()), float(hsv[..., 2][near].mean())

    def distance(name: str) -> float:
        h, s, v = COLOURS[name]
        return abs(float(hue_distance(np.array(hue), h))) / 30 + 1.5 * abs(saturation - s) + 2 * abs(value - v)

    return min(COLOUR_NAMES, key=distance)


def count_of(picture: np.ndarray) -> int:
    """Separate things: connected areas that differ from the background, holes filled, specks left out.

    Areas are not closed over gaps, since two things may stand two pixels apart; parts below a third of the largest are no things.
    """
    ground = np.array(BACKGROUNDS[background_of(picture)])
    mask = np.abs(picture.astype(int) - ground).sum(-1) > 60
    mask = ndimage.binary_opening(ndimage.binary_fill_holes(mask), iterations=2)
    labels, found = ndimage.label(mask)
    if not found:
        return 0
    sizes = np.bincount(labels.ravel())[1:]
    return int((3 * sizes >= sizes.max()).sum())


Answers = dict[str, np.ndarray]


def answers(judge: Judge, pictures: np.ndarray, scenes: list[Scene], batch: int = 64) -> Answers:
    """Right or wrong of each picture [n], 1.0 or 0.0, NaN where the question does not apply; "certainty" is the judge's of the thing.

    Asked are the thing (first guess, and among five), style and count by the network; background, colour and count by pixels.
    """
    device = next(judge.parameters()).device
    with torch.no_grad():
        parts = [judge(shrink(pictures[i : i + batch]).to(device)) for i in range(0, len(pictures), batch)]
    things, styles, counts = (torch.cat(part).cpu() for part in zip(*parts, strict=True))
    wanted = torch.tensor([(s.thing, s.style, s.count) for s in scenes])
    rank = things.argsort(1, descending=True)
    grounds = [BACKGROUND_NAMES[s.background] if s.background >= 0 else "white" for s in scenes]
    colours = [float(colour_of(p) == COLOUR_NAMES[s.colour]) if s.colour >= 0 else np.nan for p, s in zip(pictures, scenes, strict=True)]
    return {
        "thing": (rank[:, 0] == wanted[:, 0]).double().numpy(),
        "thing in top 5": (rank[:, :5] == wanted[:, :1]).any(1).double().numpy(),
        "style": (styles.argmax(1) == wanted[:, 1]).double().numpy(),
        "count": (counts.argmax(1) + 1 == wanted[:, 2]).double().numpy(),
        "count by components": np.array([float(count_of(p) == s.count) for p, s in zip(pictures, scenes, strict=True)]),
        "background": np.array([float(background_of(p) == ground) for p, ground in zip(pictures, grounds, strict=True)]),
        "colour": np.array(colours),
        "certainty": torch.softmax(things, 1).gather(1, wanted[:, :1])[:, 0].double().numpy(),
    }


def verdicts(judge: Judge, pictures: np.ndarray, scenes: list[Scene]) -> dict[str, float]:
    """Shares of pictures that show the asked thing (top 1, top 5), style, count, background and colour."""
    found = answers(judge, pictures, scenes)
    asked = ("thing", "thing in top 5", "style", "count", "background", "colour")
    return {name: float(np.nanmean(found[name])) for name in asked if not np.isnan(found[name]).all()}
