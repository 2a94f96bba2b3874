"""Denoiser: the model behind one door. Rows in, raw model outputs out; backends differ, the engine does not.

A backend takes x [R, C, h, w] float32, timestep [R] float32 (may be fractional) and context [R, L, E], and returns the raw
output [R, C, h, w] in float32, all as arrays of its namespace `xp`. Where rows are to be disturbed (PAG, SEG) it is also given
`marks`, one word a row (pag, seg, or empty); a model that is told more than the text, `told` [R, V] (`pipelines.conditioning`).
`remember` also returns what enters the outermost of the blocks that go up, and `recall` takes that instead of asking all that lies
deeper (DeepCache, arXiv 2312.00858, with the whole outermost level as the shallow part).
This file needs no torch; `denoiser_torch` is a backend.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pipelines.controls import Shown
from pipelines.memory import lacks_memory
from pipelines.prompts import Worn

Array = Any

PROBE_ROWS = (2, 3, 4, 8)
PROBE_ROWS_ON_GPU = (*PROBE_ROWS, 16, 32)  # which picks other kernels for larger batches, too
ROWS_ON_CPU, ROWS_ON_GPU = 2, 8


class Model(Protocol):
    """Rows in, raw outputs out."""

    xp: ModuleType
    device: Any

    def __call__(
        self, x: Array, timestep: Array, context: Array, marks: Sequence[str] = (), told: Array | None = None, /
    ) -> Array: ...  # fmt: skip


class Denoiser(Model, Protocol):
    """What the engine asks of a backend."""

    def __call__(
        self, x: Array, timestep: Array, context: Array, marks: Sequence[str] = (), told: Array | None = None, /, *,
        worn: Worn = (), control: Shown | None = None,
    ) -> Array: ...  # fmt: skip

    def remember(
        self, x: Array, timestep: Array, context: Array, marks: Sequence[str] = (), told: Array | None = None, /, *, worn: Worn = ()
    ) -> tuple[Array, Array]:
        """The same, and what the deep layers said: [R, C', h, w]."""
        ...

    def recall(self, x: Array, timestep: Array, context: Array, deep: Array, told: Array | None = None, /, *, worn: Worn = ()) -> Array:
        """The outermost layers over what the deep ones said earlier, [R, C', h, w]."""
        ...


def uploading(denoiser: Model) -> Callable[[NDArray[Any]], Array]:
    """How arrays of the host reach its device: as the backend has it, or by its namespace."""
    own: Callable[[NDArray[Any]], Array] | None = getattr(denoiser, "upload", None)
    return own or (lambda array: denoiser.xp.asarray(array, device=denoiser.device))


class WithMemory:
    """A denoiser whose one answer is that of `remember`, and that of `recall` over it: [R, 2 C, h, w]. For measuring both at once."""

    def __init__(self, denoiser: Denoiser) -> None:
        self._denoiser, self.xp, self.device = denoiser, denoiser.xp, denoiser.device

    def __call__(self, x: Array, timestep: Array, context: Array, marks: Sequence[str] = (), told: Array | None = None) -> Array:
        out, deep = self._denoiser.remember(x, timestep, context, marks, told)
        return self.xp.concat([out, self._denoiser.recall(x, timestep, context, deep, told)], axis=1)


def fixed_rows(denoiser: Model, shape: tuple[int, int, int], context: Array, width: int = 0, rows: int = 0) -> int:
    """The rows of every call where a row's output is not its own in every batch: so many, few if not said, or 1 where its place among them
    tells too, or memory does not hold more. Holds for this shape and length of `context` alone.
    """
    rows = rows or (ROWS_ON_CPU if denoiser.device == "cpu" else ROWS_ON_GPU)
    try:
        return rows if place_invariant(denoiser, shape, context, width, rows) else 1
    except Exception as error:
        if lacks_memory(error):
            return 1
        raise


def batch_invariant(denoiser: Model, shape: tuple[int, int, int], context: Array, width: int = 0) -> bool:
    """Does a row's output stay bit for bit the same whatever the batch? Measured with random rows at sizes 1 to 8, on a GPU to 32,
    with prompts of one length and of twice that. Where memory does not hold them all it is not known, and the answer is no.

    `shape` is a latent's (C, h, w); context [L, E]; `width` that of what the model is told beside them.
    """
    try:
        return all(_invariant(denoiser, shape, text, width) for text in (context, denoiser.xp.concat([context, context], axis=0)))
    except Exception as error:
        if lacks_memory(error):
            return False
        raise


def _invariant(denoiser: Model, shape: tuple[int, int, int], context: Array, width: int) -> bool:
    xp = denoiser.xp
    rng = np.random.default_rng(0)
    sizes = PROBE_ROWS if denoiser.device == "cpu" else PROBE_ROWS_ON_GPU
    most = max(sizes)
    x = xp.asarray(rng.standard_normal((most, *shape), dtype=np.float32), device=denoiser.device)  # [M, C, h, w]
    t = xp.asarray(np.linspace(1, 999, most, dtype=np.float32), device=denoiser.device)  # [M]
    c = xp.stack([context] * most)  # [M, L, E]
    told = _told(denoiser, rng.random((most, width), dtype=np.float32))
    alone = [denoiser(x[i : i + 1], t[i : i + 1], c[i : i + 1], *told(slice(i, i + 1))) for i in range(most)]
    for rows in sizes:
        together = denoiser(x[:rows], t[:rows], c[:rows], *told(slice(rows)))
        if any(not bool(xp.all(together[i] == alone[i][0])) for i in range(rows)):
            return False
    return True


def place_invariant(denoiser: Model, shape: tuple[int, int, int], context: Array, width: int, rows: int) -> bool:
    """Does a row's output stay the same at every place of a call of `rows` rows? Measured by turning them round. Arguments as above.

    Where the sizes of a model are no multiples of what the processor takes at once, its rows begin at odd addresses, and are added up
    in another order.
    """
    xp, rng = denoiser.xp, np.random.default_rng(1)
    x = rng.standard_normal((rows, *shape), dtype=np.float32)
    t, told = np.linspace(1, 999, rows, dtype=np.float32), rng.random((rows, width), dtype=np.float32)

    def answers(turn: int) -> Array:
        latents, times = (xp.asarray(np.roll(a, turn, axis=0), device=denoiser.device) for a in (x, t))
        further = _told(denoiser, np.roll(told, turn, axis=0))(slice(rows))
        return xp.roll(denoiser(latents, times, xp.stack([context] * rows), *further), -turn, axis=0)

    first = answers(0)
    return all(bool(xp.all(answers(turn) == first)) for turn in range(1, rows))


def warm_up(denoiser: Model, shape: tuple[int, int, int], context: Array, width: int = 0, rows: int = 2) -> Array:
    """One call, so that the first job does not wait for kernels; if not said, of a guided picture's two rows. What it answers [R, C, h, w];
    arguments as above.
    """
    xp, rng = denoiser.xp, np.random.default_rng(2)
    x = xp.asarray(rng.standard_normal((rows, *shape), dtype=np.float32), device=denoiser.device)  # [R, C, h, w]
    t = xp.asarray(np.linspace(1, 999, rows, dtype=np.float32), device=denoiser.device)  # [R]
    return denoiser(x, t, xp.stack([context] * rows), *_told(denoiser, rng.random((rows, width), dtype=np.float32))(slice(rows)))


def _told(denoiser: Model, rows: NDArray[np.float32]) -> Callable[[slice], tuple[Any, ...]]:
    """The further arguments of a call for some of these rows [R, V]: none where the model is told nothing."""
    array = denoiser.xp.asarray(rows, device=denoiser.device)
    return lambda part: ((), array[part]) if rows.shape[1] else ()
