"""Samplers without memory from one step to the next: DPM-Solver of several stages, its single-step DPM++ form, and Restart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from math import exp, expm1, log, sqrt

import numpy as np

from pipelines.level import Level, Levels
from pipelines.rows import Row, combine, heun_step, lifted, slope

# --- DPM-Solver-fast --------------------------------------------------------------------------------------------------


def dpm_fast(levels: Levels, eta: float, s_noise: float) -> list[Row]:
    """DPM-Solver-fast, arXiv 2206.00927, section 3.4, as in k-diffusion: n evaluations in solver steps of order 3, the rest in one of less.

    The solver steps follow the shape of the schedule, in logSNR; on `exponential` they are k-diffusion's. It ends at the lowest
    level above zero, or at the ladder's lowest where the schedule stays above that.
    """
    n = len(levels)
    orders = [3] * (n // 3 - 1) + [2, 1] if n % 3 == 0 else [3] * (n // 3) + [n % 3]
    nodes = _thinned(_noisy_ratios(levels), len(orders) + 1)
    rows: list[Row] = []
    for order, high, low in zip(orders, nodes[:-1], nodes[1:], strict=True):
        now, to = levels.at(high) if rows else levels[0], levels.at(low)
        if low == nodes[-1]:  # what is left of the noise stays in the picture: x is then at the alpha of the schedule's end
            to = to._replace(alpha=float(levels.alpha[-1]))
        up = min(low, eta * low * sqrt(1.0 - (low / high) ** 2))
        down = max(sqrt(low * low - up * up), nodes[-1]) if up > 0.0 else low
        noise = to.alpha * sqrt(low * low - down * down) * s_noise
        made = _dpm_solver(levels, len(rows), now, to, down, order)
        made[-1] = replace(made[-1], x={**made[-1].x, "noise": noise}, noisy=noise > 0.0)
        rows += made
    return rows


def _noisy_ratios(levels: Levels) -> list[float]:
    """sigma/alpha of the levels; in place of a clean end the ladder's lowest, or nothing where a level is as low."""
    ratios, lowest = [levels[i].ratio for i in range(len(levels) + 1)], float(levels.ladder.ratios[0])
    if ratios[-1] > 0.0:
        return ratios
    if len(levels) == 1:
        return [ratios[0], min(lowest, 0.5 * ratios[0])]
    return [*ratios[:-1], lowest] if ratios[-2] > 1.0001 * lowest else ratios[:-1]


def _thinned(ratios: Sequence[float], count: int) -> list[float]:
    """`count` values from the first to the last, where they would lie on the curve of log(ratio) over the index."""
    index = np.linspace(0.0, len(ratios) - 1.0, count)
    inner = np.exp(np.interp(index, np.arange(len(ratios)), np.log(ratios)))
    return [float(ratios[0]), *inner[1:-1].tolist(), float(ratios[-1])]


def _dpm_solver(levels: Levels, step: int, now: Level, to: Level, down: float, order: int) -> list[Row]:
    """DPM-Solver-1, -2 or -3 (algorithms 1 and 2 of arXiv 2206.00927) from `now` to sigma_k = down, written at the alpha of `to`.

    The anchor keeps x, m1 the first slope; every evaluation is a step of its own.
    """
    h, start = log(now.ratio / down), {"anchor": 1.0 / now.alpha}
    stages = [levels.at(now.ratio * exp(-h * k / order)) for k in range(1, order)]
    first, kept = slope(now), {"m1": 1.0}
    ends = [*((level.alpha, level.ratio) for level in stages), (to.alpha, down)]
    x = combine((ends[0][0] / now.alpha, {"x": 1.0}), (-ends[0][0] * ends[0][1] * expm1(h / order), first))
    rows = [Row(step, now, x, anchor={"x": 1.0}, push=first)]
    for k, at in enumerate(stages, 1):
        alpha, ratio = ends[k]
        part = h * (k + 1) / order  # how far from the anchor this row goes
        bend = expm1(h)
        if order == 3:  # by r2 / r1 = 2 to the second stage, by 1 / r2 = 3 / 2 to the end
            bend = (expm1(part) / part - 1.0) * (2.0 if k == 1 else 1.5)
        change = combine((1.0, slope(at)), (-1.0, kept))
        x = combine((alpha, start), (-alpha * ratio * expm1(part), kept), (-alpha * ratio * bend, change))
        rows.append(Row(step + k, at, x))
    return rows


# --- DPM-Solver++, single step ----------------------------------------------------------------------------------------


def dpmpp_1s(levels: Levels) -> list[Row]:
    """DPM-Solver++ of first order, arXiv 2211.01095, equation 4: DDIM on the levels of DPM-Solver."""
    return _singlestep(levels, 1, "midpoint")


def dpmpp_2s(levels: Levels, solver_type: str) -> list[Row]:
    """DPM-Solver++(2S), arXiv 2211.01095, algorithm 1, as in diffusers: of two levels the first is the middle of the other's step."""
    return _singlestep(levels, 2, solver_type)


def dpmpp_3s(levels: Levels, solver_type: str) -> list[Row]:
    """DPM-Solver++ of third order, single step (arXiv 2211.01095, appendix B), as in diffusers: three levels make a step."""
    return _singlestep(levels, 3, solver_type)


