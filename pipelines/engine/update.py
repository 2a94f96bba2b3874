"""The fused update: state' = rows . basis, for a whole batch at once, whatever samplers are in it.

A table's rows are 8 x 11 matrices, but most samplers use a handful of their entries: registers that keep themselves or
are never read again cost nothing here. What is left are sums of a few terms, and they know of no sampler: all sums of the
batch take their first term together, then those that have a second one take it, and so on. So the number of operations
is that of the longest sum, with one sampler in the batch or with forty. Every term is one multiplication and one
addition, in the order of BASIS, element by element: a picture's bits do not depend on who moves along.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.engine.slots import PLANES, SlotPool
from pipelines.step_table import BASIS, Move, StepTable

Array = Any
TERMS = len(BASIS)
PLANE_OF = np.array([PLANES.index(name) for name in BASIS])


@dataclass(frozen=True, slots=True, eq=False)
class Sums:
    """What becomes of the registers that a row changes: for each a sum of the first `terms` of 11 products, longer sums first."""

    planes: NDArray[np.int64]  # [12, r] of the pool: the one that changes, then those that are read
    weights: NDArray[np.float32]  # [11, r]
    terms: NDArray[np.int64]  # [r], at least one
    reads: frozenset[int]  # planes
    longer: tuple[int, ...]  # how many sums have a k-th term


@lru_cache(maxsize=512)
def sums_of(table: StepTable) -> tuple[Sums, ...]:
    """Those of each row, the table cast once."""
    return tuple(_sums(move, update) for move, update in zip(table.moves(), table.update.astype(np.float32), strict=True))


def _sums(move: Move, update: NDArray[np.float32]) -> Sums:
    ordered = sorted(move, key=lambda entry: -len(entry[1]))
    used = [terms or (0,) for _, terms in ordered]  # a register that is set to zero is 0 x
    targets = np.array([register for register, _ in ordered])  # [r]; registers have the numbers of their planes
    places = np.array([[*terms, *[0] * (TERMS - len(terms))] for terms in used])  # [r, 11] of BASIS
    planes = np.concatenate([targets[None], PLANE_OF[places.T]])
    weights = np.ascontiguousarray(update[targets[:, None], places].T)
    terms = np.array([len(t) for t in used])
    return Sums(planes, weights, terms, frozenset(PLANE_OF[[b for t in used for b in t]].tolist()), _longer(terms))


def _longer(terms: NDArray[np.int64]) -> tuple[int, ...]:
    return tuple((terms > np.arange(terms.max())[:, None]).sum(axis=1).tolist())


def cuts(pool: SlotPool, count: int) -> Iterator[slice]:
    """Lines in pieces of what the device takes at once."""
    size = pool.at_once or count
    return (slice(first, min(first + size, count)) for first in range(0, count, size))


def combine(xp: ModuleType, pool: SlotPool, slots: Sequence[int], sums: Sequence[Sums]) -> Iterator[tuple[Array, Array]]:
    """Places in the pool [r] and what they become [r, D], piece by piece; nothing is written.

    Longer sums come first, so that those with a k-th term are always the first ones of a piece.
    """
    planes, slot, weights, longer = _joined(slots, sums)
    most, count = len(weights), weights.shape[1]
    places = pool.upload(pool.places(planes, slot))
    weights = pool.upload(weights[:, :, None])  # [most, r, 1]
    for cut in cuts(pool, count):
        total = pool.gather(places[1, cut])  # [c, D]
        total *= weights[0, cut]
        for k in range(1, most):
            if (end := min(longer[k], cut.stop)) <= cut.start:
                break
            product = pool.gather(places[k + 1, cut.start : end])
            product *= weights[k, cut.start : end]
            total[: end - cut.start] += product
        yield places[0, cut], total


def _joined(
    slots: Sequence[int], sums: Sequence[Sums]
) -> tuple[NDArray[np.int64], NDArray[np.int64] | int, NDArray[np.float32], tuple[int, ...]]:
    """Planes [1 + most, r], slots [r], weights [most, r] of all sums, the longer ones first, and how many have a k-th term."""
    if len(sums) == 1:
        [one], most = sums, len(sums[0].longer)
        return one.planes[: most + 1], slots[0], one.weights[:most], one.longer
    terms = np.concatenate([s.terms for s in sums])  # [r]
    order, most = np.argsort(-terms, kind="stable"), int(terms.max())
    slot = np.repeat(slots, [len(s.terms) for s in sums])[order]  # [r]
    planes = np.concatenate([s.planes[: most + 1] for s in sums], axis=1)[:, order]
    weights = np.concatenate([s.weights[:most] for s in sums], axis=1)[:, order]
    return planes, slot, weights, _longer(terms)
