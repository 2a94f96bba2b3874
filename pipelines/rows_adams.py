"""SA-Solver: a stochastic Adams predictor and corrector with data prediction, arXiv 2309.05019."""

from __future__ import annotations

from math import exp, expm1, inf, sqrt

import numpy as np

from pipelines.level import Levels
from pipelines.rows import Row, Terms, combine

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(48)  # exact to the last digits for every step on a ladder


def sa_solver(
    levels: Levels, predictor_order: int, corrector_order: int, tau: float, tau_start: float, tau_end: float, second_order: str
) -> list[Row]:
    """SA-Solver, arXiv 2309.05019, algorithm 1 (equations 14 and 17), as diffusers and, with two evaluations a step, ComfyUI have it."""
    return _sa_rows(levels, (predictor_order, corrector_order), (tau, tau_start, tau_end), second_order, again=False)


def sa_solver_pece(
    levels: Levels, predictor_order: int, corrector_order: int, tau: float, tau_start: float, tau_end: float, second_order: str
) -> list[Row]:
    """SA-Solver that asks the model again where it has corrected (predict, evaluate, correct, evaluate)."""
    return _sa_rows(levels, (predictor_order, corrector_order), (tau, tau_start, tau_end), second_order, again=True)


def _sa_rows(levels: Levels, orders: tuple[int, int], noise: tuple[float, float, float], rule: str, *, again: bool) -> list[Row]:
    """The anchor is what predictor and corrector of the next level share: the decayed x and the noise of the step."""
    rows, taus, n = [], [_tau(levels, i, *noise) for i in range(len(levels))], len(levels)
    for i, to in enumerate(levels.landing):
        now, here = levels[i], ["denoised", *(f"m{k}" for k in range(1, 5))]
        corrected: Terms = {"x": 1.0}
        if i > 0:
            nodes = [levels[i - k].half_logsnr for k in range(min(orders[1], n - i + 2, i + 1))]
            corrected = _adams(levels, i - 1, nodes, taus[i - 1], rule, here) | {"anchor": 1.0}
        if i > 0 and again:
            rows.append(Row(i, now, corrected))
            corrected = {"x": 1.0}
        h = to.half_logsnr - now.half_logsnr
        amount = to.sigma * sqrt(-expm1(-2.0 * taus[i] ** 2 * h)) if taus[i] > 0.0 else 0.0
        decay = to.sigma / now.sigma * exp(-(taus[i] ** 2) * h) if h < inf else 0.0
        carried = combine((decay, corrected), (amount, {"noise": 1.0}))
        nodes = [levels[i - k].half_logsnr for k in range(min(orders[0], n - i, i + 1))]
        x = combine((1.0, carried), (1.0, _adams(levels, i, nodes, taus[i], rule, here)))
        # The reference draws at every step, also where tau is 0: the same seed shall give the same picture.
        rows.append(Row(i, now, x, anchor=carried, push={"denoised": 1.0}, noisy=noise[0] > 0.0))
    return rows


def _tau(levels: Levels, i: int, tau: float, start: float, end: float) -> float:
    """tau(t): noise only between these shares of the training time, in either order, by the level that a step leaves."""
    low, high = sorted((start * len(levels.ladder), end * len(levels.ladder)))
    return tau if low <= levels[i].timestep <= high else 0.0


def _adams(levels: Levels, i: int, nodes: list[float], tau: float, rule: str, outputs: list[str]) -> dict[str, float]:
    """alpha' (1 + tau^2) integral over the step of exp((1 + tau^2)(l - l')) times the denoised, interpolated at `nodes` (equation 14).

    `simple` takes (1 + tau^2) h^2 / 2 for the slope of two nodes (appendix D); both agree to second order.
    """
    to, now = levels.landing[i], levels[i]
    h, rate = to.half_logsnr - now.half_logsnr, 1.0 + tau * tau
    mass = -expm1(-rate * h)
    if len(nodes) == 1:
        return {outputs[0]: to.alpha * mass}
    if len(nodes) == 2 and rule == "simple":
        (a, b), tilt = (node - now.half_logsnr for node in nodes), rate * h * h / 2.0
        return {outputs[0]: to.alpha * (tilt - b * mass) / (a - b), outputs[1]: to.alpha * (tilt - a * mass) / (b - a)}
    part = {}
    at = now.half_logsnr + 0.5 * h * (_NODES + 1.0)
    weight = to.alpha * rate * 0.5 * h * _WEIGHTS * np.exp(rate * (at - to.half_logsnr))
    for k, node in enumerate(nodes):
        others = np.array(nodes[:k] + nodes[k + 1 :])
        part[outputs[k]] = float((weight * np.prod((at[:, None] - others) / (node - others), axis=1)).sum())
    return part
