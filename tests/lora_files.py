"""LoRA files with random layers for a checkpoint, in the forms that people have."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from safetensors.torch import save_file

Layers = dict[tuple[str, str], tuple[torch.Tensor, torch.Tensor]]  # (part, module) -> down, up
CHANGED = ("attn", "ff.net", "proj_in", "proj_out", "conv1", "time_emb_proj", "q_proj", "v_proj", "out_proj", "fc1")


def layers(folder: Path, seed: int, rank: int = 3, strength: float = 0.3) -> Layers:
    """Of the U-Net and of every text encoder, convolutions too."""
    pipe, generator = DiffusionPipeline.from_pretrained(folder), torch.Generator().manual_seed(seed)
    found: Layers = {}
    for part in ("unet", "text_encoder", "text_encoder_2"):
        module = getattr(pipe, part, None)
        for name, layer in module.named_modules() if module is not None else ():
            if isinstance(layer, (torch.nn.Linear, torch.nn.Conv2d)) and any(word in name for word in CHANGED):
                shape = layer.weight.shape
                down = torch.randn(rank, *shape[1:], generator=generator) * strength
                found[part, name] = down, torch.randn(shape[0], rank, *[1] * (len(shape) - 2), generator=generator) * strength
    return found


def peft(path: Path, of: Layers, alpha: float | None = None) -> None:
    """As diffusers writes them today; `alpha` stands in the header, as PEFT's configuration."""
    tensors = {}
    for (part, name), (down, up) in of.items():
        full = name if part == "unet" else f"text_model.{name.removeprefix('text_model.')}"
        tensors |= {f"{part}.{full}.lora_A.weight": down.clone(), f"{part}.{full}.lora_B.weight": up.clone()}
    said = {f"{part}.{key}": value for part in {p for p, _ in of} for key, value in (("r", 3), ("lora_alpha", alpha))}
    targets = {f"{part}.target_modules": sorted({name for p, name in of if p == part}) for part in {p for p, _ in of}}
    save_file(tensors, path, metadata={"format": "pt"} | ({"lora_adapter_metadata": json.dumps(said | targets)} if alpha else {}))


def old_diffusers(path: Path, of: Layers) -> None:
    """As diffusers wrote those of a U-Net's attention before it used PEFT."""
    tensors = {}
    for (part, name), (down, up) in of.items():
        if part == "unet" and ".attn" in name:
            block, _, layer = name.replace("to_out.0", "to_out").rpartition(".")
            tensors |= {f"unet.{block}.processor.{layer}_lora.down.weight": down.clone()}
            tensors |= {f"unet.{block}.processor.{layer}_lora.up.weight": up.clone()}
    save_file(tensors, path)


def kohya(path: Path, of: Layers, alpha: float) -> None:
    tensors = {}
    for (part, name), (down, up) in of.items():
        second = any(p == "text_encoder_2" for p, _ in of)
        prefix = {"unet": "lora_unet_", "text_encoder": "lora_te1_" if second else "lora_te_", "text_encoder_2": "lora_te2_"}[part]
        full = name if part == "unet" else f"text_model.{name.removeprefix('text_model.')}"
        flat = prefix + full.replace(".", "_")
        tensors |= {f"{flat}.lora_down.weight": down.clone(), f"{flat}.lora_up.weight": up.clone(), f"{flat}.alpha": torch.tensor(alpha)}
    save_file(tensors, path)
