"""Levels that the client gives: checked by the gateway without numpy, and the same levels in the table."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from cards import SCHEDULES, card
from oracles import EPSILON
from pipelines import samplers, schedules
from pipelines.card import ModelCard, SamplerInfo
from pipelines.ladder import Ladder
from pipelines.params import GenerationParams
from pipelines.samplers import compile_table
from service.drafts import Draft, resolve
from service.errors import BadRequest
from service.settings import Settings

LADDER = Ladder.from_config(EPSILON)
CARD = ModelCard.from_dict(card(samplers=samplers.catalog(LADDER), schedules=schedules.catalog(LADDER)).to_dict())
SETTINGS = Settings(redis_url="redis://localhost")


def drafted(sigmas: Any, **fields: Any) -> Draft:
    return Draft(prompt="", seed=1, schedule="custom", schedule_options={"sigmas": sigmas}, **fields)


def test_their_number_is_the_number_of_steps() -> None:
    for wanted in (None, 3):
        resolved = resolve(drafted([14, 3.5, 0.5, 0], sampler="heun", num_images=2, steps=wanted), CARD, SETTINGS)
        params = GenerationParams.from_dict(resolved.params.to_dict())
        assert params.steps == 3 and params.schedule_options == {"sigmas": [14.0, 3.5, 0.5, 0.0]}
        table = compile_table(LADDER, params.sampler, params.schedule, params.steps, {}, params.schedule_options)
        assert resolved.steps_total == 2 * len(table) == 10


def test_levels_that_end_above_zero_cost_what_is_announced() -> None:
    for sampler in CARD.samplers:
        for draft in (drafted([14, 3.5, 0.5], sampler=sampler.id), Draft(prompt="", steps=2, schedule="laplace", sampler=sampler.id)):
            params = (resolved := resolve(draft, CARD, SETTINGS)).params
            table = compile_table(LADDER, params.sampler, params.schedule, params.steps, {}, params.schedule_options)
            assert resolved.steps_total == len(table), sampler.id


@pytest.mark.parametrize(("draft", "param", "message"), [
    (drafted([3.0, 3.0, 0.0]), "schedule_options.sigmas", "must be falling"),
    (drafted([3.0, 1.0, 2.0]), "schedule_options.sigmas", "must be falling"),
    (drafted([15.0, 1.0]), "schedule_options.sigmas", "numbers from 0 to 14.6293"),
    (drafted([3.0, -1.0]), "schedule_options.sigmas", "numbers from 0"),
    (drafted([3.0, 1e-5, 0.0]), "schedule_options.sigmas", "0.0001 or more"),
    (drafted([3.0]), "schedule_options.sigmas", "two or more"),
    (drafted(3.0), "schedule_options.sigmas", "a list of two"),
    (drafted("3, 0"), "schedule_options.sigmas", "a list of two"),
    (drafted([3.0, "0"]), "schedule_options.sigmas", "a list of two"),
    (drafted([True, 0]), "schedule_options.sigmas", "a list of two"),
    (drafted([10**400, 0]), "schedule_options.sigmas", "a list of two"),
    (drafted([3.0, 1.0, 0.0], steps=3), "steps", "steps must be 2"),
    (drafted([14.0 - i / 100 for i in range(1003)]), "steps", "steps must be from 1 to"),
    (Draft(prompt="", schedule="custom"), "schedule_options.sigmas", "needs schedule_options.sigmas: a list"),
    (Draft(prompt="", schedule="karras", schedule_options={"rho": [7.0]}), "schedule_options.rho", "a finite number"),
], ids=str)  # fmt: skip
def test_what_cannot_be_is_refused_before_it_is_queued(draft: Draft, param: str, message: str) -> None:
    with pytest.raises(BadRequest, match=message) as refusal:
        resolve(draft, CARD, SETTINGS)
    assert refusal.value.param == param


def test_a_card_keeps_what_it_says_of_them_through_json() -> None:
    custom = CARD.schedule("custom")
    assert custom and custom.options["sigmas"].falling and custom.options["sigmas"].default == () and custom.curve == ()
    assert ModelCard.from_dict(CARD.to_dict()) == CARD and dataclasses.asdict(SCHEDULES[0])["ends_open"] is False
    assert isinstance(CARD.samplers[0], SamplerInfo)
