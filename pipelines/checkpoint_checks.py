"""Whether the parts of a checkpoint are what their configs say, and belong together: before anything is loaded, on every backend."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipelines.checkpoint_error import CheckpointError, Code
from pipelines.tokens import check_tokenizer
from pipelines.weight_files import Tensor
from pipelines.weight_shapes import Shapes, check_weights, text_shapes, unet_shapes, vae_shapes

Config = Mapping[str, Any]

CODES: Mapping[str, Code] = {"unet": "unsupported_unet", "vae": "unsupported_vae"}
BOTH_WAYS = ["AttnSkip", "SimpleCrossAttn", "CrossAttn", "KCrossAttn", "AttnEncoder", "Attn", "Skip", "K"]
ACTIVATIONS = frozenset({"swish", "silu", "mish", "gelu", "relu"})  # of diffusers
MIDDLES = frozenset({"UNetMidBlock2DCrossAttn", "UNetMidBlock2DSimpleCrossAttn", "UNetMidBlock2D", None})
DOWN = frozenset({f"{kind}DownBlock2D" for kind in ("", *BOTH_WAYS)} | {"ResnetDownsampleBlock2D"})
UP = frozenset({f"{kind}UpBlock2D" for kind in ("", *BOTH_WAYS)} | {"ResnetUpsampleBlock2D"})
KINDS: Mapping[str, Mapping[str, frozenset[str | None]]] = {  # that the libraries know
    "unet": {"down_block_types": DOWN, "up_block_types": UP, "mid_block_type": MIDDLES, "act_fn": ACTIVATIONS},
    "vae": {
        "down_block_types": frozenset({"DownEncoderBlock2D", "AttnDownEncoderBlock2D"}),
        "up_block_types": frozenset({"UpDecoderBlock2D", "AttnUpDecoderBlock2D"}), "act_fn": ACTIVATIONS,
    },
    "text_encoder": {
        "hidden_act": frozenset({"quick_gelu", "gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "relu", "silu", "swish", "tanh"}),
        "dtype": frozenset({"float64", "float32", "float16", "bfloat16", None}),
        "torch_dtype": frozenset({"float64", "float32", "float16", "bfloat16", None}),
        "_attn_implementation": frozenset({"eager", "sdpa", None}), "attn_implementation": frozenset({"eager", "sdpa", None}),
    },
}  # fmt: skip


def check_parts(folder: Path, configs: Mapping[str, Config], tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Raises CheckpointError, or ValueError for a config that contradicts itself. `tensors` are those that the files of each part hold."""
    for part, config in configs.items():
        _check_kinds(part, config)
    for part, found in tensors.items():
        shapes = _shapes(part, configs[part])
        if shapes is not None:  # of other U-Nets and VAEs torch knows more
            check_weights(part, shapes, found)
    _check_widths(folder, configs)
    for part, config in configs.items():
        if part.startswith("text_encoder"):
            check_tokenizer(folder / part.replace("text_encoder", "tokenizer"), config.get("vocab_size", 49408))


def _check_kinds(part: str, config: Config) -> None:
    code = CODES.get(part, "bad_config")
    if config.get("quantization_config"):
        raise CheckpointError(f"{part} asks for a library that reads quantized weights, which is not done here", code)
    for name, known in KINDS.get(part.removesuffix("_2"), {}).items():
        value = config.get(name)
        for kind in value if isinstance(value, list) else [value] * (name in config):
            if not isinstance(kind, str | None) or kind not in known:
                raise CheckpointError(f"{part}: {name} {kind!r} is not known here", code)


def _shapes(part: str, config: Config) -> Shapes | None:
    if part == "unet":
        return unet_shapes(config)
    return vae_shapes(config) if part == "vae" else text_shapes(config, projects=part.endswith("_2"))


def _check_widths(folder: Path, configs: Mapping[str, Config]) -> None:
    """What one part makes is what the next one takes."""
    unet, latents = configs["unet"], configs["vae"].get("latent_channels", 4)
    if (channels := unet.get("out_channels", 4)) != latents:
        raise CheckpointError(f"the U-Net of {folder.name} makes {channels} channels, latents have {latents}", "unsupported_unet")
    made = sum(config.get("hidden_size", 512) for part, config in configs.items() if part.startswith("text_encoder"))
    takes = unet.get("cross_attention_dim", 1280)
    if not unet.get("encoder_hid_dim") and any(width != made for width in (takes if isinstance(takes, list) else [takes])):
        message = f"the U-Net of {folder.name} reads texts of width {takes}; its text encoders make {made}"
        raise CheckpointError(message, "unsupported_unet")
