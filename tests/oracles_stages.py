"""Loops in sigma space, written from papers and from published formulas, for samplers that no reference library has.

Each takes `denoise(x, sigma)`, x of that sigma, the falling sigmas with their end, and `draw()`, the next normal.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
from scipy.integrate import quad

from pipelines.ladder import Float

Denoise = Callable[[Float, float], Float]
Draw = Callable[[], Float]


def split(high: float, low: float, eta: float) -> tuple[float, float]:
    """sigma_down and sigma_up of an ancestral step."""
    up = min(low, eta * math.sqrt(low**2 * (high**2 - low**2) / high**2))
    return math.sqrt(max(low**2 - up**2, 0.0)), up


def heunpp2(denoise: Denoise, x: Float, sigmas: Sequence[float], draw: Draw) -> Float:
    for i in range(len(sigmas) - 1):
        here, there = sigmas[i], sigmas[i + 1]
        d = (x - denoise(x, here)) / here
        if i == len(sigmas) - 2:
            x = x + (there - here) * d
            continue
        probe = x + (there - here) * d
        d2 = (probe - denoise(probe, there)) / there
        if i == len(sigmas) - 3:
            w2 = there / (2 * sigmas[0])
            x = x + (there - here) * ((1 - w2) * d + w2 * d2)
            continue
        beyond = sigmas[i + 2]
        probe = probe + (beyond - there) * d2
        d3 = (probe - denoise(probe, beyond)) / beyond
        w2, w3 = there / (3 * sigmas[0]), beyond / (3 * sigmas[0])
        x = x + (there - here) * ((1 - w2 - w3) * d + w2 * d2 + w3 * d3)
    return x


def gradient_estimation(denoise: Denoise, x: Float, sigmas: Sequence[float], draw: Draw, gamma: float = 2.0) -> Float:
    before = None
    for here, there in pairwise(sigmas):
        d = (x - denoise(x, here)) / here
        used = d if before is None or there == 0 else gamma * d + (1 - gamma) * before
        x = x + (there - here) * used
        before = d
    return x


def res_multistep_ancestral(
    denoise: Denoise, x: Float, sigmas: Sequence[float], draw: Draw, eta: float = 1.0, s_noise: float = 1.0
) -> Float:
    """Equation numbers aside: exponential integrator of order 2 with phi functions, c2 from the last landing."""
    before = last_down = None
    for i in range(len(sigmas) - 1):
        down, up = split(sigmas[i], sigmas[i + 1], eta)
        D = denoise(x, sigmas[i])
        if down == 0 or before is None:
            x = x + (x - D) / sigmas[i] * (down - sigmas[i])
        else:
            h = math.log(sigmas[i]) - math.log(down)
            c2 = (-math.log(sigmas[i - 1]) + math.log(last_down)) / h
            phi1 = (1 - math.exp(-h)) / h
            phi2 = (1 - phi1) / h
            x = math.exp(-h) * x + h * ((phi1 - phi2 / c2) * D + phi2 / c2 * before)
        if up * s_noise > 0:
            x = x + up * s_noise * draw()
        before, last_down = D, down
    return x


def res_multistep(denoise: Denoise, x: Float, sigmas: Sequence[float], draw: Draw) -> Float:
    return res_multistep_ancestral(denoise, x, sigmas, draw, eta=0.0)


def er_sde(denoise: Denoise, x: Float, sigmas: Sequence[float], draw: Draw, stages: int = 3, s_noise: float = 1.0) -> Float:
    """VE form of arXiv 2309.06169 with the authors' function number 5; histories as lists."""

    def phi(s: float) -> float:
        return s * (math.exp(s**0.3) + 10)

    pictures, slopes = [], []
    for i in range(len(sigmas) - 1):
        s, t = sigmas[i], sigmas[i + 1]
        pictures.append(denoise(x, s))
        if t == 0:
            return pictures[-1]
        r = phi(t) / phi(s)
        new = r * x + (1 - r) * pictures[-1]
        width = (s - t) / 200
        places = [t + k * width for k in range(200)]
        if i > 0:
            slopes.append((pictures[-1] - pictures[-2]) / (s - sigmas[i - 1]))
        if i > 0 and stages >= 2:
            new = new + (t - s + phi(t) * sum(width / phi(p) for p in places)) * slopes[-1]
        if i > 1 and stages >= 3:
            curve = (slopes[-1] - slopes[-2]) * 2 / (s - sigmas[i - 2])
            new = new + ((t - s) ** 2 / 2 + phi(t) * sum(width * (p - s) / phi(p) for p in places)) * curve
        if s_noise > 0:
            new = new + s_noise * math.sqrt(t**2 - s**2 * r**2) * draw()
        x = new
    return x


def _bridge(high: float, low: float, eta: float) -> tuple[float, float]:
    """What the SDE dx = (1 + eta) ... keeps of x - D between two sigmas, and the deviation of its noise."""
    kept = (low / high) ** (1 + eta)
    return kept, math.sqrt(max(low**2 - (low / high) ** (2 * eta) * low**2, 0.0))


