"""Numbers of a checkpoint's configs that nothing could be built with, refused before something tries for hours."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

# The least and the most, far beyond any model that exists. What a config does not say, or says as null, has its usual value.
COUNTS: Mapping[str, tuple[int, int]] = {
    "num_train_timesteps": (1, 100_000),
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
}
NESTED = 2  # lists in lists: blocks, and their layers


def check_counts(part: str, config: Mapping[str, Any]) -> None:
    """Raises ValueError, naming part and field, for a count that is none or out of bounds, and for a scale that latents cannot have."""
    for name, (least, most) in COUNTS.items():
        for value in _numbers(config.get(name)):
            if type(value) is not int or not least <= value <= most:
                raise ValueError(f"{name} of {part} is no whole number from {least} to {most}")
    scale, shift = config.get("scaling_factor"), config.get("shift_factor")
    if scale is not None and not (_finite(scale) and scale > 0):
        raise ValueError(f"scaling_factor of {part} is no number above 0")
    if shift is not None and not _finite(shift):
        raise ValueError(f"shift_factor of {part} is no number")


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _numbers(value: Any, depth: int = NESTED) -> Iterator[Any]:
    """A number, or those of lists; what lies deeper comes as it is, and is no number."""
    if isinstance(value, list) and depth:
        for inner in value:
            yield from _numbers(inner, depth - 1)
    elif value is not None:
        yield value