def _singlestep(levels: Levels, order: int, solver_type: str) -> list[Row]:
    """Every level ends a step of order 1, 2 ... from one anchor, which is x where the order was 1; the last denoised are m1, m2."""
    orders, rows = _orders(levels, order), []
    for i, (to, used) in enumerate(zip(levels.landing, orders, strict=True)):
        start, oldest = levels[i - used + 1], "denoised" if used == 1 else f"m{used - 1}"
        h = to.half_logsnr - start.half_logsnr
        x = {"x" if used == 1 else "anchor": to.sigma / start.sigma, oldest: -to.alpha * expm1(-h)}
        if used > 1:
            r = [(levels[i - k].half_logsnr - start.half_logsnr) / h for k in range(used - 1)]
            x = combine((1.0, x), (to.alpha, _bent(h, r, oldest, solver_type)))
        rows.append(Row(i, levels[i], x, anchor={"x": 1.0} if used == 1 else None, push={"denoised": 1.0}))
    return rows


def _orders(levels: Levels, order: int) -> list[int]:
    """1, 2, ... order, again and again; the end is filled up with less, and clean with 1. A part of a schedule keeps its pattern."""
    n, clean = levels.asked, levels.landing[-1].sigma == 0.0
    whole = [1 + i % order for i in range(n)]
    if n % order == 0:
        whole[-order:] = [*range(1, order), 1]
    first = n - len(levels) if clean else 0
    kept = whole[first : first + len(levels)]
    for i in range(min(order - 1, len(kept))):
        kept[i] = min(kept[i], i + 1)
    return [*kept[:-1], 1] if clean else kept


def _bent(h: float, r: Sequence[float], oldest: str, solver_type: str) -> dict[str, float]:
    """What the slope (and curvature) of the denoised over the block add; r are where the newer ones lie in the step."""
    phi_2 = expm1(-h) / h + 1.0
    newest = {"denoised": 1.0 / r[0], oldest: -1.0 / r[0]}
    if len(r) == 1:
        return combine((phi_2 if solver_type == "heun" else -0.5 * expm1(-h), newest))
    if solver_type == "midpoint":
        return combine((phi_2, newest))
    middle = {"m1": 1.0 / r[1], oldest: -1.0 / r[1]}
    phi_3 = (expm1(-h) + h) / h**2 - 0.5
    return combine(
        (phi_2 / (r[0] - r[1]), combine((r[0], middle), (-r[1], newest))),
        (-2.0 * phi_3 / (r[0] - r[1]), combine((1.0, newest), (-1.0, middle))),
    )


# --- Restart ----------------------------------------------------------------------------------------------------------


def restart(levels: Levels, s_noise: float) -> list[Row]:
    """Restart, arXiv 2306.14878, algorithm 1, with Heun's steps and A1111's rule: below 20 steps none, from 36 on two restarts.

    Of n steps 9, or twice n // 4, run the interval from 2 to 0.1 again, after noise has lifted x to its top; the others keep the
    shape of the schedule. The lift folds into the row before it.
    """
    n = len(levels)
    times, length = (0, 0) if n < 20 else (1, 9) if n < 36 else (2, n // 4)
    path = _path(levels, times, length) or _path(levels, 0, 0)
    rows: list[Row] = []
    for i, (now, to) in enumerate(path):
        rows += heun_step(levels, i, now, to)
        if i + 1 < n and path[i + 1][0].ratio > to.ratio:
            rows[-1] = lifted(rows[-1], to, path[i + 1][0], s_noise)
    return rows


def _path(levels: Levels, times: int, length: int) -> list[tuple[Level, Level]]:
    """Every step's ends; nothing if the levels do not reach over the interval."""
    main = _fewer(levels, len(levels) - times * length)
    steps = list(pairwise(main))
    if times == 0:
        return steps
    noisy = np.array([level.ratio for level in main if level.sigma > 0.0])
    top, bottom = (int(np.argmin(abs(noisy - ratio))) for ratio in (2.0, 0.1))
    if top >= bottom:
        return []
    inner = [levels.at(r) for r in _karras(noisy[top], noisy[bottom], length + 1)[1:-1]]
    again = list(pairwise([main[top], *inner, main[bottom]]))
    return steps[:bottom] + times * again + steps[bottom:]


def _fewer(levels: Levels, count: int) -> list[Level]:
    """count + 1 levels with the ends and the shape of these: sigma_k^(1/7) is interpolated, so that Karras stays Karras."""
    every = [levels[i] for i in range(len(levels) + 1)]
    if count == len(levels):
        return every
    noisy = every if every[-1].sigma > 0.0 else every[:-1]
    index = np.linspace(0.0, len(noisy) - 1.0, count + 1 if noisy is every else count)
    ratios = np.interp(index, np.arange(len(noisy)), [level.ratio ** (1.0 / 7.0) for level in noisy]) ** 7.0
    return [every[0], *(levels.at(r) for r in ratios[1:-1].tolist()), *(noisy[-1:] if noisy is not every else []), every[-1]]


def _karras(high: float, low: float, count: int) -> list[float]:
    """arXiv 2206.00364, equation 5."""
    return [float(r) for r in np.linspace(high ** (1.0 / 7.0), low ** (1.0 / 7.0), count) ** 7.0]
