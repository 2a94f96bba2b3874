"""Noise schedules: a model's ladder -> the n levels at which a sampler asks the model, and where each step lands.

Also the training side of arXiv 2301.10972 (T. Chen, "On the Importance of Noise Scheduling for Diffusion Models"):
gamma(t), logSNR, the forward process with input scale b, and its variance normalisation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import numpy as np

from pipelines.card import OptionInfo, ScheduleInfo
from pipelines.ladder import SPACINGS, Float, Ladder
from pipelines.level import Convention, Level, Levels
from pipelines.options import Options, checked_options

# --- gamma(t) of the paper: the share of signal power, x_t = sqrt(gamma) * x0 + sqrt(1 - gamma) * noise ---------------

CLIP_MIN = 1e-9  # algorithm 1


def gamma_simple_linear(t: Float, *, clip_min: float = CLIP_MIN) -> Float:
    """gamma = 1 - t, t in [0, 1] (arXiv 2301.10972, algorithm 1)."""
    return np.clip(1.0 - np.asarray(t, np.float64), clip_min, 1.0)


def gamma_cosine(t: Float, start: float = 0.0, end: float = 1.0, tau: float = 1.0, *, clip_min: float = CLIP_MIN) -> Float:
    """The piece from start to end of cos(u pi/2)^(2 tau), stretched to fall from 1 to 0 (algorithm 1)."""

    def v(u: Float) -> Float:
        return np.asarray(np.maximum(np.cos(u * np.pi / 2), 0.0) ** (2 * tau))

    return _stretched(v, np.asarray(t, np.float64), start, end, clip_min)


def gamma_sigmoid(t: Float, start: float = -3.0, end: float = 3.0, tau: float = 1.0, *, clip_min: float = CLIP_MIN) -> Float:
    """The piece from start to end of the logistic function of u / tau, stretched to fall from 1 to 0 (algorithm 1)."""

    def v(u: Float) -> Float:
        return np.asarray(1.0 / (1.0 + np.exp(u / tau)))  # mirrored, so that it falls; the stretch is the same

    return _stretched(v, np.asarray(t, np.float64), start, end, clip_min)


def _stretched(v: Callable[[Float], Float], t: Float, start: float, end: float, clip_min: float) -> Float:
    first, last = v(np.array(start)), v(np.array(end))
    return np.clip((v(t * (end - start) + start) - last) / (first - last), clip_min, 1.0)


def logsnr(gamma: Float) -> Float:
    """ln(gamma / (1 - gamma)); infinite at 0 and 1."""
    gamma = np.asarray(gamma, np.float64)
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(gamma) - np.log1p(-gamma))


def deviation(gamma: Float, b: float = 1.0) -> Float:
    """Standard deviation of x_t for x0 of unit variance: sqrt(b^2 gamma + 1 - gamma) = sqrt((b^2 - 1) gamma + 1)."""
    return np.sqrt((b * b - 1.0) * np.asarray(gamma) + 1.0)


def forward_process(x0: Float, noise: Float, gamma: Float, b: float = 1.0, *, normalize: bool = False) -> Float:
    """x_t = sqrt(gamma) * b * x0 + sqrt(1 - gamma) * noise (algorithm 2); gamma broadcasts against x0.

    normalize divides by `deviation`, so that the network sees unit variance whatever b is. Then b is a shift of
    logSNR by 2 ln(b), exactly.
    """
    gamma = np.asarray(gamma)
    x_t = np.sqrt(gamma) * b * x0 + np.sqrt(1.0 - gamma) * noise
    return np.asarray(x_t / deviation(gamma, b) if normalize else x_t)


# --- levels -----------------------------------------------------------------------------------------------------------


class Points(NamedTuple):
    """The levels of a schedule before the last: signal power gamma = alpha^2, rising, and timesteps."""

    gamma: Float  # [n]
    timestep: Float  # [n]


Builder = Callable[..., Points]


@dataclass(frozen=True)
class Schedule:
    name: str
    build: Builder  # (ladder, convention, steps, **options)
    aliases: tuple[str, ...] = ()
    options: Mapping[str, OptionInfo] = field(default_factory=dict)
    most: int | None = None  # steps, where fewer than the ladder gives


def base_spacing(ladder: Ladder, convention: Convention, schedule: str = "auto") -> str:
    """The spacing behind a schedule: itself if it is one, else the checkpoint's, else the reference's default."""
    return schedule if schedule in SPACINGS else ladder.spacing or convention.spacing


def spaced(ladder: Ladder, convention: Convention, steps: int, *, spacing: str | None = None) -> Points:
    """Table 2 of arXiv 2305.08891, as each diffusers class carries it out. One step takes the highest level."""
    timestep = _timesteps(len(ladder), convention, steps, spacing or base_spacing(ladder, convention), ladder.steps_offset)
    if timestep[0] > len(ladder) - 1:
        raise ValueError(f"{steps} steps with offset {ladder.steps_offset} reach beyond the {len(ladder)} timesteps of the model")
    gamma = _gamma_of(ladder.ratio_at(timestep))
    whole = timestep == np.round(timestep)
    return Points(np.where(whole, _ends(ladder, convention)[timestep.astype(np.int64)], gamma), timestep)


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


def simple(ladder: Ladder, convention: Convention, steps: int) -> Points:
    """Every (T/n)-th training level from the top (ComfyUI); trailing, where n divides T."""
    total = len(ladder)
    index = total - 1 - (np.arange(steps) * (total / steps)).astype(np.int64)
    return Points(_ends(ladder, convention)[index], index.astype(np.float64))


def consistency(ladder: Ladder, convention: Convention, steps: int, *, original: int = 50) -> Points:
    """n of the 50 timesteps that latent consistency models are distilled on (arXiv 2310.04378; diffusers' LCM)."""
    if steps > original:
        raise ValueError(f"the lcm schedule has {original} levels, so it cannot take {steps} steps")
    index = np.floor(np.linspace(0, original, steps, endpoint=False)).astype(np.int64)
    timestep = (original - index) * (len(ladder) // original) - 1
    return Points(_ends(ladder, convention)[timestep], timestep.astype(np.float64))


def of_gamma(ladder: Ladder, convention: Convention, steps: int, *, gamma: Callable[..., Float], **options: float) -> Points:
    """The paper's gamma(t) on any model: t evenly spaced (algorithm 3), levels matched to the ladder by logSNR.

    It starts at t0 with gamma(t0) = the ladder's end, never above it and never clipped: equal levels divide by zero.
    """
    curve = partial(gamma, clip_min=0.0, **options)
    end = float(_ends(ladder, convention)[-1])
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


def _ends(ladder: Ladder, convention: Convention) -> Float:
    return ladder.alphas_cumprod if convention.exact else ladder.capped


def _gamma_of(ratio: Float) -> Float:
    return np.asarray(1.0 / (1.0 + ratio * ratio))


def _range(ladder: Ladder, convention: Convention, steps: int) -> tuple[float, float]:
    """The highest and lowest sigma/alpha that karras and exponential span."""
    if convention.full_range:
        return float(ladder.ratios[-1]), float(ladder.ratios[0])
    chosen = ladder.ratio_at(spaced(ladder, convention, steps).timestep)
    return float(chosen[0]), float(chosen[-1])


def _from_ratios(ladder: Ladder, convention: Convention, ratio: Float, rounding: str) -> Points:
    timestep = ladder.timestep_at(ratio)
    gamma = _gamma_of(ratio)
    if convention.exact and convention.full_range:
        gamma[0] = ladder.alphas_cumprod[-1]
    return Points(gamma, _ROUNDING[rounding](timestep))


_ROUNDING: Mapping[str, Callable[[Float], Float]] = {"fraction": np.asarray, "nearest": np.round, "floor": np.floor}

_RHO = OptionInfo(default=7.0, minimum=0.5, maximum=100.0)
# Ranges in which every combination has distinct levels at any number of steps: what the gateway accepts can be drawn.
_COSINE = {
    "start": OptionInfo(default=0.0, minimum=0.0, maximum=0.6),
    "end": OptionInfo(default=1.0, minimum=0.8, maximum=1.0),
    "tau": OptionInfo(default=1.0, minimum=0.3, maximum=3.0),
}
_SIGMOID = {
    "start": OptionInfo(default=-3.0, minimum=-6.0, maximum=0.0),
    "end": OptionInfo(default=3.0, minimum=1.0, maximum=6.0),
    "tau": OptionInfo(default=1.0, minimum=0.3, maximum=3.0),
}

SCHEDULES: Mapping[str, Schedule] = {
    "auto": Schedule("Automatic", spaced),
    "leading": Schedule("Leading", partial(spaced, spacing="leading")),
    "trailing": Schedule("Trailing", partial(spaced, spacing="trailing")),
    "linspace": Schedule("Linspace", partial(spaced, spacing="linspace"), aliases=("normal", "uniform")),
    "karras": Schedule("Karras", karras, options={"rho": _RHO}),
    "exponential": Schedule("Exponential", exponential),
    "simple": Schedule("Simple", simple),
    "lcm": Schedule("LCM", consistency, most=50),
    "simple_linear": Schedule("Simple linear", partial(of_gamma, gamma=gamma_simple_linear)),
    "cosine": Schedule("Cosine", partial(of_gamma, gamma=gamma_cosine), options=_COSINE),
    "sigmoid": Schedule("Sigmoid", partial(of_gamma, gamma=gamma_sigmoid), options=_SIGMOID),
}


def levels(ladder: Ladder, convention: Convention, schedule: str, steps: int, options: Options) -> Levels:
    """The levels of a schedule on a ladder; `options` are complete. Raises ValueError where the combination has none."""
    if steps < 1:
        raise ValueError(f"steps must be at least 1, not {steps}")
    chosen = convention.auto if schedule == "auto" and convention.auto else schedule
    points = SCHEDULES[chosen].build(ladder, convention, steps, **options)
    if not np.all(np.diff(np.append(points.gamma, 1.0)) > 0):
        raise ValueError(f"the schedule {schedule!r} has no {steps} distinct levels on this model with these options")
    gamma = np.append(points.gamma, _final(ladder, convention, float(points.gamma[-1])))
    alpha, sigma = np.sqrt(gamma), np.sqrt(1.0 - gamma)
    init = float(sigma[0]) if convention.scaled_init and base_spacing(ladder, convention, chosen) != "leading" else 1.0
    columns = (alpha[1:], sigma[1:], np.append(points.timestep[1:], 0.0))
    following = tuple(Level(*map(float, level)) for level in zip(*columns, strict=True))
    if convention.strided and chosen in (*SPACINGS, "auto") and steps > 1:
        following = tuple(_strided(ladder, int(t) - len(ladder) // steps) for t in points.timestep)
    return Levels(ladder, alpha, sigma, points.timestep, init, following)


def _final(ladder: Ladder, convention: Convention, last: float) -> float:
    """gamma after the last step: 1, but for DDIM on a checkpoint that ends at its first training level."""
    first = float(ladder.alphas_cumprod[0])
    return first if convention.strided and not ladder.final_alpha_one and first > last else 1.0


def _strided(ladder: Ladder, timestep: int) -> Level:
    first = 1.0 if ladder.final_alpha_one else float(ladder.alphas_cumprod[0])
    gamma = float(ladder.alphas_cumprod[timestep]) if timestep >= 0 else first
    return Level(float(np.sqrt(gamma)), float(np.sqrt(1.0 - gamma)), float(max(timestep, 0)))


def catalog(ladder: Ladder) -> tuple[ScheduleInfo, ...]:
    """Every schedule that the model can run, with the logSNR of 16 steps."""
    return tuple(_info(ladder, id) for id in SCHEDULES)


def _info(ladder: Ladder, id: str) -> ScheduleInfo:
    schedule = SCHEDULES[id]
    shown = levels(ladder, Convention(), id, 16, checked_options("schedule", id, {}, schedule.options))
    return ScheduleInfo(
        id=id,
        name=schedule.name,
        aliases=schedule.aliases,
        max_steps=schedule.most or len(ladder) - 2,
        options=schedule.options,
        curve=tuple(np.round(logsnr(shown.alpha[:-1] ** 2), 4).tolist()),
    )
