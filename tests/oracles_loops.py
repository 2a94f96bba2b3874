"""Samplers as loops in k-diffusion's coordinates, x_k = x / alpha and sigma_k = sigma / alpha, and how a table is held against one.

A loop is a function (denoise, x, sigmas, noise, **options) -> x: `denoise(x, sigma)` is the model, `noise()` the next normal. k-diffusion's
own are wrapped by `of_k_diffusion`; the others are written from papers in `oracles_*.py`. Torch, float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from oracles import Model
from oracles_sigma import sampled
from pipelines.ladder import Float, Ladder
from pipelines.level import Levels

Loop = Callable[..., torch.Tensor]


@dataclass(frozen=True)
class Case:
    """One sampler, with options, against one loop."""

    sampler: str
    loop: Loop
    options: Mapping[str, Any] = field(default_factory=dict)
    of_loop: Mapping[str, Any] = field(default_factory=dict)  # the same options in the loop's words
    schedules: Sequence[str] = ()  # those on which both mean the same; empty: all
    least: int = 1  # steps that the loop can take
    more: Sequence[int] = ()  # numbers of steps at which its rule is another one
    spans: bool = False  # its steps span several levels: only the first one is asked with the timestep that the schedule gave it

    @property
    def id(self) -> str:
        return "-".join([self.sampler, self.loop.__name__, *(f"{k}={v}" for k, v in self.options.items())])


def of_k_diffusion(name: str, *, tree: bool = False) -> Loop:
    """One of its functions; `tree`: give it plain normals where it would draw from a Brownian tree."""

    def loop(denoise, x, sigmas, noise, **options):
        return sampled(name, denoise, x, sigmas, noise, (lambda *_: noise()) if tree else None, **options)

    loop.__name__ = name
    return loop


def drive_loop(case: Case, levels: Levels, model: Model, noises: Iterator[Float], picture: Float | None = None) -> Float:
    """What the model saw and the end, as `run_table` gives them for the table on the same levels; it may begin on a picture."""
    path: list[Float] = []

    def denoise(x: torch.Tensor, sigma: torch.Tensor, **_: Any) -> torch.Tensor:
        ratio = float(sigma.reshape(-1)[0])
        alpha = 1.0 / math.sqrt(1.0 + ratio**2)
        path.append(x.numpy() * alpha)
        output = torch.from_numpy(model(path[-1], timestep_of(levels, ratio, among=1 if case.spans else len(levels))))
        if levels.ladder.prediction_type == "epsilon":
            return x - ratio * output
        return alpha * (alpha * x) - ratio * alpha * output

    # Time, for the samplers that are rules in it.
    denoise.time_of = lambda sigma: timestep_of(levels, float(sigma))  # type: ignore[attr-defined]
    denoise.levels = levels  # type: ignore[attr-defined]
    denoise.sigma_at = lambda time: float(levels.ladder.ratio_at(time))  # type: ignore[attr-defined]

    def noise() -> torch.Tensor:
        return torch.from_numpy(next(noises))

    sigmas = torch.tensor([levels[i].ratio for i in range(len(levels) + 1)], dtype=torch.float64)
    x = noise() * (levels.init / levels.alpha[0]) if picture is None else torch.from_numpy(picture) + sigmas[0] * noise()
    # A loop whose first lift is the table's first noise has to know what is no noise in x.
    known = {"picture": torch.from_numpy(picture)} if picture is not None and "s_churn" in case.of_loop else {}
    with in_float64():
        end = case.loop(denoise, x, sigmas, noise, **case.of_loop, **known)
    return np.stack([*path, end.numpy() * float(levels.alpha[-1])])


@contextmanager
def in_float64() -> Iterator[None]:
    """What loops make anew, such as Karras levels, is float64 too."""
    usual = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(usual)


def timestep_of(levels: Levels, ratio: float, among: int | None = None) -> float:
    """That of the level, if it is one (`among` the first); some conventions round theirs."""
    for i in range(len(levels) if among is None else among):
        if math.isclose(levels[i].ratio, ratio, rel_tol=1e-9):
            return float(levels.timestep[i])
    return float(Ladder.timestep_at(levels.ladder, np.array(ratio)))
