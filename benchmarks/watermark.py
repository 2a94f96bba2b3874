"""What the watermark costs and survives: `python -m benchmarks.watermark` writes benchmarks/WATERMARK.md and docs/pictures/watermark.png.

Pictures of the default model, 128 pixels wide and doubled by its own network, marked as a worker does for a PNG. LPIPS is fetched as in
training/README.md.
"""

from __future__ import annotations

import argparse
import datetime
import io
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from benchmarks.stamp import commit, machine
from pipelines.loading import load
from pipelines.params import GenerationParams
from pipelines.text_to_image import TorchStages, generate
from training.lpips import Lpips, load_lpips
from training.measures import psnr
from training.superres.measures import lpips, ssim
from workers.marked import Mark
from workers.settings import DEFAULT_MODEL
from workers.watermark import Watermark

RESULTS = Path(__file__).parent / "WATERMARK.md"
SHEET = Path(__file__).parents[1] / "docs" / "pictures" / "watermark.png"
TEXT = "celadon!"
THINGS = ("a red apple", "a blue car", "a cat", "a green tree", "two frogs", "a house", "a purple star", "a dog")
BEHIND = (
    "",
    " on a white background",
    " on a black background",
    " on a grey background",
    " on a blue background",
    " on a yellow background",
)
STEPS = 12
SHOWN = (15, 25)  # of the pictures, in the sheet
Pixels = np.ndarray  # [H, W, 3] uint8


def encoded(format_: str, **options: int) -> Callable[[Image.Image], Image.Image]:
    def through(image: Image.Image) -> Image.Image:
        buffer = io.BytesIO()
        image.save(buffer, format_, **options)
        return Image.open(buffer).convert("RGB")

    return through


def scaled(factor: float) -> Callable[[Image.Image], Image.Image]:
    return lambda image: image.resize((round(image.width * factor), round(image.height * factor)), Image.Resampling.BICUBIC)


def cropped(share: float) -> Callable[[Image.Image], Image.Image]:
    """That share of each side, from a place that no block of eight pixels begins at."""
    return lambda image: image.crop((5, 11, 5 + round(image.width * share), 11 + round(image.height * share)))


def noisy(image: Image.Image) -> Image.Image:
    noise = np.random.default_rng(0).normal(0, 4, (image.height, image.width, 3))
    return Image.fromarray(np.clip(np.asarray(image) + noise.round(), 0, 255).astype(np.uint8))


DONE: dict[str, Callable[[Image.Image], Image.Image]] = {
    "PNG": lambda image: image,
    "JPEG of the service (quality 95)": encoded("JPEG", quality=95, subsampling=0),
    "WebP of the service (quality 92)": encoded("WEBP", quality=92),
    "JPEG, quality 90": encoded("JPEG", quality=90),
    "JPEG, quality 75": encoded("JPEG", quality=75),
    "JPEG, quality 50": encoded("JPEG", quality=50),
    "WebP, quality 75": encoded("WEBP", quality=75),
    "resized to 0.75": scaled(0.75),
    "resized to 0.5": scaled(0.5),
    "resized to 2": scaled(2),
    "resized to 0.75, JPEG 90": lambda image: encoded("JPEG", quality=90)(scaled(0.75)(image)),
    "cropped to 0.8 of each side": cropped(0.8),
    "cropped to 0.6": cropped(0.6),
    "cropped to 0.8, then resized to 0.75": lambda image: scaled(0.75)(cropped(0.8)(image)),
    "Gaussian blur, 1 pixel": lambda image: image.filter(ImageFilter.GaussianBlur(1)),
    "noise of 4 grey levels": noisy,
    "contrast and brightness 1.2": lambda image: ImageEnhance.Brightness(ImageEnhance.Contrast(image).enhance(1.2)).enhance(1.2),
    "grey": lambda image: image.convert("L").convert("RGB"),
    "turned by 2 degrees": lambda image: image.rotate(2, Image.Resampling.BICUBIC),
    "mirrored": ImageOps.mirror,
}


