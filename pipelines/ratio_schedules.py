"""Schedules that choose levels by sigma/alpha; timesteps follow from the model's ladder by logSNR.

Formulas speak of sigma as k-diffusion does, which is sigma/alpha here. No level is ever clipped to the ladder: two clipped
levels would be equal, and solvers divide by their distance.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from pipelines.ladder import Float, Ladder
from pipelines.level import Convention
from pipelines.points import Points, at_ratios, beta_quantiles, ends, gamma_of
from pipelines.timestep_schedules import spaced


def karras(ladder: Ladder, convention: Convention, steps: int, *, rho: float = 7.0) -> Points:
    """Equal steps in sigma^(1/rho) (arXiv 2206.00364, equation 5)."""
    high, low = _range(ladder, convention, steps)
    ramp = np.linspace(0.0, 1.0, steps)
    ratio = (high ** (1 / rho) + ramp * (low ** (1 / rho) - high ** (1 / rho))) ** rho
    floored = convention.floors_squared_cosine and ladder.squared_cosine
    return _as_reference(ladder, convention, ratio, "floor" if floored else convention.karras_time)


def exponential(ladder: Ladder, convention: Convention, steps: int) -> Points:
    """Equal steps in logSNR."""
    high, low = _range(ladder, convention, steps)
    ratio = np.exp(np.linspace(np.log(high), np.log(low), steps))
    return _as_reference(ladder, convention, ratio, convention.exponential_time)


def beta_sigma(ladder: Ladder, convention: Convention, steps: int, *, alpha: float = 0.6, beta: float = 0.6) -> Points:
    """Sigmas at even quantiles of a beta distribution (arXiv 2407.12173, as A1111 and diffusers have it)."""
    high, low = _range(ladder, convention, steps)
    ratio = low + beta_quantiles(alpha, beta, 1.0 - np.linspace(0.0, 1.0, steps)) * (high - low)
    return _as_reference(ladder, convention, ratio, convention.exponential_time)


def polyexponential(ladder: Ladder, convention: Convention, steps: int, *, rho: float = 1.0) -> Points:
    """Polynomial in ln(sigma) (k-diffusion); rho = 1 is exponential."""
    low, high = np.log(ladder.ratios[[0, -1]])
    return at_ratios(ladder, convention, np.exp(np.linspace(1.0, 0.0, steps) ** rho * (high - low) + low))


def vp(ladder: Ladder, convention: Convention, steps: int, *, beta_d: float = 19.9, beta_min: float = 0.1, eps: float = 1e-3) -> Points:
    """The continuous variance-preserving process (arXiv 2011.13456; k-diffusion), from where it meets the ladder's end."""
    exponent = np.log1p(ladder.ratios[-1] ** 2)
    meets = (np.sqrt(beta_min**2 + 2.0 * beta_d * exponent) - beta_min) / beta_d
    t = np.linspace(min(1.0, meets), eps, steps)
    return at_ratios(ladder, convention, np.sqrt(np.expm1(beta_d * t * t / 2.0 + beta_min * t)))


def laplace(ladder: Ladder, convention: Convention, steps: int, *, mu: float = 0.0, beta: float = 0.5) -> Points:
    """Quantiles of a Laplace density of ln(sigma) (arXiv 2407.03297, as ComfyUI has it). It ends above zero.

    The reference clamps to the ladder. Where that makes equal levels, the quantiles run between those that meet its ends.
    """
    low, high = ladder.ratios[0], ladder.ratios[-1]

    def curve(x: Float) -> Float:
        return np.asarray(np.exp(mu - beta * np.sign(0.5 - x) * np.log(1.0 - 2.0 * np.abs(0.5 - x) + 1e-5)))

    ratio = np.clip(curve(np.linspace(0.0, 1.0, steps + 1)), low, high)
    if not np.all(np.diff(ratio) < 0):
        first = max(0.0, (np.exp((mu - np.log(high)) / beta) - 1e-5) / 2.0)
        last = min(1.0, 1.0 - (np.exp((np.log(low) - mu) / beta) - 1e-5) / 2.0)
        ratio = curve(np.linspace(first, last, steps + 1))
    return at_ratios(ladder, convention, ratio[:-1], ratio[-1])


def kl_optimal(ladder: Ladder, convention: Convention, steps: int) -> Points:
    """Equal steps in atan(sigma) down to the lowest level, then zero (arXiv 2404.14507, section 3.1; ComfyUI)."""
    return at_ratios(ladder, convention, _arcs(ladder, steps))


def kl_optimal_open(ladder: Ladder, convention: Convention, steps: int) -> Points:
    """Equal steps in atan(sigma), the last of them to the lowest level, which stays (A1111)."""
    ratio = _arcs(ladder, steps + 1)
    return at_ratios(ladder, convention, ratio[:-1], ratio[-1])


def _arcs(ladder: Ladder, count: int) -> Float:
    low, high = np.arctan(ladder.ratios[[0, -1]])
    u = np.linspace(0.0, 1.0, count)
    return np.asarray(np.tan(u * low + (1.0 - u) * high))


def linear_quadratic(ladder: Ladder, convention: Convention, steps: int, *, threshold: float = 0.025) -> Points:
    """Half of the steps go down evenly by `threshold` of the highest sigma, the others quadratically (Mochi, ComfyUI)."""
    if steps == 1:
        return at_ratios(ladder, convention, ladder.ratios[-1:])
    i, linear = np.arange(steps), steps // 2
    curved = steps - linear
    excess = linear - threshold * steps
    bend = excess / (linear * curved**2)
    fallen = bend * i**2 + (threshold / linear - 2.0 * excess / curved**2) * i + bend * linear**2
    return at_ratios(ladder, convention, ladder.ratios[-1] * (1.0 - np.where(i < linear, i * threshold / linear, fallen)))


