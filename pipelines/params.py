"""What a picture is asked for by: the one request record that every dialect translates to. Standard library only."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal["text_to_image"]
OutputFormat = Literal["png", "jpeg", "webp"]

MEDIA_TYPES: Mapping[str, str] = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}
EXTENSIONS: Mapping[str, str] = {"png": "png", "jpeg": "jpg", "webp": "webp"}

SEED_LIMIT = 2**32  # seeds are 0 .. 2^32-1: torch's CPU generator keeps no more of them


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationParams:
    """Everything that decides the picture, with every default already filled in.

    Width and height are pixels. `seed` belongs to image 0; image i uses `image_seed(i)`.
    """

    prompt: str
    model: str
    width: int
    height: int
    steps: int
    guidance: float
    sampler: str
    schedule: str
    seed: int
    negative_prompt: str = ""
    sampler_options: Mapping[str, Any] = field(default_factory=dict)
    schedule_options: Mapping[str, Any] = field(default_factory=dict)
    num_images: int = 1
    output_format: OutputFormat = "png"
    preview: bool = False
    kind: Kind = "text_to_image"

    def image_seed(self, index: int) -> int:
        """The seed of image `index` of this request; it wraps at 2^32."""
        return (self.seed + index) % SEED_LIMIT

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dict with every field."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> GenerationParams:
        """The inverse of `to_dict`. Raises TypeError on missing or unknown fields."""
        return cls(**data)
