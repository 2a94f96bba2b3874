"""Batcher: which samples move at the next tick. The whole policy is this file.

One forward pass serves one latent shape. The sample that has waited longest decides the shape, so no size starves;
the others of that shape ride along in the same order until the pass is full. Deadlines and classes will order the
waiting line in `_urgency`, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from pipelines.engine.sample import InFlight
from pipelines.engine.slots import Shape


def choose(flying: Iterable[InFlight], limit: Callable[[Shape], int]) -> list[InFlight]:
    """Samples of one latent shape, at most `limit` of it U-Net rows together, but always at least one sample."""
    line = sorted(flying, key=_urgency)
    if not line:
        return []
    shape = line[0].sample.shape
    batch: list[InFlight] = []
    rows, most = 0, limit(shape)
    for flight in (f for f in line if f.sample.shape == shape):
        if batch and rows + flight.rows > most:
            break
        batch.append(flight)
        rows += flight.rows
    return batch


def _urgency(flight: InFlight) -> tuple[int, int]:
    """Smallest first: the tick of its last row, then age."""
    return flight.served, flight.arrived
