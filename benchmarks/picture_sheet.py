"""What becomes of a picture, by the model that comes along: `python -m benchmarks.picture_sheet` writes docs/pictures/images.png."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from celadon.plots import sheet
from pipelines.known import Known
from pipelines.loading import Checkpoint, load
from pipelines.masks import extended, latent_mask, put_back
from pipelines.params import GenerationParams
from pipelines.text_to_image import encode_picture, generate
from workers.settings import DEFAULT_MODEL

OUT = Path(__file__).parent.parent / "docs" / "pictures" / "images.png"
FIRST, OTHER = "a red apple on a blue background", "a green apple on a blue background"
INSIDE, AROUND = "a yellow pear on a blue background", "a blue background"
STRENGTHS = (0.3, 0.5, 0.7, 0.9)
MASK = slice(0, 128), slice(64, 128)
FEATHER, SEAM = 8, 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    torch.set_num_threads(1)
    checkpoint = load(DEFAULT_MODEL, device=torch.device("cpu"), dtype=torch.float32)
    usual = asked(checkpoint, FIRST, options.seed)
    first = generate(checkpoint, usual)
    mask = np.zeros(first.shape[:2], np.uint8)
    mask[MASK] = 255
    known = Known(encode_picture(checkpoint, first))
    of_image = replace(usual, kind="image_to_image", image="first")
    lines: dict[str, list[Any]] = {
        f"{FIRST}; then image_to_image: {OTHER}": [
            first, *(generate(checkpoint, replace(of_image, prompt=OTHER, strength=s), 0, known) for s in STRENGTHS)
        ],
        f"inpaint what is white: {INSIDE}, with three seeds": [
            first, np.dstack([mask] * 3), *(masked(checkpoint, first, mask, INSIDE, options.seed + i, FEATHER) for i in range(3))
        ],
        f"outpaint, 32 pixels left and right: {AROUND}, with three seeds": [
            first, *(outpainted(checkpoint, first, AROUND, options.seed + i) for i in range(3))
        ],
    }  # fmt: skip
    labels = [
        ["the picture", *(f"strength {s:g}" for s in STRENGTHS)],
        ["the picture", "the mask", *("inpainted",) * 3],
        ["the picture", *("outpainted",) * 3],
    ]
    page = sheet(lines, labels)
    page.quantize(256).save(options.out, optimize=True)
    print(options.out, options.out.stat().st_size)


def asked(checkpoint: Checkpoint, prompt: str, seed: int) -> GenerationParams:
    card = checkpoint.card
    usual = {"width": card.width, "height": card.height, "sampler": card.defaults.sampler, "schedule": card.defaults.schedule}
    return GenerationParams(prompt=prompt, model=card.id, steps=20, guidance=card.defaults.guidance, seed=seed, **usual)


def masked(checkpoint: Checkpoint, picture: Any, mask: Any, prompt: str, seed: int, feather: int) -> Any:
    height, width = mask.shape
    params = replace(asked(checkpoint, prompt, seed), kind="inpaint", image="first", mask="mask", width=width, height=height)
    cells = checkpoint.latent_shape(width, height)[1:]
    known = Known(encode_picture(checkpoint, picture), latent_mask(mask, cells), from_noise=True)
    return put_back(generate(checkpoint, params, 0, known), picture, mask, feather)


def outpainted(checkpoint: Checkpoint, picture: Any, prompt: str, seed: int) -> Any:
    whole, mask = extended(picture, {"left": 32, "right": 32}, SEAM)
    return masked(checkpoint, whole, mask, prompt, seed, SEAM)


if __name__ == "__main__":
    main()
