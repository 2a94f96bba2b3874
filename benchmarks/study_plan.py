"""What `benchmarks.sampler_study` measures, in which order, and what it has found so far."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pipelines.sampler_list import SAMPLERS

BUDGETS = (2, 3, 4, 6, 10, 20)  # U-Net evaluations of one picture
STUDIED = ("euler", "heun", "dpmpp_2m", "dpmpp_3m", "unipc", "deis", "res_multistep", "sa_solver", "euler_a", "dpmpp_2m_sde")
SOLVER = "dpmpp_2m"  # for the schedules, and with REFERENCE_STEPS for the pictures that deterministic samplers approach
REFERENCE_STEPS = 100
SCHEDULES: tuple[tuple[str, Mapping[str, float]], ...] = (
    ("auto", {}),
    ("sgm_uniform", {}),
    ("karras", {}),
    ("exponential", {}),
    ("beta", {}),
    ("simple_linear", {}),
    ("simple_linear", {"input_scale": 0.5}),
    ("cosine", {}),
    ("cosine", {"start": 0.2}),
    ("sigmoid", {}),
    ("sigmoid", {"tau": 0.5}),
)


@dataclass(frozen=True, slots=True)
class Cell:
    """One line's point: a sampler on a schedule with at most `budget` evaluations."""

    panel: str  # "sampler" or "schedule"
    sampler: str
    schedule: str
    budget: int
    options: Mapping[str, float] = field(default_factory=dict)  # of the schedule

    @property
    def label(self) -> str:
        said = ", ".join(f"{name} {value:g}" for name, value in self.options.items())
        return self.sampler if self.panel == "sampler" else f"{self.schedule} ({said})" if said else self.schedule

    def steps(self) -> int:
        """As many as the budget allows."""
        one = SAMPLERS[self.sampler]
        costs = {
            n: one.evals_first[n - 1] if n <= len(one.evals_first) else one.evals_per_step * n + one.evals_offset for n in range(1, 200)
        }
        return max(n for n, cost in costs.items() if cost <= self.budget)


def cells() -> list[Cell]:
    """The cheapest first, so that a study that is cut short has whole columns."""
    some = [Cell("sampler", s, "auto", b) for b in BUDGETS for s in STUDIED if s in SAMPLERS]
    some += [Cell("schedule", SOLVER, s, b, o) for b in BUDGETS[:-1] for s, o in SCHEDULES]
    return sorted(some, key=lambda cell: cell.budget)


class Notes:
    """What has been found, on disk after every cell."""

    def __init__(self, path: Path, about: Mapping[str, Any]) -> None:
        self._path, self._about = path, dict(about)
        old = json.loads(path.read_text()) if path.exists() else {}
        self.found: dict[str, dict[str, Any]] = old.get("found", {}) if old.get("about") == self._about else {}

    @staticmethod
    def key(cell: Cell) -> str:
        return json.dumps(asdict(cell), sort_keys=True)

    def add(self, cell: Cell, found: Mapping[str, Any]) -> None:
        self.found[self.key(cell)] = {**asdict(cell), "label": cell.label, **found}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        fresh = self._path.with_suffix(".new")
        fresh.write_text(json.dumps({"about": self._about, "found": self.found}, indent=1))
        fresh.replace(self._path)


def study(notes: Notes, todo: list[Cell], measure: Callable[[Cell], Mapping[str, Any]], until: float) -> Iterator[Cell]:
    """Measure what is not yet known; no new cell is begun after `until` (time.monotonic)."""
    for cell in todo:
        if Notes.key(cell) in notes.found:
            continue
        if time.monotonic() > until:
            return
        notes.add(cell, measure(cell))
        yield cell
