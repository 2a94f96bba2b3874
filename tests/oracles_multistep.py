"""Loops of multistep and single-step samplers, from papers and published programs, in the form of `oracles_loops`."""

from __future__ import annotations

import math
from itertools import pairwise
from unittest.mock import patch

import torch
from scipy.interpolate import interp1d

from oracles_loops import Case, of_k_diffusion
from oracles_sigma import k_diffusion
from pipelines.schedule_list import SCHEDULES


def ipndm(denoise, x, sigmas, noise, max_order):
    """diff-sampler's ipndm_sampler: weights of Adams and Bashforth for equal steps; the last step ends in the denoised."""
    table = {1: (1,), 2: (3, -1), 3: (23, -16, 5), 4: (55, -59, 37, -9)}
    past = []
    for i, (now, to) in enumerate(pairwise(sigmas)):
        denoised = denoise(x, now)
        past.insert(0, (x - denoised) / now)
        weights = table[min(max_order, i + 1)]
        step = sum(w * d for w, d in zip(weights, past, strict=False)) / sum(weights)
        x = denoised if to == 0 else x + (to - now) * step
    return x


def ipndm_v(denoise, x, sigmas, noise, max_order):
    """diff-sampler's ipndm_v_sampler, coefficient by coefficient as published (its slips included)."""
    t, past = sigmas, []
    for i in range(len(t) - 1):
        denoised = denoise(x, t[i])
        d, order, h = (x - denoised) / t[i], min(max_order, i + 1), t[i + 1] - t[i]
        h1, h2, h3 = (t[i - k] - t[i - k - 1] if i > k else math.nan for k in range(3))
        c1, c2, c3, c4 = 1.0, 0.0, 0.0, 0.0
        if order >= 2:
            c1, c2 = (2 + h / h1) / 2, -(h / h1) / 2
        if order >= 3:
            temp = (1 - h / (3 * (h + h1)) * (h * (h + h1)) / (h1 * (h1 + h2))) / 2
            c1, c2, c3 = c1 + temp, c2 - (1 + h1 / h2) * temp, temp * h1 / h2
        if order == 4:
            temp = (1 - h / (3 * (h + h1))) / 2 + (1 - h / (2 * (h + h1))) * h / (6 * (h + h1 + h2))
            temp *= (h * (h + h1) * (h + h1 + h2)) / (h1 * (h1 + h2) * (h1 + h2 + h3))
            b = h1 * (h1 + h2) / (h2 * (h2 + h3))
            c1, c2 = c1 + temp, c2 - (1 + h1 / h2 + b) * temp
            c3, c4 = c3 + (h1 / h2 + b * (1 + h2 / h3)) * temp, -temp * b * h1 / h2
        terms = [(c1, d), *zip((c2, c3, c4)[: order - 1], past, strict=False)]
        x = denoised if t[i + 1] == 0 else x + h * sum(c * e for c, e in terms)
        past.insert(0, d)
    return x


def lms_to_denoised(denoise, x, sigmas, noise, order):
    """k-diffusion's LMS, its last step replaced by the denoised where it ends clean."""
    last = []

    def remembering(x, sigma):
        last[:] = [denoise(x, sigma)]
        return last[0]

    x = k_diffusion().sample_lms(remembering, x, sigmas, disable=True, order=order)
    return last[0] if sigmas[-1] == 0 else x


