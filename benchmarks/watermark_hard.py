"""What pictures that are hard to mark cost: `python -m benchmarks.watermark_hard` writes benchmarks/WATERMARK_HARD.md.

Flat ones, where there is nothing to hide in and values end; loud ones, whose own grain is in the way; small, large and odd sizes.
"""

from __future__ import annotations

import datetime
import io
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.stamp import commit, machine
from training.measures import psnr
from workers.encode import PNG_LEVEL
from workers.marked import Mark
from workers.safety import Unmarked
from workers.watermark import Watermark

RESULTS = Path(__file__).parent / "WATERMARK_HARD.md"
SIZES = (48, 48), (64, 64), (96, 72), (128, 128), (333, 205), (512, 512), (1024, 1024), (2048, 2048)  # width, height
SQUARE = 4  # side of a square of the loud pattern, in pixels: the mark's own frequencies
Pixels = NDArray[np.uint8]  # [H, W, 3]


def flat(*colour: int) -> Callable[[int, int], Pixels]:
    return lambda width, height: np.full((height, width, 3), colour, np.uint8)


def smooth(width: int, height: int) -> Pixels:
    y, x = np.mgrid[0:height, 0:width]
    waves = np.sin(x / width * 5), np.cos(y / height * 4), np.sin((x + y) / (width + height) * 7)
    return (127 + 120 * np.stack(waves, -1)).astype(np.uint8)


def noise(width: int, height: int) -> Pixels:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def squares(width: int, height: int) -> Pixels:
    """Black and white ones at random."""
    small = np.random.default_rng(0).integers(0, 2, (-(-height // SQUARE), -(-width // SQUARE), 1), np.uint8) * np.uint8(255)
    return small.repeat(SQUARE, 0).repeat(SQUARE, 1)[:height, :width].repeat(3, 2)


HARD: dict[str, Callable[[int, int], Pixels]] = {
    "smooth": smooth,
    "grey": flat(128, 128, 128),
    "white": flat(255, 255, 255),
    "black": flat(0, 0, 0),
    "pure red": flat(255, 0, 0),
    "pure blue": flat(0, 0, 255),
    "noise": noise,
    "black and white squares": squares,
}


def as_png(pixels: Pixels) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=PNG_LEVEL)
    return buffer.getvalue()


def measured(mark: Mark, pixels: Pixels) -> str:
    """PSNR in dB and milliseconds of CPU time, the PNGs included."""
    began = time.process_time()
    try:
        file = mark.file(pixels, as_png)
    except Unmarked:
        file = None
    spent = f"{(time.process_time() - began) * 1e3:.0f} ms"
    if file is None:
        return f"fails, {spent}"
    return f"{psnr(pixels[None], np.asarray(Image.open(io.BytesIO(file)))[None])[0]:.1f} dB, {spent}"


def main() -> None:
    mark = Mark("celadon!", Watermark())
    mark.file(smooth(*SIZES[-1]), as_png)  # what comes first pays for others
    rows = [f"| {name} | " + " | ".join(measured(mark, make(*size)) for size in SIZES) + " |" for name, make in HARD.items()]
    lines = [
        "# Pictures that are hard to mark", "",
        f"{datetime.date.today()}, commit {commit()}, {machine()}, one picture each; `python -m benchmarks.watermark_hard` wrote this.",
        "PSNR of marked against unmarked, and CPU time, PNGs included; a text of 8 bytes. *fails*: a job ends with `watermark_failed`.", "",
        "| | " + " | ".join(f"{width} x {height}" for width, height in SIZES) + " |", "|---" * (len(SIZES) + 1) + "|", *rows,
    ]  # fmt: skip
    RESULTS.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
