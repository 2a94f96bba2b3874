"""Warnings of samplers and schedules that run but may surprise."""

from __future__ import annotations

import pytest

from pipelines import schedules
from pipelines.ladder import Ladder
from pipelines.sampler_list import SAMPLERS
from pipelines.samplers import catalog
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


@pytest.mark.parametrize("sampler", drafts.STRIDED)
def test_the_warning_of_noise_is_where_steps_land_high_above_the_next_level(sampler: str) -> None:
    """In timesteps: below six steps on linspace a step lands more than 40 above the level that the model is then told."""
    convention = SAMPLERS[sampler].convention

    def above(schedule: str, steps: int) -> float:
        path = schedules.levels(LADDER, convention, schedule, steps, {})
        return max(landed.timestep - told for landed, told in zip(path.landing[:-1], path.timestep[1:-1], strict=True))

    assert all((above("linspace", n) > 40) == (n in drafts.NOISE_SHOWS) for n in range(2, 60))
    assert all(above(other, n) <= 1 for other in ("leading", "trailing") for n in range(2, 60))
