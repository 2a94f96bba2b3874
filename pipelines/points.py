"""Points: what a schedule chooses on a ladder, and the few formulas that all of them share."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from pipelines.ladder import Float, Ladder
from pipelines.level import Convention


class Points(NamedTuple):
    """The levels of a schedule before the last, and the last.

    gamma = SNR / (1 + SNR) is the share of signal power, rising; alpha^2 in a variance-preserving space. Timesteps count the
    ladder's levels and may be fractional. `final` is gamma after the last step: 1 is a clean picture.
    """

    gamma: Float  # [n]
    timestep: Float  # [n]
    final: float = 1.0


Builder = Callable[..., Points]


def ends(ladder: Ladder, convention: Convention) -> Float:
    """[T] gamma of the training levels, with or without a zero at the end."""
    return ladder.alphas_cumprod if convention.keeps_zero(ladder) else ladder.capped


def gamma_of(ratio: Float) -> Float:
    return np.asarray(1.0 / (1.0 + ratio * ratio))


def at_ratios(ladder: Ladder, convention: Convention, ratio: Float, final: float = 0.0) -> Points:
    """The levels with these sigma/alpha, at their fractional timesteps. Where the first is the ladder's end, it is that exactly."""
    gamma, timestep = gamma_of(ratio), ladder.timestep_at(ratio)
    if abs(ratio[0] / ladder.ratios[-1] - 1.0) < 1e-9:
        gamma[0] = ends(ladder, convention)[-1]
    return Points(gamma, timestep, float(gamma_of(np.array(final))))


def at_timesteps(ladder: Ladder, convention: Convention, timestep: Float) -> Points:
    """The training levels at whole timesteps; between them sigma/alpha is interpolated in its logarithm, as k-diffusion does."""
    index = np.round(timestep)
    between = gamma_of(np.exp(np.interp(timestep, np.arange(len(ladder)), np.log(ladder.ratios))))
    return Points(np.where(timestep == index, ends(ladder, convention)[index.astype(np.int64)], between), timestep)


def highest(ladder: Ladder, convention: Convention, final: float) -> Points:
    """What one step takes, whatever the schedule: from the ladder's end to where the schedule ends."""
    return Points(ends(ladder, convention)[-1:].copy(), np.array([len(ladder) - 1.0]), final)


def rounded(timestep: Float) -> Float:
    """To whole timesteps, unless two of them would become one: then all stay fractional. Equal levels divide by zero."""
    whole = np.round(timestep)
    return whole if np.all(np.diff(whole) < 0) else timestep


def beta_quantiles(alpha: float, beta: float, at: Float) -> Float:
    """Of the beta distribution, at probabilities [n]."""
    from scipy.special import betaincinv  # takes a sixth of a second and 20 MB, which every start would pay for

    return np.asarray(betaincinv(alpha, beta, at))
