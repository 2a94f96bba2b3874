"""The findings of `benchmarks.sampler_study` as tables and as a plot."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

from benchmarks.sampler_docs import PAGE, section
from benchmarks.stamp import commit, machine

COMMAND = "python -m benchmarks.sampler_study"
PLOT = PAGE.parent / "pictures" / "sampler-study.svg"
TITLES = {"sampler": "Samplers, on the model's own schedule", "schedule": "Schedules, with dpmpp_2m"}

Found = list[dict[str, Any]]


def write(found: Found, scenes: int, model: str, page: Path = PAGE, plot: Path = PLOT) -> None:
    """Put the tables into the page and draw the plot."""
    page.write_text(section(page.read_text(), COMMAND, text(found, scenes, model)))
    draw(found, plot)


def text(found: Found, scenes: int, model: str) -> str:
    where = f"commit {commit()}, {machine()}, {model}, {scenes} scenes, one seed each"
    head = (
        f"Made by `{COMMAND}` on {datetime.date.today().isoformat()}, {where}. "
        "In a cell: the judge's score, the mean share of thing, style, count, background and colour that it finds as asked; "
        "then its certainty of the thing, and, where the sampler draws no noise, the mean distance of a pixel (of 255) "
        "to the picture of 100 steps.\n\n"
    )
    return head + "\n".join(_table(panel, [one for one in found if one["panel"] == panel]) for panel in TITLES)


def _table(panel: str, found: Found) -> str:
    budgets = sorted({one["budget"] for one in found})
    lines = [
        f"**{TITLES[panel]}**",
        "",
        f"| {panel} | {' | '.join(f'{b} evaluations' for b in budgets)} |",
        f"|---{'|---' * len(budgets)}|",
    ]
    for label in dict.fromkeys(one["label"] for one in found):
        cells = {one["budget"]: _cell(one) for one in found if one["label"] == label}
        lines.append(f"| `{label}` | {' | '.join(cells.get(b, '') for b in budgets)} |")
    return "\n".join([*lines, ""])


def _cell(one: dict[str, Any]) -> str:
    distance = "" if one["distance"] is None else f", {one['distance']:.1f}"
    return f"**{one['score']:.3f}**, {one['certainty']:.2f}{distance}"


def draw(found: Found, path: Path) -> None:
    """Score and distance against evaluations, samplers above, schedules below."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    with plt.rc_context({"svg.hashsalt": "celadon", "font.size": 9}):
        figure, axes = plt.subplots(2, 2, figsize=(11, 8.5), layout="constrained")
        for line, (panel, title) in enumerate(TITLES.items()):
            for column, (value, name) in enumerate(
                (("certainty", "judge's certainty of the thing"), ("distance", "distance to 100 steps"))
            ):
                _lines(axes[line, column], [one for one in found if one["panel"] == panel and one[value] is not None], value)
                axes[line, column].set(title=title, xlabel="U-Net evaluations", ylabel=name)
                if value == "distance":
                    axes[line, column].set_yscale("log")
            axes[line, 0].legend(fontsize=7, ncols=2)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Date": None, "Title": "Quality against U-Net evaluations"})
        plt.close(figure)


def _lines(axis: Any, found: Found, value: str) -> None:
    labels = list(dict.fromkeys(one["label"] for one in found))
    for number, label in enumerate(labels):
        points = sorted((one["budget"], one[value]) for one in found if one["label"] == label)
        style = ("-", "--", ":", "-.")[number % 4]
        axis.plot(*zip(*points, strict=True), style, marker="osv^dPX*hD"[number % 10], markersize=4, linewidth=1.2, label=label)
