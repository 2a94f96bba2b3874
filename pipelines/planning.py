"""What a request means on a model, before any of it is computed: its rows, its guidance, and the cheap look at what forms."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pipelines.card import ModelCard
from pipelines.conditioning import Text, Told
from pipelines.guidance_plan import Plan, plan
from pipelines.known import Pixels, Posterior
from pipelines.ladder import Ladder
from pipelines.masks import DRAWN
from pipelines.params import GenerationParams
from pipelines.prompts import PLAIN, Reading
from pipelines.samplers import compile_table
from pipelines.solver_files import Solver
from pipelines.step_table import StepTable

Array = Any


class Known(Protocol):
    """What must be known of a model for that; both backends' models do."""

    @property
    def card(self) -> ModelCard: ...
    @property
    def ladder(self) -> Ladder: ...
    @property
    def latent_rgb(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]: ...
    @property
    def solvers(self) -> Mapping[str, Solver]: ...
    @property
    def unet_channels(self) -> int: ...
    @property
    def told(self) -> Told: ...
    @property
    def zero_negative(self) -> bool: ...
    def latent_shape(self, width: int, height: int) -> tuple[int, int, int]: ...


class Decoding(Protocol):
    """A picture that is being decoded."""

    @property
    def ready(self) -> bool: ...

    def pixels(self) -> Pixels:
        """[H, W, 3], waited for. Raises FloatingPointError where the VAE overflowed."""
        ...


class WhenAsked:
    """Is decoded when it is asked for."""

    ready = True

    def __init__(self, decode: Callable[[], Pixels]) -> None:
        self._decode = decode

    def pixels(self) -> Pixels:
        return self._decode()


class Stages(Known, Protocol):
    """The stages of a model around its U-Net; arrays are those of its denoiser.

    Each call takes one prompt or one picture: what comes out must not depend on what came along.
    """

    def tokens(self, prompt: str, reading: Reading = PLAIN) -> int:
        """How many tokens the prompt has, vectors of embeddings among them; the model reads the first `card.max_prompt_tokens`."""
        ...

    def encode(self, prompt: str | None, reading: Reading = PLAIN) -> Text:
        """What the text encoders say in float32, states [L, E]; zeros of None. Longer prompts are cut, or in A1111's syntax continued:
        [n L, E].
        """
        ...

    def decode(self, latents: Array, *, exact: bool = False) -> Pixels:
        """Latents [C, h, w] -> picture [H, W, 3], in the VAE's precision or (exact) in float32. Raises FloatingPointError where it
        overflows.
        """
        ...

    def begin(self, latents: Array) -> Decoding:
        """The same in the VAE's precision, beside what else the device is at where that is possible."""
        ...

    def encode_picture(self, pixels: Pixels, mask: Pixels | None = None) -> Posterior:
        """Picture [H, W, 3], its sides multiples of the card's, -> what the VAE's encoder says of its latents. What a mask [H, W] draws
        anew is hidden from it.
        """
        ...

    def enlarge(self, pixels: Pixels, seed: int) -> Pixels:
        """Picture [H, W, 3] -> [2H, 2W, 3], by the model's own network: of a model whose card names it among its `upscalers`."""
        ...


def table_for(model: Known, params: GenerationParams) -> StepTable:
    """The rows of these parameters on this model. Raises ValueError on an impossible combination."""
    if params.sampler in model.solvers:
        if params.kept != (0, params.steps):
            raise ValueError(f"{params.sampler} was learned for all of its steps; it cannot take a part of them")
        return model.solvers[params.sampler].table(model.ladder, params.steps)
    part = {"strength": params.strength, "start": params.start, "end": params.end}
    of_sampler, of_schedule = dict(params.sampler_options), dict(params.schedule_options)
    return compile_table(model.ladder, params.sampler, params.schedule, params.steps, of_sampler, of_schedule, **part)


def plan_for(model: Known, params: GenerationParams, table: StepTable) -> Plan:
    """The guidance of these parameters at each row of their table. Raises ValueError on an impossible combination."""
    return plan(scale_for(model, params), model.card.defaults.guidance_rescale, params.guidance_options, table.step)


def scale_for(model: Known, params: GenerationParams) -> float:
    """The scale that the engine guides with: none where the model is told it."""
    return 1.0 if model.told.scale else params.guidance


def negative_of(model: Known, params: GenerationParams) -> str | None:
    """The negative prompt; None where an empty one is no text at all, as diffusers has it for SDXL."""
    return params.negative_prompt or (None if model.zero_negative else "")


def preview(model: Known, denoised: NDArray[np.float32]) -> Pixels:
    """A cheap look at latents [C, h, w]: one linear map to RGB, one pixel per latent cell -> [h, w, 3]."""
    matrix, bias = model.latent_rgb
    rgb = np.einsum("chw,cr->hwr", denoised, matrix) + bias
    return np.asarray(np.round(np.clip(rgb, 0, 1) * 255), np.uint8)


class Seen(Enum):
    """How a picture came out of the VAE."""

    FINE = "fine"
    OVERFLOWED = "overflowed"  # values that were not finite; what float32 made of it is the picture
    BLACKENED = "blackened"  # every pixel was black, and in float32 not
    BLACK = "black"  # every pixel is black, in float32 too


def decoded(stages: Stages, latents: Array, begun: Decoding | None = None) -> tuple[Pixels, Seen]:
    """The picture, which may have been begun, and how it came: one that is not finite, or black all over, is decoded once more in
    float32. Raises FloatingPointError where it is not finite even then.
    """
    try:
        pixels = begun.pixels() if begun else stages.decode(latents)
    except FloatingPointError:
        if not np.isfinite(on_host(latents)).all():
            raise FloatingPointError("The U-Net returned values that are not finite; run the worker in float32 or bfloat16.") from None
        return stages.decode(latents, exact=True), Seen.OVERFLOWED
    if pixels.any():
        return pixels, Seen.FINE
    pixels = stages.decode(latents, exact=True)
    return pixels, Seen.BLACKENED if pixels.any() else Seen.BLACK


def from_pixels(pixels: Pixels, mask: Pixels | None = None) -> NDArray[np.float32]:
    """A picture [H, W, 3] -> [3, H, W] in -1..1, as a VAE's encoder takes it; 0 where a mask [H, W] draws it anew."""
    image = np.ascontiguousarray((pixels.astype(np.float32) / np.float32(255) * 2 - 1).transpose(2, 0, 1))
    return image if mask is None else image * (mask < DRAWN)


def to_pixels(image: NDArray[np.float32]) -> Pixels:
    """A decoded picture [3, H, W] in -1..1 -> [H, W, 3].

    Raises FloatingPointError where it is not finite, which would be a silent black picture.
    """
    if not np.isfinite(image).all():
        raise FloatingPointError("The VAE returned values that are not finite, in float32 too.")
    scaled = np.round(np.clip(image / 2 + 0.5, 0, 1) * 255)
    return np.ascontiguousarray(scaled.astype(np.uint8).transpose(1, 2, 0))


def on_host(array: Array) -> NDArray[np.float32]:
    """As numpy, from wherever it is."""
    return np.asarray(array.cpu() if hasattr(array, "cpu") else array)
