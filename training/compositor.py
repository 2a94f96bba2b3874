"""Draw training pictures: one thing (or two of it) on a named background, perhaps recoloured. Captions can be exactly true."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from PIL import Image

from training.words import BACKGROUNDS, COLOURS, STYLES, THINGS

SIZE = 128  # pixels of a training picture
SPRITE = 128  # pixels of a stored sprite
COLOUR_NAMES = tuple(COLOURS)
BACKGROUND_NAMES = tuple(BACKGROUNDS)


@dataclass(frozen=True)
class Scene:
    """What a picture shows, by index into the tables of `words`; -1 = not named."""

    style: int
    thing: int
    colour: int = -1
    background: int = -1
    count: int = 1


def held_out(kind: str, first: str, second: str) -> bool:
    """Pairs never drawn in training, by hash. The default style keeps every thing, since unstyled prompts mean it."""
    digit = int(hashlib.sha1(f"{first}|{second}".encode()).hexdigest(), 16) % 10
    if kind == "style":
        return digit == 0 and first != STYLES[0]
    return kind == "colour" and digit == 1


def allowed(scene: Scene) -> bool:
    name = THINGS[scene.thing].name
    if held_out("style", STYLES[scene.style], name):
        return False
    return scene.colour < 0 or not held_out("colour", COLOUR_NAMES[scene.colour], name)


def to_hsv(rgb: np.ndarray) -> np.ndarray:
    """[h, w, 3] uint8 -> float hue in degrees, saturation and value in 0..1."""
    hsv = np.asarray(Image.fromarray(rgb).convert("HSV"), dtype=np.float32)
    return hsv * np.array([360 / 255, 1 / 255, 1 / 255], dtype=np.float32)


def from_hsv(hsv: np.ndarray) -> np.ndarray:
    scaled = np.stack([hsv[..., 0] % 360 * (255 / 360), hsv[..., 1] * 255, hsv[..., 2] * 255], axis=-1)
    return np.asarray(Image.fromarray(scaled.clip(0, 255).round().astype(np.uint8), "HSV").convert("RGB"))


def hue_distance(hue: np.ndarray, centre: float) -> np.ndarray:
    """Signed, in degrees, -180..180."""
    return (hue - centre + 180) % 360 - 180


def main_hue(sprite: np.ndarray) -> tuple[float, float]:
    """The strongest hue of an RGBA sprite and the share of its visible pixels near that hue."""
    hsv = to_hsv(sprite[..., :3])
    visible = sprite[..., 3] > 128
    vivid = visible & (hsv[..., 1] > 0.22) & (hsv[..., 2] > 0.15)
    histogram, _ = np.histogram(hsv[..., 0][vivid], bins=36, range=(0, 360), weights=hsv[..., 1][vivid])
    smooth = sum(np.roll(histogram, k) for k in (-2, -1, 0, 1, 2))
    peak = float(np.argmax(smooth) * 10 + 5)
    near = vivid & (np.abs(hue_distance(hsv[..., 0], peak)) < 40)
    return peak, float(near.sum() / max(visible.sum(), 1))


def recolour(sprite: np.ndarray, colour: str, peak: float) -> np.ndarray:
    """Move the main hue of an RGBA sprite to a named colour; shading, outlines and other hues stay."""
    hue, saturation, value = COLOURS[colour]
    hsv = to_hsv(sprite[..., :3])
    distance = hue_distance(hsv[..., 0], peak)
    mask = (np.abs(distance) < 48) & (hsv[..., 1] > 0.12)
    weight = np.where(mask & (sprite[..., 3] > 64), 1.0, 0.0)
    mean_s, mean_v = (float((hsv[..., k] * weight).sum() / max(weight.sum(), 1)) for k in (1, 2))
    new = np.stack(
        [
            hue + 0.25 * distance,
            (hsv[..., 1] * saturation / max(mean_s, 0.05)).clip(0, 1),
            (hsv[..., 2] * value / max(mean_v, 0.05)).clip(0, 1),
        ],
        axis=-1,
    )
    rgb = np.where(mask[..., None], from_hsv(new), sprite[..., :3])
    return np.concatenate([rgb, sprite[..., 3:]], axis=-1)


class Compositor:
    """Sprites [styles, things, 128, 128, 4] -> pictures. The same scene and generator give the same picture."""

    def __init__(self, sprites: np.ndarray) -> None:
        self.sprites = sprites
        hues = [[main_hue(s) for s in row] for row in sprites]
        self.peak = np.array([[h[0] for h in row] for row in hues])  # [styles, things]
        share = np.array([[h[1] for h in row] for row in hues])
        self.recolourable = (share > 0.4) & np.array([t.recolourable for t in THINGS])[None]
        self.present = sprites[..., 3].max(axis=(2, 3)) > 0

    def draw(self, scene: Scene, rng: np.random.Generator) -> np.ndarray:
        """[128, 128, 3] uint8. A background that is not named is white."""
        sprite = self.sprites[scene.style, scene.thing]
        if scene.colour >= 0:
            sprite = recolour(sprite, COLOUR_NAMES[scene.colour], self.peak[scene.style, scene.thing])
        background = BACKGROUND_NAMES[scene.background] if scene.background >= 0 else "white"
        picture = Image.new("RGB", (SIZE, SIZE), BACKGROUNDS[background])
        source = Image.fromarray(sprite, "RGBA")
        for x, y, side in self.places(scene.count, rng):
            small = source.resize((side, side), Image.Resampling.BICUBIC, reducing_gap=2.0)
            picture.paste(small, (x, y), small)
        return np.asarray(picture)

    def places(self, count: int, rng: np.random.Generator) -> list[tuple[int, int, int]]:
        """Left, top and side of each sprite: one near the middle, two side by side."""
        if count == 1:
            side = int(rng.integers(92, 113))
            slack = SIZE - side
            return [(slack // 2 + int(rng.integers(-4, 5)), slack // 2 + int(rng.integers(-4, 5)), side)]
        side = int(rng.integers(56, 62))
        top = (SIZE - side) // 2 + int(rng.integers(-4, 5))
        return [(int(rng.integers(2, 5)), top, side), (SIZE - side - int(rng.integers(2, 5)), top, side)]

    def random_scene(self, rng: np.random.Generator) -> Scene:
        """A scene the training may show."""
        weights = np.array([2.0 if "+" in t.flags else 1.0 for t in THINGS])
        while True:
            style, thing = int(rng.integers(len(STYLES))), int(rng.choice(len(THINGS), p=weights / weights.sum()))
            coloured = self.recolourable[style, thing] and rng.random() < 0.40
            colour = int(rng.integers(len(COLOURS))) if coloured else -1
            background = int(rng.integers(len(BACKGROUNDS))) if rng.random() < 0.45 else -1
            count = 2 if THINGS[thing].countable and rng.random() < 0.12 else 1
            scene = Scene(style, thing, colour, background, count)
            if allowed(scene) and self.present[style, thing]:
                return scene
