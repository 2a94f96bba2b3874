"""Samplers of the reverse SDE whose stages share noise; without noise they solve the ODE.

Formulas stand in sigma = `Level.ratio`, the sigma of k-diffusion: x = alpha * x_k. What a later row still needs of an earlier
one, its noise too, is folded into the anchor (and m1) as soon as its coefficient is known.
"""

from __future__ import annotations

from math import exp, expm1, sqrt
from typing import Any

import numpy as np

from pipelines.level import Level, Levels
from pipelines.rows import Row, Terms, combine, move
from pipelines.rows_stages import ancestral, noised, toward


def exponential(now: Level, to: Level, eta: float) -> tuple[float, float, float]:
    """Decay of x, weight of D and deviation of the noise of the SDE with constant D: arXiv 2211.01095, appendix; eta = 0 is the ODE."""
    h = to.half_logsnr - now.half_logsnr
    spread = max(-expm1(-2.0 * eta * h), 0.0)  # h may be a rounding below 0 where a stage is at the end of its step
    return to.sigma / now.sigma * exp(-eta * h), -to.alpha * expm1(-(1.0 + eta) * h), to.sigma * sqrt(spread)


def dpmpp_sde(levels: Levels, eta: float, s_noise: float, r: float) -> list[Row]:
    """DPM-Solver++ as an SDE (k-diffusion), the second stage after a share r of the step in logSNR.

    Both stages add sigma_up of one Brownian motion in sigma, as the reference's tree gives: the second noise begins with the first.
    """
    rows = []
    for i, to in enumerate(levels.landing):
        now = levels[i]
        if to.sigma == 0.0:
            rows.append(Row(i, now, move(now, to)))
            continue
        stage, share = levels.at(now.ratio ** (1.0 - r) * to.ratio**r), 0.5 / r
        (near, near_up), (down, up) = ancestral(now, stage, eta), ancestral(now, to, eta)
        common = min((now.ratio - stage.ratio) / (now.ratio - to.ratio), 1.0)  # of the time in sigma
        whole = toward(now, to, down)
        first, second = whole | {"denoised": (1.0 - share) * whole["denoised"]}, {"denoised": share * whole["denoised"]}
        amount, noisy = to.alpha * up * s_noise, eta * s_noise > 0.0
        x = noised(toward(now, stage, near), stage.alpha * near_up * s_noise)
        rows.append(Row(i, now, x, anchor=noised(first, amount * sqrt(common)), noisy=noisy))
        late = amount * sqrt(1.0 - common)
        rows.append(Row(i, stage, noised({"anchor": 1.0, **second}, late), noisy=late > 0.0))
    return rows


def seeds_2(levels: Levels, eta: float, s_noise: float, r: float, solver_type: str) -> list[Row]:
    """SEEDS-2, arXiv 2305.14267, in data prediction; the second stage after a share r of the step in logSNR.

    The noise of the first stage decays with the SDE and is part of the step's noise. `phi_1` is the midpoint rule, `phi_2` the
    stiff one.
    """
    rows = []
    for i, to in enumerate(levels.landing):
        now = levels[i]
        if to.sigma == 0.0:
            rows.append(Row(i, now, move(now, to)))
            continue
        stage = levels.at(now.ratio ** (1.0 - r) * to.ratio**r) if r < 1.0 else to
        (decay, gain, noise), (whole, weight, _) = exponential(now, stage, eta), exponential(now, to, eta)
        late, _, fresh = exponential(stage, to, eta)
        second = weight * 0.5 / r if solver_type == "phi_1" else to.alpha * _phi_2(now, to, eta) / r
        noisy = noise * s_noise > 0.0
        x = {"x": decay, "denoised": gain, "noise": noise * s_noise}
        rows.append(Row(i, now, x, {"x": whole, "denoised": weight - second, "noise": late * noise * s_noise}, noisy=noisy))
        rows.append(Row(i, stage, {"anchor": 1.0, "denoised": second, "noise": fresh * s_noise}, noisy=fresh * s_noise > 0.0))
    return rows


def _phi_2(now: Level, to: Level, eta: float) -> float:
    """-z phi_2(z) at z = -(1 + eta) h, as a weight of data: (e^z - 1 - z) / -z."""
    z = (1.0 + eta) * (now.half_logsnr - to.half_logsnr)
    return (expm1(z) - z) / -z


