"""Engine against diffusers' pipeline: the same weights, threads, dtype, seeds and step counts, in one run."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    UniPCMultistepScheduler,
)

from pipelines.denoiser import batch_invariant
from pipelines.denoiser_torch import TorchDenoiser
from pipelines.engine.engine import Engine
from pipelines.engine.events import Finished
from pipelines.engine.sample import Sample
from pipelines.loading import Checkpoint
from pipelines.params import GenerationParams
from pipelines.planning import table_for
from pipelines.text_to_image import decode, encode_prompt

SCHEDULERS: dict[str, Any] = {
    "ddim": DDIMScheduler,
    "euler": EulerDiscreteScheduler,
    "dpmpp_2m": DPMSolverMultistepScheduler,
    "unipc": UniPCMultistepScheduler,
}
SUBJECTS = ("a red apple", "a car on a blue background", "a cat", "a green tree", "two frogs", "a house", "pizza", "a dog")
PIXELS = 255.0


@dataclass(slots=True)
class Shares:
    """Seconds inside the model's modules during one run."""

    unet: float = 0.0
    vae: float = 0.0
    text: float = 0.0


@dataclass(frozen=True, slots=True)
class Result:
    """Best seconds of each side over the repeats, and how far the pictures are apart (0 to 1)."""

    jobs: int
    diffusers_s: float
    celadon_s: float
    outside: float  # share of Celadon's time outside U-Net, VAE and text encoder
    difference: float
    rows: str
    shares: Shares = field(default_factory=Shares)


def workload(checkpoint: Checkpoint, count: int, steps: int) -> list[GenerationParams]:
    """`count` jobs of the default size; the samplers take turns."""
    card, names = checkpoint.card, list(SCHEDULERS)
    return [
        GenerationParams(
            prompt=SUBJECTS[i % len(SUBJECTS)],
            model=card.id,
            width=card.width,
            height=card.height,
            steps=steps,
            guidance=card.defaults.guidance,
            sampler=names[i % len(names)],
            schedule="auto",
            seed=i,
        )
        for i in range(count)
    ]


def compare(checkpoint: Checkpoint, pipe: StableDiffusionPipeline, jobs: list[GenerationParams], repeats: int) -> Result:
    """Both sides by turns; the best of the repeats counts for each, since a neighbour can only slow a run down."""
    theirs = ours = float("inf")
    shares, pictures, references, rows = Shares(), [], [], ""
    for _ in range(repeats):
        seconds, references = timed(lambda: [diffusers_picture(pipe, checkpoint, job) for job in jobs])
        theirs = min(theirs, seconds)
        spent = Shares()
        denoiser = Stopwatch(checkpoint, spent)
        shape = checkpoint.latent_shape(jobs[0].width, jobs[0].height)
        fixed = None if batch_invariant(denoiser.inner, shape, encode_prompt(checkpoint, "").numpy()) else 2
        rows = "any" if fixed is None else str(fixed)
        seconds, pictures = timed(lambda d=denoiser, s=spent, f=fixed: engine_pictures(checkpoint, d, jobs, s, f))
        if seconds < ours:
            ours, shares = seconds, spent
    outside = 1 - (shares.unet + shares.vae + shares.text) / ours
    difference = max(float(np.abs(a.astype(float) - b.astype(float)).max()) for a, b in zip(pictures, references, strict=True)) / PIXELS
    return Result(len(jobs), theirs, ours, outside, difference, rows, shares)


def diffusers_picture(pipe: StableDiffusionPipeline, checkpoint: Checkpoint, job: GenerationParams) -> np.ndarray:
    pipe.scheduler = SCHEDULERS[job.sampler].from_config(pipe.scheduler.config)
    image = pipe(
        job.prompt,
        num_inference_steps=job.steps,
        guidance_scale=job.guidance,
        guidance_rescale=checkpoint.card.defaults.guidance_rescale,
        width=job.width,
        height=job.height,
        generator=torch.Generator("cpu").manual_seed(job.seed),
    ).images[0]
    return np.asarray(image)  # [H, W, 3]


def engine_pictures(
    checkpoint: Checkpoint, denoiser: Stopwatch, jobs: list[GenerationParams], spent: Shares, rows: int | None
) -> list[np.ndarray]:
    """All jobs through one engine, text encoding and decoding included."""
    engine = Engine(denoiser, slots=len(jobs), max_rows=2 * len(jobs), rows=rows)
    start = time.perf_counter()
    prompts = {text: encode_prompt(checkpoint, text).numpy() for text in {"", *(j.prompt for j in jobs)}}
    spent.text += time.perf_counter() - start
    for i, job in enumerate(jobs):
        engine.add(
            Sample(
                id=str(i),
                table=table_for(checkpoint, job),
                shape=checkpoint.latent_shape(job.width, job.height),
                seed=job.seed,
                cond=prompts[job.prompt],
                uncond=prompts[""],
                guidance=job.guidance,
                guidance_rescale=checkpoint.card.defaults.guidance_rescale,
            )
        )
    pictures: dict[int, np.ndarray] = {}
    while engine.busy:
        for event in engine.step(time.perf_counter()):
            if isinstance(event, Finished):
                start = time.perf_counter()
                pictures[int(event.sample_id)] = decode(checkpoint, event.latents)
                spent.vae += time.perf_counter() - start
    return [pictures[i] for i in range(len(jobs))]


class Stopwatch:
    """A denoiser that adds up the time of its calls."""

    def __init__(self, checkpoint: Checkpoint, spent: Shares) -> None:
        self.inner = TorchDenoiser(checkpoint.unet, device=checkpoint.device, dtype=checkpoint.dtype)
        self.xp, self.device, self._spent = self.inner.xp, self.inner.device, spent

    def __call__(self, x: Any, timestep: Any, context: Any) -> Any:
        start = time.perf_counter()
        out = self.inner(x, timestep, context)
        self._spent.unet += time.perf_counter() - start
        return out


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result
