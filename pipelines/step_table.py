"""StepTable: a sampler as data. One row = one U-Net call and one linear update of an image's registers.

The engine executes rows and knows no sampler names. Tables are built in float64 and cast once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

MEMORIES = 6  # the widest history among the samplers needs five outputs and one carried noise

STATE = ("x", "anchor", *(f"m{i}" for i in range(1, MEMORIES + 1)))  # what an image keeps between rows
BASIS = ("x", "anchor", "denoised", "denoised_uncond", *(f"m{i}" for i in range(1, MEMORIES + 1)), "noise")

Array = Any
Move = tuple[tuple[int, tuple[int, ...]], ...]  # registers that change (STATE), and what of BASIS each is made from
Float = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class StepTable:
    """Rows of one sampler on one schedule, in the model's own space x = alpha*x0 + sigma*noise.

    A row evaluates the model at (`c_in` * x, `timestep`), forms denoised = `c_skip` * x + `c_out` * output, and then
    state' = `update` @ basis, where state and basis are ordered as STATE and BASIS. c_in = 0 stands for 1 / std(x), measured
    when the row runs. The first x is `init` * noise;
    anchor and memories start at zero. A row that has `noisy` set draws one standard normal before its update.
    """

    init: float
    alpha: Float  # [R]
    sigma: Float  # [R]
    timestep: Float  # [R], may be fractional
    c_in: Float  # [R]
    c_skip: Float  # [R]
    c_out: Float  # [R]
    update: Float  # [R, 8, 11]
    noisy: NDArray[np.bool_]  # [R]
    step: NDArray[np.int64]  # [R], the sampler step (from 0) that the row belongs to

    def __len__(self) -> int:
        """U-Net evaluations."""
        return len(self.timestep)

    def live(self, row: int) -> tuple[int, ...]:
        """Which registers (indices into STATE) still matter before `row`: all that is needed to go on from there."""
        wanted = {0}  # after the last row only x
        sources = [BASIS.index(name) for name in STATE]
        for update in self.update[row:][::-1]:
            wanted = {0} | {j for j, source in enumerate(sources) if any(update[i, source] for i in wanted)}  # the model reads x
        return tuple(sorted(wanted))

    def advance(self, row: int, basis: Mapping[str, Array]) -> dict[str, Array]:
        """The next registers by name, one coefficient after the other: the slow twin of the engine's fused update."""
        return {
            name: sum((c * basis[b] for c, b in zip(self.update[row, i].tolist(), BASIS, strict=True) if c), 0 * basis["x"])
            for i, name in enumerate(STATE)
        }

    def moves(self) -> tuple[Move, ...]:
        """For each row x and the registers that it changes and a later row reads, with the places of their coefficients."""
        sources = [BASIS.index(name) for name in STATE]
        found: list[Move] = []
        wanted = {0}  # after the last row only x
        for update in reversed(self.update.tolist()):
            terms = {i: tuple(b for b, value in enumerate(update[i]) if value) for i in sorted(wanted)}
            kept = {i for i in wanted if i and terms[i] == (sources[i],) and update[i][sources[i]] == 1.0}
            found.append(tuple((i, terms[i]) for i in terms if i not in kept))
            wanted = {0} | {j for j, source in enumerate(sources) if any(source in terms[i] for i in wanted)}  # the model reads x
        return tuple(reversed(found))
