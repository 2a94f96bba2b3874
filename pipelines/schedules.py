"""Noise schedules: a model's ladder -> the n levels at which a sampler asks the model, and where each step lands."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from pipelines import names
from pipelines.card import OptionInfo, ScheduleInfo
from pipelines.ladder import SPACINGS, Ladder
from pipelines.level import Convention, Level, Levels
from pipelines.options import Options, checked_options
from pipelines.points import highest
from pipelines.schedule_list import SCHEDULES
from pipelines.timestep_schedules import base_spacing


def levels(ladder: Ladder, convention: Convention, schedule: str, steps: int, options: Options) -> Levels:
    """The levels of a schedule on a ladder; `options` are complete. Raises ValueError where the combination has none."""
    if steps < 1:
        raise ValueError(f"steps must be at least 1, not {steps}")
    chosen = _meant(ladder, convention) if schedule == "auto" else schedule
    if SCHEDULES[chosen].for_flow and ladder.space != "flow":
        raise ValueError(f"the schedule {schedule!r} is for rectified-flow models; this one is none")
    points = SCHEDULES[chosen].build(ladder, convention, steps, **options)
    if steps == 1 and chosen != "custom":
        points = highest(ladder, convention, points.final)
    final = points.final if points.final < 1.0 else _final(ladder, convention, float(points.gamma[-1]))
    gamma = np.append(points.gamma, final)
    if not np.all(np.diff(gamma) > 0):
        raise ValueError(f"the schedule {schedule!r} has no {steps} distinct levels on this model with these options")
    alpha, sigma = ladder.alpha_sigma(gamma)
    scaled = convention.scaled_init and base_spacing(ladder, convention, chosen) != "leading"
    init = float(sigma[0]) if scaled or ladder.space == "flow" else ladder.unit(float(sigma[0]))
    timestep = np.append(points.timestep, 0.0 if final == 1.0 else ladder.timestep_at(np.sqrt((1.0 - final) / final)))
    following = tuple(Level(*map(float, level)) for level in zip(alpha[1:], sigma[1:], timestep[1:], strict=True))
    if convention.strided and chosen in (*SPACINGS, "auto") and steps > 1:
        following = tuple(_strided(ladder, int(t) - len(ladder) // steps) for t in points.timestep)
    return Levels(ladder, alpha, sigma, timestep, init, following, steps)


def _meant(ladder: Ladder, convention: Convention) -> str:
    """By "auto"."""
    return convention.auto or {"vp": "auto", "flow": "flow", "edm": "karras"}[ladder.space]


def automatic(ladder: Ladder, convention: Convention) -> str:
    """The id of the schedule that "auto" means for a sampler of this convention on this ladder."""
    meant = _meant(ladder, convention)
    return base_spacing(ladder, convention) if meant == "auto" else meant


def _final(ladder: Ladder, convention: Convention, last: float) -> float:
    """gamma after the last step: 1, but for TCD, SA-Solver and DEIS, and for DDIM on a checkpoint that ends at its first training level."""
    first = float(ladder.alphas_cumprod[0])
    low = convention.ends_low or (convention.strided and not ladder.final_alpha_one)
    return first if low and first - last > 1e-3 * (1.0 - first) else 1.0  # more than what float32 rounds


def _strided(ladder: Ladder, timestep: int) -> Level:
    first = 1.0 if ladder.final_alpha_one else float(ladder.alphas_cumprod[0])
    gamma = float(ladder.alphas_cumprod[timestep]) if timestep >= 0 else first
    alpha, sigma = ladder.alpha_sigma(np.array(gamma))
    return Level(float(alpha), float(sigma), float(max(timestep, 0)))


def catalog(ladder: Ladder) -> tuple[ScheduleInfo, ...]:
    """Every schedule that the model can run, with the logSNR of 16 steps."""
    return tuple(_info(ladder, id) for id, schedule in SCHEDULES.items() if ladder.space == "flow" or not schedule.for_flow)


def _info(ladder: Ladder, id: str) -> ScheduleInfo:
    schedule = SCHEDULES[id]
    return ScheduleInfo(
        id=id,
        name=schedule.name,
        aliases=names.aliases("schedule", id, schedule.name, schedule.aliases),
        max_steps=schedule.most or len(ladder) - 2,
        options=_bounded(schedule.options, ladder),
        ends_open=schedule.ends_open,
        curve=_curve(ladder, id),
    )


def _curve(ladder: Ladder, id: str) -> tuple[float, ...]:
    if any(option.falling for option in SCHEDULES[id].options.values()):
        return ()  # there is nothing before the caller speaks
    shown = levels(ladder, Convention(), id, 16, checked_options("schedule", id, {}, SCHEDULES[id].options))
    return tuple(np.round(2.0 * np.log(shown.alpha[:-1] / shown.sigma[:-1]), 4).tolist())


def _bounded(options: Mapping[str, OptionInfo], ladder: Ladder) -> dict[str, OptionInfo]:
    """Given sigmas end a hair above the ladder: published tables round its end up."""
    end = float(f"{ladder.ratios[-1] * 1.001:.6g}")
    return {name: replace(option, maximum=end) if option.falling else option for name, option in options.items()}
