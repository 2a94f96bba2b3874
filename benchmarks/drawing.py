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


@dataclass(slots=True)
class Pictures:
    """What one side drew, in the order of the jobs: latents [C, h, w] and pixels [H, W, 3], 0 to 255."""

    latents: list[np.ndarray] = field(default_factory=list)
    pixels: list[np.ndarray] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Result:
    """Best seconds of each side over the repeats, and how far the results are apart.

    `latents` is the largest relative L2 of the latents, before the VAE; `relative` that of the pictures, whose pixels are whole
    numbers; `difference` the largest pixel (0 to 1).
    """

    jobs: int
    diffusers_s: float
    celadon_s: float
    outside: float  # share of Celadon's time outside U-Net, VAE and text encoder
    latents: float
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
    rows = None if batch_invariant(denoiser, shape, stages.encode("").states) else 2
    shares, pictures, references = Shares(), Pictures(), Pictures()
    for _ in range(repeats):
        seconds, references = timed(lambda: diffusers_pictures(pipe, stages, jobs))
        theirs = min(theirs, seconds)
        spent = Shares()
        seconds, pictures = timed(lambda s=spent: engine_pictures(stages, Stopwatch(denoiser, s), jobs, s, rows))
        if seconds < ours:
            ours, shares = seconds, spent
    outside = 1 - (shares.unet + shares.vae + shares.text) / ours
    largest = max(float(np.abs(a - b).max()) for a, b in zip(pictures.pixels, references.pixels, strict=True)) / PIXELS
    latents, pixels = apart(pictures.latents, references.latents), apart(pictures.pixels, references.pixels)
    return Result(len(jobs), theirs, ours, outside, latents, pixels, largest, str(rows or "any"), shares)


def apart(found: list[np.ndarray], wanted: list[np.ndarray]) -> float:
    """The largest relative L2."""
    return max(float(np.linalg.norm(a - b) / np.linalg.norm(b)) for a, b in zip(found, wanted, strict=True))


def diffusers_pictures(pipe: StableDiffusionPipeline, stages: Stages, jobs: list[GenerationParams]) -> Pictures:
    """One by one."""
    found = Pictures()
    for job in jobs:
        diffusers_picture(pipe, stages, job, found)
    return found


def diffusers_picture(pipe: StableDiffusionPipeline, stages: Stages, job: GenerationParams, found: Pictures) -> None:
    last: dict[str, torch.Tensor] = {}  # what the pipeline tells after a step, of which the last one counts
    pipe.scheduler = SCHEDULERS[job.sampler].from_config(pipe.scheduler.config)
    image = pipe(
        job.prompt,
        num_inference_steps=job.steps,
        guidance_scale=job.guidance,
        guidance_rescale=stages.card.defaults.guidance_rescale,
        width=job.width,
        height=job.height,
        generator=torch.Generator("cpu").manual_seed(job.seed),
        callback_on_step_end=lambda _pipe, _step, _time, told: last.update(told) or {},
    ).images[0]
    found.latents.append(last["latents"][0].numpy())  # [C, h, w]
    found.pixels.append(np.asarray(image, float))  # [H, W, 3]


def engine_pictures(stages: Stages, denoiser: Stopwatch, jobs: list[GenerationParams], spent: Shares, rows: int | None) -> Pictures:
    """All jobs through one engine, text encoding and decoding included."""
    engine = Engine(denoiser, slots=len(jobs), max_rows=2 * len(jobs), rows=rows)
    start = time.perf_counter()
    prompts = {text: stages.encode(text).states for text in {"", *(j.prompt for j in jobs)}}
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
    found = Pictures([np.empty(0)] * len(jobs), [np.empty(0)] * len(jobs))
    while engine.busy:
        for event in engine.step(time.perf_counter()):
            if isinstance(event, Finished):
                start = time.perf_counter()
                pixels = stages.decode(event.latents)
                spent.vae += time.perf_counter() - start
                found.latents[int(event.sample_id)] = np.asarray(event.latents)
                found.pixels[int(event.sample_id)] = pixels.astype(float)
    return found


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
