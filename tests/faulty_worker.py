"""`python -m tests.faulty_worker`: a real worker with a fault that strikes when it draws the image of one seed.

FAULT says what happens then: `hang` or `die`, and `store` for a write of a picture that never returns. FAULT_SEED says whose image it
is. It strikes while the file FAULT_FILE exists. With FAULT_LIVES=many whatever dies starts again, as under a supervisor.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import celadon.__main__
import workers.serving
from jobs.image_store import LocalImageStore
from pipelines.engine.events import Progress
from workers import encode

EVALUATIONS = 10  # of the image, before it strikes: time for its neighbours to come
PR_SET_PDEATHSIG = 1


def hang() -> None:
    threading.Event().wait()


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class FaultyEngine:
    """Strikes inside of a tick that draws the image."""

    def __init__(self, engine: Any, strike: Callable[[], None]) -> None:
        self._engine, self._strike, self._doomed, self._drawn = engine, strike, "", 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def add(self, sample: Any, saved: Any = None) -> None:
        self._engine.add(sample, saved)
        if sample.seed == int(os.environ["FAULT_SEED"]):
            self._doomed, self._drawn = sample.id, 0

    def step(self, now: float) -> Any:
        events = self._engine.step(now)
        self._drawn += sum(isinstance(e, Progress) and e.sample_id == self._doomed for e in events)
        if self._drawn >= EVALUATIONS and Path(os.environ["FAULT_FILE"]).exists():
            self._strike()
        return events


def break_engine(strike: Callable[[], None]) -> None:
    whole = workers.serving.open_model

    def broken(*told: Any) -> Any:
        model = whole(*told)
        return replace(model, engine=FaultyEngine(model.engine, strike))

    workers.serving.open_model = broken


def break_store() -> None:
    """As a file server that is away: the write neither ends nor fails."""
    whole = LocalImageStore._write

    def broken(store: LocalImageStore, path: Path, data: bytes) -> None:
        if encode.read_metadata(data)["request"]["seed"] == int(os.environ["FAULT_SEED"]) and Path(os.environ["FAULT_FILE"]).exists():
            hang()
        whole(store, path, data)

    LocalImageStore._write = broken  # type: ignore[method-assign]


def keep() -> None:
    """Returns in a child; starts another one when that dies. Forked after the imports, which take the longest."""
    while child := os.fork():
        _, status = os.waitpid(child, 0)
        if status == 0:
            sys.exit(0)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    if os.environ["FAULT"] == "store":
        break_store()
    else:
        break_engine({"hang": hang, "die": die}[os.environ["FAULT"]])
    if os.environ.get("FAULT_LIVES") == "many":
        keep()
    sys.argv = ["celadon", "worker"]
    celadon.__main__.main()
