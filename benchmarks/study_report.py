"""The findings of `benchmarks.sampler_study` as tables and as a plot."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t

from benchmarks.sampler_docs import PAGE, section
from benchmarks.stamp import commit, machine
from benchmarks.study_plan import SCREEN, SETS, SOLVER, Cell
from pipelines.sampler_list import SAMPLERS
from training.measures import interval

COMMAND = "python -m benchmarks.sampler_study"
PLOT = PAGE.parent / "pictures" / "sampler-study.svg"
TITLES = {"sampler": "Ten of the best samplers, on the model's own schedule", "schedule": f"Schedules, with {SOLVER}"}

Record = Mapping[str, Any]
Found = Mapping[Cell, Record]


def write(found: Found, scenes: int, model: str, default: str, page: Path = PAGE, plot: Path = PLOT) -> None:
    """Put the tables into the page and draw the plot. `default` is the sampler that the others are held against."""
    page.write_text(section(page.read_text(), COMMAND, text(found, scenes, model, default)))
    draw(found, plot)


def text(found: Found, scenes: int, model: str, default: str) -> str:
    head = (
        f"Made by `{COMMAND}` on {datetime.date.today().isoformat()}, commit {commit()}, {machine()}, {model}: "
        f"{scenes} scenes, {scenes // SETS} of each of the {SETS} sets of its evaluation, two things and held-out pairs among them, "
        "one seed each, the same for all. "
        "*Right answers*: the share of the questions of a scene (thing, style, count, background, colour) that the judge answers as asked. "
        "*Certainty*: the judge's, of the thing. *Distance*: of a pixel (of 255) to the picture of 100 steps, where no noise is drawn. "
        "In brackets, and behind ±, 95 % intervals over the scenes. ▼ and ▲: worse and better, by more than chance, than "
        f"`{default}` (schedules: than `auto`) with as many evaluations: differences are taken scene by scene, and 5 % is divided by "
        "the number of comparisons of the table.\n\n"
    )
    lines = {panel: {cell: one for cell, one in found.items() if cell.panel == panel} for panel in ("all", *TITLES)}
    tables = [_all(lines["all"], default), *(_table(panel, lines[panel], default if panel == "sampler" else "auto") for panel in TITLES)]
    return head + "\n".join(tables)


def against(values: list[float], base: list[float], comparisons: int = 1) -> tuple[float, float, float]:
    """Mean difference of two lists, picture by picture, and its interval by Student's t; 5 % divided by the comparisons lie outside."""
    apart = np.subtract(values, base)
    half = float(t.isf(0.025 / comparisons, len(apart) - 1) * apart.std(ddof=1) / np.sqrt(len(apart)))
    return float(apart.mean()), float(apart.mean()) - half, float(apart.mean()) + half


def _mark(name: str, one: Record, base: Record | None, comparisons: int) -> str:
    if base is None or one[name] is None or base[name] is None or one[name] == base[name]:
        return ""
    _, low, high = against(one[name], base[name], comparisons)
    better, worse = (high < 0.0, low > 0.0) if name == "distance" else (low > 0.0, high < 0.0)
    return " ▲" if better else " ▼" if worse else ""


def _all(found: Found, default: str) -> str:
    """Every sampler at one budget, the best first."""
    some = "Every sampler" if len(found) == len(SAMPLERS) else f"{len(found)} of the {len(SAMPLERS)} samplers"
    lines = [
        f"**{some} at {SCREEN} evaluations**, the best first; the last two columns: less `{default}`'s, ± 95 %",
        "",
        "| sampler | steps | right answers | certainty | distance | right answers, less | certainty, less |",
        "|---|---|---|---|---|---|---|",
    ]
    base = next((one for cell, one in found.items() if cell.sampler == default), None)
    for cell, one in sorted(found.items(), key=lambda pair: (-round(_mean(pair[1], "right"), 6), -_mean(pair[1], "certainty"))):
        other = None if one is base else base
        parts = [_right(one), _mean_of(one, "certainty", 2), _mean_of(one, "distance", 1) + _mark("distance", one, other, len(found) - 1)]
        parts += [_less(name, one, other, len(found) - 1) for name in ("right", "certainty")]
        lines.append(f"| `{cell.label}` | {one['steps']} | {' | '.join(parts)} |")
    return "\n".join([*lines, ""])


