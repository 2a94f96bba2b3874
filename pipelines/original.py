"""What single files leave out: the configs of the original releases, and CLIP's vocabulary, written as a folder in diffusers layout.

The merges are those of OpenAI's CLIP (MIT licence, github.com/openai/CLIP), in its own order.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MERGES = Path(__file__).with_name("clip_merges.txt.gz")
START, END = "<|startoftext|>", "<|endoftext|>"
WORDS = 49_408  # of CLIP's vocabulary

Config = dict[str, Any]

CROSS, PLAIN, UP, PLAIN_UP = "CrossAttnDownBlock2D", "DownBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"
UNET: Config = {
    "_class_name": "UNet2DConditionModel", "in_channels": 4, "out_channels": 4, "layers_per_block": 2, "norm_num_groups": 32,
    "block_out_channels": [320, 640, 1280, 1280], "down_block_types": [CROSS, CROSS, CROSS, PLAIN],
    "up_block_types": [PLAIN_UP, UP, UP, UP], "attention_head_dim": 8, "cross_attention_dim": 768, "sample_size": 64,
}  # fmt: skip
VAE: Config = {
    "_class_name": "AutoencoderKL", "block_out_channels": [128, 256, 512, 512], "layers_per_block": 2, "latent_channels": 4,
    "norm_num_groups": 32, "sample_size": 512, "scaling_factor": 0.18215, "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}  # fmt: skip
TEXT: Config = {
    "architectures": ["CLIPTextModel"], "model_type": "clip_text_model", "hidden_size": 768, "intermediate_size": 3072,
    "num_hidden_layers": 12, "num_attention_heads": 12, "hidden_act": "quick_gelu", "projection_dim": 768, "vocab_size": WORDS,
    "max_position_embeddings": 77, "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1, "layer_norm_eps": 1e-5,
}  # fmt: skip
NOISE: Config = {
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000, "steps_offset": 1,
    "set_alpha_to_one": False, "clip_sample": False, "prediction_type": "epsilon",
}  # fmt: skip

SD1: Mapping[str, Config] = {
    "unet": UNET, "vae": VAE, "text_encoder": TEXT, "scheduler": NOISE | {"_class_name": "PNDMScheduler", "skip_prk_steps": True},
}  # fmt: skip
SD2: Mapping[str, Config] = {
    "unet": UNET | {"attention_head_dim": [5, 10, 20, 20], "cross_attention_dim": 1024, "use_linear_projection": True, "sample_size": 96},
    "vae": VAE | {"sample_size": 768},
    "text_encoder": TEXT
    | {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23, "num_attention_heads": 16, "hidden_act": "gelu"}
    | {"projection_dim": 512},
    "scheduler": NOISE | {"_class_name": "DDIMScheduler", "prediction_type": "v_prediction"},
}
SDXL: Mapping[str, Config] = {
    "unet": UNET
    | {"block_out_channels": [320, 640, 1280], "down_block_types": [PLAIN, CROSS, CROSS], "up_block_types": [UP, UP, PLAIN_UP]}
    | {"attention_head_dim": [5, 10, 20], "cross_attention_dim": 2048, "use_linear_projection": True, "sample_size": 128}
    | {"transformer_layers_per_block": [1, 2, 10], "addition_embed_type": "text_time", "addition_time_embed_dim": 256}
    | {"projection_class_embeddings_input_dim": 2816},
    "vae": VAE | {"sample_size": 1024, "scaling_factor": 0.13025, "force_upcast": True},
    "text_encoder": TEXT,
    "text_encoder_2": TEXT
    | {"architectures": ["CLIPTextModelWithProjection"], "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32}
    | {"num_attention_heads": 20, "hidden_act": "gelu", "projection_dim": 1280},
    "scheduler": NOISE | {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "leading", "interpolation_type": "linear"},
}
RELEASES: Mapping[str, Mapping[str, Config]] = {"sd1": SD1, "sd2": SD2, "sdxl": SDXL}
PIPELINES = {"sd1": "StableDiffusionPipeline", "sd2": "StableDiffusionPipeline", "sdxl": "StableDiffusionXLPipeline"}


def write_configs(folder: Path, release: str) -> None:
    """Everything of a checkpoint of that release but its weights."""
    parts = RELEASES[release]
    index = {name: ["diffusers", config.get("_class_name")] for name, config in parts.items() if "_class_name" in config}
    index |= {name: ["transformers", config["architectures"][0]] for name, config in parts.items() if "architectures" in config}
    for name, config in parts.items():
        _write(folder / name / ("scheduler_config.json" if name == "scheduler" else "config.json"), config)
    for name in parts:
        if name.startswith("text_encoder"):
            _write_tokenizer(folder / name.replace("text_encoder", "tokenizer"), "!" if name.endswith("_2") or release == "sd2" else END)
            index[name.replace("text_encoder", "tokenizer")] = ["transformers", "CLIPTokenizer"]
    _write(folder / "model_index.json", {"_class_name": PIPELINES[release], **index})


def _write(path: Path, config: Config) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


def _write_tokenizer(folder: Path, pad: str) -> None:
    merges, words = vocabulary()
    marks = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": pad}
    _write(folder / "tokenizer_config.json", {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "do_lower_case": True, **marks})
    _write(folder / "special_tokens_map.json", marks)
    (folder / "vocab.json").write_text(json.dumps(words, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")


def vocabulary() -> tuple[list[str], dict[str, int]]:
    """CLIP's merges, and its words by number: bytes, bytes that end a word, merges, start, end."""
    count = WORDS - 2 * 256 - 2
    merges = gzip.decompress(MERGES.read_bytes()).decode("utf-8").split("\n")[1 : 1 + count]
    letters = _letters()
    words = [*letters, *(letter + "</w>" for letter in letters), *("".join(merge.split()) for merge in merges), START, END]
    return merges, {word: number for number, word in enumerate(words)}


def _letters() -> list[str]:
    """One printable letter for each byte, those first that are printable themselves (GPT-2's bytes_to_unicode)."""
    own = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return [chr(byte) for byte in own] + [chr(256 + i) for i in range(256 - len(own))]