def seeds_2(
    denoise: Denoise,
    x: Float,
    sigmas: Sequence[float],
    draw: Draw,
    eta: float = 1.0,
    s_noise: float = 1.0,
    r: float = 0.5,
    solver_type: str = "phi_1",
) -> Float:
    for s, t in pairwise(sigmas):
        D = denoise(x, s)
        if t == 0:
            return D
        middle = t if r == 1 else math.exp((1 - r) * math.log(s) + r * math.log(t))
        kept, spread = _bridge(s, middle, eta)
        noise = spread * draw() if eta * s_noise > 0 else np.zeros_like(x)
        D2 = denoise(kept * x + (1 - kept) * D + s_noise * noise, middle)
        whole, _ = _bridge(s, t, eta)
        h = (1 + eta) * math.log(s / t)
        share = (1 - whole) / (2 * r) if solver_type == "phi_1" else (h - (1 - math.exp(-h))) / h / r
        x = whole * x + (1 - whole - share) * D + share * D2
        if eta * s_noise > 0:
            fade, spread = _bridge(middle, t, eta)
            noise = fade * noise
            if spread > 0 and r < 1:
                noise = noise + spread * draw()
            x = x + s_noise * noise
    return x


def exp_heun_2_x0(denoise: Denoise, x: Float, sigmas: Sequence[float], draw: Draw, solver_type: str = "phi_2") -> Float:
    return exp_heun_2_x0_sde(denoise, x, sigmas, draw, 0.0, 0.0, solver_type)


def exp_heun_2_x0_sde(
    denoise: Denoise, x: Float, sigmas: Sequence[float], draw: Draw, eta: float = 1.0, s_noise: float = 1.0, solver_type: str = "phi_2"
) -> Float:
    """The exponential Heun method: Euler to the next sigma with noise, then the trapezoid with the same noise."""
    for s, t in pairwise(sigmas):
        D = denoise(x, s)
        if t == 0:
            return D
        kept, spread = _bridge(s, t, eta)
        noise = s_noise * spread * draw() if eta * s_noise > 0 else 0.0
        D2 = denoise(kept * x + (1 - kept) * D + noise, t)
        h = -math.log(kept)
        late = 1 - (1 - kept) / h if solver_type == "phi_2" else (1 - kept) / 2
        x = kept * x + (1 - kept - late) * D + late * D2 + noise
    return x


def seeds_3(denoise: Denoise, x: Float, sigmas: Sequence[float], draw: Draw, eta: float = 1.0, s_noise: float = 1.0) -> Float:
    r1, r2 = 1 / 3, 2 / 3
    for s, t in pairwise(sigmas):
        D = denoise(x, s)
        if t == 0:
            return D
        a, b = (math.exp((1 - r) * math.log(s) + r * math.log(t)) for r in (r1, r2))
        h = (1 + eta) * math.log(s / t)
        normals = [draw() if eta * s_noise > 0 else 0.0]
        kept, spread = _bridge(s, a, eta)
        noise = spread * normals[0]
        D2 = denoise(kept * x + (1 - kept) * D + s_noise * noise, a)
        kept, _ = _bridge(s, b, eta)
        fade, spread = _bridge(a, b, eta)
        noise = fade * noise + spread * (draw() if eta * s_noise > 0 else 0.0)
        bend = r2 / r1 * (1 - (1 - math.exp(-r2 * h)) / (r2 * h))
        D3 = denoise(kept * x + (1 - kept - bend) * D + bend * D2 + s_noise * noise, b)
        kept, _ = _bridge(s, t, eta)
        fade, spread = _bridge(b, t, eta)
        noise = fade * noise + spread * (draw() if eta * s_noise > 0 else 0.0)
        bend = 1 / r2 * (1 - (1 - math.exp(-h)) / h)
        x = kept * x + (1 - kept - bend) * D + bend * D3 + s_noise * noise
    return x


def adams_integral(start: float, end: float, rate: float, nodes: Sequence[float], k: int) -> float:
    """rate * integral of exp(rate (l - end)) times the k-th Lagrange polynomial of the nodes, numerically."""

    def integrand(at: float) -> float:
        return math.exp(rate * (at - end)) * math.prod((at - nodes[j]) / (nodes[k] - nodes[j]) for j in range(len(nodes)) if j != k)

    return rate * quad(integrand, start, end, epsabs=1e-13, epsrel=1e-12)[0]


def sa_solver_pece(
    denoise: Denoise,
    x: Float,
    sigmas: Sequence[float],
    draw: Draw,
    taus: Sequence[float],
    predictor_order: int = 3,
    corrector_order: int = 4,
    again: bool = True,
) -> Float:
    """arXiv 2309.05019, algorithm 1; with a second evaluation `again` after the corrector. Tau of a step is that of its start."""
    lam, D, n = [-math.log(s) if s > 0 else math.inf for s in sigmas], [], len(sigmas) - 1
    predicted = corrected = x
    for i in range(n):
        D.append(denoise(predicted, sigmas[i]))
        if i > 0:
            order = min(corrector_order, i + 1, n - i + 2)
            nodes, rate = lam[i - order + 1 : i + 1], 1 + taus[i - 1] ** 2
            total = sum(adams_integral(lam[i - 1], lam[i], rate, nodes, k) * D[i - order + 1 + k] for k in range(order))
            corrected = (sigmas[i] / sigmas[i - 1]) ** rate * corrected + total + noise  # noqa: F821
            D[i] = denoise(corrected, sigmas[i]) if again else D[i]
        rate, z = 1 + taus[i] ** 2, draw()
        if sigmas[i + 1] == 0:
            return D[i]
        spread = math.sqrt(1 - (sigmas[i + 1] / sigmas[i]) ** (2 * taus[i] ** 2))
        noise = sigmas[i + 1] * spread * z
        order = min(predictor_order, i + 1, n - i)
        nodes = lam[i - order + 1 : i + 1]
        total = sum(adams_integral(lam[i], lam[i + 1], rate, nodes, k) * D[i - order + 1 + k] for k in range(order))
        predicted = (sigmas[i + 1] / sigmas[i]) ** rate * corrected + total + noise
    return predicted
