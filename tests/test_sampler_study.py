"""The study of samplers: it goes on where it stopped, spends what it says, and its report says what was found."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from scipy.stats import ttest_rel

from benchmarks import study_report
from benchmarks.study_plan import BUDGETS, SCREEN, SETS, SOLVER, STUDIED, Cell, Notes, cells, study
from pipelines.ladder import Ladder
from pipelines.sampler_list import SAMPLERS
from pipelines.samplers import compile_table
from tests.fakes import sd_ladder_config
from training.compositor import SPRITE, Compositor
from training.evaluation_sweep import chosen
from training.scene_sets import scene_sets
from training.words import STYLES, THINGS


def found(cell: Cell) -> dict[str, Any]:
    """Of two pictures; `heun` is surely worse, by a half, the others are like each other."""
    right = [0.25, 0.2500001] if cell.sampler == "heun" else [0.75, 0.75]
    return {"steps": cell.steps(), "right": right, "certainty": [0.4, 0.6], "distance": None if cell.sampler == "euler_a" else [2.0, 4.0]}


def test_every_cell_spends_its_budget_and_no_more() -> None:
    ladder = Ladder.from_config(sd_ladder_config())
    for cell in cells():
        spent = len(compile_table(ladder, cell.sampler, cell.schedule, cell.steps(), {}, dict(cell.options)))
        more = len(compile_table(ladder, cell.sampler, cell.schedule, cell.steps() + 1, {}, dict(cell.options)))
        assert spent <= cell.budget < more, cell
    assert {cell.sampler for cell in cells() if cell.panel == "all"} == set(SAMPLERS) and len(set(STUDIED)) == 10
    budgets = [cell.budget for cell in cells()]
    assert budgets == sorted(budgets) and set(budgets) == set(BUDGETS)
    assert len(set(cells())) == len(cells()) and SOLVER in STUDIED


def test_every_set_gives_equally_many_scenes() -> None:
    orange = np.broadcast_to(np.array([230, 120, 20, 255], np.uint8), (len(STYLES), len(THINGS), SPRITE, SPRITE, 4)).copy()
    orange[2, ..., :3] = 128  # pencil has no colours
    compositor = Compositor(orange)
    sets, scenes = scene_sets(compositor, 2 * SETS), chosen(compositor, 2 * SETS)
    assert len(sets) == SETS and "two things" in sets and "all at once" in sets
    assert scenes == [scene for some in sets.values() for scene in some[:2]]


def test_a_study_goes_on_where_it_stopped(tmp_path: Path) -> None:
    measured: list[Cell] = []

    def measure(cell: Cell) -> dict[str, Any]:
        measured.append(cell)
        return found(cell)

    notes = Notes(tmp_path / "found")
    going = study(notes, cells(), measure, until=float("inf"))
    for _ in range(3):
        next(going)  # and then it is killed
    list(study(notes, cells(), measure, until=time.monotonic() - 1))
    assert measured == cells()[:3], "nothing is begun when the time is over"
    list(study(Notes(tmp_path / "found"), cells(), measure, until=float("inf")))
    drawn = [replace(cell, panel="") for cell in cells()]
    assert [replace(cell, panel="") for cell in measured] == list(dict.fromkeys(drawn)), "what two panels share is drawn once"
    assert Notes(tmp_path / "found").known() == {cell: found(cell) for cell in cells()}
    assert Notes(tmp_path / "of another model").known() == {}


def test_the_report_says_what_was_found(tmp_path: Path) -> None:
    page, plot = tmp_path / "page.md", tmp_path / "plot.svg"
    page.write_text(f"before\n<!-- made by `{study_report.COMMAND}` -->\n<!-- end of `{study_report.COMMAND}` -->\nafter\n")
    some = [c for c in cells() if c.label in ("euler", "euler_a", "heun", "unipc", "auto", "cosine (start 0.2)")]
    study_report.write({cell: found(cell) for cell in some}, 2, "model", "unipc", page, plot)
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("after\n")
    lines = text.splitlines()
    assert "| `cosine (start 0.2)` | **0.750** (0.20–0.97), 0.50 ± 1.27, 3.0 ± 12.7 |" in text
    assert f"| `euler_a` | {SCREEN} | **0.750** (0.20–0.97) | 0.50 ± 1.27 |  | +0.000 ± 0.000 | +0.000 ± 0.000 |" in lines
    [worse] = [line for line in lines if line.startswith(f"| `heun` | {SCREEN // 2} |")]
    assert "| -0.500 ± 0.000 ▼ | +0.000 ± 0.000 |" in worse
    assert sum("▼" in line for line in lines) == 2 and "▲ |" not in text, "the explanation, and heun"
    assert ElementTree.parse(plot).getroot().tag.endswith("svg")


def test_differences_are_those_of_a_paired_t_test() -> None:
    rng = np.random.default_rng(3)
    one, other = rng.uniform(size=(2, 30)).tolist()
    theirs = ttest_rel(one, other).confidence_interval(1 - 0.05 / 9)
    assert study_report.against(one, other, 9)[1:] == pytest.approx((theirs.low, theirs.high))
