"""Write what doubles a model's pictures into its checkpoint folder: `python -m training.superres.export models/celadon-mini`."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save_file

from pipelines.tiny_unet import TinyUNet
from pipelines.upscaler import PART, Recipe
from training.superres.train import trained

VARIANT = "cosine"


def write_upscaler(folder: Path, network: TinyUNet, recipe: Recipe) -> None:
    """The folder `superres` of a checkpoint: config.json, and the weights in half precision."""
    out = folder / PART
    out.mkdir(parents=True, exist_ok=True)
    config = {"shape": asdict(network.shape), **asdict(recipe)}
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    save_file({name: value.to(torch.float16).contiguous() for name, value in network.state_dict().items()}, out / "model.safetensors")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="of the checkpoint")
    parser.add_argument("--root", type=Path, default=Path(".training"))
    parser.add_argument("--steps", type=int, default=1)
    args = parser.parse_args()
    model, _ = trained(args.root / "superres", "renders", VARIANT)
    recipe = Recipe(args.steps, model.variant.schedule, model.variant.ladder, model.deviation)
    write_upscaler(args.folder, model.network, recipe)


if __name__ == "__main__":
    main()
