"""Points: what a schedule chooses on a ladder, and the few formulas that all of them share."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from pipelines.ladder import Float, Ladder
from pipelines.level import Convention


class Points(NamedTuple):
    """The levels of a schedule before the last: signal power gamma = alpha^2, rising, and timesteps."""

    gamma: Float  # [n]
    timestep: Float  # [n]


Builder = Callable[..., Points]


def ends(ladder: Ladder, convention: Convention) -> Float:
    return ladder.alphas_cumprod if convention.exact else ladder.capped


def gamma_of(ratio: Float) -> Float:
    return np.asarray(1.0 / (1.0 + ratio * ratio))
