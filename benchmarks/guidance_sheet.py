"""One prompt, one seed, every way of guidance: `python -m benchmarks.guidance_sheet` writes docs/pictures/guidance.png.

All pictures are drawn in one batch of one engine. Under each stands how many U-Net rows its 20 steps cost.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch

from celadon.plots import sheet
from pipelines.denoiser_torch import TorchDenoiser
from pipelines.engine.engine import Engine
from pipelines.engine.events import Finished
from pipelines.engine.sample import Sample
from pipelines.loading import Checkpoint, load
from pipelines.samplers import compile_table
from pipelines.text_to_image import decode, encode_prompt
from workers.settings import DEFAULT_MODEL

OUT = Path(__file__).parent.parent / "docs" / "pictures" / "guidance.png"
PROMPT = "a red apple on a blue background"
STEPS = 20

# title of a line: what stands under each picture, its guidance, its options; rescale is 0 where nothing is said
LINES: dict[str, list[tuple[str, float, dict[str, Any]]]] = {
    "guidance 1 to 12": [
        ("1: off", 1.0, {}),
        ("2", 2.0, {}),
        ("3, the default", 3.0, {"rescale": 0.7}),
        ("6", 6.0, {}),
        ("12", 12.0, {}),
        ("12, rescale 0.7", 12.0, {"rescale": 0.7}),
    ],
    "guidance 6 on some steps, or changing": [
        ("start 0.2", 6.0, {"start": 0.2}),
        ("end 0.5", 6.0, {"end": 0.5}),
        ("0.2 to 0.7", 6.0, {"start": 0.2, "end": 0.7}),
        ("linear to 1", 6.0, {"curve": "linear"}),
        ("cosine to 1", 6.0, {"curve": "cosine"}),
        ("linear, 1 to 6", 1.0, {"curve": "linear", "final": 6.0}),
    ],
    "variants at guidance 6": [
        ("cfg_zero_star", 6.0, {"variant": "cfg_zero_star"}),
        ("zero_init 1", 6.0, {"variant": "cfg_zero_star", "zero_init": 1}),
        ("tcfg", 6.0, {"variant": "tcfg"}),
        ("apg", 6.0, {"variant": "apg"}),
        ("apg, momentum -0.5", 6.0, {"variant": "apg", "momentum": -0.5}),
        ("norm_threshold 5", 6.0, {"variant": "apg", "momentum": -0.5, "norm_threshold": 5.0}),
    ],
    "guidance away from a disturbed U-Net": [
        ("1, pag_scale 2", 1.0, {"pag_scale": 2.0}),
        ("1, seg_scale 2", 1.0, {"seg_scale": 2.0}),
        ("3, pag_scale 2", 3.0, {"pag_scale": 2.0}),
        ("3, seg_scale 2", 3.0, {"seg_scale": 2.0}),
        ("the same to 0.5", 3.0, {"seg_scale": 2.0, "end": 0.5}),
        ("with rescale 0.7", 3.0, {"seg_scale": 2.0, "rescale": 0.7}),
    ],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=DEFAULT_MODEL)
    parser.add_argument("--prompt", default=PROMPT)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    torch.set_num_threads(1)
    checkpoint = load(options.model, device=torch.device("cpu"), dtype=torch.float32)
    wanted = {f"{line}/{name}": sample(checkpoint, options, f"{line}/{name}", *how) for line, of in LINES.items() for name, *how in of}
    pictures = drawn(checkpoint, list(wanted.values()))
    labels = [[f"{name} ({_cost(wanted[f'{line}/{name}'])})" for name, *_ in of] for line, of in LINES.items()]
    page = sheet({line: [pictures[f"{line}/{name}"] for name, *_ in of] for line, of in LINES.items()}, labels)
    page.quantize(256).save(options.out, optimize=True)
    print(options.out, options.out.stat().st_size)


def sample(checkpoint: Checkpoint, options: argparse.Namespace, name: str, guidance: float, how: dict[str, Any]) -> Sample:
    card = checkpoint.card
    return Sample(
        id=name,
        table=compile_table(checkpoint.ladder, card.defaults.sampler, card.defaults.schedule, STEPS),
        shape=checkpoint.latent_shape(card.width, card.height),
        seed=options.seed,
        cond=encode_prompt(checkpoint, options.prompt).numpy(),
        uncond=encode_prompt(checkpoint, "").numpy(),
        guidance=guidance,
        guidance_options=how,
    )


def drawn(checkpoint: Checkpoint, samples: list[Sample]) -> dict[str, np.ndarray]:
    """Id -> picture [H, W, 3]."""
    denoiser = TorchDenoiser(checkpoint.unet, device=checkpoint.device, dtype=checkpoint.dtype)
    engine = Engine(denoiser, slots=len(samples), max_rows=3 * len(samples), rows=8)
    for one in samples:
        engine.add(one)
    pictures: dict[str, np.ndarray] = {}
    while engine.busy:
        pictures |= {e.sample_id: decode(checkpoint, e.latents) for e in engine.step(0.0) if isinstance(e, Finished)}
    return pictures


def _cost(one: Sample) -> int:
    return sum(one.plan.unet_rows(row) for row in range(len(one.table)))


if __name__ == "__main__":
    main()
