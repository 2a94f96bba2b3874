"""The policy of models that do not all fit, in scenes and in a simulated afternoon; and the shelf that carries it out."""

from __future__ import annotations

import json
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.cards import card
from workers.messages import Forget, Hold
from workers.model import ModelRefused, describe_models
from workers.settings import DEFAULT_MODEL, WorkerSettings
from workers.shelf import Shelf, Ware
from workers.swaps import Plan, plan

SIZES = {"a": 4, "b": 4, "c": 4, "big": 8}


def planned(here: dict[str, float], waiting: dict[str, float], busy: set[str], budget: int = 4, stay_s: float = 30) -> Plan:
    return plan(SIZES, here, waiting, busy, budget=budget, stay_s=stay_s)


@pytest.mark.parametrize(
    ("here", "waiting", "busy", "more", "wanted"),
    [
        ({"a": 5.0}, {}, set(), {}, Plan()),
        ({"a": 5.0}, {"a": 9.0}, {"a"}, {}, Plan()),
        ({"a": 5.0}, {"unknown": 9.0}, set(), {}, Plan()),
        ({"a": 5.0}, {"b": 0.1}, {"a"}, {"budget": 8}, Plan(load="b")),  # there is room
        ({"a": 5.0}, {"b": 0.1}, {"a"}, {"budget": 0}, Plan(load="b")),  # there is any room
        ({"a": 5.0}, {"b": 0.1}, set(), {}, Plan(("a",), "b")),  # nobody wants a
        ({"a": 5.0}, {"b": 99.0, "a": 1.0}, set(), {}, Plan()),  # it has not stayed yet
        ({"a": 31.0}, {"b": 0.1, "a": 50.0}, set(), {}, Plan(("a",), "b")),
        ({"a": 31.0}, {"b": 0.1}, {"a"}, {}, Plan(("a",))),  # first it draws what it has
        ({"a": 31.0}, {"b": 1.0, "c": 2.0}, set(), {}, Plan(("a",), "c")),  # who has waited longest
        ({"a": 40.0, "b": 31.0}, {"c": 1.0, "a": 1.0, "b": 1.0}, set(), {"budget": 8}, Plan(("a",), "c")),  # who has been here longest
        ({"a": 40.0, "b": 1.0}, {"c": 1.0, "a": 1.0}, set(), {"budget": 8}, Plan(("b",), "c")),  # who is idle
        ({"a": 40.0, "b": 40.0}, {"big": 1.0}, {"b"}, {"budget": 8}, Plan(("a", "b"))),  # two for one
        ({"a": 40.0, "b": 9.0}, {"big": 1.0, "b": 1.0}, {"a"}, {"budget": 8}, Plan()),  # one of them may not go, so none does
    ],
)
def test_scenes(here: dict[str, float], waiting: dict[str, float], busy: set[str], more: dict[str, Any], wanted: Plan) -> None:
    assert planned(here, waiting, busy, **more) == wanted


def test_changes_are_few_and_nobody_waits_for_ever() -> None:
    """Three models, room for one, each with work at all times: an afternoon in steps of a second; a job takes five."""
    rng, here, busy_until, came, waits, changes = random.Random(0), {"a": 0}, 0, {}, list[int](), 0
    oldest = {model: 0 for model in "abc"}
    for now in range(1, 7200):
        [model] = here
        busy = {model} if now < busy_until else set()
        wish = planned({model: float(now - here[model])}, {m: float(now - t) for m, t in oldest.items()}, busy)
        if wish.load:
            changes, here, busy_until = changes + 1, {wish.load: now + 4}, now + 4  # loading
        elif not busy and model not in wish.leaving:
            waits.append(now - oldest[model])
            oldest[model], busy_until = now - rng.randrange(3), now + 5
            came[model] = came.get(model, 0) + 1
    assert changes <= 7200 / 30 and max(waits) <= 3 * (30 + 5 + 4) + 3
    assert min(came.values()) > 0.9 * max(came.values())


def ware(name: str, opened: list[str], size: int = 4, broken: bool = False) -> Ware:
    def come() -> Any:
        if broken:
            raise ModelRefused("its folder is gone")
        opened.append(name)
        return SimpleNamespace(stages=SimpleNamespace(card=card(id=name)), engine=None)

    return Ware(card(id=name), size, come)


def put_away(told: list[Any]) -> Any:
    def put(command: Any) -> None:
        told.append((type(command), command.model))
        if isinstance(command, Forget):
            command.gone.set()

    return put


async def test_the_shelf_opens_what_fits_and_changes_by_the_plan() -> None:
    opened, told = list[str](), list[Any]()
    shelf = Shelf({name: ware(name, opened) for name in "abc"}, budget=8, stay_s=0)
    assert len(shelf.fill()) == 2 and opened == ["a", "b"] == shelf.claimable and not shelf.whole
    assert list(shelf.cards) == ["a", "b", "c"]
    assert await shelf.make_room({"c": 1.0, "a": 1.0}, {"a", "b"}, put_away(told)) == ""
    assert shelf.claimable == ["b"] and told == [], "a draws what it has, b draws on"
    assert await shelf.make_room({"c": 1.0, "a": 1.0}, {"b"}, put_away(told)) == "c"
    await shelf.fetch("c", put_away(told))
    assert told == [(Forget, "a"), (Hold, "c")] and shelf.claimable == ["b", "c"]


async def test_a_model_that_is_gone_is_struck_off_and_the_others_go_on() -> None:
    opened, told = list[str](), list[Any]()
    shelf = Shelf({"a": ware("a", opened), "b": ware("b", opened, broken=True)}, budget=4, stay_s=0)
    shelf.fill()
    assert await shelf.make_room({"b": 1.0}, set(), put_away(told)) == "b"
    await shelf.fetch("b", put_away(told))
    assert list(shelf.cards) == ["a"]
    assert await shelf.make_room({"a": 1.0}, set(), put_away(told)) == "a"
    await shelf.fetch("a", put_away(told))
    assert shelf.claimable == ["a"] and shelf.whole


def test_a_model_that_does_not_fit_alone_is_refused_at_the_start() -> None:
    with pytest.raises(ModelRefused, match="b takes 5 MB"):
        Shelf({"a": ware("a", []), "b": ware("b", [], size=5_000_000)}, budget=4_000_000).fill()


def test_models_may_have_names_of_their_own(tmp_path: Path) -> None:
    told = {"redis_url": "redis://localhost", "data_dir": tmp_path}
    (tmp_path / "models.json").write_text(json.dumps({"small": str(DEFAULT_MODEL)}))
    assert list(describe_models(WorkerSettings(**told))) == ["celadon-mini", "small"]
    assert list(describe_models(WorkerSettings(**told, models=" small,"))) == ["small"]
    with pytest.raises(ModelRefused, match="two models are called celadon-mini"):
        describe_models(WorkerSettings(**told, models=f"{DEFAULT_MODEL},{DEFAULT_MODEL}/"))
    (tmp_path / "models.json").write_text("[]")
    with pytest.raises(ModelRefused, match=r"models\.json holds no names"):
        describe_models(WorkerSettings(**told))