def drawn(count: int) -> tuple[Pixels, Pixels]:
    """[n, 128, 128, 3] and [n, 256, 256, 3]."""
    checkpoint = load(DEFAULT_MODEL, device=torch.device("cpu"), dtype=torch.float32)
    card, stages = checkpoint.card, TorchStages(checkpoint)
    usual = {"width": card.width, "height": card.height, "sampler": card.defaults.sampler, "schedule": card.defaults.schedule}
    prompts = [thing + behind for behind in BEHIND for thing in THINGS][:count]
    small = [
        generate(checkpoint, GenerationParams(prompt=p, model=card.id, steps=STEPS, guidance=card.defaults.guidance, seed=i, **usual))
        for i, p in enumerate(prompts)
    ]
    return np.stack(small), np.stack([stages.enlarge(picture, i) for i, picture in enumerate(small)])


def as_png(pixels: Pixels) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def marked(mark: Mark, pictures: Pixels) -> tuple[Pixels, float]:
    """And the CPU seconds of all that a worker does for it, a PNG included."""
    began = time.process_time()
    files = [mark.file(picture, as_png) for picture in pictures]
    return np.stack([np.asarray(Image.open(io.BytesIO(file))) for file in files]), (time.process_time() - began) / len(files)


def faithful(pictures: Pixels, with_mark: Pixels, seconds: float, distance: Lpips) -> str:
    found, like = psnr(pictures, with_mark), np.concatenate([ssim(a[None], b[None]) for a, b in zip(pictures, with_mark, strict=True)])
    apart = lpips(distance, pictures, with_mark, 20)
    return (
        f"| {pictures.shape[1]} | {found.mean():.1f} | {found.min():.1f} | {like.mean():.4f} | {like.min():.4f} "
        f"| {apart.mean():.4f} | {apart.max():.4f} | {seconds * 1e3:.0f} |"
    )


def survived(watermark: Watermark, marked_ones: Pixels, plain: Pixels) -> dict[str, tuple[int, int]]:
    """By what is done to them: marked pictures whose text is found, and others in which any text is."""
    found = {}
    for name, do in DONE.items():
        look = watermark.find if name == "PNG" else watermark.texts  # in other sizes once: it takes a second where there is nothing
        texts = [watermark.find(np.asarray(do(Image.fromarray(p)))) for p in marked_ones]
        found[name] = texts.count([TEXT]), sum(bool(look(np.asarray(do(Image.fromarray(p))))) for p in plain)
        print(name, found[name], flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=36)
    parser.add_argument("--root", type=Path, default=Path(".training"), help="where LPIPS's weights are kept")
    options = parser.parse_args()
    torch.set_num_threads(1)
    mark, distance = Mark(TEXT, Watermark()), load_lpips(options.root)
    sizes = drawn(options.count)
    with_marks = [marked(mark, pictures) for pictures in sizes]
    costs = [faithful(pictures, *with_mark, distance) for pictures, with_mark in zip(sizes, with_marks, strict=True)]
    read = [survived(mark.watermark, with_mark, plain) for plain, (with_mark, _) in zip(sizes, with_marks, strict=True)]
    small, large = read
    lines = [
        "# The watermark", "",
        f"{datetime.date.today()}, commit {commit()}, {machine()}; `python -m benchmarks.watermark` wrote this: {len(sizes[0])} pictures",
        "of the default model at 128 pixels, most on plain backgrounds, and the same doubled by its network; a text of 8 bytes.", "",
        "What it costs: PSNR (dB), SSIM and LPIPS (AlexNet) of marked against unmarked; CPU time for a picture, PNG included.", "",
        "| pixels | PSNR | least | SSIM | least | LPIPS | most | ms |", "|---|---|---|---|---|---|---|---|", *costs, "",
        f"What it survives: texts read whole, of {len(sizes[0])} each; and pictures without a mark in which any text was found.", "",
        "| done to the picture | 128 | 256 | without a mark |", "|---|---|---|---|",
        *(f"| {name} | {small[name][0]} | {large[name][0]} | {small[name][1] + large[name][1]} |" for name in DONE),
    ]  # fmt: skip
    RESULTS.write_text("\n".join(lines) + "\n")
    rows = [np.concatenate(list(pictures[list(SHOWN)]), 1) for pictures in (sizes[1], with_marks[1][0])]
    Image.fromarray(np.concatenate(rows)).save(SHEET, optimize=True)


if __name__ == "__main__":
    main()
