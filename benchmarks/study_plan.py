"""What `benchmarks.sampler_study` measures, in which order, and what it has found so far."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pipelines.sampler_list import SAMPLERS

BUDGETS = (2, 3, 4, 6, 10, 20)  # U-Net evaluations of one picture
SCREEN = 10  # every sampler has as many
STUDIED = (  # the ten that gave the most right answers at SCREEN
    "gradient_estimation", "dpmpp_3s", "dpmpp_2m_sde_heun", "res_multistep_ancestral", "dpmpp_2m_sde", "unipc", "lms", "res_multistep",
    "dpmpp_2m", "dpmpp_3m",
)  # fmt: skip
SOLVER = "unipc"  # for the schedules
REFERENCE, REFERENCE_STEPS = "dpmpp_2m", 100  # for the pictures that deterministic samplers approach
SETS = 11  # of scenes, each of which gives equally many
PAPERS: tuple[tuple[str, Mapping[str, float]], ...] = (  # the model's own ladder, and the schedules of arXiv 2301.10972
    ("auto", {}),
    ("simple_linear", {}),
    ("simple_linear", {"input_scale": 0.5}),
    ("cosine", {}),
    ("cosine", {"start": 0.2}),
    ("sigmoid", {}),
    ("sigmoid", {"tau": 0.5}),
)
NEAREST: tuple[str, Mapping[str, float]] = ("beta", {})  # of the others the one that came nearest to its own limit: at every budget, too
OTHERS = ("sgm_uniform", "karras", "exponential")  # at one budget


@dataclass(frozen=True, slots=True)
class Cell:
    """One line's point: a sampler on a schedule with at most `budget` evaluations."""

    panel: str  # "all", "sampler" or "schedule"
    sampler: str
    schedule: str
    budget: int
    options: Mapping[str, float] = field(default_factory=dict, hash=False)  # of the schedule

    @property
    def label(self) -> str:
        said = ", ".join(f"{name} {value:g}" for name, value in self.options.items())
        return self.sampler if self.panel != "schedule" else f"{self.schedule} ({said})" if said else self.schedule

    def steps(self) -> int:
        """As many as the budget allows."""
        one = SAMPLERS[self.sampler]
        costs = {
            n: one.evals_first[n - 1] if n <= len(one.evals_first) else one.evals_per_step * n + one.evals_offset for n in range(1, 200)
        }
        return max(n for n, cost in costs.items() if cost <= self.budget)


def cells() -> list[Cell]:
    """The cheapest first, so that a study that is cut short has whole columns; the dearest last, after every sampler at one budget."""
    some = [Cell("sampler", s, "auto", b) for b in BUDGETS for s in STUDIED]
    some += [Cell("schedule", SOLVER, s, b, o) for b in BUDGETS[1:-1] for s, o in (*PAPERS, NEAREST)]
    some += [Cell("schedule", SOLVER, s, SCREEN) for s in OTHERS]
    some += [Cell("all", s, "auto", SCREEN) for s in SAMPLERS]
    return sorted(some, key=lambda cell: cell.budget)


class Notes:
    """What has been found, one file a cell, so that several processes may work on one study."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def _path(self, cell: Cell) -> Path:
        """Named by what is drawn: cells of two panels may be the same."""
        drawn = {name: value for name, value in asdict(cell).items() if name != "panel"}
        return self._folder / f"{hashlib.sha256(json.dumps(drawn, sort_keys=True).encode()).hexdigest()[:20]}.json"

    def __contains__(self, cell: Cell) -> bool:
        return self._path(cell).exists()

    def __getitem__(self, cell: Cell) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self._path(cell).read_text())
        return found

    def known(self) -> dict[Cell, dict[str, Any]]:
        """What has been found of the plan's cells, in its order."""
        return {cell: self[cell] for cell in cells() if cell in self}

    def add(self, cell: Cell, found: Mapping[str, Any]) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        fresh = self._path(cell).with_suffix(f".{os.getpid()}")
        fresh.write_text(json.dumps(found))
        fresh.replace(self._path(cell))


def study(notes: Notes, todo: list[Cell], measure: Callable[[Cell], Mapping[str, Any]], until: float) -> Iterator[Cell]:
    """Measure what is not yet known; no new cell is begun after `until` (time.monotonic)."""
    for cell in todo:
        if cell in notes:
            continue
        if time.monotonic() > until:
            return
        notes.add(cell, measure(cell))
        yield cell
