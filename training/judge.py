"""The judge of drawn pictures: a small network that names the thing, and pixel rules for background and colour.

It is trained on fresh renders, never on drawn pictures, blurred at random so that softness alone is no fault. Its own score on
renders it has not seen is the ceiling of every figure it gives.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from training.checkpoint import Clock, generator, learning_rate, load, save
from training.compositor import BACKGROUND_NAMES, COLOUR_NAMES, Compositor, Scene, hue_distance, to_hsv
from training.words import BACKGROUNDS, COLOURS, STYLES, THINGS

SIDE = 64
SEED = 1_000_003  # far from the training pictures' seed


class Judge(nn.Module):
    """[n, 3, 64, 64] in 0..1 -> logits of thing, style and count."""

    SIZES = (len(THINGS), len(STYLES), 2)

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        widths = (3, width, 2 * width, 4 * width, 4 * width, 4 * width)
        for a, b, stride in zip(widths, widths[1:], (2, 2, 2, 1, 2), strict=False):
            layers += [nn.Conv2d(a, b, 3, stride, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU()]
        self.features = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(0.1))
        self.head = nn.Linear(16 * width, sum(self.SIZES))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.head(self.features(x)).split(self.SIZES, dim=1)


def shrink(pictures: np.ndarray) -> torch.Tensor:
    """[n, 128, 128, 3] uint8 -> [n, 3, 64, 64] in 0..1."""
    x = torch.from_numpy(np.array(pictures)).permute(0, 3, 1, 2).float() / 255
    return F.avg_pool2d(x, x.shape[-1] // SIDE)


def soften(x: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """A random blur, so that the judge looks at shapes and colours, not at crispness."""
    side = int(rng.integers(24, SIDE + 1))
    return F.interpolate(F.interpolate(x, side, mode="bilinear", antialias=True), SIDE, mode="bilinear")


def train_judge(sprites: np.ndarray, folder: Path, total: int = 40_000, batch: int = 64, minutes: float = 1e9) -> Judge:
    torch.manual_seed(0)
    judge, compositor = Judge(), Compositor(sprites)
    optimiser = torch.optim.AdamW(judge.parameters(), lr=2e-3, weight_decay=0.01)
    images = 0
    with Clock("judge", total, images, minutes) as clock:
        while images < total and not clock.out_of_time:
            rng = generator(SEED, images)
            scenes = [compositor.random_scene(rng) for _ in range(batch)]
            x = soften(shrink(np.stack([compositor.draw(s, rng) for s in scenes])), rng)
            targets = torch.tensor([(s.thing, s.style, s.count - 1) for s in scenes])
            for group in optimiser.param_groups:
                group["lr"] = learning_rate(images / total, 2e-3)
            loss = sum(F.cross_entropy(logits, target) for logits, target in zip(judge(x), targets.T, strict=True))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            images += batch
            clock.tick(images, float(loss.detach()))
    save(folder / "judge.pt", judge=judge.state_dict())
    return judge.eval()


def load_judge(folder: Path) -> Judge:
    judge = Judge()
    judge.load_state_dict(load(folder / "judge.pt")["judge"])
    return judge.eval()


def background_of(picture: np.ndarray) -> str:
    """The named background nearest to the median of the outermost pixels."""
    strips = (picture[:3], picture[-3:], picture[:, :3], picture[:, -3:])
    ring = np.concatenate([strip.reshape(-1, 3) for strip in strips])
    median = np.median(ring, axis=0)
    return min(BACKGROUND_NAMES, key=lambda name: float(np.abs(median - BACKGROUNDS[name]).sum()))


def colour_of(picture: np.ndarray) -> str:
    """The named colour nearest to the main hue of whatever is not background."""
    picture = np.asarray(Image.fromarray(picture).convert("RGB"))
    ground = np.array(BACKGROUNDS[background_of(picture)])
    hsv = to_hsv(picture)
    vivid = (np.abs(picture.astype(int) - ground).sum(-1) > 90) & (hsv[..., 1] > 0.25) & (hsv[..., 2] > 0.2)
    if vivid.sum() < 50:
        return "none"
    histogram, _ = np.histogram(hsv[..., 0][vivid], bins=36, range=(0, 360), weights=hsv[..., 1][vivid])
    peak = float(np.argmax(histogram + np.roll(histogram, 1) + np.roll(histogram, -1)) * 10 + 5)
    near = vivid & (np.abs(hue_distance(hsv[..., 0], peak)) < 25)
    hue = peak + float(hue_distance(hsv[..., 0][near], peak).mean())
    saturation, value = float(hsv[..., 1][near].mean()), float(hsv[..., 2][near].mean())

    def distance(name: str) -> float:
        h, s, v = COLOURS[name]
        return abs(float(hue_distance(np.array(hue), h))) / 30 + 1.5 * abs(saturation - s) + 2 * abs(value - v)

    return min(COLOUR_NAMES, key=distance)


def verdicts(judge: Judge, pictures: np.ndarray, scenes: list[Scene]) -> dict[str, float]:
    """Shares of pictures that show the asked thing (top 1, top 5), style, count, background and colour."""
    with torch.no_grad():
        things, styles, counts = judge(shrink(pictures))
    grounds = [BACKGROUND_NAMES[s.background] if s.background >= 0 else "white" for s in scenes]
    rank = things.argsort(1, descending=True)
    wanted = torch.tensor([s.thing for s in scenes])
    out = {
        "thing": float((rank[:, 0] == wanted).float().mean()),
        "thing in top 5": float((rank[:, :5] == wanted[:, None]).any(1).float().mean()),
        "style": float((styles.argmax(1) == torch.tensor([s.style for s in scenes])).float().mean()),
        "count": float((counts.argmax(1) + 1 == torch.tensor([s.count for s in scenes])).float().mean()),
        "background": float(np.mean([background_of(p) == ground for p, ground in zip(pictures, grounds, strict=True)])),
    }
    named = [(p, COLOUR_NAMES[s.colour]) for p, s in zip(pictures, scenes, strict=True) if s.colour >= 0]
    if named:
        out["colour"] = float(np.mean([colour_of(p) == colour for p, colour in named]))
    return out
