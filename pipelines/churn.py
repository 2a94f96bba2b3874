"""Churn: noise that lifts x before a step, arXiv 2206.00364, algorithm 2, as k-diffusion does it for euler, heun and dpm2."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import sqrt

import numpy as np

from pipelines.level import Levels
from pipelines.rows import Row, lifted


def churned(levels: Levels, s_churn: float, s_tmin: float, s_tmax: float) -> Levels:
    """The levels that steps start from: lifted where sigma/alpha is in [s_tmin, s_tmax]; they land where they did.

    The first lift is in the first noise, which is then that of the lifted level.
    """
    gamma = min(s_churn / len(levels), sqrt(2.0) - 1.0)
    starts = [levels[i] for i in range(len(levels))]
    starts = [levels.at(at.ratio * (1.0 + gamma)) if gamma > 0.0 and s_tmin <= at.ratio <= s_tmax else at for at in starts]
    alpha, sigma, timestep = (np.array(column) for column in zip(*starts, levels[len(levels)], strict=True))
    unit = levels.ladder.unit
    init = unit(starts[0].sigma) if levels.init == unit(levels[0].sigma) else starts[0].sigma
    return replace(levels, alpha=alpha, sigma=sigma, timestep=timestep, init=init if starts[0] != levels[0] else levels.init)


def with_churn(rows: Sequence[Row], levels: Levels, s_noise: float) -> list[Row]:
    """The same rows; those that end a step also lift x to where the next one starts."""
    last = {row.step: r for r, row in enumerate(rows)}
    made = list(rows)
    for i in range(len(levels) - 1):
        if levels[i + 1].ratio > levels.landing[i].ratio:
            made[last[i]] = lifted(made[last[i]], levels.landing[i], levels[i + 1], s_noise)
    return made
