"""What references in sigma space need of ours: a schedule's sigmas, a network as denoiser (x, sigma) -> D, and k-diffusion itself."""

from __future__ import annotations

import importlib.util
import itertools
import math
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from oracles import Model
from pipelines.ladder import Float, Ladder
from pipelines.level import Levels
from pipelines.sampler_list import SAMPLERS
from pipelines.schedule_list import SCHEDULES
from pipelines.schedules import levels


def chosen(ladder: Ladder, sampler: str, schedule: str, steps: int) -> Levels:
    """The levels of a schedule, which have tests of their own, as this sampler's reference would choose them."""
    options = {name: info.default for name, info in SCHEDULES[schedule].options.items()}
    return levels(ladder, SAMPLERS[sampler].convention, schedule, steps, options)


def sigmas_of(path: Levels) -> list[float]:
    return [float(s / a) for s, a in zip(path.sigma, path.alpha, strict=True)]


class Asked:
    """Networks, asked in sigma space: variance-preserving input, timesteps by log sigma; remembers what it was asked.

    With two networks (for CFG++) it answers with both denoised. A level of the schedule has the timestep that the schedule gave
    it, rounded, some of them; where every second call is a stage `between` levels, it has one of its own, even if it lies on a level.
    """

    def __init__(self, networks: Sequence[Model], ladder: Ladder, path: Levels, *, between: bool) -> None:
        self._networks, self._ladder, self._between, self.path = networks, ladder, between, []
        self._known = dict(zip(sigmas_of(path)[:-1], path.timestep.tolist(), strict=False))

    def __call__(self, x: Float, sigma: float) -> Any:
        stage = self._between and len(self.path) % 2 == 1
        known = None if stage else self._known.get(sigma)
        timestep = float(self._ladder.timestep_at(np.asarray(sigma))) if known is None else known  # compared with diffusers elsewhere
        root = math.sqrt(1.0 + sigma**2)
        self.path.append(x / root)
        outputs = [network(x / root, timestep) for network in self._networks]
        if self._ladder.prediction_type == "epsilon":
            answers = [x - sigma * output for output in outputs]
        else:
            answers = [x / root**2 - sigma / root * output for output in outputs]
        return answers[0] if len(answers) == 1 else answers


def follow(
    oracle: Callable[..., Float],
    network: Model,
    ladder: Ladder,
    path: Levels,
    noises: Iterator[Float],
    *,
    unguided: Model | None = None,
    picture: Float | None = None,
    between: bool = False,
    **options: Any,
) -> Float:
    """A whole trajectory of a loop in sigma space, in the form of `oracles.run_table`."""
    denoise = Asked([network] if unguided is None else [network, unguided], ladder, path, between=between)
    x = path.init * next(noises) / float(path.alpha[0]) + (0.0 if picture is None else picture)
    x = oracle(denoise, x, sigmas_of(path), lambda: next(noises), **options)
    return np.stack([*denoise.path, x * float(path.alpha[-1])])


@cache
def k_diffusion() -> Any:
    """k-diffusion's sampling module, by its path: the package itself imports what training needs."""
    [folder] = importlib.util.find_spec("k_diffusion").submodule_search_locations
    name = "k_diffusion_alone"
    sys.modules[name] = package = types.ModuleType(name)
    package.__path__ = [folder]
    sys.modules[f"{name}.utils"] = package.utils = types.ModuleType(f"{name}.utils")
    package.utils.append_dims = lambda x, dims: x[(...,) + (None,) * (dims - x.ndim)]
    spec = importlib.util.spec_from_file_location(f"{name}.sampling", Path(folder) / "sampling.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def sampled(function: str, denoise: Callable[..., Any], x: Any, sigmas: Any, normal: Callable[[], Any], noise: Any, **options: Any) -> Any:
    """One of k-diffusion's samplers. `normal` is what it draws by itself, `noise` what a sampler is given in place of its Brownian tree."""
    module = k_diffusion()
    given = {} if noise is None else {"noise_sampler": noise}
    with patch.object(module.torch, "randn_like", lambda _: normal()):
        return getattr(module, function)(denoise, x, sigmas, disable=True, **given, **options)


def of_k_diffusion(function: str, *, brownian: Callable[..., Any] | None = None) -> Callable[..., Float]:
    """One of its samplers as a loop of numpy arrays, with the given normals as its noise."""

    def oracle(denoise: Callable[..., Float], x: Float, sigmas: list[float], draw: Callable[[], Float], **options: Any) -> Float:
        def model(at: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
            return torch.tensor(denoise(at.numpy(), float(sigma[0])))

        def normal() -> torch.Tensor:
            return torch.tensor(draw())

        noise = brownian(draw() for _ in itertools.count()) if brownian else lambda *_: normal()
        levels = torch.tensor(sigmas, dtype=torch.float64)
        return sampled(function, model, torch.tensor(x), levels, normal, noise, **options).numpy()

    return oracle
