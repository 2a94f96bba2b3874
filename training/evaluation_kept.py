"""What an evaluation has found so far lies on the disk in small parts, so that a run that ended goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np


class Progress(Protocol):
    """Work done, and its share of the whole."""

    done: float

    @property
    def share(self) -> float: ...

    def advance(self, pictures: int, work: float) -> None: ...

    def skip(self, work: float) -> None: ...


class Kept:
    """Arrays by what they were made of.

    After the deadline (of time.monotonic) nothing is made but the first array of a run: every run, however short, goes on a little.
    """

    def __init__(self, folder: Path, bar: Progress, deadline: float = float("inf")) -> None:
        self.folder, self.bar, self.deadline, self.made = folder, bar, deadline, 0

    def array(self, key: str, of: object, work: float, make: Callable[[], np.ndarray]) -> np.ndarray:
        """What was made of `of` (JSON) under this key before, or is made now. `make` may tell the bar of its work, or leave it to us.

        Raises SystemExit where something must be made, something was, and the time is over.
        """
        path = self.folder / key / f"{hashlib.sha256(json.dumps(of).encode()).hexdigest()[:20]}.npy"
        if path.exists():
            self.bar.skip(work)
            return np.load(path)
        if self.made and time.monotonic() > self.deadline:
            raise SystemExit(f"evaluate: {self.bar.share:.0%}; the same command goes on from there")
        end = self.bar.done + work
        found = make()
        self.bar.advance(1, end - self.bar.done)
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path.with_suffix(".tmp.npy"), found)
        path.with_suffix(".tmp.npy").rename(path)
        self.made += 1
        return found


def mark(*arrays: np.ndarray) -> str:
    """Tells arrays of one type and shape apart."""
    found = hashlib.sha256()
    for array in arrays:
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()[:20]


def parts(rows: np.ndarray, size: int) -> list[np.ndarray]:
    """The array in pieces along its first axis."""
    return [rows[i : i + size] for i in range(0, len(rows), size)]
