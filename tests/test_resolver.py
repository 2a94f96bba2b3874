"""What is settled once for many drafts is what `drafts.resolve` makes of each of them."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from cards import card
from service import resolver
from service.drafts import Draft, resolve
from service.errors import ApiError
from service.resolver import Resolver
from service.settings import Settings

SETTINGS = Settings()
CARD = dataclasses.replace(card(), words=("a", "red", "apple"))
SAID: list[dict[str, Any]] = [
    {},
    {"prompt": "", "negative_prompt": "blurred"},
    {"negative_prompt": "blurred", "guidance": 1.0},
    {"prompt": "a red zebra", "seed": 4294967295},
    {"width": 128, "height": 64, "num_images": 3},
    {"sampler": "ddim", "schedule": "linspace", "steps": 3},
    {"sampler": "Euler a", "sampler_options": {"eta": 0.5}},
    {"guidance_options": {"variant": "apg"}},
    {"schedule": "karras", "schedule_options": {"rho": 5}},
    {"output_format": "webp", "output_quality": 50, "preview": True},
    {"sampler": "nothing"},
    {"seed": -1},
    {"prompt": "a\0"},
    {"negative_prompt": "a" * 3000},
    {"steps": 0},
    {"strength": 0.5},
]


def made(resolve: Any) -> Any:
    try:
        return resolve()
    except ApiError as error:
        return error.code, error.message, error.param


@pytest.mark.parametrize("said", SAID, ids=str)
def test_the_first_and_the_second_time_are_as_without_memory(said: dict[str, Any]) -> None:
    quick = Resolver(SETTINGS)
    for prompt, seed in (("a red apple", 1), ("a blue one", 2), ("", 3), ("a red apple", 4)):
        draft = Draft(**{"prompt": prompt, "seed": seed} | said)
        assert made(lambda draft=draft: quick.resolve(draft, CARD)) == made(lambda draft=draft: resolve(draft, CARD, SETTINGS))


def test_another_card_of_a_model_is_seen_at_once() -> None:
    quick, draft = Resolver(SETTINGS), Draft(prompt="a")
    other = dataclasses.replace(CARD, defaults=dataclasses.replace(CARD.defaults, steps=7))
    assert [quick.resolve(draft, one).params.steps for one in (CARD, other, CARD)] == [20, 7, 20]


def test_seeds_are_drawn_anew_each_time() -> None:
    quick = Resolver(SETTINGS)
    assert len({quick.resolve(Draft(prompt="a"), CARD).params.seed for _ in range(10)}) > 5


def test_memory_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolver, "MOST", 3)
    quick = Resolver(SETTINGS)
    for steps in range(3, 23):
        assert quick.resolve(Draft(prompt="a", steps=steps), CARD).params.steps == steps
    assert len(quick._settled) == 3