def _less(name: str, one: Record, base: Record | None, comparisons: int) -> str:
    if base is None:
        return ""
    mean, low, _ = against(one[name], base[name])
    return f"{mean:+.3f} ± {mean - low:.3f}{_mark(name, one, base, comparisons)}"


def _mean(one: Record, name: str) -> float:
    return float(np.mean(one[name]))


def _right(one: Record) -> str:
    mean, low, high = interval(np.array(one["right"])[:, None])
    return f"**{mean:.3f}** ({low:.2f}–{high:.2f})"


def _mean_of(one: Record, name: str, digits: int) -> str:
    if one[name] is None:
        return ""
    half = t.isf(0.025, len(one[name]) - 1) * np.std(one[name], ddof=1) / np.sqrt(len(one[name]))
    return f"{_mean(one, name):.{digits}f} ± {half:.{digits}f}"


def _table(panel: str, found: Found, base: str) -> str:
    budgets = sorted({cell.budget for cell in found})
    labels = list(dict.fromkeys(cell.label for cell in found))
    cells = {(cell.label, cell.budget): one for cell, one in found.items()}
    lines = [
        f"**{TITLES[panel]}**: right answers, certainty, distance",
        "",
        f"| {panel} | {' | '.join(f'{b} evaluations' for b in budgets)} |",
        f"|---{'|---' * len(budgets)}|",
    ]
    comparisons = max(1, len(cells) - len(budgets))
    for label in labels:
        told = [_cell(cells.get((label, b)), cells.get((base, b)), comparisons) for b in budgets]
        lines.append(f"| `{label}` | {' | '.join(told)} |")
    return "\n".join([*lines, ""])


def _cell(one: Record | None, base: Record | None, comparisons: int) -> str:
    if one is None:
        return ""
    told = {"right": _right(one), "certainty": _mean_of(one, "certainty", 2), "distance": _mean_of(one, "distance", 1)}
    return ", ".join(text + _mark(name, one, base, comparisons) for name, text in told.items() if text)


def draw(found: Found, path: Path) -> None:
    """Right answers, certainty and distance against evaluations, samplers above, schedules below."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    names = {"right": "right answers", "certainty": "judge's certainty of the thing", "distance": "distance to 100 steps"}
    with plt.rc_context({"svg.hashsalt": "celadon", "font.size": 9}):
        figure, axes = plt.subplots(2, 3, figsize=(15, 8.5), layout="constrained")
        for line, (panel, title) in enumerate(TITLES.items()):
            for column, (value, name) in enumerate(names.items()):
                _lines(axes[line, column], {c: one for c, one in found.items() if c.panel == panel and one[value] is not None}, value)
                axes[line, column].set(title=title.partition(",")[0], xlabel="U-Net evaluations", ylabel=name)
                if value == "distance":
                    axes[line, column].set_yscale("log")
            axes[line, 0].legend(fontsize=7, ncols=2)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Date": None, "Title": "Quality against U-Net evaluations"})
        plt.close(figure)


def _lines(axis: Any, found: Found, value: str) -> None:
    labels = list(dict.fromkeys(cell.label for cell in found))
    for number, label in enumerate(labels):
        points = sorted((cell.budget, _mean(one, value)) for cell, one in found.items() if cell.label == label)
        style = ("-", "--", ":", "-.")[number % 4]
        axis.plot(*zip(*points, strict=True), style, marker="osv^dPX*hD"[number % 10], markersize=4, linewidth=1.2, label=label)
