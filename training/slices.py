"""A pass over many items that may end after any block and go on later, in another process."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from training.checkpoint import Clock, to_the_end


class Slices:
    """Blocks of `total` items; how far the pass came stands in a small file, with what it was a pass over (`of`).

    A file that tells of another pass, or none, starts a new one. Who iterates has written a block before asking for the next.
    """

    def __init__(self, path: Path, of: dict[str, Any], total: int, minutes: float = 1e9, block: int = 256) -> None:
        self.path, self.of, self.total, self.minutes, self.block = path, of, total, minutes, block
        found = json.loads(path.read_text()) if path.exists() else {}
        self.done = int(found["done"]) if found.get("of") == of else 0

    @property
    def new(self) -> bool:
        return self.done == 0

    @property
    def complete(self) -> bool:
        return self.done >= self.total

    def __iter__(self) -> Iterator[range]:
        with Clock(self.path.stem, self.total, self.done, self.minutes) as clock:
            while not self.complete and not clock.out_of_time:
                block = range(self.done, min(self.done + self.block, self.total))
                yield block
                self.done = block.stop
                self._note()
                clock.tick(self.done)

    def _note(self) -> None:
        part = self.path.with_suffix(".tmp")
        part.write_text(json.dumps({"of": self.of, "done": self.done, "total": self.total}) + "\n")
        os.replace(part, self.path)


def finished(path: Path) -> dict[str, Any]:
    """What a pass that is complete was a pass over. Raises SystemExit where it was never begun or has not ended."""
    if not path.exists():
        raise SystemExit(f"{path} is missing: what it tells of has not been made yet")
    found = json.loads(path.read_text())
    to_the_end(path.stem, found["done"], found["total"])
    return dict(found["of"])
