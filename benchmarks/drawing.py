"""Engine against diffusers' pipeline in eager float32: the same weights, threads, seeds and step counts, on each backend, in one run."""

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

from pipelines.card import ModelCard
from pipelines.denoiser import Denoiser, batch_invariant
from pipelines.engine.engine import Engine
from pipelines.engine.events import Finished
from pipelines.engine.sample import Sample
from pipelines.params import GenerationParams
from pipelines.planning import Stages, table_for

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
    """Best seconds of each side over the repeats, and how far the pictures are apart: relative L2, and the largest pixel (0 to 1)."""

    jobs: int
    diffusers_s: float
    celadon_s: float
    outside: float  # share of Celadon's time outside U-Net, VAE and text encoder
    relative: float
    difference: float
    rows: str
    shares: Shares = field(default_factory=Shares)


def workload(card: ModelCard, count: int, steps: int) -> list[GenerationParams]:
    """`count` jobs of the default size; the samplers take turns."""
    names = list(SCHEDULERS)
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


def compare(stages: Stages, denoiser: Denoiser, pipe: StableDiffusionPipeline, jobs: list[GenerationParams], repeats: int) -> Result:
    """Both sides by turns; the best of the repeats counts for each, since a neighbour can only slow a run down."""
    theirs = ours = float("inf")
    shape = stages.latent_shape(jobs[0].width, jobs[0].height)
    rows = None if batch_invariant(denoiser, shape, stages.encode("")) else 2
    shares, pictures, references = Shares(), [], []
    for _ in range(repeats):
        seconds, references = timed(lambda: [diffusers_picture(pipe, stages, job) for job in jobs])
        theirs = min(theirs, seconds)
        spent = Shares()
        seconds, pictures = timed(lambda s=spent: engine_pictures(stages, Stopwatch(denoiser, s), jobs, s, rows))
        if seconds < ours:
            ours, shares = seconds, spent
    outside = 1 - (shares.unet + shares.vae + shares.text) / ours
    away = [a.astype(float) - b.astype(float) for a, b in zip(pictures, references, strict=True)]
    relative = max(float(np.linalg.norm(d) / np.linalg.norm(b.astype(float))) for d, b in zip(away, references, strict=True))
    largest = max(float(np.abs(d).max()) for d in away) / PIXELS
    return Result(len(jobs), theirs, ours, outside, relative, largest, str(rows or "any"), shares)


def diffusers_picture(pipe: StableDiffusionPipeline, stages: Stages, job: GenerationParams) -> np.ndarray:
    pipe.scheduler = SCHEDULERS[job.sampler].from_config(pipe.scheduler.config)
    image = pipe(
        job.prompt,
        num_inference_steps=job.steps,
        guidance_scale=job.guidance,
        guidance_rescale=stages.card.defaults.guidance_rescale,
        width=job.width,
        height=job.height,
        generator=torch.Generator("cpu").manual_seed(job.seed),
    ).images[0]
    return np.asarray(image)  # [H, W, 3]


def engine_pictures(stages: Stages, denoiser: Stopwatch, jobs: list[GenerationParams], spent: Shares, rows: int | None) -> list[np.ndarray]:
    """All jobs through one engine, text encoding and decoding included."""
    engine = Engine(denoiser, slots=len(jobs), max_rows=2 * len(jobs), rows=rows)
    start = time.perf_counter()
    prompts = {text: stages.encode(text) for text in {"", *(j.prompt for j in jobs)}}
    spent.text += time.perf_counter() - start
    for i, job in enumerate(jobs):
        engine.add(
            Sample(
                id=str(i),
                table=table_for(stages, job),
                shape=stages.latent_shape(job.width, job.height),
                seed=job.seed,
                cond=prompts[job.prompt],
                uncond=prompts[""],
                guidance=job.guidance,
                guidance_rescale=stages.card.defaults.guidance_rescale,
            )
        )
    pictures: dict[int, np.ndarray] = {}
    while engine.busy:
        for event in engine.step(time.perf_counter()):
            if isinstance(event, Finished):
                start = time.perf_counter()
                pictures[int(event.sample_id)] = stages.decode(event.latents)
                spent.vae += time.perf_counter() - start
    return [pictures[i] for i in range(len(jobs))]


class Stopwatch:
    """A denoiser that adds up the time of its calls."""

    def __init__(self, inner: Denoiser, spent: Shares) -> None:
        self._inner, self.xp, self.device, self._spent = inner, inner.xp, inner.device, spent

    def __call__(self, x: Any, timestep: Any, context: Any) -> Any:
        start = time.perf_counter()
        out = self._inner(x, timestep, context)
        self._spent.unet += time.perf_counter() - start
        return out


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result
