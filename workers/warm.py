"""The warm-up of a backend whose first calls are slow: kernels are made, compiled and recorded before the worker says that it is ready."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import structlog

from pipelines.denoiser import Denoiser, warm_up
from pipelines.memory import lacks_memory

log = structlog.get_logger("worker")


class Recording(Protocol):
    """A denoiser that records its calls (`pipelines.replay`)."""

    def warming(self, sizes: Sequence[int], /) -> AbstractContextManager[None]:
        """Within, each kind of call is recorded when it comes first; from then on calls are padded to these rows."""
        ...


def buckets(most: int) -> tuple[int, ...]:
    """Rows of calls that are made ready: powers of two and half as many again, up to `most`: 1 2 3 4 6 8 12 16 24 32. Batches of a worker
    under load fill theirs; at most 7 rows of 24 are there to fill up.
    """
    sizes = {size for power in range(most.bit_length()) for size in (1 << power, (3 << power) >> 1) if size < most}
    return (*sorted(sizes), most)


def made_ready(denoiser: Denoiser, shape: tuple[int, int, int], context: Any, width: int, sizes: Sequence[int], model: str) -> int:
    """Calls of all sizes, the largest first: the memory of the others lies within its own. Arguments as of `warm_up`. The largest size that
    memory holds; raises where it holds none.
    """
    held = 0
    for done, rows in enumerate(sorted(sizes, reverse=True), 1):
        began = time.monotonic()
        try:
            warm_up(denoiser, shape, context, width, rows)
        except Exception as error:
            if not lacks_memory(error) or rows == min(sizes):
                raise
            log.warning("too_many_rows", model=model, rows=rows)
            continue
        held = max(held, rows)
        log.info("warming_up", model=model, done=done, of=len(sizes), rows=rows, seconds=round(time.monotonic() - began, 1))
    return held
