"""The two processes of diffusion on a real model, level by level: a picture that dissolves (q) and one that forms (p)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipelines.conditioning import vector
from pipelines.denoiser import Denoiser
from pipelines.engine.engine import Engine
from pipelines.engine.events import Failed, Finished, Preview
from pipelines.engine.sample import Sample
from pipelines.noise import NormalStream
from pipelines.params import GenerationParams
from pipelines.planning import Stages, negative_of, scale_for
from pipelines.step_table import StepTable

Float32 = NDArray[np.float32]


class Forming(NamedTuple):
    """One level on the way from noise to a picture: latents [C, h, w] as the model was asked with, and its estimate of the clean ones."""

    row: int
    x: Float32
    denoised: Float32


def forward(x0: Float32, table: StepTable, seed: int) -> Iterator[Float32]:
    """q(x_t | x_0): latents [C, h, w] at each level of a table, from the least noise to the most; one noise for all of them.

    x_t = alpha x_0 + sigma noise (arXiv 2006.11239, equation 4).
    """
    noise = NormalStream(seed).draw(x0.shape)
    for alpha, sigma in zip(table.alpha[::-1], table.sigma[::-1], strict=True):
        yield np.float32(alpha) * x0 + np.float32(sigma) * noise


def backward(
    stages: Stages, denoiser: Denoiser, table: StepTable, prompt: str, seed: int, guidance: float
) -> tuple[list[Forming], Float32]:
    """p(x_t-1 | x_t): what the engine holds before every row and the previews that it gives, and the clean latents at the end.

    Raises ValueError where the model's values are not finite.
    """
    card = stages.card
    engine = Engine(denoiser, slots=1, preview_interval_s=0.0)
    params = GenerationParams(
        prompt=prompt, model=card.id, width=card.width, height=card.height, steps=int(table.step[-1]) + 1, guidance=guidance, sampler="",
        schedule="", seed=seed,
    )  # fmt: skip
    cond, uncond = (stages.encode(text) for text in (prompt, negative_of(stages, params)))
    engine.add(Sample(
        id="p", table=table, shape=stages.latent_shape(card.width, card.height), seed=seed, cond=cond.states, uncond=uncond.states,
        told=vector(stages.told, params, cond), uncond_told=vector(stages.told, params, uncond), guidance=scale_for(stages, params),
        guidance_rescale=card.defaults.guidance_rescale, preview=True,
    ))  # fmt: skip
    found: list[Forming] = []
    for row in range(len(table)):
        saved = engine.export("p")
        assert saved is not None, "it is in flight until its last row"
        for event in engine.step(float(row)):
            if isinstance(event, Preview):
                found.append(Forming(row, saved.registers[0].copy(), _host(event.denoised)))
            elif isinstance(event, Finished):
                found.append(Forming(row, saved.registers[0].copy(), _host(event.latents)))  # the last row lands on its estimate
            elif isinstance(event, Failed):
                raise ValueError(event.message)
    return found, found[-1].denoised


def _host(array: object) -> Float32:
    return np.asarray(array.cpu() if hasattr(array, "cpu") else array, dtype=np.float32)