def exp_heun_2_x0(levels: Levels, solver_type: str) -> list[Row]:
    """Exponential Heun in data prediction and logSNR: arXiv 2305.14267 with the second stage at the next level, without noise."""
    return seeds_2(levels, eta=0.0, s_noise=0.0, r=1.0, solver_type=solver_type)


def exp_heun_2_x0_sde(levels: Levels, eta: float, s_noise: float, solver_type: str) -> list[Row]:
    """Exponential Heun as an SDE: SEEDS-2 (arXiv 2305.14267) whose second stage is the next level, so it draws once a step."""
    return seeds_2(levels, eta, s_noise, 1.0, solver_type)


def seeds_3(levels: Levels, eta: float, s_noise: float) -> list[Row]:
    """SEEDS-3, arXiv 2305.14267, in data prediction, its stages at 1/3 and 2/3 of the step in logSNR.

    The first row prepares the third stage in m1 and the end of the step in the anchor.
    """
    rows = []
    for i, to in enumerate(levels.landing):
        now = levels[i]
        if to.sigma == 0.0:
            rows.append(Row(i, now, move(now, to)))
            continue
        one, two = (levels.at(now.ratio ** (1.0 - r) * to.ratio**r) for r in (1.0 / 3.0, 2.0 / 3.0))
        third, last = two.alpha * _phi_2(now, two, eta) * 2.0, to.alpha * _phi_2(now, to, eta) * 1.5  # r2 / r1 and 1 / r2
        noise, middle = exponential(now, one, eta)[2] * s_noise, exponential(one, two, eta)[2] * s_noise
        fade, _, fresh = exponential(two, to, eta)
        x, prepared, anchor = (
            {"x": decay, "denoised": gain - second, "noise": noise * exponential(one, level, eta)[0]}
            for level, second in ((one, 0.0), (two, third), (to, last))
            for decay, gain, _ in [exponential(now, level, eta)]
        )
        stage = {"m1": 1.0, "denoised": third, "noise": middle}
        rows.append(Row(i, now, x, anchor, push=prepared, noisy=noise > 0.0))
        rows.append(Row(i, one, stage, anchor={"anchor": 1.0, "noise": middle * fade}, noisy=noise > 0.0))
        rows.append(Row(i, two, {"anchor": 1.0, "denoised": last, "noise": fresh * s_noise}, noisy=noise > 0.0))
    return rows


def er_sde(levels: Levels, stages: int, s_noise: float) -> list[Row]:
    """ER-SDE-Solver, arXiv 2309.06169, in Taylor form with up to three stages and the authors' fifth noise scale.

    The integrals are left sums over 200 points, as ComfyUI takes them. m1 and m2 are the last denoised.
    """
    rows = []
    for i, to in enumerate(levels.landing):
        now = levels[i]
        if to.sigma == 0.0:
            rows.append(Row(i, now, move(now, to), push={"denoised": 1.0}))
            continue
        keep, used, dt = _er_scale(to.ratio) / _er_scale(now.ratio), min(stages, i + 1), to.ratio - now.ratio
        points = to.ratio - dt * np.arange(200) / 200.0
        density = -dt / 200.0 * _er_scale(to.ratio) / _er_scale(points)
        x: Terms = toward(now, to, keep * now.ratio)
        if used > 1:
            change = _divided(levels, i, "denoised", "m1")
            x = combine((1.0, x), (to.alpha * (dt + float(density.sum())), change))
        if used > 2:
            bend = 2.0 / (now.ratio - levels[i - 2].ratio)
            second = combine((bend, change), (-bend, _divided(levels, i - 1, "m1", "m2")))
            x = combine((1.0, x), (to.alpha * (dt * dt / 2.0 + float((density * (points - now.ratio)).sum())), second))
        noise = to.alpha * sqrt(max(to.ratio**2 - (keep * now.ratio) ** 2, 0.0)) * s_noise
        rows.append(Row(i, now, noised(x, noise), push={"denoised": 1.0}, noisy=noise > 0.0))
    return rows


def _er_scale(ratio: Any) -> Any:
    """phi of the authors' SDE_5: sigma (exp(sigma^0.3) + 10)."""
    return ratio * (np.exp(ratio**0.3) + 10.0)


def _divided(levels: Levels, i: int, new: str, old: str) -> dict[str, float]:
    """The divided difference of two denoised, of levels i and i - 1."""
    per = 1.0 / (levels[i].ratio - levels[i - 1].ratio)
    return {new: per, old: -per}
