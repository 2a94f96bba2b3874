"""Schedules that choose timesteps of the model's ladder."""

from __future__ import annotations

import numpy as np

from pipelines.ladder import SPACINGS, Float, Ladder
from pipelines.level import Convention
from pipelines.points import Points, at_timesteps, beta_quantiles, ends, gamma_of, rounded


def base_spacing(ladder: Ladder, convention: Convention, schedule: str = "auto") -> str:
    """The spacing behind a schedule: itself if it is one, else the checkpoint's, else the reference's default."""
    return schedule if schedule in SPACINGS else ladder.spacing or convention.spacing


def spaced(ladder: Ladder, convention: Convention, steps: int, *, spacing: str | None = None) -> Points:
    """Table 2 of arXiv 2305.08891, as each diffusers class carries it out. One step takes the highest level."""
    timestep = _timesteps(len(ladder), convention, steps, spacing or base_spacing(ladder, convention), ladder.steps_offset)
    if timestep[0] > len(ladder) - 1:
        raise ValueError(f"{steps} steps with offset {ladder.steps_offset} reach beyond the {len(ladder)} timesteps of the model")
    gamma = gamma_of(ladder.ratio_at(timestep))
    whole = timestep == np.round(timestep)
    return Points(np.where(whole, ends(ladder, convention)[timestep.astype(np.int64)], gamma), timestep)


def _timesteps(total: int, convention: Convention, steps: int, spacing: str, offset: int) -> Float:
    if steps == 1:
        return np.array([total - 1.0])
    extra = 1 if convention.drops_last else 0
    if spacing == "trailing":
        # np.arange as in diffusers decides ties; for 61 steps and some others its rounding adds one below 0, cut off here
        return np.asarray(np.round(np.arange(total, 0, -total / steps)[:steps]) - 1.0)
    if spacing == "leading":
        return np.asarray((np.arange(steps)[::-1] + extra) * float(total // (steps + extra)) + offset)
    timestep = np.linspace(0, total - 1, steps + extra)[::-1][:steps]
    # float32 as in diffusers' Euler family, whose sigmas are interpolated at the rounded timesteps
    return np.round(timestep) if convention.whole else timestep.astype(np.float32).astype(np.float64)


def sgm_uniform(ladder: Ladder, convention: Convention, steps: int) -> Points:
    """linspace of n + 1 timesteps without the lowest (ComfyUI, A1111)."""
    return at_timesteps(ladder, convention, np.linspace(len(ladder) - 1, 0, steps + 1)[:-1])


def simple(ladder: Ladder, convention: Convention, steps: int) -> Points:
    """Every (T/n)-th training level from the top (ComfyUI); trailing, where n divides T."""
    total = len(ladder)
    index = total - 1 - (np.arange(steps) * (total / steps)).astype(np.int64)
    return Points(ends(ladder, convention)[index], index.astype(np.float64))


def ddim_uniform(ladder: Ladder, convention: Convention, steps: int) -> Points:
    """t = 1, 1 + T//n, 1 + 2 (T//n) ... (ComfyUI; "DDIM" of A1111). Where that is n + 1 levels or more, the n lowest."""
    return at_timesteps(ladder, convention, 1.0 + float(len(ladder) // steps) * np.arange(steps, dtype=np.float64)[::-1])


def beta(ladder: Ladder, convention: Convention, steps: int, *, alpha: float = 0.6, beta: float = 0.6) -> Points:
    """Timesteps at even quantiles of a beta distribution (arXiv 2407.12173, as ComfyUI has it)."""
    quantile = beta_quantiles(alpha, beta, 1.0 - np.arange(steps) / steps)
    return at_timesteps(ladder, convention, rounded(quantile * (len(ladder) - 1)))


def smoothstep(ladder: Ladder, convention: Convention, steps: int) -> Points:
    """t = u^2 (3 - 2u) (T - 1), u falling evenly from 1 (stable-diffusion.cpp)."""
    u = 1.0 - np.arange(steps) / steps
    return at_timesteps(ladder, convention, rounded(u * u * (3.0 - 2.0 * u) * (len(ladder) - 1)))


def turbo(ladder: Ladder, convention: Convention, steps: int) -> Points:
    """t = k T/n - 1, k = n ... 1, rounded last (Forge)."""
    return at_timesteps(ladder, convention, np.asarray(np.round(np.arange(steps, 0, -1) * (len(ladder) / steps) - 1.0), np.float64))


def sd_turbo(ladder: Ladder, convention: Convention, steps: int) -> Points:
    """The first n of ten timesteps from the top (ComfyUI), which is made for one to ten steps; beyond that as `turbo`."""
    made = turbo(ladder, convention, max(steps, 10))
    return Points(made.gamma[:steps], made.timestep[:steps])


def consistency(ladder: Ladder, convention: Convention, steps: int, *, original: int = 50) -> Points:
    """n of the 50 timesteps that latent consistency models are distilled on (arXiv 2310.04378; diffusers' LCM)."""
    if steps > original:
        raise ValueError(f"the lcm schedule has {original} levels, so it cannot take {steps} steps")
    index = np.floor(np.linspace(0, original, steps, endpoint=False)).astype(np.int64)
    timestep = (original - index) * (len(ladder) // original) - 1
    return Points(ends(ladder, convention)[timestep], timestep.astype(np.float64))
