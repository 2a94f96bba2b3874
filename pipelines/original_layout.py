"""Which release a single file is of, told by the names and shapes of its tensors. No torch."""

from __future__ import annotations

from collections.abc import Mapping

from pipelines.checkpoint_error import CheckpointError

UNET = "model.diffusion_model."
TEXTS = {  # where the text encoder lies, and what that makes the file
    "conditioner.embedders.1.model.": "sdxl", "cond_stage_model.transformer.": "sd1", "cond_stage_model.model.": "sd2",
}  # fmt: skip
OTHERS = (  # prefixes of what is no checkpoint of ours, and what it is
    ("lora_", "a LoRA, not a model"), ("double_blocks.", "a Flux model"), (f"{UNET}double_blocks.", "a Flux model"),
    (f"{UNET}joint_blocks.", "a Stable Diffusion 3 model"), ("control_model.", "a ControlNet, not a model"),
    ("encoder.down.", "a VAE alone"), ("first_stage_model.", "a VAE alone"), (UNET, "a U-Net alone"), ("down_blocks.", "a U-Net alone"),
)  # fmt: skip


def release_of(name: str, shapes: Mapping[str, tuple[int, ...]]) -> str:
    """`sd1`, `sd2` or `sdxl`. Raises CheckpointError with what the file is instead."""
    has = {prefix for prefix in (UNET, "first_stage_model.", *TEXTS) if any(key.startswith(prefix) for key in shapes)}
    found = next((release for prefix, release in TEXTS.items() if prefix in has), None)
    if found and UNET + "input_blocks.0.0.weight" in shapes:
        return found
    if any(key.startswith("conditioner.embedders.0.model.") for key in shapes):
        raise CheckpointError(f"{name} is SDXL's refiner, which goes on where a base model ends; only base models run here", "refiner")
    what = next((what for prefix, what in OTHERS if any(key.startswith(prefix) for key in shapes)), "no checkpoint that is known here")
    raise CheckpointError(f"{name} is {what}", "unsupported_pipeline")