def bong_tangent(ladder: Ladder, convention: Convention, steps: int) -> Points:
    """Two arcs of arctan that meet in the middle of the sigmas, at three fifths of the steps (stable-diffusion.cpp)."""
    count = steps + 2
    joint, slope = 3 * count // 5, 0.2 / (count / 40.0)
    low, high = ladder.ratios[0], ladder.ratios[-1]
    middle = low + 0.5 * (high - low)
    above, below = _arc(joint, slope, joint, high, middle), _arc(count - joint, slope, 0, middle, low)
    return at_ratios(ladder, convention, np.concatenate([above[:-1], below])[:steps])


def _arc(count: int, slope: float, pivot: int, start: float, end: float) -> Float:
    fall = np.arctan(slope * (pivot - np.arange(count)))
    if count == 1:
        return np.array([start])
    return np.asarray((fall - fall[-1]) / (fall[0] - fall[-1]) * (start - end) + end)


def tabulated(ladder: Ladder, convention: Convention, steps: int, *, table: Sequence[float], ends_at_zero: bool) -> Points:
    """A list of sigmas, interpolated in ln(sigma) to any number of steps.

    `ends_at_zero`: n + 1 sigmas, the last of which gives way to zero (NVIDIA, ComfyUI, diffusers); else n sigmas, and zero
    comes after them (A1111, Forge). Where the table begins above the ladder, ln(sigma) is scaled to begin at its end.
    """
    log = np.log(table)
    top = np.log(ladder.ratios[-1])
    if log[0] > top + 1e-3:
        log = log[-1] + (log - log[-1]) * (top - log[-1]) / (log[0] - log[-1])
    count = steps + 1 if ends_at_zero else steps
    ratio = np.exp(np.interp(np.linspace(0.0, 1.0, count), np.linspace(0.0, 1.0, len(log)), log))
    return at_ratios(ladder, convention, ratio[:steps])


def flow(ladder: Ladder, convention: Convention, steps: int, *, shift: float = 1.0) -> Points:
    """FlowMatchEulerDiscreteScheduler's levels; `shift` comes on top of the checkpoint's, and two shifts multiply."""
    lowest = ladder.shift / (len(ladder) + ladder.shift - 1.0)  # where 1/T is shifted to; diffusers shifts what is shifted
    whole = ladder.shift * shift
    return _shifted(ladder, convention, np.linspace(_highest_time(ladder, convention, whole), lowest, steps), whole)


def flux(ladder: Ladder, convention: Convention, steps: int, *, mu: float = 1.15) -> Points:
    """FLUX: linspace(1, 1/n) under a shift of e^mu; mu grows with the picture there (256 tokens: 0.5, 4096: 1.15)."""
    shift = float(np.exp(mu))
    return _shifted(ladder, convention, _highest_time(ladder, convention, shift) * (1.0 - np.arange(steps) / steps), shift)


def _highest_time(ladder: Ladder, convention: Convention, shift: float) -> float:
    """1, or where the shifted level meets the cap of samplers that cannot start at alpha = 0."""
    return 1.0 if convention.keeps_zero(ladder) else float(ladder.ratios[-1] / (ladder.ratios[-1] + shift))


def _shifted(ladder: Ladder, convention: Convention, t: Float, shift: float) -> Points:
    sigma = shift * t / (1.0 + (shift - 1.0) * t)
    gamma = (1.0 - sigma) ** 2 / ((1.0 - sigma) ** 2 + sigma**2)
    gamma[0] = ends(ladder, convention)[-1]
    with np.errstate(divide="ignore"):
        ratio = np.sqrt((1.0 - gamma) / gamma)
    return Points(gamma, ladder.timestep_at(np.minimum(ratio, ladder.ratios[-1])))


def custom(ladder: Ladder, convention: Convention, steps: int, *, sigmas: Sequence[float]) -> Points:
    """The caller's sigmas: n + 1 of them, falling; the last is where the last step lands."""
    if len(sigmas) != steps + 1:
        raise ValueError(f"{steps} steps need {steps + 1} sigmas, not {len(sigmas)}")
    return at_ratios(ladder, convention, np.array(sigmas[:-1], np.float64), sigmas[-1])


def of_gamma(
    ladder: Ladder, convention: Convention, steps: int, *, gamma: Callable[..., Float], input_scale: float = 1.0, **options: float
) -> Points:
    """The paper's gamma(t) on any model: t evenly spaced (algorithm 3), levels matched to the ladder by logSNR.

    `input_scale` b shifts logSNR by 2 ln(b). It starts at t0 with gamma(t0) = the ladder's end, never above it.
    """

    def curve(t: Float) -> Float:
        unscaled = gamma(t, clip_min=0.0, **options)
        return np.asarray(input_scale**2 * unscaled / ((input_scale**2 - 1.0) * unscaled + 1.0))

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
    """The highest and lowest sigma that karras, exponential and beta span."""
    if convention.full_range:
        return float(ladder.ratios[-1]), float(ladder.ratios[0])
    chosen = ladder.ratio_at(spaced(ladder, convention, steps).timestep)
    return float(chosen[0]), float(chosen[-1])


def _as_reference(ladder: Ladder, convention: Convention, ratio: Float, rounding: str) -> Points:
    timestep = ladder.timestep_at(ratio)
    gamma = gamma_of(ratio)
    if convention.keeps_zero(ladder) and convention.full_range:
        gamma[0] = ladder.alphas_cumprod[-1]
    return Points(gamma, _ROUNDING[rounding](timestep))


_ROUNDING: Mapping[str, Callable[[Float], Float]] = {"fraction": np.asarray, "nearest": np.round, "floor": np.floor}
