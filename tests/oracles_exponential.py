"""Loops of the solvers that integrate a polynomial through past outputs: DEIS, UniPC, and DPM++ of third order, as papers state them.

Their integrals are taken by quadrature where samplers have closed forms. In the form of `oracles_loops`.
"""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
from scipy.integrate import quad

from oracles_loops import Case


def integral(f, low, high):
    return quad(f, float(low), float(high), epsabs=1e-14, epsrel=1e-12)[0]


def deis(denoise, x, sigmas, noise, order):
    """arXiv 2204.13902, equation 15: dx = slope dsigma, the slope a polynomial in log sigma; below 15 steps the order falls at the end."""
    past, n = [], len(sigmas) - 1
    falls = denoise.levels.asked < 15 and sigmas[-1] < 1.001 * denoise.levels.ladder.ratios[0]
    for i, (now, to) in enumerate(pairwise(sigmas.tolist())):
        past = [(math.log(now), (x - denoise(x, sigmas[i])) / now), *past][: min(order, n - i if falls else order)]
        if to == 0.0:
            return x - now * past[0][1]
        nodes = [node for node, _ in past]
        for k, (_, slope) in enumerate(past):
            x = x + slope * integral(lambda s, k=k, nodes=nodes: lagrange(nodes, k, math.log(s)), now, to)
    return x


def lagrange(nodes, k, at):
    return math.prod((at - node) / (nodes[k] - node) for j, node in enumerate(nodes) if j != k)


def unipc(denoise, x, sigmas, noise, order, solver_type):
    """arXiv 2302.04867, algorithms 5 to 8: predictor and corrector whose weights solve theorem 3.1's equations; no corrector at the end."""
    lam, n = [-math.log(s) if s > 0 else math.inf for s in sigmas.tolist()], len(sigmas) - 1
    known = [denoise(x, sigmas[0])]
    for i in range(n):
        used = min(order, i + 1, n - i)
        if sigmas[i + 1] == 0:
            return known[0]
        nodes, h = [lam[i - k] - lam[i] for k in range(1, used)], lam[i + 1] - lam[i]
        base = math.exp(-h) * x - math.expm1(-h) * known[0]
        predicted = base + _unified(nodes, h, [D - known[0] for D in known[1:used]], solver_type)
        if i == n - 1:
            return predicted
        newest = denoise(predicted, sigmas[i + 1])
        x = base + _unified([*nodes, h], h, [D - known[0] for D in (*known[1:used], newest)], solver_type)
        known = [newest, *known]
    return x


def _unified(nodes, h, changes, solver_type):
    """The sum over changes that is exact for polynomials without constant; the authors' one half for a single one."""
    if not nodes:
        return 0.0
    if len(nodes) == 1:
        return 0.5 * (h if solver_type == "bh1" else -math.expm1(-h)) * h / nodes[0] * changes[0]
    powers = range(1, len(nodes) + 1)
    moments = [integral(lambda u, p=p: math.exp(u - h) * u**p, 0.0, h) for p in powers]
    weights = np.linalg.solve(np.array([[node**p for node in nodes] for p in powers]), np.array(moments))
    return sum(float(w) * change for w, change in zip(weights, changes, strict=True))


def dpmpp_multistep(denoise, x, sigmas, noise, order):
    """diffusers' multistep_dpm_solver_{second,third}_order_update in sigma; of fewer than 15 steps the last but one is of second order."""
    lam, n, past = [-math.log(s) if s > 0 else math.inf for s in sigmas.tolist()], len(sigmas) - 1, []
    for i in range(n):
        past = [denoise(x, sigmas[i]), *past][:order]
        if sigmas[i + 1] == 0:
            return past[0]
        lowered = denoise.levels.asked < 15 and sigmas[-1] == 0 and i == n - 2
        h, used = lam[i + 1] - lam[i], min(2 if lowered else order, len(past))
        x = math.exp(-h) * x - math.expm1(-h) * past[0]
        if used > 1:
            first = (past[0] - past[1]) / (lam[i] - lam[i - 1]) * h
        if used == 2:
            x = x - 0.5 * math.expm1(-h) * first
        if used == 3:
            second = (past[1] - past[2]) / (lam[i - 1] - lam[i - 2]) * h
            r0, r1 = (lam[i] - lam[i - 1]) / h, (lam[i - 1] - lam[i - 2]) / h
            bend = (first - second) / (r0 + r1)
            slope = first + r0 * bend
            x = x + (math.expm1(-h) / h + 1.0) * slope - ((math.expm1(-h) + h) / h**2 - 0.5) * bend
    return x


def dpmpp_singlestep(denoise, x, sigmas, noise, order, solver_type="midpoint"):
    """arXiv 2211.01095, algorithm 1: a step over `order` levels, and x at each of them by a step over fewer, in diffusers' get_order_list.

    `heun` integrates the polynomial through all outputs of the step, `midpoint` the line through its first and last; over two levels
    the latter takes half of the step's weight for it.
    """
    lam, n, past = [-math.log(s) if s > 0 else math.inf for s in sigmas.tolist()], len(sigmas) - 1, []
    of_all, clean = _order_list(denoise.levels.asked, order), sigmas[-1] == 0
    used = of_all[-n:] if clean else of_all[:n]
    for i in range(n):
        past.append((lam[i], x, denoise(x, sigmas[i])))
        if sigmas[i + 1] == 0:
            return past[-1][2]
        block = past[-min(used[i], i + 1) :]
        start, origin, oldest = block[0]
        h, some = lam[i + 1] - start, block if solver_type == "heun" else [block[0], block[-1]]
        x = math.exp(-h) * origin - math.expm1(-h) * oldest
        if len(block) == 2 and solver_type == "midpoint":
            x = x - 0.5 * math.expm1(-h) * h / (block[1][0] - start) * (block[1][2] - oldest)
        elif len(block) > 1:
            x = x + sum(weight * (output - oldest) for weight, (_, _, output) in zip(_weights(some, start, lam[i + 1]), some, strict=True))
    return x


def _weights(outputs, low, high):
    """Of each output in the integral of exp(u - high) times the polynomial through all of them."""
    nodes = [node for node, _, _ in outputs]
    return [integral(lambda u, k=k: math.exp(u - high) * lagrange(nodes, k, u), low, high) for k in range(len(nodes))]


def _order_list(n, order):
    if order == 3:
        return [1, 2, 3] * (n // 3 - 1) + [1, 2, 1] if n % 3 == 0 else [1, 2, 3] * (n // 3) + [1, 2][: n % 3]
    return [1, 2] * (n // 2 - 1) + [1, 1] if n % 2 == 0 else [1, 2] * (n // 2) + [1]


CASES = [
    *(Case("deis", deis, {"order": k}, {"order": k}) for k in (1, 2, 3)),
    *(Case("unipc", unipc, o, o) for o in ({"order": k, "solver_type": b} for k in (1, 2, 3) for b in ("bh1", "bh2"))),
    Case("dpmpp_3m", dpmpp_multistep, {}, {"order": 3}),
    *(
        Case(f"dpmpp_{k}s", dpmpp_singlestep, {"solver_type": t}, {"order": k, "solver_type": t})
        for k in (2, 3)
        for t in ("midpoint", "heun")
    ),
    Case("dpmpp_1s", dpmpp_multistep, {}, {"order": 1}),
]
