"""How training pictures are noised: gamma(t), input scale b and variance normalisation (arXiv 2301.10972, algorithms 1 to 3).

A checkpoint says all of it: gamma as `trained_betas` of its scheduler, b and the normalisation as `input_scale` and `normalize` of
celadon.json. With b = 1 and no normalisation every diffusers pipeline draws with it; the other models need a sampler that knows both.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from pipelines.gamma import deviation, gamma_cosine, gamma_sigmoid, gamma_simple_linear

STEPS = 1000  # timesteps i = 0..999 stand for t = (i + 1) / 1000
GAMMAS = {"cosine": gamma_cosine, "sigmoid": gamma_sigmoid, "linear": gamma_simple_linear}
NORMALIZE = ("none", "closed", "measured")


@dataclass(frozen=True)
class Noise:
    """gamma(t) falls from nearly 1 to exactly 0: zero terminal SNR. `shape`: keyword arguments of its function in `pipelines.gamma`."""

    gamma: str = "cosine"
    shape: tuple[tuple[str, float], ...] = ()
    input_scale: float = 1.0
    normalize: str = "none"

    @cached_property
    def gammas(self) -> np.ndarray:
        """[1000] shares of signal power, the last one 0."""
        table = GAMMAS[self.gamma](np.arange(1, STEPS + 1) / STEPS, **dict(self.shape), clip_min=0.0)
        table[-1] = 0.0
        if not np.all(np.diff(table, prepend=1.0) < 0):
            raise ValueError(f"gamma {self.gamma} {dict(self.shape)} does not fall at every one of its {STEPS} timesteps")
        return table

    def betas(self) -> list[float]:
        """The same as diffusers' `trained_betas`; the last one is exactly 1."""
        return (1.0 - self.gammas / np.concatenate([[1.0], self.gammas[:-1]])).tolist()

    @cached_property
    def _levels(self) -> torch.Tensor:
        """[3, 1000] alpha and sigma of x = alpha x0 + sigma noise at unit variance, and the network's share of x where none is measured."""
        spread = deviation(self.gammas, self.input_scale)
        alpha, sigma = self.input_scale * np.sqrt(self.gammas) / spread, np.sqrt(1.0 - self.gammas) / spread
        return torch.from_numpy(np.stack([alpha, sigma, spread if self.normalize == "none" else np.ones(STEPS)])).float()

    def level(self, timestep: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """alpha and sigma, each shaped like `timestep`: of x at unit variance, where b is a shift of logSNR by 2 ln b."""
        levels = self._levels.to(timestep.device)[:, timestep]
        return levels[0], levels[1]

    def seen(self, x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        """What the network is given of x [B, 4, h, w] at unit variance, with `timestep` [B] (algorithm 3 where it is to be measured)."""
        if self.normalize == "measured":
            return x / x.flatten(1).std(1, correction=0).view(-1, 1, 1, 1)
        if self.normalize == "none" and self.input_scale != 1.0:
            return x * self._levels[2].to(x.device)[timestep].view(-1, 1, 1, 1)
        return x

    def on_card(self) -> dict[str, object]:
        """The entries of celadon.json that say how the model was trained; none for a model that plain diffusers reads."""
        if self.input_scale == 1.0 and self.normalize == "none":
            return {}
        return {"input_scale": self.input_scale, "normalize": None if self.normalize == "none" else self.normalize}


COSINE = Noise()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--gamma", choices=GAMMAS, default="cosine", help="gamma(t) of the forward process")
    parser.add_argument("--gamma-shape", default="", metavar="NAME=NUMBER,...", help="start, end, tau of cosine and sigmoid")
    parser.add_argument("--input-scale", type=float, default=1.0, help="b: pictures are multiplied by it before noise is added")
    parser.add_argument("--normalize", choices=NORMALIZE, default="none", help="what the network sees x divided by")


def noise_of(args: argparse.Namespace) -> Noise:
    """Raises SystemExit for a shape that its gamma does not take."""
    try:
        shape = tuple((name, float(value)) for name, value in (pair.split("=") for pair in args.gamma_shape.split(",") if pair))
        noise = Noise(args.gamma, shape, args.input_scale, args.normalize)
        assert noise.gammas.shape == (STEPS,)
    except (TypeError, ValueError) as error:
        raise SystemExit(f"--gamma {args.gamma} --gamma-shape {args.gamma_shape!r}: {error}") from None
    if not args.input_scale > 0:
        raise SystemExit("--input-scale must be above 0")
    return noise
