"""The registry of schedules: ids, names, options and their ranges."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial

from pipelines.card import OptionInfo
from pipelines.gamma import gamma_cosine, gamma_sigmoid, gamma_simple_linear
from pipelines.points import Builder
from pipelines.ratio_schedules import exponential, karras, of_gamma
from pipelines.timestep_schedules import consistency, simple, spaced


@dataclass(frozen=True)
class Schedule:
    name: str
    build: Builder  # (ladder, convention, steps, **options)
    aliases: tuple[str, ...] = ()
    options: Mapping[str, OptionInfo] = field(default_factory=dict)
    most: int | None = None  # steps, where fewer than the ladder gives


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
