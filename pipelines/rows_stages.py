"""Samplers that take several stages a step, or go down further than the next level and add noise.

Formulas stand in sigma = `Level.ratio`, the sigma of k-diffusion: x = alpha * x_k. What a later row still needs of an earlier
one, its noise too, is folded into the anchor as soon as its coefficient is known, so that few memories are needed.
"""

from __future__ import annotations

from math import expm1, sqrt

import numpy as np

from pipelines.level import Level, Levels
from pipelines.rows import Row, Terms, combine, move, slope

# --- building blocks --------------------------------------------------------------------------------------------------


def ancestral(now: Level, to: Level, eta: float) -> tuple[float, float]:
    """sigma_down and sigma_up of k-diffusion, with sigma_down^2 + sigma_up^2 = sigma'^2; eta = 1 is the posterior of DDPM.

    sigma_down is written without a difference of near numbers: that root would lose all its digits, or be imaginary, where
    sigma'/sigma is nearly 0 or 1.
    """
    fall = to.ratio / now.ratio
    up = eta * sqrt(max((1.0 - fall) * (1.0 + fall), 0.0))
    return to.ratio * sqrt(max((1.0 - eta) * (1.0 + eta), 0.0) + (eta * fall) ** 2), to.ratio * up


def toward(now: Level, to: Level, down: float, source: str = "x", denoised: Terms | None = None) -> dict[str, float]:
    """x_k' = (sigma_down / sigma) x_k + (1 - sigma_down / sigma) D, in the space of `to`: the exact step for a constant D."""
    kept = down / now.ratio
    return combine((to.alpha * kept / now.alpha, {source: 1.0}), (to.alpha * (1.0 - kept), denoised or {"denoised": 1.0}))


def noised(terms: Terms, weight: float) -> dict[str, float]:
    return combine((1.0, terms), (weight, {"noise": 1.0}))


# --- deterministic ----------------------------------------------------------------------------------------------------


def heunpp2(levels: Levels) -> list[Row]:
    """Heun++ (Carzit, sd-webui-samplers-scheduler, MIT): the slopes at this level and the next two, weighted by sigma / sum.

    The slopes at sigma' and sigma'' weigh sigma' / (3 sigma_0) and sigma'' / (3 sigma_0). The last step but one has two
    slopes, weighted by sigma' / (2 sigma_0), the last one is Euler's.
    """
    rows, top, n = [], levels[0].ratio, len(levels)
    for i, to in enumerate(levels.landing):
        now, stages = levels[i], min(3, n - i)
        ahead = levels.landing[i : i + stages - 1]  # where the later slopes are taken
        shares = [level.ratio / (stages * top) for level in ahead]
        dt = to.alpha * (to.ratio - now.ratio)
        total: Terms = combine((to.alpha / now.alpha, {"x": 1.0}), (dt * (1.0 - sum(shares)), slope(now)))
        walk, at = move(now, to), now
        for level, share in zip(ahead, shares, strict=True):
            rows.append(Row(i, at, walk, anchor=total))
            total = combine((1.0, {"anchor": 1.0}), (dt * share, slope(level)))
            at, walk = level, move(level, levels.landing[i + 1])  # read only if another slope follows
        rows.append(Row(i, at, total))
    return rows


def gradient_estimation(levels: Levels, gamma: float) -> list[Row]:
    """Gradient estimation, arXiv 2306.04848, algorithm 2: d = gamma d_now + (1 - gamma) d_before. m1 is the last slope."""
    rows = []
    for i, to in enumerate(levels.landing):
        now = levels[i]
        x: Terms = move(now, to)
        if i > 0 and to.sigma > 0.0:
            change = combine((1.0, slope(now)), (-1.0, {"m1": 1.0}))
            x = combine((1.0, x), ((gamma - 1.0) * to.alpha * (to.ratio - now.ratio), change))
        rows.append(Row(i, now, x, push=slope(now)))
    return rows


def res_multistep(levels: Levels) -> list[Row]:
    """RES, the refined exponential solver with two steps: arXiv 2308.02157, the multistep form of section 4."""
    return res_multistep_ancestral(levels, eta=0.0, s_noise=0.0)


# --- ancestral: down to sigma_down, then noise sigma_up ------------------------------------------------------------------


def dpm2_a(levels: Levels, eta: float, s_noise: float) -> list[Row]:
    """DPM-Solver-2, arXiv 2206.00927, algorithm 1, down to sigma_down (k-diffusion): the slope at their geometric middle.

    With zero terminal SNR, which the reference does not know, sigma falls from 4096 and the slope would multiply an error of
    the denoised by sigma / sigma': steps of more than 8 take the denoised of the middle, not its slope.
    """
    rows = []
    for i, to in enumerate(levels.landing):
        now, (down, up) = levels[i], ancestral(levels[i], to, eta)
        if to.sigma == 0.0:
            rows.append(Row(i, now, move(now, to)))
            continue
        middle = levels.at(sqrt(now.ratio * down))
        x = combine((to.alpha / now.alpha, {"anchor": 1.0}), (to.alpha * (down - now.ratio), slope(middle)))
        if levels.ladder.zero_snr and now.ratio > 8.0 * to.ratio:
            x = toward(now, to, down, "anchor")
        rows.append(Row(i, now, move(now, middle), anchor={"x": 1.0}))
        rows.append(Row(i, middle, noised(x, to.alpha * up * s_noise), noisy=up * s_noise > 0.0))
    return rows


def dpmpp_2s_a(levels: Levels, eta: float, s_noise: float) -> list[Row]:
    """DPM-Solver++(2S), arXiv 2211.01095, algorithm 1, down to sigma_down (k-diffusion), the second stage in the middle."""
    rows = []
    for i, to in enumerate(levels.landing):
        now, (down, up) = levels[i], ancestral(levels[i], to, eta)
        if to.sigma == 0.0:
            rows.append(Row(i, now, move(now, to)))
            continue
        middle = levels.at(sqrt(now.ratio * down))
        rows.append(Row(i, now, move(now, middle), anchor={"x": 1.0}))
        rows.append(Row(i, middle, noised(toward(now, to, down, "anchor"), to.alpha * up * s_noise), noisy=up * s_noise > 0.0))
    return rows


def res_multistep_ancestral(levels: Levels, eta: float, s_noise: float) -> list[Row]:
    """RES, arXiv 2308.02157, down to sigma_down: x' = e^-h x + h (b1 D + b2 m1), b2 = phi_2(-h) / c2, b1 = phi_1(-h) - b2.

    c2 = (log sigma_down of the last step - log of its sigma) / h, as ComfyUI counts; without noise that is -h_last / h.
    """
    rows, reached = [], 0.0
    for i, to in enumerate(levels.landing):
        now, (down, up) = levels[i], ancestral(levels[i], to, eta)
        x: Terms = toward(now, to, down)
        if i > 0 and down > 0.0:
            before = to.alpha * res_second_weight(now.ratio / down, reached / levels[i - 1].ratio)
            x = combine((1.0, x), (before, {"m1": 1.0, "denoised": -1.0}))
        noise = to.alpha * up * s_noise
        rows.append(Row(i, now, noised(x, noise), push={"denoised": 1.0}, noisy=noise > 0.0))
        reached = down
    return rows


def res_second_weight(rise: float, last_fall: float) -> float:
    """h phi_2(-h) / c2, for h = log(rise) and h c2 = log(last_fall): (e^-h - 1 + h) / h over c2."""
    h = np.log(rise)
    return float((expm1(-h) + h) / np.log(last_fall))
