"""Level, Levels and Convention: what schedules hand to samplers, and how each reference reads a ladder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from pipelines.ladder import Float, Ladder


class Level(NamedTuple):
    """x = alpha * x0 + sigma * noise; timestep is its position on the ladder, which is what most models are told."""

    alpha: float
    sigma: float
    timestep: float

    @property
    def ratio(self) -> float:
        return self.sigma / self.alpha

    @property
    def half_logsnr(self) -> float:
        """lambda of the DPM-Solver papers."""
        return float("inf") if self.sigma == 0.0 else float(np.log(self.alpha) - np.log(self.sigma))


@dataclass(frozen=True, eq=False)
class Levels:
    """n levels, falling in noise, and the level after the last. `init` scales the first noise.

    `landing[i]` is the level that step i arrives at: the next one, except where a reference lands elsewhere. The last one
    is clean (sigma = 0) for most schedules, but not for all, and not where `part` cuts. `asked` counts the steps of the
    whole schedule: some references decide by that number, also when they take only its end.
    """

    ladder: Ladder
    alpha: Float  # [n + 1]
    sigma: Float  # [n + 1]
    timestep: Float  # [n + 1]
    init: float
    landing: tuple[Level, ...]  # [n]
    asked: int

    def __len__(self) -> int:
        """Steps."""
        return len(self.landing)

    def __getitem__(self, i: int) -> Level:
        return Level(float(self.alpha[i]), float(self.sigma[i]), float(self.timestep[i]))

    def part(self, first: int, last: int) -> Levels:
        """Steps first .. last - 1 alone. What starts in the middle starts as noise of that level (on a picture, where there is one)."""
        alpha, sigma, timestep = (column[first : last + 1] for column in (self.alpha, self.sigma, self.timestep))
        init = float(sigma[0]) if first else self.init
        return Levels(self.ladder, alpha, sigma, timestep, init, self.landing[first:last], self.asked)

    def between(self, high: Level, low: Level) -> Level:
        """The geometric mean of two levels in sigma/alpha, at its fractional timestep."""
        return self.at(float(np.sqrt(high.ratio * low.ratio)))

    def at(self, ratio: float) -> Level:
        """The level of this sigma/alpha, at its fractional timestep: where a stage asks the model between two levels."""
        alpha, sigma = self.ladder.alpha_sigma(np.asarray(1.0 / (1.0 + ratio * ratio)))
        return Level(float(alpha), float(sigma), float(self.ladder.timestep_at(np.asarray(ratio))))


@dataclass(frozen=True)
class Convention:
    """How the reference of a sampler (a diffusers class) turns a ladder into levels; the traps of parity in one place."""

    spacing: str = "linspace"  # where the checkpoint does not say
    whole: bool = False  # linspace timesteps are rounded
    drops_last: bool = False  # n + 1 spaced timesteps without the lowest
    exact: bool = False  # the form is finite at alpha = 0, so zero terminal SNR is kept; otherwise it is capped
    finite: bool = False  # finite there, too, but capped by diffusers; flow models, which all end there, start at it
    full_range: bool = False  # karras and exponential span the ladder, not the chosen levels
    scaled_init: bool = False  # starts at sigma * noise for linspace and trailing, in variance-preserving space
    ends_low: bool = False  # lands at the first training level, where the last chosen one lies above it (TCD, SA-Solver, DEIS)
    strided: bool = False  # a step goes down T // n timesteps, wherever the next level lies (DDIM)
    karras_time: str = "fraction"  # or nearest, floor
    floors_squared_cosine: bool = False  # karras timesteps are floored on a squared cosine ladder
    exponential_time: str = "fraction"
    auto: str | None = None  # the schedule that "auto" means, where it is not the checkpoint's spacing

    def keeps_zero(self, ladder: Ladder) -> bool:
        """Whether levels on this ladder start at alpha = 0, where it ends there."""
        return self.exact or (self.finite and ladder.space == "flow")
