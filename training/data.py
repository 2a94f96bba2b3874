"""Fetch the icon sets, rasterise them to sprites, and compose the picture cache: `python -m training.data`.

Everything is deterministic: pinned packages with checksums, pinned rasteriser, one seed. The checksums of the result are written
beside it. `--pack FILE` also writes the sprites as one small file, and `--unpack FILE` composes from it: no packages, no network.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import tarfile
import zipfile
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from training.checkpoint import to_the_end
from training.compositor import SIZE, SPRITE, Compositor, Scene
from training.pencil import pencil_drawing
from training.slices import Slices
from training.sources import fetch
from training.words import STYLES, THINGS

MADE = ("pictures", "scenes", "sprites")  # .npy
XLINK = "http://www.w3.org/1999/xlink"


def fit(image: Image.Image, side: int = SPRITE) -> np.ndarray:
    """Crop to what is visible and fit into the sprite square. [side, side, 4] uint8."""
    image = image.convert("RGBA")
    image = image.crop(image.getchannel("A").point(lambda a: 255 if a > 8 else 0).getbbox())
    scale = (side - 2) / max(image.size)
    image = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))), Image.Resampling.LANCZOS)
    square = Image.new("RGBA", (side, side))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return np.asarray(square)


def fluent_images(package: Path) -> dict[str, Image.Image]:
    """Code point key -> picture, from the 3D renders (256 px WebP)."""
    wanted, found = {t.code for t in THINGS}, {}
    with tarfile.open(package) as tar:
        for member in tar:
            key = "-".join(c for c in Path(member.name).stem.split("-") if c != "fe0f")
            if member.name.endswith(".webp") and key in wanted:
                found[key] = Image.open(io.BytesIO(tar.extractfile(member).read()))
                found[key].load()
    return found


def noto_images(package: Path, side: int = 256) -> dict[str, Image.Image]:
    """Code point key -> picture, rasterised from SVG."""
    import resvg_py

    with tarfile.open(package) as tar:
        icons = json.load(tar.extractfile("package/icons.json"))
        chars = json.load(tar.extractfile("package/chars.json"))
    names = {"-".join(c for c in key.split("-") if c != "fe0f"): name for key, name in chars.items()}
    found = {}
    for thing in THINGS:
        if thing.code not in names:
            continue
        icon = icons["icons"].get(names[thing.code]) or icons["icons"][icons["aliases"][names[thing.code]]["parent"]]
        width, height = icon.get("width", icons["width"]), icon.get("height", icons["height"])
        svg = f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="{XLINK}" viewBox="0 0 {width} {height}">{icon["body"]}</svg>'
        found[thing.code] = Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg, width=side, height=side))))
    return found


def rasterise(packages: list[Path], side: int = SPRITE) -> np.ndarray:
    """[styles, things, side, side, 4] uint8; a thing a style lacks stays transparent."""
    sprites = np.zeros((len(STYLES), len(THINGS), side, side, 4), np.uint8)
    renders = fluent_images(packages[0])
    drawings = {code: pencil_drawing(image) for code, image in renders.items()}
    for style, images in enumerate((renders, noto_images(packages[1], 2 * side), drawings)):
        for index, thing in enumerate(THINGS):
            if thing.code in images:
                sprites[style, index] = fit(images[thing.code], side)
            else:
                print(f"{STYLES[style]} has no {thing.name} ({thing.code})")
    return sprites


def compose(sprites: np.ndarray, count: int, seed: int, folder: Path, minutes: float = 1e9) -> Slices:
    """Write pictures.npy [count, 128, 128, 3] uint8 and scenes.npy [count, 5]: style, thing, colour, background, count."""
    compositor = Compositor(sprites)
    of = {"compositor": compositor.identity, "count": count, "seed": seed}
    slices = Slices(folder / "compose.json", of, count, minutes)
    mode: Literal["w+", "r+"] = "w+" if slices.new else "r+"
    pictures = np.lib.format.open_memmap(folder / "pictures.npy", mode, np.uint8, (count, SIZE, SIZE, 3))
    scenes = np.lib.format.open_memmap(folder / "scenes.npy", mode, np.int16, (count, 5))
    for block in slices:
        for i in block:
            rng = np.random.default_rng((seed, i))
            scene = compositor.random_scene(rng)
            pictures[i] = compositor.draw(scene, rng)
            scenes[i] = (scene.style, scene.thing, scene.colour, scene.background, scene.count)
    pictures.flush()
    scenes.flush()
    return slices


def load_scenes(folder: Path) -> list[Scene]:
    return [Scene(*(int(v) for v in row)) for row in np.load(folder / "scenes.npy")]


def checksums(folder: Path) -> dict[str, str]:
    found = {}
    for name in MADE:
        with (folder / f"{name}.npy").open("rb") as file:
            found[f"{name}.npy"] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def verify(folder: Path) -> None:
    """Raises SystemExit naming what is missing, or is not what `python -m training.data` wrote there."""
    path = folder / "checksums.json"
    missing = [name for name in (path.name, *(f"{made}.npy" for made in MADE)) if not (folder / name).exists()]
    if missing:
        raise SystemExit(f"{folder} lacks {', '.join(missing)}: run python -m training.data without --check")
    kept, found = json.loads(path.read_text()), checksums(folder)
    other = [name for name in found if kept.get(name) != found[name]]
    if other:
        raise SystemExit(f"{', '.join(other)} in {folder}: not what was composed; delete the folder, and compose again")
    print(f"{folder}: {', '.join(found)} are what was composed")


def pack(sprites: np.ndarray, path: Path) -> None:
    """The sprites as lossless WebP in one uncompressed zip, some 6 MB: all that training needs where nothing can be fetched."""
    with zipfile.ZipFile(path, "w") as held:
        for style, thing in np.ndindex(sprites.shape[:2]):
            data = io.BytesIO()
            Image.fromarray(sprites[style, thing], "RGBA").save(data, "WEBP", lossless=True, exact=True, quality=100)
            held.writestr(zipfile.ZipInfo(f"{STYLES[style]}/{THINGS[thing].code}.webp"), data.getvalue())


def unpack(path: Path) -> np.ndarray:
    """The inverse, bit for bit. Raises KeyError for a pack of another vocabulary."""
    sprites = np.zeros((len(STYLES), len(THINGS), SPRITE, SPRITE, 4), np.uint8)
    with zipfile.ZipFile(path) as held:
        for style, thing in np.ndindex(sprites.shape[:2]):
            sprites[style, thing] = Image.open(io.BytesIO(held.read(f"{STYLES[style]}/{THINGS[thing].code}.webp"))).convert("RGBA")
    return sprites


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, default=Path(".training"))
    parser.add_argument("--count", type=int, default=48_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pack", type=Path, metavar="FILE", help="write the sprites there as well")
    parser.add_argument("--unpack", type=Path, metavar="FILE", help="take the sprites from there")
    parser.add_argument("--minutes", type=float, default=1e9, help="end cleanly after this time; the same command goes on")
    parser.add_argument("--check", action="store_true", help="compare what lies there with the checksums, and compose nothing")
    args = parser.parse_args()
    folder = args.root / "data"
    if args.check:
        verify(folder)
        return
    folder.mkdir(parents=True, exist_ok=True)
    sprites = unpack(args.unpack) if args.unpack else rasterise(fetch(args.root / "npm"))
    if args.pack:
        pack(sprites, args.pack)
    np.save(folder / "sprites.npy", sprites)
    slices = compose(sprites, args.count, args.seed, folder, args.minutes)
    to_the_end("data", slices.done, slices.total)
    (folder / "checksums.json").write_text(json.dumps(checksums(folder), indent=2) + "\n")


if __name__ == "__main__":
    main()
