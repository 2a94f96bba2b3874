"""The watch over the drawing thread: a worker whose model hangs would renew its leases for ever, and its jobs would never end.

It ends the process instead, loudly. Leases run out, another worker goes on from the checkpoints, and whoever looks after the
process starts a new one. The jobs count it as a crash, so one that hangs every worker becomes a dead letter.
"""

from __future__ import annotations

import asyncio
import faulthandler
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

import structlog

log = structlog.get_logger("worker")

STALLED = 4  # exit status
EVERY_S = 1.0
STDERR = 2


@dataclass(frozen=True, slots=True)
class Piece:
    """What the drawing thread does at the moment, for which jobs, and since when (monotonic seconds)."""

    what: str  # tick, encode, decode, export or preview
    jobs: tuple[str, ...]
    since: float


def leave(status: int) -> NoReturn:
    """End the process now. An orderly end of event loop and interpreter would wait for threads, of which one may hang for ever."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


class Watch:
    """Ends the process when one piece of work takes longer than `stall_s`."""

    def __init__(self, piece: Callable[[], Piece | None], stall_s: float, end: Callable[[int], object] = leave) -> None:
        self._piece, self._stall_s, self._end = piece, stall_s, end
        self._every = min(EVERY_S, stall_s / 4)

    async def run(self) -> None:
        """A loop. Time in which the process itself stood still (stopped, or its machine asleep) is nobody's fault and not counted."""
        seen, waited, before = None, 0.0, time.monotonic()
        try:
            while True:
                # the last resort, without Python: for a call that hangs and lets no other thread run, this one included. A process
                # that was stopped for as long ends by it too, when it is woken
                faulthandler.dump_traceback_later(2 * self._stall_s, file=STDERR, exit=True)
                await asyncio.sleep(self._every)
                now, piece = time.monotonic(), self._piece()
                waited = waited + min(now - before, 2 * self._every) if piece is seen else 0.0
                seen, before = piece, now
                if piece and waited > self._stall_s:
                    log.critical("stalled", what=piece.what, jobs=piece.jobs, seconds=round(now - piece.since, 1))
                    self._end(STALLED)
        finally:
            faulthandler.cancel_dump_traceback_later()
