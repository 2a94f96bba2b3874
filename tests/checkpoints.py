"""Small random checkpoints of other architectures than the shipped model's, written by diffusers' own save_pretrained."""

from __future__ import annotations

from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    LatentConsistencyModelPipeline,
    LCMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from training.text import CONTEXT, build_tokenizer

NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
SMALL = {"feature_extractor": None, "safety_checker": None, "requires_safety_checker": False}


def write(folder: Path, architecture: str, seed: int = 0) -> Path:
    """SD's `sd1`, `sd2` (v-prediction), `lcm`, `turbo`, or SDXL's `sdxl`, `sdxl-turbo`, `sdxl-lcm`. The same seed, the same files."""
    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    (_sdxl if architecture.startswith("sdxl") else _sd)(architecture).save_pretrained(folder, safe_serialization=True)
    torch.random.set_rng_state(state)
    return folder


_tokenizer = cache(build_tokenizer)  # it learns its merges anew every time


def _scheduler(architecture: str) -> Any:
    if architecture.endswith("lcm"):
        return LCMScheduler(**NOISE, set_alpha_to_one=True)
    if architecture.endswith("turbo"):
        return EulerAncestralDiscreteScheduler(**NOISE, timestep_spacing="trailing")
    if architecture == "sd2":
        return DDIMScheduler(**NOISE, prediction_type="v_prediction", set_alpha_to_one=False, clip_sample=False)
    if architecture == "sdxl":
        return EulerDiscreteScheduler(**NOISE, timestep_spacing="leading", interpolation_type="linear")
    return DDIMScheduler(**NOISE, set_alpha_to_one=False, clip_sample=False)


def _sd(architecture: str) -> Any:
    tokenizer = _tokenizer()
    text = CLIPTextModel(_text(tokenizer, 20, 5))
    unet = _unet(20, time_cond_proj_dim=14 if architecture == "lcm" else None, use_linear_projection=architecture == "sd2")
    kind = LatentConsistencyModelPipeline if architecture == "lcm" else StableDiffusionPipeline
    return kind(_vae(), text, tokenizer, unet, _scheduler(architecture), **SMALL)


def _sdxl(architecture: str) -> Any:
    tokenizer, other = _tokenizer(), deepcopy(_tokenizer())
    other.pad_token = "!"  # as SDXL's second one
    first, second = CLIPTextModel(_text(tokenizer, 20, 5)), CLIPTextModelWithProjection(_text(tokenizer, 28, 7, act="gelu", projection=22))
    unet = _unet(
        48, addition_embed_type="text_time", addition_time_embed_dim=6, projection_class_embeddings_input_dim=22 + 36,
        transformer_layers_per_block=(1, 2), use_linear_projection=True, time_cond_proj_dim=14 if architecture == "sdxl-lcm" else None,
    )  # fmt: skip
    return StableDiffusionXLPipeline(
        _vae(0.13025), first, second, tokenizer, other, unet, _scheduler(architecture), feature_extractor=None, add_watermarker=False
    )


def _text(tokenizer: CLIPTokenizer, width: int, heads: int, act: str = "quick_gelu", projection: int = 20) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=3 * width, num_hidden_layers=3, num_attention_heads=heads,
        max_position_embeddings=CONTEXT, projection_dim=projection, hidden_act=act, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip


def _unet(context: int, **further: Any) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=16, layers_per_block=1, block_out_channels=(12, 20), down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), cross_attention_dim=context, attention_head_dim=(3, 5), norm_num_groups=4,
        **further,
    )  # fmt: skip


def _vae(scaling: float = 0.18215) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(6, 10, 14), norm_num_groups=2, layers_per_block=1, latent_channels=4, sample_size=64, scaling_factor=scaling,
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
    )  # fmt: skip
