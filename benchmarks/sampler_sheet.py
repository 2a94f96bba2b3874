"""A contact sheet of every sampler on one prompt and seed, made by the model that comes along, all of it in one engine.

`python -m benchmarks.sampler_sheet` writes docs/pictures/samplers.webp. The pictures of all samplers and step counts are in flight
together and share the U-Net calls.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from rich.progress import Progress

from pipelines import samplers
from pipelines.denoiser_torch import TorchDenoiser
from pipelines.engine.engine import Engine
from pipelines.engine.events import Failed, Finished
from pipelines.engine.sample import Sample
from pipelines.loading import Checkpoint, load
from pipelines.sampler_list import SAMPLERS
from pipelines.samplers import compile_table
from pipelines.text_to_image import decode, encode_prompt
from workers.settings import DEFAULT_MODEL

OUT = Path(__file__).parent.parent / "docs" / "pictures" / "samplers.webp"
STEPS = (8, 15, 30)
SIDE, GAP, TITLE, GROUPS = 96, 4, 16, 3  # pixels; samplers beside each other
MOST_BYTES = 400_000


def draw(checkpoint: Checkpoint, ids: list[str], steps: tuple[int, ...], prompt: str, seed: int) -> dict[tuple[str, int], np.ndarray]:
    """Pictures [H, W, 3] by sampler and number of steps, with the model's own schedule and guidance (CFG++ with its own)."""
    denoiser = TorchDenoiser(checkpoint.unet, device=checkpoint.device, dtype=checkpoint.dtype)
    asked = [(id, n) for id in ids for n in steps]
    engine = Engine(denoiser, slots=len(asked), max_rows=32, preview_interval_s=float("inf"))
    cond, uncond = (encode_prompt(checkpoint, text).numpy() for text in (prompt, ""))
    card, total = checkpoint.card, 0
    for number, (id, n) in enumerate(asked):
        table = compile_table(checkpoint.ladder, id, "auto", n)
        total += len(table)
        scale = SAMPLERS[id].guidance or card.defaults.guidance
        engine.add(
            Sample(
                id=str(number), table=table, shape=checkpoint.latent_shape(card.width, card.height), seed=seed, cond=cond, uncond=uncond,
                guidance=scale, guidance_rescale=card.defaults.guidance_rescale,
            )
        )  # fmt: skip
    pictures: dict[tuple[str, int], np.ndarray] = {}
    with Progress() as progress:
        task = progress.add_task("evaluations", total=total)
        while engine.busy:
            events = engine.step(0.0)
            progress.advance(task, sum(not isinstance(event, Finished) for event in events))
            for event in events:
                if isinstance(event, Finished):
                    pictures[asked[int(event.sample_id)]] = decode(checkpoint, event.latents)
                assert not isinstance(event, Failed), (asked[int(event.sample_id)], event)
    return pictures


def sheet(pictures: dict[tuple[str, int], np.ndarray], ids: list[str], steps: tuple[int, ...]) -> Image.Image:
    """One line of pictures a sampler, fewest steps first, under its id."""
    lines = -(-len(ids) // GROUPS)
    wide, tall = len(steps) * (SIDE + 2) + 4 * GAP, SIDE + TITLE + GAP
    page = Image.new("RGB", (GROUPS * wide + GAP, lines * tall + GAP), "white")
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(12)
    for number, id in enumerate(ids):
        left, top = GAP + number // lines * wide, GAP + number % lines * tall
        pen.text((left, top), f"{id}  {' · '.join(map(str, steps))}", fill="black", font=font)
        for column, n in enumerate(steps):
            picture = Image.fromarray(pictures[id, n]).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
            page.paste(picture, (left + column * (SIDE + 2), top + TITLE))
    return page


def save(page: Image.Image, path: Path) -> None:
    """As good as the size allows."""
    for quality in (85, 75, 65, 55, 45):
        page.save(path, quality=quality, method=6)
        if path.stat().st_size <= MOST_BYTES:
            return
    raise ValueError(f"{path} is larger than {MOST_BYTES} bytes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=DEFAULT_MODEL)
    parser.add_argument("--prompt", default="a robot on a purple background")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--steps", type=int, nargs="+", default=STEPS)
    parser.add_argument("--samplers", nargs="+", help="only these")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    torch.set_num_threads(1)
    checkpoint = load(options.model, device=torch.device("cpu"), dtype=torch.float32)
    ids = options.samplers or [info.id for info in samplers.catalog(checkpoint.ladder)]
    save(sheet(draw(checkpoint, ids, tuple(options.steps), options.prompt, options.seed), ids, tuple(options.steps)), options.out)
    print(options.out)


if __name__ == "__main__":
    main()
