"""Which shape moves next: by slack, then by what each has had, then by age. On the engine itself, with a clock of its own."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from pipelines.engine.batcher import PASSED_OVER, Batcher
from pipelines.engine.engine import Engine
from pipelines.engine.events import Finished
from pipelines.samplers import compile_table
from tests.fakes import RowwiseDenoiser
from tests.test_engine import LADDER, run, sample

SMALL, LARGE, OTHER = (4, 8, 8), (4, 16, 16), (4, 8, 12)
Cost = Callable[[tuple[int, int, int], int], float]  # of a pass: by shape and samples, in seconds


def of(shape: tuple[int, int, int], steps: int = 50) -> dict[str, Any]:
    return {"shape": shape, "table": compile_table(LADDER, "ddim", "leading", steps)}


def per_sample(shape: tuple[int, int, int], count: int) -> float:
    """A CPU: nothing is shared."""
    return 0.001 * shape[1] * shape[2] / 64 * count


def per_pass(shape: tuple[int, int, int], count: int) -> float:
    """A GPU that is not full: a crowd costs what one does."""
    return 0.001 * shape[1] * shape[2] / 64


class Clocked:
    """An engine that is told how long its passes took."""

    def __init__(self, cost: Cost, **options: Any) -> None:
        self.engine, self.now, self._cost = Engine(RowwiseDenoiser(), **options), 0.0, cost
        self.moved: list[set[str]] = []
        self.ends: dict[str, float] = {}
        self._shapes: dict[str, tuple[int, int, int]] = {}

    def add(self, name: str, **changes: Any) -> None:
        made = sample(name, **changes)
        self._shapes[name] = made.shape
        self.engine.add(made)

    def tick(self) -> set[str]:
        events = self.engine.step(self.now)
        moved = {event.sample_id for event in events}
        seconds = self._cost(self._shapes[min(moved)], len(moved))
        self.now += seconds
        self.engine.took(seconds)
        self.moved.append(moved)
        self.ends |= {event.sample_id: self.now for event in events if isinstance(event, Finished)}
        return moved

    def measure(self, *shapes: tuple[int, int, int]) -> None:
        """What a picture alone costs is known, as after a worker's first ones."""
        for shape in shapes:
            self.add(f"first {shape}", **of(shape, 5))
            self.run()
        self.now, self.moved = 0.0, []

    def run(self) -> None:
        while self.engine.busy:
            self.tick()

    def passes(self, name: str) -> int:
        return sum(name in moved for moved in self.moved)


def alone(cost: Cost, **changes: Any) -> float:
    clocked = Clocked(cost)
    clocked.add("s", **changes)
    clocked.run()
    return clocked.now


@pytest.mark.parametrize("cost", [per_sample, per_pass])
@pytest.mark.parametrize("crowd", [1, 7])
def test_small_and_large_are_slowed_down_alike(cost: Cost, crowd: int) -> None:
    """A pass of the large size takes four times as long: in the time of one, the small ones make four."""
    clocked = Clocked(cost, slots=16)
    clocked.measure(SMALL, LARGE)
    for i in range(crowd):
        clocked.add(f"small{i}", **of(SMALL, 400))
    clocked.add("large", **of(LARGE, 100))
    clocked.run()
    slower = [clocked.ends["small0"] / alone(cost, **of(SMALL, 400)), clocked.ends["large"] / alone(cost, **of(LARGE, 100))]
    assert slower[0] == pytest.approx(slower[1], rel=0.1)
    assert max(slower) == pytest.approx(crowd + 1 if cost is per_sample else 2, rel=0.1)


def test_who_comes_has_saved_nothing_up() -> None:
    clocked = Clocked(per_pass)
    clocked.add("one", **of(SMALL, 400))
    clocked.add("two", **of(OTHER, 400))
    for _ in range(200):
        clocked.tick()
    clocked.add("late", **of(LARGE, 400))
    for _ in range(120):
        clocked.tick()
    before, after = clocked.moved[:200], clocked.moved[200:]
    shares = {name: sum(name in moved for moved in after) for name in ("one", "two", "late")}
    assert shares["late"] == pytest.approx(shares["one"] / 4, abs=2)  # and not all of them, to catch up
    assert sum("one" in moved for moved in before) == pytest.approx(120, abs=2)  # 8 x 8 against 8 x 12


