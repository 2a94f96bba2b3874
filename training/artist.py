"""Draw with a checkpoint by diffusers' own pipeline, as its card asks: sampler, steps, guidance, rescale."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import diffusers
import numpy as np
import torch
from diffusers.models.attention_processor import AttnProcessor

from training.machine import autocast, multiplies_bfloat16

# The service's names of samplers -> the classes that are their references.
CLASSES = {
    "unipc": "UniPCMultistepScheduler", "dpmpp_2m": "DPMSolverMultistepScheduler", "ddim": "DDIMScheduler",
    "euler": "EulerDiscreteScheduler", "deis": "DEISMultistepScheduler", "lcm": "LCMScheduler",
}  # fmt: skip


class Artist:
    """Plain diffusers with the defaults of celadon.json, or with `changes` to them.

    Raises SystemExit for a default sampler that has no class above, for a model that diffusers would draw wrongly, and for a GPU that is
    not there.
    """

    def __init__(self, folder: Path, device: str = "cpu", **changes: float | None) -> None:
        if device.startswith("cuda") and not torch.cuda.is_available():
            raise SystemExit(f"--device {device}: this PyTorch sees no GPU")
        card = json.loads((folder / "celadon.json").read_text())
        if card.get("input_scale", 1) != 1 or card.get("normalize", "none") != "none":
            raise SystemExit(f"{folder}: plain diffusers knows neither input scale nor normalisation, so it cannot draw with this model")
        self.defaults = card["defaults"]
        self.defaults |= {name: value for name, value in changes.items() if value is not None}
        if self.defaults["sampler"] not in CLASSES:
            raise SystemExit(f"{folder}: the default sampler {self.defaults['sampler']} is none of {', '.join(CLASSES)}")
        self.pipe = diffusers.StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
        self.pipe.scheduler = getattr(diffusers, CLASSES[self.defaults["sampler"]]).from_config(self.pipe.scheduler.config)
        self.pipe.set_progress_bar_config(disable=True)
        self.pipe.unet.set_attn_processor(AttnProcessor())
        self.pipe.to(device)
        self.device = device
        self.weights = weights_hash(folder)

    @property
    def key(self) -> str:
        """What its pictures depend on beside prompt and seed."""
        d = self.defaults
        layers = "" if self.device != "cpu" or multiplies_bfloat16() else "-float32"
        return f"{self.weights[:12]}-{d['sampler']}-{d['steps']}-{d['guidance']:g}-{d['guidance_rescale']:g}{layers}"

    def draw(self, prompts: list[str], seed: int, batch: int = 16, drawn: Callable[[int], None] = lambda n: None) -> np.ndarray:
        """[n, 128, 128, 3] uint8; picture i has seed `seed + i`. `drawn` is told the number after each batch."""
        out = []
        for start in range(0, len(prompts), batch):
            some = prompts[start : start + batch]
            generators = [torch.Generator().manual_seed(seed + start + i) for i in range(len(some))]
            with autocast(self.device):
                pictures = self.pipe(
                    some, num_inference_steps=self.defaults["steps"], guidance_scale=self.defaults["guidance"],
                    guidance_rescale=self.defaults["guidance_rescale"], generator=generators, output_type="np",
                ).images  # fmt: skip
            out.append((pictures * 255).round().astype(np.uint8))
            drawn(len(some))
        return np.concatenate(out)

    @torch.no_grad()
    def reconstruct(self, pictures: np.ndarray, batch: int = 16) -> np.ndarray:
        """Pictures [n, h, w, 3] uint8 through the autoencoder and back, by the mean of the latent."""
        out = []
        for start in range(0, len(pictures), batch):
            x = torch.from_numpy(np.array(pictures[start : start + batch])).to(self.device).permute(0, 3, 1, 2).float() / 127.5 - 1
            y = self.pipe.vae.decode(self.pipe.vae.encode(x).latent_dist.mode()).sample
            out.append(((y.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy())
        return np.concatenate(out)


def weights_hash(folder: Path) -> str:
    """SHA-256 over the weights and settings of a pipeline, whatever its path: of the parts that its index names, and no others."""
    parts, found = json.loads((folder / "model_index.json").read_text()), hashlib.sha256()
    files = (p for p in folder.rglob("*") if p.suffix in (".safetensors", ".json") and p.name != "celadon.json")
    for path in sorted(p for p in files if p.parent == folder or p.relative_to(folder).parts[0] in parts):
        found.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    return found.hexdigest()
