"""Write a tiny checkpoint with random weights in the layout of the shipped model, for tests: `python -m training.toy OUT_DIR`."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from training.export import card, write_checkpoint
from training.text import build_text_encoder, build_tokenizer
from training.unet import build_unet
from training.vae import build_vae

DEFAULTS = {"sampler": "dpmpp_2m", "schedule": "auto", "steps": 20, "guidance": 3.0, "guidance_rescale": 0.7}


def write_toy(folder: Path, prediction: str = "v_prediction", seed: int = 0) -> Path:
    """The same seed gives the same files. A call of its U-Net takes a few milliseconds; pictures are noise of the right size."""
    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    text = build_text_encoder(tokenizer, width=32, layers=1, heads=2)
    unet = build_unet((16, 32), context=32, groups=8, heads=2)
    vae = build_vae((4, 8, 8, 16), groups=4)
    torch.random.set_rng_state(state)
    matrix = np.random.default_rng(seed).normal(0, 0.1, (4, 3)).round(5).tolist()
    celadon = card("toy", "Toy", "Random weights, for tests.", {"matrix": matrix, "bias": [0.5, 0.5, 0.5]}, defaults=DEFAULTS)
    write_checkpoint(folder, unet, text, tokenizer, vae, celadon, prediction)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--prediction", choices=("v_prediction", "epsilon"), default="v_prediction")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    write_toy(args.out, args.prediction, args.seed)


if __name__ == "__main__":
    main()
