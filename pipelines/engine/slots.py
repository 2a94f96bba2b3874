"""Slots: the memory of samples. One pool per latent shape; a slot is eight registers (STATE) of one sample."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.step_table import STATE

Array = Any
Shape = tuple[int, int, int]


class SlotPool:
    """Registers [n, 8, D] of all resident samples of one latent shape; it grows by doubling and keeps what it has."""

    def __init__(self, xp: ModuleType, device: Any, shape: Shape) -> None:
        self._xp, self._device = xp, device
        self.shape = shape
        self.size = int(np.prod(shape))
        self._registers: Array = self._zeros(0)
        self._free: list[int] = []

    def take(self, first: NDArray[np.float32]) -> int:
        """A free slot whose x is `first` [C, h, w] and whose other registers are zero."""
        if not self._free:
            self._grow()
        slot = self._free.pop()
        self._registers[slot, ...] = 0
        self._registers[slot, 0, ...] = self._xp.asarray(first.reshape(-1), device=self._device)
        return slot

    def restore(self, live: tuple[int, ...], registers: NDArray[np.float32]) -> int:
        """A free slot with these registers [len(live), C, h, w]; the others are zero."""
        slot = self.take(registers[0])
        for index, register in zip(live, registers, strict=True):
            self._registers[slot, index, ...] = self._xp.asarray(register.reshape(-1), device=self._device)
        return slot

    def give_back(self, slot: int) -> None:
        self._free.append(slot)

    @property
    def idle(self) -> bool:
        """Whether no slot is taken."""
        return bool(len(self._free) == self._registers.shape[0])

    def read(self, slots: list[int]) -> Array:
        """Registers of these slots, copied: [S, 8, D]."""
        return self._xp.take(self._registers, self._index(slots), axis=0)

    def write(self, slots: list[int], state: Array) -> None:
        """Put state [S, 8, D] back."""
        self._registers[self._index(slots)] = state

    def _grow(self) -> None:
        old = self._registers.shape[0]
        new = max(4, 2 * old)
        self._registers = self._xp.concat([self._registers, self._zeros(new - old)], axis=0)
        self._free.extend(reversed(range(old, new)))

    def _zeros(self, count: int) -> Array:
        return self._xp.zeros((count, len(STATE), self.size), dtype=self._xp.float32, device=self._device)

    def _index(self, slots: list[int]) -> Array:
        return self._xp.asarray(slots, dtype=self._xp.int64, device=self._device)
