"""CFG++ forms, arXiv 2406.08070: the guided denoised is the picture, and the noise that is put back is that of the unguided model.

The guidance scale is read as ever, denoised = D_u + s (D_c - D_u), but the direction of the noise is (x - D_u) / sigma
(algorithm 2), so that s (1 - sigma' / sigma) does what s does without. Where guidance is off (s = 1), D_u = D_c costs one
U-Net row, and each form is its base.
"""

from __future__ import annotations

from math import expm1, inf, sqrt

from pipelines.level import Level, Levels
from pipelines.rows import Row, Terms, combine
from pipelines.rows_stages import ancestral, noised, res_second_weight, toward

UNGUIDED: Terms = {"denoised_uncond": 1.0}
GAP: Terms = {"denoised": 1.0, "denoised_uncond": -1.0}


def renoised(now: Level, to: Level, down: float) -> dict[str, float]:
    """x_k' = D + sigma_down (x_k - D_u) / sigma."""
    return combine((1.0, toward(now, to, down)), (to.alpha * down / now.ratio, GAP))


def euler_cfgpp(levels: Levels) -> list[Row]:
    """DDIM with CFG++, arXiv 2406.08070, algorithm 2."""
    return euler_a_cfgpp(levels, eta=0.0, s_noise=0.0)


def euler_a_cfgpp(levels: Levels, eta: float, s_noise: float) -> list[Row]:
    """Ancestral Euler with CFG++ (ComfyUI): down to sigma_down, then noise sigma_up."""
    rows = []
    for i, to in enumerate(levels.landing):
        down, up = ancestral(levels[i], to, eta)
        noise = to.alpha * up * s_noise
        rows.append(Row(i, levels[i], noised(renoised(levels[i], to, down), noise), noisy=noise > 0.0))
    return rows


def dpmpp_2m_cfgpp(levels: Levels) -> list[Row]:
    """DPM-Solver++(2M) with CFG++ (ComfyUI): x_k' = D + e^-h (x_k - D_u) + (1 - e^-h) (D - m1) / 2r; m1 is the last D_u."""
    rows = []
    for i, to in enumerate(levels.landing):
        now = levels[i]
        x: Terms = renoised(now, to, to.ratio)
        h = to.half_logsnr - now.half_logsnr
        if i > 0 and h < inf:
            ratio = (now.half_logsnr - levels[i - 1].half_logsnr) / h
            x = combine((1.0, x), (-to.alpha * expm1(-h) * 0.5 / ratio, {"denoised": 1.0, "m1": -1.0}))
        rows.append(Row(i, now, x, push=UNGUIDED))
    return rows


def dpmpp_2s_a_cfgpp(levels: Levels, eta: float, s_noise: float) -> list[Row]:
    """DPM-Solver++(2S) ancestral with CFG++ (ComfyUI): x_k + D - D_u takes the place of x_k in both stages."""
    rows = []
    for i, to in enumerate(levels.landing):
        now, (down, up) = levels[i], ancestral(levels[i], to, eta)
        if to.sigma == 0.0:
            rows.append(Row(i, now, renoised(now, to, 0.0)))
            continue
        middle, noise = levels.at(sqrt(now.ratio * down)), to.alpha * up * s_noise
        rows.append(Row(i, now, renoised(now, middle, middle.ratio), anchor=combine((1.0 / now.alpha, {"x": 1.0}), (1.0, GAP))))
        rows.append(Row(i, middle, noised(_from_anchor(now, to, down), noise), noisy=noise > 0.0))
    return rows


def _from_anchor(now: Level, to: Level, down: float) -> dict[str, float]:
    """The step of `toward`, from the x_k that the anchor holds."""
    kept = down / now.ratio
    return {"anchor": to.alpha * kept, "denoised": to.alpha * (1.0 - kept)}


def res_multistep_cfgpp(levels: Levels) -> list[Row]:
    """RES with CFG++ (ComfyUI), without noise."""
    return res_multistep_ancestral_cfgpp(levels, eta=0.0, s_noise=0.0)


def res_multistep_ancestral_cfgpp(levels: Levels, eta: float, s_noise: float) -> list[Row]:
    """RES with CFG++ (ComfyUI): x_k' = e^-h (x_k + D - D_u) + h (b1 D_u + b2 m1), m1 the last D_u; the first step is Euler's."""
    rows, reached = [], 0.0
    for i, to in enumerate(levels.landing):
        now, (down, up) = levels[i], ancestral(levels[i], to, eta)
        x: Terms = renoised(now, to, down)
        if i > 0 and down > 0.0:
            before = to.alpha * res_second_weight(now.ratio / down, reached / levels[i - 1].ratio)
            x = combine((1.0, toward(now, to, down, denoised=UNGUIDED)), (to.alpha * down / now.ratio, GAP))
            x = combine((1.0, x), (before, {"m1": 1.0, "denoised_uncond": -1.0}))
        noise = to.alpha * up * s_noise
        rows.append(Row(i, now, noised(x, noise), push=UNGUIDED, noisy=noise > 0.0))
        reached = down
    return rows


def gradient_estimation_cfgpp(levels: Levels, gamma: float) -> list[Row]:
    """Gradient estimation with CFG++ (ComfyUI): the slope is that of D_u, and so is its change since the last level (m1)."""
    rows = []
    for i, to in enumerate(levels.landing):
        now = levels[i]
        slope: Terms = {"x": 1.0 / now.sigma, "denoised_uncond": -1.0 / now.ratio}
        x: Terms = renoised(now, to, to.ratio)
        if i > 0 and to.sigma > 0.0:
            x = combine((1.0, x), ((gamma - 1.0) * to.alpha * (to.ratio - now.ratio), combine((1.0, slope), (-1.0, {"m1": 1.0}))))
        rows.append(Row(i, now, x, push=slope))
    return rows
