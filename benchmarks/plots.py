"""The plots of `make bench` and `python -m benchmarks.load`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

PICTURES = Path(__file__).parents[1] / "docs" / "pictures"


def ratios(path: Path, found: Mapping[str, Mapping[str, float]]) -> None:
    """Bars of how many times faster than diffusers each backend is, by kind of work: `found[backend][work]`."""
    works = list(next(iter(found.values())))
    figure, axis = plt.subplots(figsize=(7.5, 0.8 + 0.55 * len(found)), layout="constrained")
    height = 0.8 / len(works)
    for k, work in enumerate(works):
        places = [i + (k - (len(works) - 1) / 2) * height for i in range(len(found))]
        bars = axis.barh(places, [rows[work] for rows in found.values()], height, label=work)
        axis.bar_label(bars, fmt="%.2f", padding=2, fontsize=8)
    axis.axvline(1.0, color="black", linewidth=0.8)
    axis.set_yticks(range(len(found)), list(found))
    axis.invert_yaxis()
    axis.set_xlabel("diffusers' time (eager float32) / Celadon's, as many threads")
    axis.legend(loc="lower right", fontsize=8)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def latencies(path: Path, found: Mapping[tuple[float, str], Mapping[str, Sequence[float]]]) -> None:
    """Sorted latencies of each kind of job under each load, one line a server: `found[load, server][kind]` in seconds."""
    loads, kinds = sorted({load for load, _ in found}), list(next(iter(found.values())))
    figure, axes = plt.subplots(len(kinds), len(loads), figsize=(8, 2.6 * len(kinds)), sharey="row", squeeze=False, layout="constrained")
    for (load, server), rows in found.items():
        for row, kind in enumerate(kinds):
            axis, values = axes[row][loads.index(load)], sorted(rows[kind])
            axis.plot([100 * (i + 1) / len(values) for i in range(len(values))], values, label=server)
            axis.set_title(f"{kind}, load {load:.0%}", fontsize=9)
            axis.set_yscale("log")
    for axis in axes[-1]:
        axis.set_xlabel("per cent of the jobs, the quickest first")
    for line in axes:
        line[0].set_ylabel("seconds")
    axes[0][0].legend(fontsize=8)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
