"""Samplers that remember: linear multistep methods, one evaluation a step.

The memories m1, m2 ... hold what earlier rows have pushed: denoised (DPM-Solver++, UniPC) or a slope (the Adams family).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import exp, expm1, log, prod, sqrt

import numpy as np

from pipelines.ladder import Float
from pipelines.level import Level, Levels
from pipelines.rows import Row, Terms, combine, move, slope

# --- DPM-Solver++ -----------------------------------------------------------------------------------------------------


def dpmpp_2m(levels: Levels, solver_type: str) -> list[Row]:
    """DPM-Solver++(2M), arXiv 2211.01095, algorithm 2; first order at both ends."""
    return _dpmpp(levels, _rising(levels, 2), solver_type)


def dpmpp_3m(levels: Levels) -> list[Row]:
    """DPM-Solver++ of third order, arXiv 2211.01095, appendix B, multistep; below 15 steps the order falls by one a step at the end."""
    orders = _rising(levels, 3)
    if levels.asked < 15 and len(levels) > 1 and levels.landing[-1].sigma == 0.0:
        orders[-2] = min(orders[-2], 2)
    return _dpmpp(levels, orders, "midpoint")


def dpmpp_2m_sde(levels: Levels, eta: float, s_noise: float) -> list[Row]:
    """SDE-DPM-Solver++(2M), arXiv 2211.01095, appendix B.5; eta = 0 is the ODE."""
    return _dpmpp(levels, _rising(levels, 2), "midpoint", eta, s_noise)


def dpmpp_2m_sde_heun(levels: Levels, eta: float, s_noise: float) -> list[Row]:
    """The same with the exact integral of the line through two denoised, where the midpoint has half a step of it."""
    return _dpmpp(levels, _rising(levels, 2), "heun", eta, s_noise)


def dpmpp_3m_sde(levels: Levels, eta: float, s_noise: float) -> list[Row]:
    """The same with three denoised (k-diffusion's sample_dpmpp_3m_sde): the exponential integrator of a parabola through them."""
    return _dpmpp(levels, _rising(levels, 3), "heun", eta, s_noise)


def _rising(levels: Levels, order: int) -> list[int]:
    """1, 2 ... order, and 1 for the step that ends clean: there the step in logSNR is infinite."""
    return [1 if to.sigma == 0.0 else min(order, i + 1) for i, to in enumerate(levels.landing)]


def _dpmpp(levels: Levels, orders: Sequence[int], solver_type: str, eta: float = 0.0, s_noise: float = 0.0) -> list[Row]:
    """m1 and m2 are the last denoised. With z = (1 + eta) h, h the step in half logSNR, and r its predecessors relative to it."""
    rows = []
    for i, to in enumerate(levels.landing):
        now = levels[i]
        h = to.half_logsnr - now.half_logsnr
        z = (1.0 + eta) * h
        noise = to.sigma * sqrt(-expm1(-2.0 * eta * h)) * s_noise if eta * s_noise > 0.0 else 0.0
        kept = to.sigma / now.sigma * exp(-eta * h) if to.sigma else 0.0
        x = {"x": kept, "denoised": -to.alpha * expm1(-z), "noise": noise}
        if orders[i] > 1:
            r = [(levels[i - k].half_logsnr - levels[i - k - 1].half_logsnr) / h for k in range(orders[i] - 1)]
            x = combine((1.0, x), (to.alpha, _curved(z, r, solver_type)))
        rows.append(Row(i, now, x, push={"denoised": 1.0}, noisy=noise > 0.0))
    return rows


def _curved(z: float, r: Sequence[float], solver_type: str) -> dict[str, float]:
    """What the slope, and with two r the curvature, of the denoised add to a step."""
    phi_2 = expm1(-z) / z + 1.0
    phi_3 = phi_2 / z - 0.5
    newest = {"denoised": 1.0 / r[0], "m1": -1.0 / r[0]}
    if len(r) == 1:
        return combine((phi_2 if solver_type == "heun" else -0.5 * expm1(-z), newest))
    bend = combine((1.0, newest), (-1.0 / r[1], {"m1": 1.0, "m2": -1.0}))
    return combine((phi_2, newest), ((phi_2 * r[0] - phi_3) / (r[0] + r[1]), bend))


# --- the Adams family: x follows slopes d = (x_k - D) / sigma_k in k-diffusion's x_k and sigma_k ----------------------


def _adams(levels: Levels, weights: Callable[[Sequence[float], int], Sequence[float]]) -> list[Row]:
    """x_k += w0 d + w1 m1 + w2 m2 ...: `weights` of step i from the n + 1 levels' sigma_k."""
    rows, sigmas = [], [levels[i].ratio for i in range(len(levels) + 1)]
    for i, to in enumerate(levels.landing):
        now, (newest, *older) = levels[i], weights(sigmas, i)
        parts = [(to.alpha * w, {f"m{k}": 1.0}) for k, w in enumerate(older, 1)]
        x = combine((to.alpha / now.alpha, {"x": 1.0}), (to.alpha * newest, slope(now)), *parts)
        rows.append(Row(i, now, x, push=slope(now)))
    return rows


def lms(levels: Levels, order: int) -> list[Row]:
    """Linear multistep (k-diffusion, diffusers' LMSDiscreteScheduler): Adams-Bashforth for unequal steps in sigma_k."""
    return _adams(levels, lambda sigma, i: _bashforth(sigma, i, min(i + 1, order)))


def _bashforth(sigma: Sequence[float], i: int, used: int) -> list[float]:
    """The integral of the polynomial through the last slopes, over step i."""
    points, shares = np.polynomial.legendre.leggauss(2)  # exact for the cubics of order 4
    middle, half = 0.5 * (sigma[i + 1] + sigma[i]), 0.5 * (sigma[i + 1] - sigma[i])
    nodes = sigma[i + 1 - used : i + 1][::-1]
    return [float(half * shares @ _lagrange(nodes, j)(middle + half * points)) for j in range(used)]


def _lagrange(nodes: Sequence[float], j: int) -> Callable[[Float], Float]:
    """The polynomial that is 1 at node j and 0 at the others."""
    others = np.array([node for k, node in enumerate(nodes) if k != j])
    return lambda at: np.asarray(((at[:, None] - others) / (nodes[j] - others)).prod(1))


def ipndm(levels: Levels, order: int) -> list[Row]:
    """iPNDM, arXiv 2204.13902, appendix: Adams-Bashforth as if steps were equal (arXiv 2202.09778, equation 12); ends in the denoised."""
    equal = {1: [1.0], 2: [3 / 2, -1 / 2], 3: [23 / 12, -16 / 12, 5 / 12], 4: [55 / 24, -59 / 24, 37 / 24, -9 / 24]}

    def weights(sigma: Sequence[float], i: int) -> list[float]:
        used = 1 if sigma[i + 1] == 0.0 else min(i + 1, order)
        return [(sigma[i + 1] - sigma[i]) * w for w in equal[used]]

    return _adams(levels, weights)


def ipndm_v(levels: Levels, order: int, weights: str) -> list[Row]:
    """iPNDM for unequal steps (arXiv 2204.13902; diff-sampler): Adams-Bashforth, ending in the denoised."""
    rule = _bashforth if weights == "exact" else _as_published
    return _adams(levels, lambda sigma, i: rule(sigma, i, 1 if sigma[i + 1] == 0.0 else min(i + 1, order)))


def _as_published(sigma: Sequence[float], i: int, used: int) -> list[float]:
    """Adams-Bashforth with the two slips of diff-sampler's ipndm_v, which every user interface has copied.

    The second difference has h1 (h1 + h2) - h^2 / 3 where h (2 h + 3 h1) / 3 is right, the oldest slope h1 / h2 where h2 / h3 is:
    steps in equal ratio hide the second slip, equal steps both; elsewhere the weights do not even sum to one.
    """
    h, h1, h2, h3 = ([sigma[k + 1] - sigma[k] for k in range(i, i - used, -1)] + [1.0] * 3)[:4]
    a, b = h1 / h2, h1 * (h1 + h2) / (h2 * (h2 + h3))
    second = (1.0 - h * h / (3.0 * h1 * (h1 + h2))) / 2.0
    third = (1.0 - h / (3.0 * (h + h1))) / 2.0 + (1.0 - h / (2.0 * (h + h1))) * h / (6.0 * (h + h1 + h2))
    third *= h * (h + h1) * (h + h1 + h2) / (h1 * (h1 + h2) * (h1 + h2 + h3))
    differences = ([1.0], [1.0, -1.0], [1.0, -1.0 - a, a], [1.0, -1.0 - a - b, a + b * (1.0 + h2 / h3), -b * a])
    shares = (1.0, h / (2.0 * h1), second, third)[:used]
    return [h * sum(s * d[j] for s, d in zip(shares, differences, strict=False) if j < len(d)) for j in range(used)]


def deis(levels: Levels, order: int) -> list[Row]:
    """DEIS, arXiv 2204.13902, equation 15, as log-rho-AB: slopes interpolated in log sigma_k; below 15 steps the order falls at the end."""
    falls = levels.asked < 15 and levels.landing[-1].ratio < 1.001 * levels.ladder.ratios[0]

    def weights(sigma: Sequence[float], i: int) -> list[float]:
        left = len(levels) - i if falls else order
        used = 1 if sigma[i + 1] == 0.0 else min(i + 1, order, left)
        logs = [log(s / sigma[i]) for s in sigma[i + 1 - used : i + 1][::-1]]
        to = sigma[i + 1] / sigma[i]
        return [sigma[i] * (to * _by_parts(logs, j, log(to)) - _by_parts(logs, j, 0.0)) if to else -sigma[i] for j in range(used)]

    return _adams(levels, weights)


def _by_parts(nodes: Sequence[float], j: int, at: float) -> float:
    """exp(-u) times the integral of p(u) exp(u), p being 1 at node j and 0 at up to two others: p - p' + p''."""
    others = [node for k, node in enumerate(nodes) if k != j]
    integral = prod(at - other - 1.0 for other in others) + (1.0 if len(others) == 2 else 0.0)
    return integral / prod(nodes[j] - other for other in others)


# --- PNDM -------------------------------------------------------------------------------------------------------------


def pndm(levels: Levels) -> list[Row]:
    """F-PNDM without Runge-Kutta, "PLMS": arXiv 2202.09778, equations 9 and 12; the second evaluation corrects the first step.

    A model that answers with v has its v extrapolated, not the noise in it, as in diffusers. From zero terminal SNR, which the
    reference does not know, the first step averages the denoised instead of the slopes, as in `heun`.
    """
    history = ([3 / 2, -1 / 2], [23 / 12, -16 / 12, 5 / 12], [55 / 24, -59 / 24, 37 / 24, -9 / 24])
    first, to = levels[0], levels.landing[0]
    rows = [Row(0, first, _along(levels, first, to, "x", [1.0], first), anchor={"x": 1.0}, push=_answer(levels, first))]
    if len(levels) == 1:
        return rows
    second, origin = levels[1], _origin(levels)
    rows.append(Row(0, second, _along(levels, origin, second, "anchor", [0.5, 0.5], second)))
    if levels.ladder.zero_snr and origin.ratio > 8.0 * second.ratio:
        whole = move(origin, second)
        half = {"denoised": 0.5 * whole["denoised"]}
        rows[0] = replace(rows[0], anchor={"x": whole["x"], **half})
        rows[1] = replace(rows[1], x={"anchor": 1.0, **half})
    for i in range(1, len(levels)):
        x = _along(levels, levels[i], levels.landing[i], "x", history[min(i, 3) - 1], levels[i])
        rows.append(Row(i, levels[i], x, push=_answer(levels, levels[i])))
    return rows


def _origin(levels: Levels) -> Level:
    """Where the first step is taken from again: as far above the second level as a step goes down, which may be beside the first."""
    stride, gap = levels[0].timestep - levels.landing[0].timestep, levels[0].timestep - levels[1].timestep
    if stride == gap or levels.landing[0].sigma == 0.0:
        return levels[0]
    timestep = levels[1].timestep + stride
    alpha, sigma = levels.ladder.alpha_sigma(levels.ladder.capped[int(timestep)])
    return Level(float(alpha), float(sigma), timestep)


def _answer(levels: Levels, at: Level) -> dict[str, float]:
    """What the model says, in the basis: v or the noise."""
    return {"x": at.alpha / at.sigma, "denoised": -1.0 / at.sigma} if _in_v(levels) else slope(at)


def _in_v(levels: Levels) -> bool:
    return levels.ladder.prediction_type == "v_prediction" and levels.ladder.space == "vp"


def _along(levels: Levels, now: Level, to: Level, x: str, weights: Sequence[float], at: Level) -> dict[str, float]:
    """From the register x at `now` to `to` with the answers at `at`, m1, m2 ..., weighted."""
    noise = combine((weights[0], _answer(levels, at)), *((w, {f"m{k}": 1.0}) for k, w in enumerate(weights[1:], 1)))
    if _in_v(levels):
        noise = combine((now.alpha, noise), (now.sigma, {x: 1.0}))
    return combine((to.alpha / now.alpha, {x: 1.0}), (to.alpha * (to.ratio - now.ratio), noise))


# --- UniPC ------------------------------------------------------------------------------------------------------------


def unipc(levels: Levels, order: int, solver_type: str) -> list[Row]:
    """UniPC, arXiv 2302.04867, algorithms 5 and 6, with data prediction. The anchor is the corrected x of the last step."""
    rows, n = [], len(levels)
    orders = [min(order, n - i, i + 1) for i in range(n)]
    for i in range(n):
        corrected: Terms = {"x": 1.0}
        if i > 0:
            corrected = _unified(levels, i - 1, orders[i - 1], solver_type, corrects=True)
        predicted = _unified(levels, i, orders[i], solver_type, corrects=False)
        now_x = predicted.pop("anchor")
        x = combine((1.0, predicted), (now_x, corrected))
        rows.append(Row(i, levels[i], x, anchor=corrected, push={"denoised": 1.0}))
    return rows


def _unified(levels: Levels, i: int, order: int, solver_type: str, *, corrects: bool) -> dict[str, float]:
    """From level i to i + 1, starting at the anchor.

    Predicting, the outputs at levels i, i - 1 ... are denoised, m1 ...; correcting, one evaluation later, they are
    m1, m2 ..., and denoised is the output at level i + 1.
    """
    now, to = levels[i], levels.landing[i]
    h = to.half_logsnr - now.half_logsnr
    outputs = [f"m{k + 1}" for k in range(order)] if corrects else ["denoised", *(f"m{k}" for k in range(1, order))]
    base = {"anchor": to.sigma / now.sigma, outputs[0]: -to.alpha * expm1(-h)}
    nodes = [(levels[i - k].half_logsnr - now.half_logsnr) / h for k in range(1, order)]
    if corrects:
        nodes, outputs = [*nodes, 1.0], [*outputs, "denoised"]
    if not nodes:
        return base
    scale = -h if solver_type == "bh1" else expm1(-h)
    weights = _unified_weights(np.array(nodes), h, scale)
    terms = ((-to.alpha * scale * w / r, {name: 1.0, outputs[0]: -1.0}) for w, r, name in zip(weights, nodes, outputs[1:], strict=True))
    return combine((1.0, base), *terms)


def _unified_weights(nodes: Float, h: float, scale: float) -> Float:
    """rho of equation 3.8, with phi_k(-h) in place of phi_k(h). A single node takes 1/2, as the authors do."""
    if len(nodes) == 1:
        return np.array([0.5])
    phi, factorial, right = expm1(-h) / -h - 1.0, 1.0, []
    for k in range(1, len(nodes) + 1):
        right.append(phi * factorial / scale)
        factorial *= k + 1
        phi = phi / -h - 1.0 / factorial
    return np.linalg.solve(np.vander(nodes, increasing=True).T, np.array(right))
