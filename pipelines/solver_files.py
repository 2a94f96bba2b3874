"""Solvers that come as files: tables of rows, written by a program that learned them (arXiv 2403.01329, 2505.21114) or by hand.

A file holds one table for each number of steps, in the form that `celadon explain --json` prints; docs/solvers.md is its
definition. Levels are part of a table, so a solver has no schedule beside its own.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipelines import names
from pipelines.card import SamplerInfo
from pipelines.ladder import Ladder
from pipelines.level import Level
from pipelines.rows import Row, Terms
from pipelines.sampler_list import SAMPLERS
from pipelines.samplers import assembled
from pipelines.step_table import BASIS, STATE, StepTable
from pipelines.weight_files import read_object

MOST_ROWS = 1000
FILE_KEYS = {"schema", "id", "name", "tables"}
TABLE_KEYS = {"steps", "init", "rows"}
ROW_KEYS = {"step", "timestep", "alpha", "sigma", "noise", "next"}
# What explain prints beside these: where a table came from, and what follows from its levels and the model.
TOLD = {"sampler", "sampler_options", "schedule", "schedule_options", "evaluations"}
FOLLOWS = {"row", "logsnr", "c_in", "c_skip", "c_out"}


class SolverError(ValueError):
    """The file is no solver that this model can run; the message names the file and the place."""


@dataclass(frozen=True, slots=True)
class Solver:
    """`tables` by number of steps: the coefficient of the first noise, and rows."""

    id: str
    name: str
    tables: Mapping[int, tuple[float, tuple[Row, ...]]]

    def info(self) -> SamplerInfo:
        """What the gateway must know: exact evaluations, the numbers of steps there are, and that levels are its own."""
        counts = sorted(self.tables)
        every = [row for _, rows in self.tables.values() for row in rows]
        return SamplerInfo(
            id=self.id,
            name=self.name,
            min_steps=counts[0],
            max_steps=counts[-1],
            evals_first=tuple(len(self.tables[n][1]) if n in self.tables else 0 for n in range(1, counts[-1] + 1)),
            only_steps=tuple(counts),
            only_schedules=("auto",),
            stochastic=any(row.noisy for row in every),
        )

    def table(self, ladder: Ladder, steps: int) -> StepTable:
        """Raises ValueError where there is none of that number of steps."""
        if steps not in self.tables:
            raise ValueError(f"the solver {self.id!r} has tables of {', '.join(map(str, sorted(self.tables)))} steps, not {steps}")
        init, rows = self.tables[steps]
        return assembled(ladder, init, rows)


def read_solvers(folders: Iterable[Path], ladder: Ladder) -> dict[str, Solver]:
    """Every *.json of these folders, by id. Raises SolverError for a file that cannot run on this ladder, or an id that is taken."""
    found: dict[str, Solver] = {}
    for path in (path for folder in folders for path in sorted(folder.glob("*.json"))):
        try:
            solver = parsed(read_object(path), ladder)
            if solver.id in found:
                raise SolverError(f"the id {solver.id!r} is that of another file, too")
        except (ValueError, FileNotFoundError) as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
            raise SolverError(f"{path.name}: {error}") from error
        found[solver.id] = solver
    return found


def parsed(data: Any, ladder: Ladder) -> Solver:
    """A file's content, checked against the model's ladder. Raises SolverError."""
    _keys("the file", data, FILE_KEYS, set())
    id, name = data["id"], data["name"]
    if data["schema"] != 1:
        raise SolverError(f"schema must be 1, not {data['schema']!r}")
    if not isinstance(id, str) or not re.fullmatch(r"[a-z][a-z0-9_]{0,63}", id):
        raise SolverError("id must be a word of a to z, digits and underscores")
    if not isinstance(name, str) or not 0 < len(name) <= 64:
        raise SolverError("name must be text of at most 64 characters")
    for word in (id, name):
        if _known(word):
            raise SolverError(f"{word!r} is the name of another sampler")
    tables: dict[int, tuple[float, tuple[Row, ...]]] = {}
    for i, table in enumerate(_list("tables", data["tables"])):
        place = f"table {i + 1}"
        _keys(place, table, TABLE_KEYS, TOLD)
        rows = tuple(_row(f"{place}, row {j + 1}", row, ladder) for j, row in enumerate(_list(f"{place}: rows", table["rows"])))
        if (steps := _steps(place, table["steps"], rows)) in tables:
            raise SolverError(f"{place}: there is another of {steps} steps")
        tables[steps] = _number(f"{place}: init", table["init"], 0.0), rows
    return Solver(id, name, tables)


def _row(place: str, row: Any, ladder: Ladder) -> Row:
    _keys(place, row, ROW_KEYS, FOLLOWS)
    at = _level(place, row, ladder)
    changes = {target: _terms(f"{place}: next.{target}", terms) for target, terms in _dict(f"{place}: next", row["next"]).items()}
    if unknown := changes.keys() - set(STATE):
        raise SolverError(f"{place}: next has {', '.join(sorted(unknown))}; registers are {', '.join(STATE)}")
    noisy = row["noise"]
    if noisy is not True and (noisy is not False or any(terms.get("noise") for terms in changes.values())):
        raise SolverError(f"{place}: noise must be true or false, and true where a coefficient of noise is not zero")
    if isinstance(row["step"], bool) or not isinstance(row["step"], int):
        raise SolverError(f"{place}: step must be a whole number")
    memories = {name: terms for name, terms in changes.items() if name.startswith("m")}
    return Row(row["step"] - 1, at, changes.get("x", {"x": 1.0}), changes.get("anchor"), noisy=noisy, memories=memories)


def _level(place: str, row: Mapping[str, Any], ladder: Ladder) -> Level:
    alpha, sigma = _number(f"{place}: alpha", row["alpha"], 0.0), _number(f"{place}: sigma", row["sigma"], 0.0)
    timestep = _number(f"{place}: timestep", row["timestep"], -math.inf if ladder.space == "edm" else 0.0)
    if sigma == 0.0 or (alpha == 0.0 and ladder.prediction_type == "epsilon"):
        raise SolverError(f"{place}: a model cannot be asked at alpha = {alpha:g}, sigma = {sigma:g}")
    gamma = np.array(alpha**2 / (alpha**2 + sigma**2))
    there = [float(value) for value in ladder.alpha_sigma(gamma)] if ladder.space != "edm" or alpha else [1.0, sigma]
    if not np.allclose((alpha, sigma), there, rtol=1e-6, atol=1e-9):
        raise SolverError(f"{place}: alpha = {alpha:g}, sigma = {sigma:g} is no level of this model's space ({ladder.space})")
    if ladder.space == "vp" and timestep > len(ladder) - 1:
        raise SolverError(f"{place}: timestep must be at most {len(ladder) - 1}")
    return Level(alpha, sigma, timestep)


def _terms(place: str, terms: Any) -> Terms:
    if unknown := _dict(place, terms).keys() - set(BASIS):
        raise SolverError(f"{place} has {', '.join(sorted(unknown))}; it may combine {', '.join(BASIS)}")
    return {name: _number(f"{place}.{name}", value, -math.inf) for name, value in terms.items()}


def _steps(place: str, steps: Any, rows: Sequence[Row]) -> int:
    """Rows belong to steps 1, 2 ... in order, each to at least one."""
    counted = [row.step for row in rows]
    if isinstance(steps, bool) or not isinstance(steps, int) or sorted(set(counted)) != list(range(steps)) or counted != sorted(counted):
        raise SolverError(f"{place}: its rows must belong to steps 1 to {steps!r}, in order")
    return steps


def _known(word: str) -> bool:
    if word in SAMPLERS:
        return True
    try:
        names.find(word, None, SAMPLERS)
    except names.UnknownName as error:
        return bool(error.reason)
    except names.UnknownSetting:
        pass
    return True


def _keys(place: str, data: Any, needed: set[str], further: set[str]) -> None:
    given = _dict(place, data).keys()
    if missing := needed - given:
        raise SolverError(f"{place} lacks {', '.join(sorted(missing))}")
    if unknown := given - needed - further:
        raise SolverError(f"{place} has {', '.join(sorted(unknown))}, which means nothing there")


def _dict(place: str, data: Any) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise SolverError(f"{place} must be an object")
    return data


def _list(place: str, data: Any) -> list[Any]:
    if not isinstance(data, list) or not 0 < len(data) <= MOST_ROWS:
        raise SolverError(f"{place} must be a list of 1 to {MOST_ROWS}")
    return data


def _number(place: str, value: Any, least: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e9 or value < least:
        raise SolverError(f"{place} must be a finite number{'' if math.isinf(least) else ' of 0 or more'}, not {value!r}")
    return float(value)
