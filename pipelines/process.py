"""The two processes of diffusion on a real model, level by level: a picture that dissolves (q) and one that forms (p)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from pipelines.denoiser_torch import TorchDenoiser
from pipelines.engine.engine import Engine
from pipelines.engine.events import Failed, Finished, Preview
from pipelines.engine.sample import Sample
from pipelines.loading import Checkpoint
from pipelines.noise import NormalStream
from pipelines.planning import Pixels
from pipelines.step_table import StepTable
from pipelines.text_to_image import encode_prompt

Float32 = NDArray[np.float32]


class Forming(NamedTuple):
    """One level on the way from noise to a picture: latents [C, h, w] as the model was asked with, and its estimate of the clean ones."""

    row: int
    x: Float32
    denoised: Float32


@torch.inference_mode()
def encode_picture(checkpoint: Checkpoint, pixels: Pixels) -> Float32:
    """Picture [H, W, 3] -> the mean of its latents [C, h, w], in the space that the U-Net works in."""
    vae = checkpoint.vae
    x = torch.from_numpy(pixels.astype(np.float32) / 127.5 - 1).permute(2, 0, 1)[None].to(checkpoint.device, vae.dtype)
    z = vae.encode(x).latent_dist.mean[0].float()
    latents: Float32 = ((z - (vae.config.shift_factor or 0)) * vae.config.scaling_factor).cpu().numpy()
    return latents


def forward(x0: Float32, table: StepTable, seed: int) -> Iterator[Float32]:
    """q(x_t | x_0): latents [C, h, w] at each level of a table, from the least noise to the most; one noise for all of them.

    x_t = alpha x_0 + sigma noise (arXiv 2006.11239, equation 4).
    """
    noise = NormalStream(seed).draw(x0.shape)
    for alpha, sigma in zip(table.alpha[::-1], table.sigma[::-1], strict=True):
        yield np.float32(alpha) * x0 + np.float32(sigma) * noise


def backward(checkpoint: Checkpoint, table: StepTable, prompt: str, seed: int, guidance: float) -> tuple[list[Forming], Float32]:
    """p(x_t-1 | x_t): what the engine holds before every row and the previews that it gives, and the clean latents at the end.

    Raises ValueError where the model's values are not finite.
    """
    card = checkpoint.card
    denoiser = TorchDenoiser(checkpoint.unet, device=checkpoint.device, dtype=checkpoint.dtype)
    engine = Engine(denoiser, slots=1, preview_interval_s=0.0)
    cond, uncond = (denoiser.xp.asarray(encode_prompt(checkpoint, text).cpu().numpy(), device=denoiser.device) for text in (prompt, ""))
    shape = checkpoint.latent_shape(card.width, card.height)
    rescale = card.defaults.guidance_rescale
    engine.add(
        Sample(
            id="p", table=table, shape=shape, seed=seed, cond=cond, uncond=uncond, guidance=guidance, guidance_rescale=rescale, preview=True
        )
    )
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
