"""Slots: the memory of samples. One pool per latent shape; a slot is the registers of one sample: STATE and AVERAGE."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.engine.sample import AVERAGE

Array = Any
Shape = tuple[int, int, int]


class SlotPool:
    """Registers [9][n, D] of all resident samples of one latent shape; it grows by doubling and keeps what it has."""

    def __init__(self, xp: ModuleType, device: Any, shape: Shape) -> None:
        self._xp, self._device = xp, device
        self.shape = shape
        self.size = int(np.prod(shape))
        self._registers: list[Array] = [self._zeros(0) for _ in range(AVERAGE + 1)]
        self._free: list[int] = []

    def take(self, first: NDArray[np.float32]) -> int:
        """A free slot whose x is `first` [C, h, w] and whose other registers are zero."""
        if not self._free:
            self._grow()
        slot = self._free.pop()
        for register in self._registers:
            register[slot, ...] = 0
        self._put(slot, 0, first)
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
        return bool(len(self._free) == self._registers[0].shape[0])

    def read(self, register: int, slots: list[int]) -> Array:
        """One register of these slots: [S, D], to be read only and before the next `write`; a view where they are neighbours."""
        block = self._registers[register]
        run = _run(slots)
        return block[run] if run else self._xp.take(block, self._index(slots), axis=0)

    def write(self, register: int, slots: list[int], values: Array) -> None:
        """Put one register [S, D] back."""
        self._registers[register][_run(slots) or self._index(slots)] = values

    def _put(self, slot: int, register: int, values: NDArray[np.float32]) -> None:
        self._registers[register][slot, ...] = self._xp.asarray(values.reshape(-1), device=self._device)

    def _grow(self) -> None:
        old = self._registers[0].shape[0]
        new = max(4, 2 * old)
        self._registers = [self._xp.concat([register, self._zeros(new - old)], axis=0) for register in self._registers]
        self._free.extend(reversed(range(old, new)))

    def _zeros(self, count: int) -> Array:
        return self._xp.zeros((count, self.size), dtype=self._xp.float32, device=self._device)

    def _index(self, slots: list[int]) -> Array:
        return self._xp.asarray(slots, dtype=self._xp.int64, device=self._device)


def _run(slots: list[int]) -> slice | None:
    """Slots one after the other as a slice, which copies nothing."""
    return slice(slots[0], slots[-1] + 1) if slots == list(range(slots[0], slots[-1] + 1)) else None
