"""A model's card as a worker would announce it, with something of everything that the gateway has to check."""

from __future__ import annotations

import dataclasses
from typing import Any

from pipelines.card import Defaults, ModelCard, OptionInfo, SamplerInfo, ScheduleInfo
from pipelines.guidance_list import catalog
from pipelines.params import KINDS
from pipelines.prompts import SYNTAXES

SAMPLERS = (
    SamplerInfo(id="ddim", name="DDIM", aliases=("DDIMScheduler",), options={"eta": OptionInfo(default=0.0, minimum=0.0, maximum=1.0)}),
    SamplerInfo(id="euler", name="Euler", aliases=("k_euler", "EulerDiscreteScheduler")),
    SamplerInfo(
        id="euler_a",
        name="Euler a",
        aliases=("k_euler_a",),
        stochastic=True,
        options={"eta": OptionInfo(default=1.0, minimum=0.0, maximum=1.0), "s_noise": OptionInfo(default=1.0, minimum=0.0, maximum=2.0)},
    ),
    SamplerInfo(id="heun", name="Heun", min_steps=2, evals_per_step=2, evals_offset=-1),
    SamplerInfo(
        id="dpmpp_2m",
        name="DPM++ 2M",
        options={
            "solver": OptionInfo(default="midpoint", choices=("midpoint", "heun")),
            "order": OptionInfo(default=2, minimum=1, maximum=3, integer=True),
        },
    ),
)

SCHEDULES = (
    ScheduleInfo(id="auto", name="Automatic"),
    ScheduleInfo(id="linspace", name="Linspace", aliases=("normal", "uniform"), curve=(-4.5, 0.0, 7.25)),
    ScheduleInfo(id="karras", name="Karras", max_steps=100, options={"rho": OptionInfo(default=7.0, minimum=1.0, maximum=20.0)}),
)


def card(**changes: Any) -> ModelCard:
    """A small model of 64 x 64 pixels; `changes` replace its fields."""
    base = ModelCard(
        id="celadon-test",
        title="Celadon Test",
        description="draws nothing",
        license="Apache-2.0",
        hash="0" * 12,
        prediction_type="epsilon",
        width=64,
        height=64,
        max_width=256,
        max_height=128,
        size_multiple=8,
        max_steps=120,
        max_prompt_tokens=16,
        defaults=Defaults(guidance_rescale=0.7),
        samplers=SAMPLERS,
        schedules=SCHEDULES,
        guidances=catalog(0.7),
        kinds=KINDS,
        prompt_syntaxes=SYNTAXES,
        max_clip_skip=12,
        words=("a", "on", "background", "red", "blue", "apple", "car"),
    )
    return dataclasses.replace(base, **changes)