def test_a_shape_alone_owes_nobody_anything() -> None:
    clocked = Clocked(per_pass)
    clocked.add("long", **of(SMALL, 400))
    clocked.add("short", **of(OTHER, 3))
    for _ in range(300):
        clocked.tick()
    assert "short" in clocked.ends
    clocked.add("again", **of(OTHER, 300))
    for _ in range(50):
        clocked.tick()
    assert sum("long" in moved for moved in clocked.moved[-50:]) == pytest.approx(30, abs=2)


def test_a_pass_that_cannot_take_all_of_a_shape_counts_for_those_it_takes() -> None:
    """Twelve rows wait where a pass has four, so that each sample moves at every third pass of its shape."""
    clocked = Clocked(per_pass, slots=8, max_rows=4)
    clocked.measure(SMALL, OTHER)
    for i in range(6):
        clocked.add(f"crowd{i}", **of(SMALL, 100))
    clocked.add("rare", **of(OTHER, 100))
    for _ in range(80):
        clocked.tick()
    assert clocked.passes("rare") == pytest.approx(clocked.passes("crowd0") / 1.5, abs=2)


def test_a_deadline_that_is_near_goes_first_and_is_kept() -> None:
    def ends(due: float | None) -> float:
        clocked = Clocked(per_sample, slots=16)
        for i in range(9):
            clocked.add(f"crowd{i}", **of(SMALL, 200))
        clocked.add("due", **of(LARGE, 25), due=due)
        clocked.run()
        return clocked.ends["due"]

    without, soon = ends(None), 0.4
    assert without > 2 * soon
    assert ends(soon) <= soon
    assert ends(without * 2) == pytest.approx(without, rel=0.1)  # far away: nothing is urgent
    assert ends(0.01) == pytest.approx(without, rel=0.1)  # cannot be met: nobody is held up for it


def test_the_least_slack_is_first_within_a_shape_too() -> None:
    clocked = Clocked(per_pass, slots=8, max_rows=4)
    for i in range(6):
        clocked.add(f"s{i}", **of(SMALL, 40))
    clocked.add("later", **of(SMALL, 40), due=0.079)
    clocked.add("sooner", **of(SMALL, 40), due=0.078)
    for _ in range(3):
        clocked.tick()
    assert all({"later", "sooner"} == moved for moved in clocked.moved[1:3])  # the first pass tells how long passes take


def test_the_urgent_starve_no_other_shape() -> None:
    clocked = Clocked(per_pass, slots=4)
    clocked.add("other", **of(OTHER, 400))
    for number in range(12):
        clocked.add(f"urgent{number}", **of(SMALL, 20), due=clocked.now + 0.035)
        for _ in range(20):
            clocked.tick()
    waited = [place for place, moved in enumerate(clocked.moved) if "other" in moved]
    assert max(b - a for a, b in pairwise(waited)) == PASSED_OVER + 1


def test_no_order_changes_a_picture() -> None:
    latents = []
    for due, cost in ((None, per_pass), (0.05, per_sample)):
        clocked = Clocked(cost, slots=8)
        for i, shape in enumerate((SMALL, LARGE, OTHER, SMALL)):
            clocked.add(f"s{i}", **of(shape, 20 + i), seed=i, due=due if i == 1 else None)
        found: dict[str, Any] = {}
        while clocked.engine.busy:
            events = clocked.engine.step(clocked.now)
            clocked.engine.took(0.004)
            found |= {event.sample_id: event.latents for event in events if isinstance(event, Finished)}
        latents.append(found)
    for name, wanted in latents[0].items():
        np.testing.assert_array_equal(latents[1][name], wanted)


def test_a_sample_that_alone_exceeds_the_pass_is_served() -> None:
    engine = Engine(RowwiseDenoiser(), max_rows=1)
    engine.add(sample("s"))
    assert isinstance(run(engine)["s"], Finished)
    assert Batcher(lambda shape: 4).choose([], 0.0) == []
