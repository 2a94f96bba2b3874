"""Schedules as a picture: levels and logSNR over the steps, in SVG. Standard library only.

The lines are told apart by dashes as well as by colours, the picture follows the reader's light or dark scheme, and title and
description say in words what it shows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import ceil, floor, log
from xml.sax.saxutils import escape

MEDIA_TYPE = "image/svg+xml"
MOST = 8  # lines that can be told apart
PANEL = (380, 300)  # pixels
LEFT, TOP, GAP, LEGEND = 60, 44, 80, 22
DASHES = ("", "7 4", "2 3", "9 3 2 3", "12 5", "4 2", "1 5", "14 3 3 3")

# Okabe and Ito's colours, which most colour-blind readers tell apart; lighter ones on dark ground.
LIGHT = ("#0072b2", "#d55e00", "#007a5a", "#a4508b", "#6b5b00", "#2f6f8f", "#8c1c13", "#333333")
DARK = ("#56b4e9", "#f0934e", "#2fc79a", "#e39ccb", "#f0e442", "#9ad0ec", "#ff8a80", "#dddddd")
STYLE = (
    "svg{background:#fff;color:#1b1f24;font:13px system-ui,sans-serif}text{fill:currentColor}.grid{stroke:#d5d9de}"
    + "".join(f".c{i}{{stroke:{colour}}}" for i, colour in enumerate(LIGHT))
    + "@media(prefers-color-scheme:dark){svg{background:#14171a;color:#e8eaed}.grid{stroke:#3a4047}"
    + "".join(f".c{i}{{stroke:{colour}}}" for i, colour in enumerate(DARK))
    + "}"
)


def svg(curves: Mapping[str, Sequence[float]], model: str) -> str:
    """One line a schedule: `curves` are logSNR over the steps, rising; at most MOST of them, none empty.

    The level is sigma/alpha = exp(-logSNR / 2), on a logarithmic axis.
    """
    width, height = LEFT + 2 * PANEL[0] + GAP + 20, TOP + PANEL[1] + 56 + LEGEND * len(curves)
    title = f"Noise schedules on {model}: {', '.join(curves)}"
    levels = {name: [-x / 2 for x in curve] for name, curve in curves.items()}
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
        'aria-labelledby="title desc">',
        f'<title id="title">{escape(title)}</title>',
        f'<desc id="desc">{escape(_description(curves))}</desc>',
        f"<style>{STYLE}</style>",
        *_panel("level sigma / alpha", levels, LEFT, _decades(levels)),
        *_panel("logSNR", curves, LEFT + PANEL[0] + GAP, _even(curves)),
        *_legend(curves, TOP + PANEL[1] + 56),
        "</svg>\n",
    ]
    return "\n".join(parts)


def _description(curves: Mapping[str, Sequence[float]]) -> str:
    lines = [f"{name}: from logSNR {c[0]:.2f} at the first of {len(c)} steps to {c[-1]:.2f} at the last." for name, c in curves.items()]
    return f"Two panels over the steps: the noise level on a logarithmic axis, and the log signal-to-noise ratio. {' '.join(lines)}"


Ticks = Sequence[tuple[float, str]]


def _decades(levels: Mapping[str, Sequence[float]]) -> Ticks:
    """Powers of ten around natural logarithms."""
    low, high = _range(levels, log(10))
    return [(k * log(10), f"{10.0**k:g}") for k in range(low, high + 1)]


def _even(curves: Mapping[str, Sequence[float]]) -> Ticks:
    low, high = _range(curves, 1.0)
    step = next(s for s in (1, 2, 5, 10, 20, 50, 100) if (high - low) / s <= 8 or s == 100)
    return [(float(k), str(k)) for k in range(floor(low / step) * step, ceil(high / step) * step + 1, step)]


def _range(curves: Mapping[str, Sequence[float]], unit: float) -> tuple[int, int]:
    values = [value / unit for curve in curves.values() for value in curve]
    low, high = floor(min(values)), ceil(max(values))
    return low, max(high, low + 1)


def _panel(name: str, curves: Mapping[str, Sequence[float]], left: int, ticks: Ticks) -> Iterator[str]:
    """Axes, grid and lines of one panel; the first step is at its left edge."""
    (width, height), (low, high) = PANEL, (ticks[0][0], ticks[-1][0])
    most = max(len(curve) for curve in curves.values())

    def x(step: int) -> float:
        return left + width * step / max(most - 1, 1)

    def y(value: float) -> float:
        return TOP + height * (high - value) / (high - low)

    yield f'<text x="{left}" y="{TOP - 18}" font-weight="600">{escape(name)}</text>'
    for value, label in ticks:
        yield f'<line class="grid" x1="{left}" x2="{left + width}" y1="{y(value):.1f}" y2="{y(value):.1f}"/>'
        yield f'<text x="{left - 8}" y="{y(value) + 4:.1f}" text-anchor="end">{label}</text>'
    for step in sorted({0, most // 4, most // 2, 3 * most // 4, most - 1}):
        yield f'<text x="{x(step):.1f}" y="{TOP + height + 20}" text-anchor="middle">{step + 1}</text>'
    yield f'<text x="{left + width / 2}" y="{TOP + height + 40}" text-anchor="middle">step</text>'
    for number, curve in enumerate(curves.values()):
        points = " ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in enumerate(curve))
        yield f'<polyline class="c{number}" points="{points}" fill="none" stroke-width="2"{_dash(number)}/>'
        yield f'<circle class="c{number}" cx="{x(0):.1f}" cy="{y(curve[0]):.1f}" r="2" fill="none"/>'  # also where there is one step


def _legend(curves: Mapping[str, Sequence[float]], top: int) -> Iterator[str]:
    for number, name in enumerate(curves):
        y = top + LEGEND * number
        yield f'<line class="c{number}" x1="{LEFT}" x2="{LEFT + 44}" y1="{y}" y2="{y}" stroke-width="2"{_dash(number)}/>'
        yield f'<text x="{LEFT + 54}" y="{y + 4}">{escape(name)}</text>'


def _dash(number: int) -> str:
    return f' stroke-dasharray="{DASHES[number]}"' if DASHES[number] else ""
