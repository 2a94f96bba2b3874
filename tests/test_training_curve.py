"""The curve of what more training brings."""

from __future__ import annotations

import numpy as np
import pytest

from tests.test_training import drawn_icons
from training.compositor import Compositor, allowed
from training.curve import apart, asked, law
from training.words import STYLES


def test_the_curve_is_a_power_law_of_what_is_missing_to_the_ceiling() -> None:
    seen = np.array([1e5, 2e5, 4e5])
    a, b = law(seen, 0.98 - 3.0 * seen**-0.25, 0.98)
    assert (a, b) == pytest.approx((3.0, 0.25))


def test_the_curve_asks_for_nothing_that_the_first_checkpoint_has_no_words_for() -> None:
    heaps = asked(Compositor(drawn_icons()), 20)
    assert all(heaps.values())
    assert {allowed(scene) for scene in heaps["seen"]} == {True} and {allowed(scene) for scene in heaps["held out"]} == {False}
    assert not {STYLES[scene.style] for scene in heaps["seen"] + heaps["held out"]} & {"pencil"}


def test_labels_of_the_curve_have_room() -> None:
    assert apart(np.array([184_000, 296_000, 396_000, 422_000, 502_000])) == [184_000, 296_000, 502_000]
