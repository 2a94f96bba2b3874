"""What a U-Net is told beside timestep and text: one vector a row, which its time embedding takes in.

SDXL is told the pooled text and six sizes (arXiv 2307.01952, section 2.2); a model with distilled guidance the scale that it imitates
(arXiv 2310.04378, section 4.3), and it is asked once a row instead of twice. The vector is `[scale embedding, pooled text, sizes]`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.params import GenerationParams

Array = Any

SIZES = ("original_size", "crop", "target_size")  # of SDXL, each [width, height] or [left, top]


@dataclass(frozen=True, slots=True, eq=False)
class Text:
    """What the text encoders say of a prompt: states [L, E] on the model's device, and of SDXL's second one a vector [P]."""

    states: Array
    pooled: NDArray[np.float32] | None = None


@dataclass(frozen=True, slots=True)
class Told:
    """The parts of the vector and their widths; 0 where a model is not told."""

    scale: int = 0
    pooled: int = 0
    sizes: int = 0

    @property
    def width(self) -> int:
        return self.scale + self.pooled + self.sizes

    @classmethod
    def from_config(cls, unet: Mapping[str, Any]) -> Told:
        """As the U-Net's config has it. Raises ValueError for additions that nothing here makes."""
        scale, kind = unet.get("time_cond_proj_dim") or 0, unet.get("addition_embed_type")
        if unet.get("class_embed_type") or unet.get("num_class_embeds") or unet.get("encoder_hid_dim_type") not in (None, "text_proj"):
            raise ValueError("the U-Net takes a class or a picture beside the text, which is not built here")
        if kind is None:
            return cls(scale=scale)
        if kind != "text_time":
            raise ValueError(f"the U-Net takes {kind} beside the text, which is not built here")
        sizes = 2 * len(SIZES)
        pooled = int(unet["projection_class_embeddings_input_dim"]) - sizes * int(unet["addition_time_embed_dim"])
        if pooled <= 0:
            raise ValueError("the U-Net takes other sizes than SDXL's six, as its refiner does, which is not built here")
        return cls(scale, pooled, sizes)


def vector(told: Told, params: GenerationParams, text: Text) -> NDArray[np.float32] | None:
    """[told.width] for one prompt of a request, or None where the model is told nothing."""
    if not told.width:
        return None
    parts = [scale_embedding(params.guidance - 1, told.scale)] if told.scale else []
    if told.sizes:
        assert text.pooled is not None, "a model that is told sizes pools its text"
        parts += [text.pooled, np.array(size_ids(params), np.float32)]
    return np.concatenate(parts)


def size_ids(params: GenerationParams) -> tuple[int, ...]:
    """SDXL's order: original height and width, crop top and left, target height and width; the whole picture unless asked otherwise."""
    asked = {"original_size": (params.width, params.height), "crop": (0, 0), "target_size": (params.width, params.height)}
    return tuple(number for name in SIZES for number in reversed((asked | dict(params.size_conditioning))[name]))


def scale_embedding(scale: float, width: int) -> NDArray[np.float32]:
    """diffusers' get_guidance_scale_embedding of one scale: [width]."""
    half = width // 2
    rate = -np.float32(np.log(10000.0)) / np.float32(half - 1)
    angles = np.float32(scale) * np.float32(1000) * np.exp(np.arange(half, dtype=np.float32) * rate)
    return np.concatenate([np.sin(angles), np.cos(angles), np.zeros(width % 2, np.float32)]).astype(np.float32)
