"""Schedules that choose levels by sigma/alpha; timesteps follow from the model's ladder by logSNR."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np

from pipelines.ladder import Float, Ladder
from pipelines.level import Convention
from pipelines.points import Points, ends, gamma_of
from pipelines.timestep_schedules import spaced


def karras(ladder: Ladder, convention: Convention, steps: int, *, rho: float = 7.0) -> Points:
    """Equal steps in sigma^(1/rho) (arXiv 2206.00364, equation 5)."""
    high, low = _range(ladder, convention, steps)
    ramp = np.linspace(0.0, 1.0, steps)
    ratio = (high ** (1 / rho) + ramp * (low ** (1 / rho) - high ** (1 / rho))) ** rho
    floored = convention.floors_squared_cosine and ladder.squared_cosine
    return _from_ratios(ladder, convention, ratio, "floor" if floored else convention.karras_time)


def exponential(ladder: Ladder, convention: Convention, steps: int) -> Points:
    """Equal steps in logSNR."""
    high, low = _range(ladder, convention, steps)
    ratio = np.exp(np.linspace(np.log(high), np.log(low), steps))
    return _from_ratios(ladder, convention, ratio, convention.exponential_time)


def of_gamma(ladder: Ladder, convention: Convention, steps: int, *, gamma: Callable[..., Float], **options: float) -> Points:
    """The paper's gamma(t) on any model: t evenly spaced (algorithm 3), levels matched to the ladder by logSNR.

    It starts at t0 with gamma(t0) = the ladder's end, never above it and never clipped: equal levels divide by zero.
    """
    curve = partial(gamma, clip_min=0.0, **options)
    end = float(ends(ladder, convention)[-1])
    values = curve(_time_of(curve, end) * (1.0 - np.arange(steps) / steps))
    values[0] = end
    with np.errstate(divide="ignore"):
        timestep = ladder.timestep_at(np.minimum(np.sqrt((1.0 - values) / values), ladder.ratios[-1]))
    timestep[0] = len(ladder) - 1
    return Points(values, timestep)


def _time_of(curve: Callable[[Float], Float], gamma: float) -> float:
    """Where a falling curve on [0, 1] reaches gamma, by bisection to the last digit."""
    low, high = 0.0, 1.0
    while (middle := 0.5 * (low + high)) not in (low, high):
        low, high = (middle, high) if curve(np.array(middle)) > gamma else (low, middle)
    return high


def _range(ladder: Ladder, convention: Convention, steps: int) -> tuple[float, float]:
    """The highest and lowest sigma/alpha that karras and exponential span."""
    if convention.full_range:
        return float(ladder.ratios[-1]), float(ladder.ratios[0])
    chosen = ladder.ratio_at(spaced(ladder, convention, steps).timestep)
    return float(chosen[0]), float(chosen[-1])


def _from_ratios(ladder: Ladder, convention: Convention, ratio: Float, rounding: str) -> Points:
    timestep = ladder.timestep_at(ratio)
    gamma = gamma_of(ratio)
    if convention.exact and convention.full_range:
        gamma[0] = ladder.alphas_cumprod[-1]
    return Points(gamma, _ROUNDING[rounding](timestep))


_ROUNDING: Mapping[str, Callable[[Float], Float]] = {"fraction": np.asarray, "nearest": np.round, "floor": np.floor}
