"""Warnings of samplers and schedules that run but may surprise."""

from __future__ import annotations

import numpy as np
import pytest

from pipelines import schedules
from pipelines.ladder import Ladder
from pipelines.sampler_list import SAMPLERS
from pipelines.samplers import catalog, compile_table
from service import drafts
from service.settings import Settings
from tests.cards import card
from tests.fakes import sd_ladder_config

LADDER = Ladder.from_config(sd_ladder_config())
CARD = card(samplers=catalog(LADDER), schedules=schedules.catalog(LADDER))


@pytest.mark.parametrize(
    ("sampler", "schedule", "steps", "told"),
    [
        ("ddim", "linspace", 2, True),
        ("PLMS", "Normal", 5, True),
        ("ddim", "linspace", 6, False),
        ("ddim", "linspace", 1, False),
        ("ddim", "trailing", 2, False),
        ("euler", "linspace", 2, False),
    ],
)
def test_noise_that_ddim_leaves_on_linspace_is_a_warning(sampler: str, schedule: str, steps: int, told: bool) -> None:
    one = drafts.resolve(drafts.Draft(prompt="a red apple", sampler=sampler, schedule=schedule, steps=steps), CARD, Settings())
    assert [warning.code for warning in one.warnings] == (["noise_left"] if told else [])
    assert set(drafts.STRIDED) == {id for id, known in SAMPLERS.items() if known.convention.strided}


@pytest.mark.parametrize(("spacing", "told"), [("linspace", True), ("leading", False), ("trailing", False), (None, False)])
@pytest.mark.parametrize("sampler", drafts.STRIDED)
def test_the_automatic_schedule_is_warned_of_where_it_is_linspace(sampler: str, spacing: str | None, told: bool) -> None:
    ladder = Ladder.from_config(sd_ladder_config() | {"timestep_spacing": spacing})
    one = card(samplers=catalog(ladder), schedules=schedules.catalog(ladder))
    drawn = drafts.resolve(drafts.Draft(prompt="a red apple", sampler=sampler, schedule="auto", steps=3), one, Settings())
    assert [warning.code for warning in drawn.warnings] == (["noise_left"] if told else [])


@pytest.mark.parametrize(
    "space",
    [
        {},
        {"timestep_spacing": "trailing"},
        {"_class_name": "FlowMatchEulerDiscreteScheduler"},
        {"_class_name": "EDMEulerScheduler", "sigma_min": 0.002, "sigma_max": 80.0, "sigma_data": 0.5},
    ],
)
def test_what_automatic_means_is_what_it_draws(space: dict[str, object]) -> None:
    ladder = Ladder.from_config(sd_ladder_config() | space if not space.get("_class_name") else space)
    for info in catalog(ladder):
        auto, same = (compile_table(ladder, info.id, schedule, 7) for schedule in ("auto", info.auto))
        for column in ("alpha", "sigma", "timestep", "update"):
            np.testing.assert_array_equal(getattr(auto, column), getattr(same, column), info.id)


@pytest.mark.parametrize("sampler", drafts.STRIDED)
def test_the_warning_of_noise_is_where_steps_land_high_above_the_next_level(sampler: str) -> None:
    """In timesteps: below six steps on linspace a step lands more than 40 above the level that the model is then told."""
    convention = SAMPLERS[sampler].convention

    def above(schedule: str, steps: int) -> float:
        path = schedules.levels(LADDER, convention, schedule, steps, {})
        return max(landed.timestep - told for landed, told in zip(path.landing[:-1], path.timestep[1:-1], strict=True))

    assert all((above("linspace", n) > 40) == (n in drafts.NOISE_SHOWS) for n in range(2, 60))
    assert all(above(other, n) <= 1 for other in ("leading", "trailing") for n in range(2, 60))
