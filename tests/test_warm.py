"""The warm-up, and what is measured at a start: calls of every size, the largest first, as far as memory holds them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pipelines.denoiser import PROBE_ROWS_ON_GPU, batch_invariant, fixed_rows
from tests.fakes import RowwiseDenoiser
from workers.warm import buckets, made_ready

ABOUT: tuple[Any, ...] = ((4, 2, 3), np.ones((7, 5), np.float32), 0)


class Small(RowwiseDenoiser):
    """A GPU that holds so many rows."""

    device = "cuda"

    def __init__(self, most: int, error: type[Exception] = MemoryError) -> None:
        super().__init__()
        self.most, self.error = most, error
        self.xp = Anywhere()  # type: ignore[assignment]

    def __call__(self, x: Any, timestep: Any, context: Any, *_: Any) -> Any:
        if len(x) > self.most:
            raise self.error
        return super().__call__(x, timestep, context)


class Anywhere:
    """numpy, whatever the device."""

    def __getattr__(self, name: str) -> Any:
        return getattr(RowwiseDenoiser.xp, name)

    def asarray(self, array: Any, *, device: str) -> Any:
        return np.asarray(array)


@pytest.mark.parametrize(("most", "sizes"), [
    (1, (1,)), (2, (1, 2)), (8, (1, 2, 3, 4, 6, 8)), (32, (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)), (20, (1, 2, 3, 4, 6, 8, 12, 16, 20)),
])  # fmt: skip
def test_buckets(most: int, sizes: tuple[int, ...]) -> None:
    assert buckets(most) == sizes


@pytest.mark.parametrize(("most", "held", "ran"), [(99, 8, [8, 4, 2, 1]), (5, 4, [4, 2, 1]), (1, 1, [1])])
def test_sizes_that_memory_does_not_hold_are_left_out(most: int, held: int, ran: list[int]) -> None:
    denoiser = Small(most)
    assert made_ready(denoiser, *ABOUT, (1, 2, 4, 8), "toy") == held
    assert denoiser.calls == ran


@pytest.mark.parametrize(("most", "error"), [(0, MemoryError), (5, ValueError)])
def test_a_start_fails_where_nothing_fits_or_something_else_is_wrong(most: int, error: type[Exception]) -> None:
    with pytest.raises(error):
        made_ready(Small(most, error), *ABOUT, (1, 2, 4, 8), "toy")


def test_what_memory_does_not_hold_is_not_promised() -> None:
    assert batch_invariant(Small(32), *ABOUT) and max(PROBE_ROWS_ON_GPU) == 32
    assert not batch_invariant(Small(31), *ABOUT)
    assert fixed_rows(Small(8), *ABOUT) == 8 and fixed_rows(Small(7), *ABOUT) == 1
    for measure in (batch_invariant, fixed_rows):
        with pytest.raises(ValueError):
            measure(Small(2, ValueError), *ABOUT)
