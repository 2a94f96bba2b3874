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


def rivalry(hue: np.ndarray) -> float:
    """The area of the second hue as a share of the first's, each 90 degrees wide: 1 where nobody could say which colour a thing has."""
    histogram, _ = np.histogram(hue, bins=36, range=(0, 360))
    window = range(-4, 5)
    first = sum(np.roll(histogram, k) for k in window)
    rest = histogram.copy()
    rest[(np.argmax(first) + np.array(window)) % 36] = 0
    return float(max(sum(np.roll(rest, k) for k in window)) / max(first.max(), 1))


def main_hue(sprite: np.ndarray) -> tuple[float, float, bool]:
    """The strongest hue of an RGBA sprite, the share of its visible pixels near that hue, and whether it has two colours.

    It has where most of it is coloured and a second hue covers seven tenths of what the first does: a frog's belly and its back.
    """
    hsv = to_hsv(sprite[..., :3])[sprite[..., 3] > 128]  # [visible, 3]
    vivid = hsv[(hsv[:, 1] > 0.22) & (hsv[:, 2] > 0.15)]
    histogram, _ = np.histogram(vivid[:, 0], bins=36, range=(0, 360), weights=vivid[:, 1])
    smooth = sum(np.roll(histogram, k) for k in (-2, -1, 0, 1, 2))
    peak = float(np.argmax(smooth) * 10 + 5)
    near = np.abs(hue_distance(vivid[:, 0], peak)) < 40
    bright = vivid[vivid[:, 2] > 0.35, 0]
    two = len(bright) > 0.5 * len(hsv) and rivalry(bright) > 0.7
    return peak, float(near.sum() / max(len(hsv), 1)), two


def recolour(sprite: np.ndarray, colour: str, peak: float, *, whole: bool = False) -> np.ndarray:
    """Move the main hue of an RGBA sprite, or (whole) all of its hues, to a named colour; shading and outlines stay."""
    hue, saturation, value = COLOURS[colour]
    hsv = to_hsv(sprite[..., :3])
    distance = hue_distance(hsv[..., 0], peak)
    mask = (hsv[..., 1] > 0.12) & ((np.abs(distance) < 48) | whole)
    weight = np.where(mask & (sprite[..., 3] > 64), 1.0, 0.0)
    mean_s, mean_v = (float((hsv[..., k] * weight).sum() / max(weight.sum(), 1)) for k in (1, 2))
    new = np.stack(
        [
            hue + 0.25 * distance.clip(-48, 48),
            (hsv[..., 1] * saturation / max(mean_s, 0.05)).clip(0, 1),
            (hsv[..., 2] * value / max(mean_v, 0.05)).clip(0, 1),
        ],
        axis=-1,
    )
    rgb = np.where(mask[..., None], from_hsv(new), sprite[..., :3])
    return np.concatenate([rgb, sprite[..., 3:]], axis=-1)


class Compositor:
    """Sprites [styles, things, 128, 128, 4], or in a multiple of that size, -> pictures. The same scene and generator give the same one."""

    def __init__(self, sprites: np.ndarray) -> None:
        self.sprites, self.scale = sprites, sprites.shape[2] // SPRITE
        hues = np.array([[main_hue(s) for s in row] for row in sprites])  # [styles, things, 3]
        self.peak, share, self.whole = hues[..., 0], hues[..., 1], hues[..., 2] > 0  # whole: recoloured all over
        self.recolourable = ((share > 0.4) | self.whole) & np.array([t.recolourable for t in THINGS[: sprites.shape[1]]])
        self.present = sprites[..., 3].max(axis=(2, 3)) > 0

    @property
    def identity(self) -> str:
        """A digest of the sprites and of what of them may be recoloured, and where."""
        parts = (self.sprites, self.peak, self.whole, self.recolourable)
        return hashlib.sha256(b"".join(np.ascontiguousarray(part).tobytes() for part in parts)).hexdigest()

    def draw(self, scene: Scene, rng: np.random.Generator) -> np.ndarray:
        """[128, 128, 3] uint8, or larger as the sprites are. A background that is not named is white."""
        sprite = self.sprites[scene.style, scene.thing]
        if scene.colour >= 0:
            at = scene.style, scene.thing
            sprite = recolour(sprite, COLOUR_NAMES[scene.colour], self.peak[at], whole=bool(self.whole[at]))
        background = BACKGROUND_NAMES[scene.background] if scene.background >= 0 else "white"
        picture = Image.new("RGB", (SIZE * self.scale, SIZE * self.scale), BACKGROUNDS[background])
        source = Image.fromarray(sprite, "RGBA")
        for x, y, side in (tuple(self.scale * v for v in place) for place in self.places(scene.count, rng)):
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
