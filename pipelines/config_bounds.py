"""Numbers of a checkpoint's configs that nothing could be built with, refused before something tries for hours."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

# The least and the most, far beyond any model that exists. What a config does not say, or says as null, has its usual value.
COUNTS: Mapping[str, tuple[int, int]] = {
    "num_train_timesteps": (2, 100_000),
    "num_hidden_layers": (1, 256),
    "num_attention_heads": (1, 4096),
    "attention_head_dim": (1, 4096),
    "layers_per_block": (1, 64),
    "transformer_layers_per_block": (0, 256),
    "reverse_transformer_layers_per_block": (0, 256),
    "norm_num_groups": (1, 4096),
    "block_out_channels": (1, 65_536),
    "cross_attention_dim": (1, 65_536),
    "hidden_size": (1, 65_536),
    "intermediate_size": (1, 1_048_576),
    "in_channels": (1, 4096),
    "out_channels": (1, 4096),
    "latent_channels": (1, 4096),
    "sample_size": (1, 65_536),
    "vocab_size": (1, 10_000_000),
    "max_position_embeddings": (1, 65_536),
    "projection_dim": (1, 65_536),
    "time_embedding_dim": (1, 1_048_576),
    "time_cond_proj_dim": (1, 65_536),
    "addition_time_embed_dim": (1, 65_536),
    "projection_class_embeddings_input_dim": (1, 1_048_576),
    "conv_in_kernel": (1, 31),
    "conv_out_kernel": (1, 31),
    "downsample_padding": (0, 1),
    "bos_token_id": (-1, 10_000_000),
    "eos_token_id": (-1, 10_000_000),
    "pad_token_id": (-1, 10_000_000),
}
FRACTIONS: Mapping[str, tuple[float, float]] = {
    "norm_eps": (1e-12, 1.0),
    "layer_norm_eps": (1e-12, 1.0),
    "freq_shift": (0.0, 1.0),
    "dropout": (0.0, 1.0),
    "resnet_out_scale_factor": (1e-3, 1e3),
    "mid_block_scale_factor": (1e-3, 1e3),
}
MOST_PX = 65_536  # of a side
NESTED = 2  # lists in lists: blocks, and their layers


def check_counts(part: str, config: Mapping[str, Any]) -> None:
    """Raises ValueError, naming part and field, for a count that is none or out of bounds, and for a scale that latents cannot have."""
    for name, (least, most) in COUNTS.items():
        for value in _numbers(config.get(name)):
            if type(value) is not int or not least <= value <= most:
                raise ValueError(f"{name} of {part} is no whole number from {least} to {most}")
    for name, (low, high) in FRACTIONS.items():
        if config.get(name) is not None and not within(config[name], low, high):
            raise ValueError(f"{name} of {part} is no number from {low:g} to {high:g}")
    scale, shift = config.get("scaling_factor"), config.get("shift_factor")
    if scale is not None and not (_finite(scale) and scale > 0):
        raise ValueError(f"scaling_factor of {part} is no number above 0")
    if shift is not None and not _finite(shift):
        raise ValueError(f"shift_factor of {part} is no number")


def check_said(said: Mapping[str, Any], latents: int) -> None:
    """Of a celadon.json. Raises ValueError, naming the field, for what is no text, no number, or no map of `latents` channels to RGB."""
    for name in ("id", "title", "description", "license"):
        if not isinstance(said.get(name, ""), str):
            raise ValueError(f"{name} of celadon.json is no text")
    words, defaults = said.get("words", []), said.get("defaults", {})
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise ValueError("words of celadon.json is no list of words")
    if type(defaults.get("steps", 1)) is not int or not all(isinstance(defaults.get(name, ""), str) for name in ("sampler", "schedule")):
        raise ValueError("defaults of celadon.json: sampler and schedule are names, steps is a whole number")
    for name, (low, high) in {"steps": (1, 1000), "guidance": (0.0, 100.0), "guidance_rescale": (0.0, 1.0)}.items():
        if not within(defaults.get(name, low), low, high):
            raise ValueError(f"defaults.{name} of celadon.json is no number from {low:g} to {high:g}")
    for name in ("max_width", "max_height"):
        if not within(said.get(name, 1), 1, MOST_PX):
            raise ValueError(f"{name} of celadon.json is beyond {MOST_PX}")
    if (rgb := said.get("latent_rgb")) is not None:
        rows = [*rgb["matrix"], rgb["bias"]]
        if len(rows) != latents + 1 or not all(len(row) == 3 and all(map(_finite, row)) for row in rows):
            raise ValueError(f"latent_rgb of celadon.json is no matrix of {latents} x 3 and a bias of 3")


def within(value: Any, low: float, high: float) -> bool:
    """Whether it is a number, and between these, both included."""
    return _finite(value) and low <= value <= high


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _numbers(value: Any, depth: int = NESTED) -> Iterator[Any]:
    """A number, or those of lists; what lies deeper comes as it is, and is no number."""
    if isinstance(value, list) and depth:
        for inner in value:
            yield from _numbers(inner, depth - 1)
    elif value is not None:
        yield value
