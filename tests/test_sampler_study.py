"""The study of samplers: it goes on where it stopped, spends what it says, and its report says what was found."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from benchmarks import study_report
from benchmarks.study_plan import BUDGETS, Cell, Notes, cells, study
from pipelines.ladder import Ladder
from pipelines.samplers import compile_table
from tests.fakes import sd_ladder_config

ABOUT = {"model": "m", "scenes": 2}


def found(cell: Cell) -> dict[str, Any]:
    return {"steps": cell.steps(), "score": 0.01 * cell.budget, "certainty": 0.5, "distance": None if cell.sampler == "euler_a" else 3.0}


def test_every_cell_spends_its_budget_and_no_more() -> None:
    ladder = Ladder.from_config(sd_ladder_config())
    for cell in cells():
        spent = len(compile_table(ladder, cell.sampler, cell.schedule, cell.steps(), {}, dict(cell.options)))
        more = len(compile_table(ladder, cell.sampler, cell.schedule, cell.steps() + 1, {}, dict(cell.options)))
        assert spent <= cell.budget < more, cell
    assert [cell.budget for cell in cells()] == sorted(cell.budget for cell in cells())
    assert len({Notes.key(cell) for cell in cells()}) == len(cells())


def test_a_study_goes_on_where_it_stopped(tmp_path: Path) -> None:
    path, measured = tmp_path / "found.json", []

    def measure(cell: Cell) -> dict[str, Any]:
        measured.append(cell)
        return found(cell)

    going = study(Notes(path, ABOUT), cells(), measure, until=float("inf"))
    for _ in range(3):
        next(going)  # and then it is killed
    list(study(Notes(path, ABOUT), cells(), measure, until=time.monotonic() - 1))
    assert measured == cells()[:3], "nothing is begun when the time is over"
    list(study(Notes(path, ABOUT), cells(), measure, until=float("inf")))
    assert measured == cells()
    assert len(Notes(path, ABOUT).found) == len(cells())
    assert Notes(path, {**ABOUT, "model": "another"}).found == {}, "another model is another study"


def test_the_report_says_what_was_found(tmp_path: Path) -> None:
    page, plot = tmp_path / "page.md", tmp_path / "plot.svg"
    page.write_text(f"before\n<!-- made by `{study_report.COMMAND}` -->\n<!-- end of `{study_report.COMMAND}` -->\nafter\n")
    some = [c for c in cells() if c.label in ("euler", "euler_a", "auto", "cosine (start 0.2)")]
    records = [{"panel": c.panel, "label": c.label, "budget": c.budget, "sampler": c.sampler, **found(c)} for c in some]
    study_report.write(records, 2, "model", page, plot)
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("after\n")
    line = next(line for line in text.splitlines() if line.startswith("| `euler_a`"))
    assert line == f"| `euler_a` | {' | '.join(f'**{0.01 * b:.3f}**, 0.50' for b in BUDGETS)} |"
    assert "| `cosine (start 0.2)` | **0.020**, 0.50, 3.0 | **0.030**, 0.50, 3.0 |" in text
    assert ElementTree.parse(plot).getroot().tag.endswith("svg")
