"""What a row is, the building blocks of samplers, and the samplers of one or two stages without history.

A sampler is one short function from levels to rows. A row is written in the names of BASIS. `move` is the one formula
behind most of them: keep the direction of the noise and go to another level. Formulas in sigma/alpha (k-diffusion's
sigma) carry over by x = alpha * x_k.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import sqrt

import numpy as np

from pipelines.level import Level, Levels

Terms = Mapping[str, float]  # a linear combination, by the names of BASIS


@dataclass(frozen=True, slots=True)
class Row:
    """The model is asked at `at`; then x, and where given the anchor, become these combinations, and `push` enters m1.

    Rows from files name what becomes of each memory, in place of `push`.
    """

    step: int
    at: Level
    x: Terms
    anchor: Terms | None = None
    push: Terms | None = None
    noisy: bool = False
    memories: Mapping[str, Terms] | None = None


# --- building blocks --------------------------------------------------------------------------------------------------


def combine(*parts: tuple[float, Terms]) -> dict[str, float]:
    """The sum of weight * combination."""
    total: dict[str, float] = {}
    for weight, terms in parts:
        for name, value in terms.items():
            total[name] = total.get(name, 0.0) + weight * value
    return total


def move(now: Level, to: Level, noise: float = 0.0) -> dict[str, float]:
    """x' = alpha' D + sqrt(sigma'^2 - noise^2) (x - alpha D) / sigma + noise * n: arXiv 2010.02502, equation 12."""
    kept = sqrt(max(to.sigma**2 - noise**2, 0.0)) / now.sigma
    return {"x": kept, "denoised": to.alpha - now.alpha * kept, "noise": noise}


def ancestral_noise(now: Level, to: Level) -> float:
    """Deviation of the posterior q(x' | x, x0) for eta = 1: arXiv 2006.11239, equation 7, in the space of either level."""
    fall = now.alpha * to.sigma / (to.alpha * now.sigma)
    return to.sigma * sqrt(max((1.0 - fall) * (1.0 + fall), 0.0))


def slope(level: Level) -> dict[str, float]:
    """d = (x_k - D) / sigma_k at a level, the derivative of arXiv 2206.00364."""
    return {"x": 1.0 / level.sigma, "denoised": -1.0 / level.ratio}


def lifted(row: Row, at: Level, to: Level, s_noise: float) -> Row:
    """The row that ends at a level, and fresh noise up to a higher one: q(x' | x) where s_noise is 1."""
    fresh = to.alpha * sqrt(to.ratio**2 - at.ratio**2) * s_noise
    return replace(row, x=combine((to.alpha / at.alpha, row.x), (fresh, {"noise": 1.0})), noisy=row.noisy or fresh > 0.0)


# --- samplers ---------------------------------------------------------------------------------------------------------


def ddim(levels: Levels, eta: float) -> list[Row]:
    """DDIM, arXiv 2010.02502, equations 12 and 16. eta = 1 is DDPM."""
    return [_ddim_row(i, levels[i], to, eta * ancestral_noise(levels[i], to)) for i, to in enumerate(levels.landing)]


def _ddim_row(step: int, now: Level, to: Level, noise: float) -> Row:
    return Row(step, now, move(now, to, noise), noisy=noise > 0.0)


def ddpm(levels: Levels) -> list[Row]:
    """DDPM, arXiv 2006.11239, algorithm 2 with the smaller variance."""
    return ddim(levels, 1.0)


def euler(levels: Levels) -> list[Row]:
    """Euler, arXiv 2206.00364, algorithm 1 without its second half; on equal levels the same as DDIM."""
    return [Row(i, levels[i], move(levels[i], to)) for i, to in enumerate(levels.landing)]


def euler_a(levels: Levels, eta: float, s_noise: float) -> list[Row]:
    """Ancestral Euler (k-diffusion): Euler down to sigma_down, then noise sigma_up."""
    rows = []
    for i, to in enumerate(levels.landing):
        now, up = levels[i], min(to.sigma, eta * ancestral_noise(levels[i], to))
        rows.append(Row(i, now, {**move(now, to, up), "noise": up * s_noise}, noisy=up * s_noise > 0.0))
    return rows


def heun(levels: Levels) -> list[Row]:
    """Heun, arXiv 2206.00364, algorithm 1: the anchor holds x after half of the first slope. The last step is Euler's.

    With zero terminal SNR, which the reference does not know, sigma starts at 4096. A slope would then multiply an error
    of the denoised by sigma / sigma', so steps of more than 8 average the denoised instead: the trapezoid in 1 / sigma.
    """
    return [row for i, to in enumerate(levels.landing) for row in heun_step(levels, i, levels[i], to)]


def heun_step(levels: Levels, step: int, now: Level, to: Level) -> list[Row]:
    """Two rows, or one where the step ends clean."""
    first = move(now, to)
    if to.sigma == 0.0:
        return [Row(step, now, first)]
    half = 0.5 * to.alpha * (to.ratio - now.ratio)
    anchor = combine((to.alpha / now.alpha, {"x": 1.0}), (half, slope(now)))
    second: Terms = combine((1.0, {"anchor": 1.0}), (half, slope(to)))
    if levels.ladder.zero_snr and now.ratio > 8.0 * to.ratio:
        anchor = {"x": first["x"], "denoised": 0.5 * first["denoised"]}
        second = {"anchor": 1.0, "denoised": 0.5 * first["denoised"]}
    return [Row(step, now, first, anchor=anchor), Row(step, to, second)]


def dpm2(levels: Levels) -> list[Row]:
    """DPM-Solver-2, arXiv 2206.00927, algorithm 1, in the form of k-diffusion: the slope at the geometric middle."""
    rows = []
    for i, to in enumerate(levels.landing):
        now = levels[i]
        if to.sigma == 0.0:
            rows.append(Row(i, now, move(now, to)))
            continue
        middle, whole = levels.between(now, to), to.alpha * (to.ratio - now.ratio)
        rows.append(Row(i, now, move(now, middle), anchor={"x": 1.0}))
        rows.append(Row(i, middle, combine((to.alpha / now.alpha, {"anchor": 1.0}), (whole, slope(middle)))))
    return rows


def lcm(levels: Levels) -> list[Row]:
    """Latent consistency, arXiv 2310.04378, algorithm 3: jump to the clean picture, noise it to the next level."""
    rows = []
    for i, to in enumerate(levels.landing):
        now, scaled = levels[i], 10.0 * levels[i].timestep  # timestep scaling 10 and sigma_data 1/2, as distilled
        skip, out = 0.25 / (scaled**2 + 0.25), scaled / sqrt(scaled**2 + 0.25)
        x = {"x": to.alpha * skip, "denoised": to.alpha * out, "noise": to.sigma}
        rows.append(Row(i, now, x, noisy=to.sigma > 0.0))
    return rows


def tcd(levels: Levels, gamma: float) -> list[Row]:
    """Trajectory consistency, arXiv 2402.19159, algorithm 4: fall to (1 - gamma) of the next time, then noise up to that time.

    gamma = 0 is DDIM. Whole times are cut to whole times (in float32), as in diffusers, which draws also where nothing is added.
    """
    rows = []
    for i, to in enumerate(levels.landing):
        now, last = levels[i], i + 1 == len(levels) and to.timestep == 0.0
        if last or gamma == 0.0:
            rows.append(Row(i, now, move(now, to)))
            continue
        time = np.asarray(np.float32(1.0 - gamma) * np.float32(to.timestep), dtype=np.float64)
        below = levels.at(min(float(levels.ladder.ratio_at(np.floor(time) if to.timestep.is_integer() else time)), to.ratio))
        noise = to.alpha * sqrt(max(to.ratio**2 - below.ratio**2, 0.0))
        rows.append(Row(i, now, combine((to.alpha / below.alpha, move(now, below)), (noise, {"noise": 1.0})), noisy=True))
    return rows
