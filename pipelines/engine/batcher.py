"""Batcher: which samples move at the next tick. The whole policy is this file.

One forward pass serves one latent shape. In this order:

1. **Slack.** A sample is urgent when what is left until its deadline is no more than twice what its remaining rows take, and not less
   than nothing. The urgent one with the least to spare decides the shape; who waits beside it is passed over seven times in a row at most.
2. **Deficit.** Else the shape that has had the least: a pass gives each of its samples what that sample would have had of a machine of its
   own, and is counted in seconds of such a machine. So all samples are slowed down alike, small pictures are not held up by large ones,
   nor single ones by crowds. (Deficit round robin: Shreedhar and Varghese 1996, with seconds for bytes. A shape that comes saves nothing
   up from when it was away.)
3. **Age.** Else the sample that was served longest ago, then the older one. Within a shape this order says who rides along where a pass
   cannot take all.

A caller that does not tell how long passes take gets 3 alone, by which shapes take turns.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

from pipelines.engine.sample import InFlight
from pipelines.engine.slots import Shape

MARGIN = 2.0  # times what is left to do
PASSED_OVER = 7  # passes for the urgent in a row, while others wait
LATEST = 0.2  # weight of the last pass in their mean


class Batcher:
    """`limit` says how many U-Net rows a pass of a shape may have."""

    def __init__(self, limit: Callable[[Shape], int]) -> None:
        self._limit = limit
        self._had: dict[Shape, float] = {}  # seconds alone that every sample of the shape has had
        self._pass_s: dict[Shape, float] = {}  # mean of the last passes
        self._flying: Counter[Shape] = Counter()
        self._in_a_row = 0  # passes for the urgent

    def choose(self, flying: Iterable[InFlight], now: float) -> list[InFlight]:
        """Samples of one latent shape, at most `limit` of its U-Net rows together, but always at least one. `now` is in the seconds of
        their deadlines.
        """
        line = sorted(flying, key=lambda flight: (flight.served, flight.arrived))
        if not line:
            return []
        self._flying = Counter(flight.sample.shape for flight in line)
        slack = {id(flight): spare for flight in line if (spare := self._slack(flight, now)) is not None}
        if slack:
            line.sort(key=lambda flight: slack.get(id(flight), float("inf")))
        shape = self._shape(line, urgent=bool(slack))
        return self._aboard([flight for flight in line if flight.sample.shape == shape])

    def _shape(self, line: list[InFlight], *, urgent: bool) -> Shape:
        first = line[0].sample.shape
        if len(self._flying) == 1:
            self._had.clear()
            return first
        self._count_in()
        if urgent and self._in_a_row < PASSED_OVER:
            self._in_a_row += 1
            return first
        self._in_a_row = 0
        waiting = [flight.sample.shape for flight in line if not (urgent and flight.sample.shape == first)]
        return min(waiting, key=lambda shape: self._had[shape])

    def _count_in(self) -> None:
        """Shapes that came have had as much as the one that had least; those that went are forgotten."""
        least = min((self._had[shape] for shape in self._flying if shape in self._had), default=0.0)
        self._had = {shape: self._had.get(shape, least) for shape in self._flying}

    def _aboard(self, line: list[InFlight]) -> list[InFlight]:
        batch: list[InFlight] = []
        rows, most = 0, self._limit(line[0].sample.shape)
        for flight in line:
            if batch and rows + flight.rows > most:
                break
            batch.append(flight)
            rows += flight.rows
        return batch

    def _slack(self, flight: InFlight, now: float) -> float | None:
        """Seconds to spare of an urgent sample; None of any other, and where the deadline cannot be met any more."""
        due, left = flight.sample.due, flight.left * self._pass_s.get(flight.sample.shape, 0.0)
        return due - now - left if due is not None and now < due <= now + MARGIN * left else None

    def took(self, shape: Shape, samples: int, seconds: float, alone: float) -> None:
        """A pass of so many samples took `seconds`; for one of them on a machine of its own it would be `alone`."""
        self._pass_s[shape] = self._pass_s.get(shape, seconds) * (1 - LATEST) + seconds * LATEST
        if len(self._flying) > 1:  # one shape alone owes nobody
            self._had[shape] = self._had.get(shape, 0.0) + alone * samples / self._flying[shape]
