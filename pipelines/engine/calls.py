"""Calls: the rows of one tick as calls of the model. Rows that differ in what a call has once go apart, the others together.

Rows of a call have prompts of one length, so that nothing is padded to another's, wear the same LoRAs, have the same ControlNet, and take
the same part of the network: all of it; all of it, and what its deep layers say is remembered; or the outer layers alone, over what was
remembered.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.controls import Control, shown
from pipelines.denoiser import Denoiser, WithMemory, batch_invariant, fixed_rows, uploading
from pipelines.prompts import Worn

Array = Any


@dataclass(slots=True, eq=False)
class Memory:
    """What the deep layers of the U-Net said of a sample, by the role of its rows: they are asked at every `interval`-th table row, and
    where a role was not there then (DeepCache, arXiv 2312.00858).
    """

    interval: int
    said: dict[str, tuple[int, Array]] = field(default_factory=dict)  # the table row at which they did, and what: [C, h, w]

    def at(self, role: str, row: int) -> Array | None:
        """What holds at a table row; None where they must be asked."""
        asked, deep = self.said.get(role, (-1, None))
        return deep if self.last(row) <= asked < row else None

    def last(self, row: int) -> int:
        """The last row, this one included, at which they are asked whatever was before: from there on an image can be resumed."""
        return row - row % self.interval


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """What one row of a tick is asked with, beside latents and timestep. `role` is its place in the memory of its sample, if that has
    one, and `number` its row of the table.
    """

    context: Array  # [L, E]
    mark: str = ""
    told: NDArray[np.float32] | None = None
    worn: Worn = ()
    role: str = ""
    number: int = 0
    memory: Memory | None = None
    control: Control | None = None

    @property
    def remembered(self) -> Array | None:
        return self.memory.at(self.role, self.number) if self.memory else None

    @property
    def call(self) -> tuple[int, Worn, str, str]:
        """Rows in which this is the same may share one."""
        part = "recall" if self.remembered is not None else "remember"
        return len(self.context), self.worn, part if self.memory else "whole", self.control.name if self.control else ""


class Calls:
    """`rows` is None where a row's result does not depend on the size of the batch; otherwise every call is cut and padded to exactly
    `rows` rows, or goes row by row where its place among them tells, too: at sizes at which rows begin at odd addresses. That is measured
    when the first call of a latent shape and text length comes, and so is everything of calls that remember or recall.
    """

    def __init__(self, denoiser: Denoiser, rows: int | None) -> None:
        self._denoiser, self._xp, self._upload = denoiser, denoiser.xp, uploading(denoiser)
        self._rows = rows
        self._sizes: dict[tuple[Any, ...], int | None] = {}  # measured
        self._contexts: list[Array] = []
        self._stack: Array = None

    def __call__(self, x: Array, timestep: Array, rows: Sequence[Row]) -> Array:
        """The model over latents [R, C, h, w] and timesteps [R] -> [R, D]."""
        kinds = [row.call for row in rows]
        if len(set(kinds)) == 1:
            return self._together(x, timestep, rows)
        xp, found = self._xp, []
        order = sorted(range(len(kinds)), key=lambda place: kinds[place])
        for _, group in groupby(order, key=lambda place: kinds[place]):
            places = list(group)
            index = self._index(places)
            found.append(self._together(xp.take(x, index, axis=0), xp.take(timestep, index, axis=0), [rows[p] for p in places]))
        return xp.take(xp.concat(found, axis=0), self._index(np.argsort(order).tolist()), axis=0)

    def _together(self, x: Array, timestep: Array, rows: Sequence[Row]) -> Array:
        """The same for rows of one kind: at once, or in calls of a fixed size."""
        xp, count, size = self._xp, len(rows), self._size(rows[0], x)
        if size is None:
            return xp.reshape(self._ask(x, timestep, rows, count), (count, -1))
        padding = -count % size
        index = self._index([*range(count), *([0] * padding)])
        x, timestep, rows = xp.take(x, index, axis=0), xp.take(timestep, index, axis=0), [*rows, *([rows[0]] * padding)]
        cuts = [slice(i, i + size) for i in range(0, count + padding, size)]
        out = xp.concat([self._ask(x[c], timestep[c], rows[c], min(size, count - c.start)) for c in cuts], axis=0)
        return xp.reshape(out[:count], (count, -1))

    def _size(self, row: Row, x: Array) -> int | None:
        if row.memory is None and self._rows in (None, 1):
            return self._rows
        shape = x.shape[1], x.shape[2], x.shape[3]
        key = *shape, len(row.context), row.memory is None
        if key not in self._sizes:
            width = 0 if row.told is None else len(row.told)
            asked = self._denoiser if row.memory is None else WithMemory(self._denoiser)
            any_size = self._rows is None and batch_invariant(asked, shape, row.context, width)
            self._sizes[key] = None if any_size else fixed_rows(asked, shape, row.context, width, self._rows or 0)
        return self._sizes[key]

    def _ask(self, x: Array, timestep: Array, rows: Sequence[Row], count: int) -> Array:
        """One call; the model hears of marks, vectors, LoRAs and a ControlNet only where there are some: a backend may do without. Of the
        first `count` rows is remembered what there is to remember; the others fill up.
        """
        xp, first = self._xp, rows[0]
        told = [] if first.told is None else [self._told(rows)]
        marks = [row.mark for row in rows] if any(row.mark for row in rows) else ()
        further = [marks, *told] if marks or told else []
        dressed: dict[str, Any] = {"worn": first.worn} if first.worn else {}
        context = self._stacked([row.context for row in rows])  # [R, L, E]
        if first.memory is None:
            if control := shown([row.control for row in rows], xp, self._denoiser.device):
                dressed["control"] = control
            return self._denoiser(x, timestep, context, *further, **dressed)
        assert first.control is None, "a ControlNet goes with the whole network"
        if first.remembered is not None:
            deep = xp.stack([row.remembered for row in rows])  # [R, C', h, w]
            return self._denoiser.recall(x, timestep, context, deep, *told, **dressed)
        out, deep = self._denoiser.remember(x, timestep, context, *further, **dressed)
        for row, said in zip(rows[:count], deep, strict=False):
            if row.memory is not None:
                row.memory.said[row.role] = row.number, said + 0  # its own memory: a view would keep the whole call's
        return out

    def _stacked(self, contexts: list[Array]) -> Array:
        """[R, L, E], to be read only; kept while the same prompts come again, as they mostly do from tick to tick."""
        if len(contexts) != len(self._contexts) or any(a is not b for a, b in zip(contexts, self._contexts, strict=True)):
            self._contexts, self._stack = contexts, self._xp.stack(contexts)
        return self._stack

    def _told(self, rows: Sequence[Row]) -> Array:
        """What the model is told of each row beside the text, [R, V]: of all rows, or of none."""
        given = [row.told for row in rows if row.told is not None]
        assert len(given) == len(rows), "a model is told of every row, or of none"
        return self._upload(np.stack(given))

    def _index(self, places: list[int]) -> Array:
        return self._upload(np.array(places, np.int64))
