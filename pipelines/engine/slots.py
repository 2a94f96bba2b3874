"""Slots: the memory of samples. One pool per latent shape; a slot is one line of D numbers in each of PLANES."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.step_table import STATE

Array = Any
Shape = tuple[int, int, int]

# The registers of a sample, what guidance keeps of earlier rows, and what only the row that runs has.
PLANES = (*STATE, "average", "denoised", "denoised_uncond", "noise")
X, AVERAGE, DENOISED, UNCONDITIONAL, NOISE = (PLANES.index(name) for name in ("x", *PLANES[len(STATE) :]))


CACHED = 1 << 15  # numbers that a CPU moves at once: its caches hold what one operation leaves for the next


class SlotPool:
    """Planes [12 n, D] of all resident samples of one latent shape; it grows by doubling and keeps what it has."""

    def __init__(self, xp: ModuleType, device: Any, shape: Shape, upload: Callable[[NDArray[Any]], Array] | None = None) -> None:
        self._xp, self.device = xp, device
        self.upload = upload or partial(xp.asarray, device=device)
        self.shape = shape
        self.size = int(np.prod(shape))
        self.at_once = max(1, CACHED // self.size) if str(device).startswith("cpu") else None  # lines of one operation; None: any number
        self._count = 0
        self._lines = self._zeros(0)
        self._free: list[int] = []

    def take(self, first: NDArray[np.float32]) -> int:
        """A free slot whose x is `first` [C, h, w] and whose other registers are zero."""
        if not self._free:
            self._grow()
        slot = self._free.pop()
        self._lines[slot :: self._count] = 0
        self._put(slot, X, first)
        return slot

    def restore(self, live: tuple[int, ...], registers: NDArray[np.float32]) -> int:
        """A free slot with these registers [len(live), C, h, w]; the others are zero."""
        slot = self.take(registers[0])
        for index, register in zip(live, registers, strict=True):
            self._put(slot, index, register)
        return slot

    def give_back(self, slot: int) -> None:
        self._free.append(slot)

    @property
    def idle(self) -> bool:
        """Whether no slot is taken."""
        return len(self._free) == self._count

    def read(self, plane: int, slots: list[int]) -> Array:
        """One plane of these slots: [S, D], to be read only and before the next write; a view where they are neighbours."""
        run = self._run(plane, slots)
        return self._lines[run] if run else self.gather(self._index(plane, slots))

    def write(self, plane: int, slots: list[int], values: Array) -> None:
        """Put one plane [S, D] back."""
        self._lines[self._run(plane, slots) or self._index(plane, slots)] = values

    def places(self, planes: NDArray[np.int64], slots: NDArray[np.int64] | int) -> NDArray[np.int64]:
        """Where the lines of these planes and slots are, for `gather` and `scatter`."""
        return planes * self._count + slots

    def gather(self, places: Array) -> Array:
        """Lines [r, D], copied."""
        return self._lines[places]

    def scatter(self, places: Array, lines: Array) -> None:
        """Put lines [r, D] to these places, each of which is named once."""
        self._lines[places] = lines

    def _put(self, slot: int, plane: int, values: NDArray[np.float32]) -> None:
        self._lines[plane * self._count + slot, ...] = self.upload(values.reshape(-1))

    def _grow(self) -> None:
        old, new = self._count, max(4, 2 * self._count)
        more = self._zeros(new - old)
        kept = [self._lines[plane * old : (plane + 1) * old] for plane in range(len(PLANES))]
        self._lines = self._xp.concat([part for block in kept for part in (block, more)], axis=0)
        self._free.extend(reversed(range(old, new)))
        self._count = new

    def _zeros(self, count: int) -> Array:
        return self._xp.zeros((count, self.size), dtype=self._xp.float32, device=self.device)

    def _index(self, plane: int, slots: list[int]) -> Array:
        return self.upload(np.array([plane * self._count + slot for slot in slots], np.int64))

    def _run(self, plane: int, slots: list[int]) -> slice | None:
        """Slots one after the other as a slice, which copies nothing."""
        first, last = plane * self._count + slots[0], plane * self._count + slots[-1]
        return slice(first, last + 1) if slots == list(range(slots[0], slots[-1] + 1)) else None