def restart(denoise, x, sigmas, noise, s_noise=1.0):
    """Algorithm 1 of arXiv 2306.14878 with Heun steps, one interval, and the numbers that A1111 chooses by the number of steps.

    The main process keeps the shape of what it is given: its sigmas, to the power of 1/7 as Karras counts, joined by lines.
    """
    steps, clean = len(sigmas) - 1, sigmas[-1] == 0
    length, times = (0, 0) if steps < 20 else (9, 1) if steps < 36 else (steps // 4, 2)
    main = _on_lines(sigmas[:-1] if clean else sigmas, steps - length * times + (0 if clean else 1), lambda s: s ** (1 / 7), lambda s: s**7)
    bottom, top = (int((main - value).abs().argmin()) for value in (0.1, 2.0))  # rounded to the main process, algorithm 1, line 2
    if times == 0 or top >= bottom:  # none, or an interval that the schedule does not have: Heun on every sigma
        main, times = sigmas[:-1] if clean else sigmas, 0
    again = k_diffusion().get_sigmas_karras(length + 1, float(main[bottom]), float(main[top]))[:-1] if times else ()
    for i, (now, to) in enumerate(pairwise(torch.cat([main, sigmas[-1:]]) if clean else main), 1):
        x = _heun(denoise, x, now, to)
        for _ in range(times if i == bottom else 0):
            x = x + noise() * s_noise * (main[top] ** 2 - main[bottom] ** 2) ** 0.5
            for a, b in pairwise([main[top], *again[1:-1], main[bottom]]):
                x = _heun(denoise, x, a, b)
    return x


def restart_of_a1111(denoise, x, sigmas, noise, s_noise=1.0):
    """The same as that program has it, which takes Karras' levels whatever is asked."""
    karras, steps, plan = k_diffusion().get_sigmas_karras, len(sigmas) - 1, None
    if steps >= 20:
        length, times = (steps // 4, 2) if steps >= 36 else (9, 1)
        sigmas = karras(steps - length * times, float(sigmas[-2]), float(sigmas[0]))
        bottom, top = (int((sigmas - value).abs().argmin()) for value in (0.1, 2.0))
        plan = bottom, times, karras(length + 1, float(sigmas[bottom]), float(sigmas[top]))[:-1]
    for i, (now, to) in enumerate(pairwise(sigmas), 1):
        x = _heun(denoise, x, now, to)
        if plan and i == plan[0]:
            for _ in range(plan[1]):
                high, low = plan[2][0], plan[2][-1]
                x = x + noise() * s_noise * (high**2 - low**2) ** 0.5
                for a, b in pairwise(plan[2]):
                    x = _heun(denoise, x, a, b)
    return x


def _on_lines(sigmas, count, there, back):
    """`count` sigmas at equal distances along the line through these, drawn where `there` leads; the ends stay."""
    line = interp1d(range(len(sigmas)), there(sigmas).numpy()) if len(sigmas) > 1 else lambda at: there(sigmas).numpy()
    return back(torch.as_tensor(line(torch.linspace(0, len(sigmas) - 1, count).numpy())))


def _heun(denoise, x, now, to):
    d = (x - denoise(x, now)) / now
    guess = x + (to - now) * d
    return guess if to == 0 else x + (to - now) * (d + (guess - denoise(guess, to)) / to) / 2


def dpm_fast(denoise, x, sigmas, noise, eta=0.0, s_noise=1.0):
    """k-diffusion's, whose solver steps are equal in log sigma, given ends of steps that follow what is asked for.

    From the first sigma to the last above zero, or to the model's lowest where that lies below; at least half way down.
    """
    module, lowest, steps = k_diffusion(), denoise.sigma_at(0), len(sigmas) - 1
    if sigmas[-1] == 0:
        low = min(lowest, float(sigmas[0]) / 2) if steps == 1 else lowest
        sigmas = torch.cat([sigmas[:-1], torch.tensor([low])]) if sigmas[-2] > 1.0001 * low else sigmas[:-1]
    times = {"linspace": lambda first, last, count, device: -_on_lines(sigmas, count, torch.log, torch.exp).log()}
    draw = (lambda *_: noise()) if eta else (lambda *_: torch.zeros_like(x))
    options = {"eta": eta, "s_noise": s_noise, "noise_sampler": draw}
    with patch.object(module, "torch", _But(torch, times)):
        return module.sample_dpm_fast(denoise, x, float(sigmas[-1]), float(sigmas[0]), steps, disable=True, **options)


class _But:
    """A module, some names of which are others."""

    def __init__(self, module, others):
        self.__dict__.update(others, _module=module)

    def __getattr__(self, name):
        return getattr(self._module, name)


def dpm_fast_of_k_diffusion(denoise, x, sigmas, noise, eta=0.0, s_noise=1.0):
    """As it is, from the first sigma to the last above zero."""
    module, ends = k_diffusion(), [float(s) for s in (sigmas[-2] if sigmas[-1] == 0 else sigmas[-1], sigmas[0])]
    draw = (lambda *_: noise()) if eta else (lambda *_: torch.zeros_like(x))
    return module.sample_dpm_fast(denoise, x, *ends, len(sigmas) - 1, disable=True, eta=eta, s_noise=s_noise, noise_sampler=draw)


def churning(name):
    """k-diffusion's Euler, Heun or DPM2 with churn, given the normals that a table draws.

    The table's first noise is that of the lifted level; k-diffusion's first lift gets what makes them equal. A step that is
    not lifted draws all the same there.
    """

    def loop(denoise, x, sigmas, noise, s_churn, s_tmin=0.0, s_tmax=math.inf, s_noise=1.0, picture=0.0):
        gamma = min(s_churn / (len(sigmas) - 1), 2**0.5 - 1)
        lifts = [s_tmin <= float(s) <= s_tmax for s in sigmas[:-1]]
        lift = sigmas[0] * ((gamma + 1) ** 2 - 1) ** 0.5
        normals = iter([(x - picture) * gamma / (lift * s_noise), *lifts[1:]])

        def draw():
            normal = next(normals)
            return normal if isinstance(normal, torch.Tensor) else noise() if normal else torch.zeros_like(x)

        options = {"s_churn": s_churn, "s_tmin": s_tmin, "s_tmax": s_tmax, "s_noise": s_noise}
        return of_k_diffusion(name)(denoise, x, sigmas, draw, **options)

    loop.__name__ = name
    return loop


def plms(denoise, x, sigmas, noise):
    """arXiv 2202.09778, equations 9 (the first step, its slope taken again where it ends) and 12, in sigma for the noise's slope."""
    table, past = {1: (3, -1), 2: (23, -16, 5), 3: (55, -59, 37, -9)}, []
    for i, (now, to) in enumerate(pairwise(sigmas)):
        past.insert(0, (x - denoise(x, now)) / now)
        if i == 0:
            guess = x + (to - now) * past[0]
            if len(sigmas) == 2:
                return guess
            x = x + (to - now) * (past[0] + (guess - denoise(guess, to)) / to) / 2
        else:
            weights = table[min(i, 3)]
            x = x + (to - now) * sum(w * d for w, d in zip(weights, past, strict=False)) / sum(weights)
    return x


def consistency(denoise, x, sigmas, noise):
    """arXiv 2310.04378, algorithm 3, with its f = c_skip x + c_out D of section 4.1: time scaled by 10, data of deviation 1/2."""
    for now, to in pairwise(sigmas):
        time, alpha = 10 * denoise.time_of(now), 1 / math.sqrt(1 + now**2)
        f = 0.5**2 / (time**2 + 0.5**2) * alpha * x + time / math.hypot(time, 0.5) * denoise(x, now)
        x = f + to * noise() if to > 0 else f
    return x


def trajectory_consistency(denoise, x, sigmas, noise, gamma=0.3):
    """arXiv 2402.19159, algorithm 4: to the time (1 - gamma) t' and, but for the last step to time 0, noise up to t'.

    A whole time is cut to a whole one, as the authors' program does.
    """
    for i, (now, to) in enumerate(pairwise(sigmas), 2):
        denoised, until = denoise(x, now), denoise.time_of(to) if to > 0 else 0.0
        if i == len(sigmas) and until == 0.0:
            return denoised + to / now * (x - denoised)
        time = float(torch.tensor(1 - gamma, dtype=torch.float32) * torch.tensor(until, dtype=torch.float32))
        below = min(denoise.sigma_at(math.floor(time) if until == int(until) else time), float(to))
        x = denoised + below / now * (x - denoised) + math.sqrt(to**2 - below**2) * noise()
    return x


SCALED = [s for s in SCHEDULES if s != "leading"]  # these start at sigma * noise
UNSPACED = [s for s in SCHEDULES if s not in ("auto", "leading", "trailing", "linspace")]  # DDIM's own land beside their levels
CHURNS = [{"s_churn": 15.0}, {"s_churn": 1000.0, "s_noise": 1.1}, {"s_churn": 4.0, "s_tmin": 0.1, "s_tmax": 5.0, "s_noise": 0.8}]
EVERY_ORDER = [{"order": k} for k in (1, 2, 3, 4)]

FAST = [{}, {"eta": 0.7, "s_noise": 1.2}, {"eta": 1.0}]
RESTARTS = ((restart_of_a1111, ("karras",)), (restart, ()))  # from 20 steps on, twice from 36
NOISES = [{}, {"eta": 0.4, "s_noise": 0.9}, {"eta": 0.0}]

CASES = [
    *(Case(id, of_k_diffusion(f"sample_{name}"), {}, {}, SCALED) for id, name in (("euler", "euler"), ("heun", "heun"), ("dpm2", "dpm_2"))),
    *(Case("euler_a", of_k_diffusion("sample_euler_ancestral"), o, o) for o in NOISES),
    Case("ddim", of_k_diffusion("sample_euler"), {}, {}, UNSPACED),
    *(Case("ddim", of_k_diffusion("sample_euler_ancestral"), o, o, UNSPACED) for o in ({"eta": 0.4}, {"eta": 1.0})),
    Case("ddpm", of_k_diffusion("sample_euler_ancestral"), {}, {}, UNSPACED),
    *(Case("lms", of_k_diffusion("sample_lms"), o, o) for o in EVERY_ORDER),
    *(Case("ipndm", ipndm, o, {"max_order": o["order"]}) for o in EVERY_ORDER),
    *(Case("ipndm_v", ipndm_v, o | {"weights": "published"}, {"max_order": o["order"]}) for o in EVERY_ORDER),
    *(Case("ipndm_v", lms_to_denoised, o, o) for o in EVERY_ORDER),
    Case("dpmpp_2m", of_k_diffusion("sample_dpmpp_2m")),
    *(
        Case(f"dpmpp_2m_sde{end}", of_k_diffusion("sample_dpmpp_2m_sde", tree=True), o, {"solver_type": kind, **o}, least=2)
        for end, kind in (("", "midpoint"), ("_heun", "heun"))
        for o in ({}, {"eta": 0.4, "s_noise": 1.3}, {"eta": 0.0})
    ),
    *(
        Case("dpmpp_3m_sde", of_k_diffusion("sample_dpmpp_3m_sde", tree=True), o, o, least=2)
        for o in ({}, {"eta": 0.4, "s_noise": 1.3}, {"eta": 0.0})
    ),
    *(Case("dpm_fast", dpm_fast_of_k_diffusion, o, o, ("exponential",), 2) for o in FAST),
    *(Case("dpm_fast", dpm_fast, o, o, spans=True) for o in FAST),
    *(
        Case(id, churning(f"sample_{name}"), o, o, SCALED)
        for id, name in (("euler", "euler"), ("heun", "heun"), ("dpm2", "dpm_2"))
        for o in CHURNS
    ),
    Case("pndm", plms, {}, {}, UNSPACED),
    Case("lcm", consistency),
    *(Case("tcd", trajectory_consistency, o, o) for o in ({"gamma": 0.8}, {})),
    *(Case("restart", loop, o, o, on, more=(20, 40)) for loop, on in RESTARTS for o in ({}, {"s_noise": 1.1})),
]
