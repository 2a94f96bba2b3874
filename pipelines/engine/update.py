"""The fused update: state' = rows . basis, over what a row really reads and writes.

A table's rows are 8 x 11 matrices, but most samplers use a handful of their entries: registers that keep themselves or
are never read again cost nothing here. Samples whose rows have the same entries move together, so the cost is the sum
of what each of them needs, whatever else is in the batch. Every entry is one multiplication and one addition, in the
order of BASIS, element by element: a picture's bits do not depend on who moves along.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import groupby
from typing import Any

from pipelines.engine.sample import InFlight
from pipelines.step_table import Move

Array = Any
CACHED = 1 << 15  # numbers of a register that a CPU moves at once: its caches hold the whole row then


def cuts(batch: list[InFlight], device: Any) -> Iterator[slice]:
    """The batch in pieces of what the device takes at once."""
    size = max(1, CACHED // _numbers(batch[0])) if str(device).startswith("cpu") else len(batch)
    return (slice(first, min(first + size, len(batch))) for first in range(0, len(batch), size))


def alike(batch: list[InFlight]) -> Iterator[tuple[slice, Move]]:
    """Runs of a batch that is ordered by `kind` which move alike."""
    start = 0
    for move, group in groupby(batch, key=kind):
        end = start + len(list(group))
        yield slice(start, end), move
        start = end


def kind(flight: InFlight) -> Move:
    """Equal for samples whose next rows have the same entries."""
    return flight.moves[flight.row]


def reads(move: Move) -> set[int]:
    """What of the basis a move is made from."""
    return {b for _, terms in move for b in terms}


def combine(move: Move, coefficients: Array, basis: Mapping[int, Array]) -> dict[int, Array]:
    """The registers that change: coefficients [s, 8, 11], basis vectors [s, D] -> register -> [s, D], each a new array."""
    made: dict[int, Array] = {}
    for register, terms in move:
        first, *rest = terms or (0,)  # a register that is set to zero
        total = coefficients[:, register, first, None] * basis[first]  # [s, D]
        for b in rest:
            total += coefficients[:, register, b, None] * basis[b]
        made[register] = total
    return made


def _numbers(flight: InFlight) -> int:
    channels, height, width = flight.sample.shape
    return channels * height * width
