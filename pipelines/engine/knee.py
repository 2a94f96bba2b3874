"""How many rows a pass is worth: up to the knee of the measured cost per row, not beyond.

A larger batch pays as long as a row in it is cheaper. Past the knee it only makes every tick longer: newcomers, cancels and short
jobs wait, and nothing is won. Costs are kept by latent shape and power of two, follow the machine as it changes, and grow old, so
that a size that was once too large is tried again.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from pipelines.engine.slots import Shape

CHEAPER = 0.05  # a row of a larger batch must be cheaper by this share
KEPT = 16  # passes of a size; the quickest of them counts, since a neighbour can only slow one down
ENOUGH = 3  # of them, before a size is judged
TRUSTED = 2000  # passes of a shape, after which a size that did not occur is forgotten


@dataclass(slots=True)
class Cost:
    """The last passes of a size, in seconds a row, and when the last one was, in passes of its shape."""

    kept: deque[float] = field(default_factory=lambda: deque(maxlen=KEPT))
    seen: int = 0

    @property
    def seconds(self) -> float:
        return min(self.kept)


@dataclass(slots=True)
class Costs:
    """Of one shape, by the power of two that the rows round up to."""

    passes: int = 0
    warm: set[int] = field(default_factory=set)  # sizes that ran once: the first pass makes kernels and tells nothing
    by_size: dict[int, Cost] = field(default_factory=dict)


class Knee:
    """`limit` for the batcher, `observe` after every pass."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._shapes: dict[Shape, Costs] = {}

    def observe(self, shape: Shape, rows: int, seconds: float) -> None:
        """A pass of `rows` rows took so long."""
        costs = self._shapes.setdefault(shape, Costs())
        costs.passes += 1
        size = _size(rows)
        if size not in costs.warm:
            costs.warm.add(size)
            return
        cost = costs.by_size.setdefault(size, Cost())
        cost.kept.append(seconds / rows)
        cost.seen = costs.passes
        for old in [s for s, c in costs.by_size.items() if costs.passes - c.seen > TRUSTED]:
            del costs.by_size[old]

    def begin(self, shape: Shape, rows: int, seconds: float) -> None:
        """What a pass takes, as measured before any sample came, when kernels had been made."""
        self._shapes.setdefault(shape, Costs()).warm.add(_size(rows))
        self.observe(shape, rows, seconds)

    def limit(self, shape: Shape) -> int:
        """Rows of the next pass at most: the smallest size from which no larger one that was measured is clearly cheaper a row.

        A size that was not measured yet is worth a try, so without measurements this is the most of all.
        """
        costs = self._shapes.get(shape)
        if costs is None:
            return self._most
        known = {size: cost.seconds for size, cost in sorted(costs.by_size.items()) if len(cost.kept) >= ENOUGH}
        for size, seconds in known.items():
            larger = [known[s] for s in known if s > size]
            if larger and min(larger) > (1 - CHEAPER) * seconds:
                return min(size, self._most)
        return self._most

    def alone(self, shape: Shape) -> float | None:
        """Seconds a row of the smallest size that was measured; None where none was."""
        costs = self._shapes.get(shape)
        return costs.by_size[min(costs.by_size)].seconds if costs and costs.by_size else None


def _size(rows: int) -> int:
    return 1 << max(0, rows - 1).bit_length()
