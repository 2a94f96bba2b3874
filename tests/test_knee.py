"""The batching policy by measurement: up to the knee of the cost per row, following the machine, and never the picture."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from pipelines.engine.engine import Engine
from pipelines.engine.events import Finished
from pipelines.engine.knee import TRUSTED, Knee
from tests.fakes import RowwiseDenoiser
from tests.test_engine import sample

SHAPE, OTHER = (4, 16, 16), (4, 32, 32)


def run(knee: Knee, cost: Callable[[int], float], passes: int, wanted: int = 32, shape: tuple[int, int, int] = SHAPE) -> list[int]:
    """`wanted` rows wait at every pass; the sizes that were taken."""
    taken = []
    for _ in range(passes):
        rows = min(wanted, knee.limit(shape))
        knee.observe(shape, rows, cost(rows))
        taken.append(rows)
    return taken


def ramp(knee: Knee, cost: Callable[[int], float]) -> None:
    """A crowd gathers: every size occurs, some times."""
    for rows in (1, 2, 4, 8, 16, 32):
        run(knee, cost, 5, rows)


@pytest.mark.parametrize(("cost", "limit"), [
    (lambda rows: 10.0 + rows, 32),  # an overhead that is shared: larger is cheaper up to the end
    (lambda rows: 3.0 * rows, 1),  # nothing is shared
    (lambda rows: max(8.0, rows), 8),  # a device that is full at eight
    (lambda rows: 10.0 + rows if rows <= 16 else 2.0 * rows, 16),  # caches overflow beyond sixteen
])  # fmt: skip
def test_it_finds_the_knee(cost: Callable[[int], float], limit: int) -> None:
    knee = Knee(32)
    assert knee.limit(SHAPE) == 32
    ramp(knee, cost)
    assert knee.limit(SHAPE) == limit
    assert knee.limit(OTHER) == 32  # each shape has a knee of its own


def test_the_first_pass_of_a_size_tells_nothing() -> None:
    knee = Knee(32)
    for rows in (2, 4, 8):
        knee.observe(SHAPE, rows, 1000.0)  # kernels are made
    ramp(knee, lambda rows: 10.0 + rows)
    assert knee.limit(SHAPE) == 32


def test_what_was_measured_before_is_known_at_once_and_followed() -> None:
    knee = Knee(32)
    assert knee.alone(SHAPE) is None
    knee.begin(SHAPE, 2, 8.0)
    assert knee.alone(SHAPE) == 4.0 and knee.alone(OTHER) is None
    knee.observe(SHAPE, 2, 6.0)
    assert knee.alone(SHAPE) == 3.0
    knee.begin(SHAPE, 32, 160.0)
    assert knee.alone(SHAPE) == 3.0
    assert knee.limit(SHAPE) == 32  # once is not enough to judge a size


def test_it_follows_the_machine() -> None:
    knee = Knee(32)
    ramp(knee, lambda rows: max(8.0, rows))
    assert set(run(knee, lambda rows: max(8.0, rows), 50)) == {8}
    later = run(knee, lambda rows: 10.0 + rows, TRUSTED + 100)  # a neighbour has gone
    assert later[0] == 8 and later[-1] == 32


def test_pictures_do_not_depend_on_it() -> None:
    def drawn(seconds: Callable[[int], float] | None) -> tuple[dict[str, np.ndarray], int]:
        denoiser = RowwiseDenoiser()
        engine = Engine(denoiser, slots=8, max_rows=16)
        for i in range(8):
            engine.add(sample(f"s{i}", seed=i))
        found: dict[str, np.ndarray] = {}
        while engine.busy:
            found |= {e.sample_id: e.latents for e in engine.step(0.0) if isinstance(e, Finished)}
            if seconds:
                engine.took(seconds(denoiser.calls[-1]))
        return found, min(denoiser.calls[2:4])

    free, large = drawn(None)
    bound, small = drawn(lambda rows: float(rows))
    assert small <= large and free.keys() == bound.keys() and len(free) == 8
    assert all(np.array_equal(free[name], bound[name]) for name in free)
