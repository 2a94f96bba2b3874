"""How right samplers are: order of convergence against the exact path, mean and variance on a Gaussian against the exact ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from scipy.integrate import solve_ivp
from scipy.stats import chi2, norm

from oracles import CONFIGS, EPSILON, run_table
from pipelines.ladder import Ladder
from pipelines.sampler_list import SAMPLERS
from pipelines.samplers import compile_table
from pipelines.step_table import BASIS, STATE, StepTable

# --- order of convergence -----------------------------------------------------------------------------------------------

LADDER = Ladder.from_config(EPSILON)
HIGH, LOW = float(LADDER.ratios[-1]), float(LADDER.ratios[0])
PEAKS, WIDTH = np.array([[-1.0], [0.6]]), 0.4  # two Gaussians on a line

# What is measured, within 0.3. A multistep sampler begins in first order, whose error a sampler of third order and more does not
# outgrow; so does the last step of dpm_fast where 3 divides n, and DEIS's coefficients in log sigma. iPNDM's equal weights are of
# second order on unequal steps, heunpp2's third slope and the extrapolation of gradient_estimation of first.
ORDERS: list[tuple[str, dict[str, Any], float]] = [
    *((sampler, {}, 1.0) for sampler in ("ddim", "euler", "dpmpp_1s", "heunpp2", "gradient_estimation")),
    *((sampler, {}, 1.0) for sampler in ("euler_cfgpp", "gradient_estimation_cfgpp")),
    *((sampler, {}, 2.0) for sampler in ("heun", "dpm2", "dpm_fast", "dpmpp_3m", "pndm", "res_multistep")),
    *((sampler, {}, 2.0) for sampler in ("dpmpp_2m_cfgpp", "res_multistep_cfgpp")),
    *((sampler, {"solver_type": kind}, 2.0) for sampler in ("dpmpp_2m", "dpmpp_2s") for kind in ("midpoint", "heun")),
    *(("dpmpp_3s", {"solver_type": kind}, 2.9) for kind in ("midpoint", "heun")),
    *(("exp_heun_2_x0", {"solver_type": kind}, 2.0) for kind in ("phi_1", "phi_2")),
    *(("lms", {"order": k}, order) for k, order in ((1, 1.0), (2, 2.0), (3, 2.9), (4, 3.3))),
    *(("ipndm_v", {"order": k}, order) for k, order in ((1, 1.0), (2, 2.0), (3, 2.9), (4, 3.3))),
    *(("ipndm", {"order": k}, min(k, 2.0)) for k in (1, 2, 3, 4)),
    *(("deis", {"order": k}, order) for k, order in ((1, 1.0), (2, 2.0), (3, 2.6))),
    *(("unipc", {"order": k, "solver_type": kind}, k + 1.0) for k in (1, 2) for kind in ("bh1", "bh2")),
    ("unipc", {"order": 3, "solver_type": "bh1"}, 3.4),
    ("unipc", {"order": 3, "solver_type": "bh2"}, 4.3),
    *((sampler, {"eta": 0.0}, 1.0) for sampler in ("euler_a", "euler_a_cfgpp")),
    *(
        (sampler, {"eta": 0.0}, 2.0)
        for sampler in ("dpm2_a", "dpmpp_sde", "dpmpp_2s_a", "dpmpp_2m_sde", "dpmpp_2m_sde_heun", "dpmpp_3m_sde")
    ),
    *((sampler, {"eta": 0.0}, 2.0) for sampler in ("exp_heun_2_x0_sde", "res_multistep_ancestral", "seeds_2")),
    *((sampler, {"eta": 0.0}, 2.0) for sampler in ("dpmpp_2s_a_cfgpp", "res_multistep_ancestral_cfgpp")),
    ("seeds_2", {"eta": 0.0, "r": 0.3, "solver_type": "phi_2"}, 2.0),
    ("dpmpp_sde", {"eta": 0.0, "r": 0.3}, 2.0),
    ("gradient_estimation", {"gamma": 1.5}, 2.0),
    ("seeds_3", {"eta": 0.0}, 3.0),
    ("sa_solver", {"tau": 0.0}, 2.1),
    ("sa_solver", {"tau": 0.0, "predictor_order": 1, "corrector_order": 1}, 1.0),
    ("sa_solver", {"tau": 0.0, "predictor_order": 1, "second_order": "exact"}, 2.0),
    ("sa_solver_pece", {"tau": 0.0}, 2.5),
]
NO_PATH = {"ddpm", "lcm", "tcd", "er_sde", "restart"}  # these always draw; their mean and variance are tested below


def denoised(x: np.ndarray, sigma: float) -> np.ndarray:
    """E[x0 | x0 + sigma * noise = x]."""
    variance = WIDTH**2 + sigma**2
    weight = np.exp(-((x - PEAKS) ** 2) / (2.0 * variance))  # [2, n]
    return np.asarray((weight * (PEAKS + WIDTH**2 / variance * (x - PEAKS))).sum(0) / weight.sum(0))


@cache
def exact() -> tuple[np.ndarray, np.ndarray]:
    """x at the highest level, and where dx/dsigma = (x - D) / sigma takes it at the lowest: arXiv 2206.00364, equation 1."""
    start = HIGH * np.linspace(-1.5, 1.5, 7)
    path = solve_ivp(lambda sigma, x: (x - denoised(x, sigma)) / sigma, (HIGH, LOW), start, method="DOP853", rtol=1e-12, atol=1e-12)
    return start, path.y[:, -1]


def error(sampler: str, options: dict[str, Any], steps: int) -> float:
    """At the lowest level above zero, in logSNR steps of equal size; dpm_fast ends there, the others go on to zero."""
    start, end = exact()
    ends_there = sampler == "dpm_fast"
    table = compile_table(LADDER, sampler, "exponential", steps if ends_there else steps + 1, options)
    assert not table.noisy.any()
    levels = list(zip(table.alpha, table.sigma, strict=True))

    def model(x: np.ndarray, row: int) -> np.ndarray:
        alpha, sigma = levels[row]
        return np.asarray((x - alpha * denoised(x / alpha, sigma / alpha)) / sigma)

    path = run_table(replace(table, init=1.0, timestep=np.arange(len(table))), model, iter([table.alpha[0] * start]))
    last = len(table) if ends_there else int(np.flatnonzero(table.step == table.step[-1])[0])
    return float(abs(path[last] / (1.0 if ends_there else table.alpha[last]) - end).max())


def measured(sampler: str, options: dict[str, Any]) -> float:
    steps = np.array([48, 96, 192])
    return float(-np.polyfit(np.log(steps), np.log([error(sampler, options, int(n)) for n in steps]), 1)[0])


@pytest.mark.parametrize(("sampler", "options", "order"), ORDERS, ids=str)
def test_samplers_have_their_order(sampler, options, order):
    assert measured(sampler, options) == pytest.approx(order, abs=0.3)


def test_every_sampler_that_follows_a_path_has_an_order():
    assert {sampler for sampler, _, _ in ORDERS} | NO_PATH == set(SAMPLERS)


# --- mean and variance ----------------------------------------------------------------------------------------------------

MEAN, DEVIATION = 0.3, 0.6  # of the target, x0 ~ N(MEAN, DEVIATION^2)
CONSISTENCY = {"lcm", "tcd"}  # made for the outputs of distilled models, and tested on them below: on any other they are biased
CHURN = {"s_churn": 20.0}
DRAWING = [
    *((sampler, {}) for sampler, entry in SAMPLERS.items() if sampler not in CONSISTENCY),
    *((sampler, CHURN) for sampler, entry in SAMPLERS.items() if entry.churns),
    *((sampler, {"eta": 1.0}) for sampler in ("ddim", "dpm_fast")),
]


def linear(alpha: float, sigma: float) -> tuple[float, float]:
    """The denoised of a Gaussian target, E[x0 | x] = gain * x + constant."""
    gain = alpha * DEVIATION**2 / (alpha**2 * DEVIATION**2 + sigma**2)
    return gain, MEAN * (1.0 - gain * alpha)


def carried(table: StepTable, first: tuple[float, float], lines: list[tuple[float, float]] | None = None) -> tuple[float, float]:
    """Mean and deviation of x at the end from those of the first: the registers stay Gaussian, so both are carried exactly.

    `lines` are gain and constant of another denoised than that of the target, row by row.
    """
    lines = lines or [linear(alpha, sigma) for alpha, sigma in zip(table.alpha, table.sigma, strict=True)]
    mean, covariance = np.zeros(len(STATE)), np.zeros((len(STATE), len(STATE)))
    mean[0], covariance[0, 0] = first[0], first[1] ** 2
    for update, (gain, constant) in zip(table.update, lines, strict=True):
        of_denoised = update[:, BASIS.index("denoised")] + update[:, BASIS.index("denoised_uncond")]
        step = update[:, [BASIS.index(name) for name in STATE]]
        step[:, 0] += gain * of_denoised
        fresh = update[:, BASIS.index("noise")]
        mean, covariance = step @ mean + constant * of_denoised, step @ covariance @ step.T + np.outer(fresh, fresh)
    return float(mean[0]), float(np.sqrt(covariance[0, 0]))


def marginal(alpha: float, sigma: float) -> tuple[float, float]:
    """Mean and deviation of x at a level."""
    return float(alpha * MEAN), float(np.hypot(alpha * DEVIATION, sigma))


@pytest.mark.parametrize(("sampler", "options"), DRAWING, ids=str)
@pytest.mark.parametrize("ladder", CONFIGS)
def test_samplers_end_with_the_mean_and_variance_of_a_gaussian(sampler, options, ladder):
    table = compile_table(Ladder.from_config(CONFIGS[ladder]), sampler, "exponential", 400, options)
    mean, deviation = carried(table, marginal(table.alpha[0], table.sigma[0]))
    assert mean == pytest.approx(MEAN, rel=0.02) and deviation == pytest.approx(DEVIATION, rel=0.025)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_samples_have_the_mean_and_variance_that_are_carried(sampler):
    """4,000 pictures of one number, seeded: a right sampler misses one of these bounds for one seed in a million."""
    count, ladder = 4000, LADDER
    table = compile_table(ladder, sampler, "exponential", 12)
    rng, levels = np.random.default_rng(20), list(zip(table.alpha, table.sigma, strict=True))

    def model(x: np.ndarray, row: int) -> np.ndarray:
        gain, constant = linear(*levels[row])
        return np.asarray((x - levels[row][0] * (gain * x + constant)) / levels[row][1])

    def normals() -> Iterator[np.ndarray]:
        while True:
            yield rng.standard_normal(count)

    drawn = run_table(replace(table, timestep=np.arange(len(table))), model, normals())[-1]
    check(drawn, *carried(table, (0.0, table.init)))


def check(drawn: np.ndarray, mean: float, deviation: float) -> None:
    """Mean and variance of draws of a Gaussian; right ones fail with probability 1e-6."""
    count = len(drawn)
    assert abs(drawn.mean() - mean) <= norm.isf(2.5e-7) * deviation / np.sqrt(count)
    low, high = chi2.ppf([2.5e-7, 1.0 - 2.5e-7], count - 1) / (count - 1)
    assert low <= (drawn.std(ddof=1) / deviation) ** 2 <= high


# --- consistency samplers -------------------------------------------------------------------------------------------------
# What they are distilled to is known on a Gaussian: dx/dt of the probability flow moves x at one level to
# mean' + deviation' / deviation (x - mean) at another. With it every chain has the target's own mean and variance, however short.

JUMPS = [("lcm", {}), *(("tcd", {"gamma": gamma}) for gamma in (0.0, 0.3, 1.0))]
CHAINS = [(ladder, sampler, options, steps) for ladder in CONFIGS for sampler, options in JUMPS for steps in (1, 2, 4, 8, 50)]


def ways(ladder: Ladder, table: StepTable, sampler: str, options: dict[str, float]) -> list[tuple[tuple[float, float], ...]]:
    """Of each step: the level it begins at, the one it jumps to, and the one that noise lifts it to, as (alpha, sigma).

    LCM jumps to the clean picture (arXiv 2310.04378, algorithm 3), TCD to (1 - gamma) of the next time (arXiv 2402.19159, algorithm 4),
    whose last is the first training level.
    """
    known = [(float(np.sqrt(a)), float(np.sqrt(1.0 - a))) for a in ladder.alphas_cumprod]
    times = [int(t) for t in table.timestep]
    if sampler == "lcm":
        return [(known[t], (1.0, 0.0), known[to] if to else (1.0, 0.0)) for t, to in zip(times, [*times[1:], 0], strict=True)]
    return [(known[t], known[int((1.0 - options["gamma"]) * to)], known[to]) for t, to in zip(times, [*times[1:], 0], strict=True)]


def mixed(way: tuple[tuple[float, float], ...], sampler: str, timestep: float) -> tuple[float, float]:
    """Weights of x and of the denoised where the jump ends: LCM's boundary condition with sigma_data 1/2 and ten times the timestep,
    or DDIM's step."""
    (alpha, sigma), there, _ = way
    if sampler == "tcd":
        return there[1] / sigma, there[0] - alpha * there[1] / sigma
    scaled = 10.0 * timestep / 0.5
    return 1.0 / (scaled**2 + 1.0), float(scaled / np.sqrt(scaled**2 + 1.0))


def distilled(way: tuple[tuple[float, float], ...], sampler: str, timestep: float) -> tuple[float, float]:
    """Gain and constant of the denoised from which the sampler makes the exact jump."""
    (mean, deviation), (to_mean, to_deviation) = marginal(*way[0]), marginal(*way[1])
    of_x, of_denoised = mixed(way, sampler, timestep)
    gain = to_deviation / deviation
    return float((gain - of_x) / of_denoised), float((to_mean - gain * mean) / of_denoised)


@pytest.mark.parametrize(("ladder", "sampler", "options", "steps"), CHAINS, ids=str)
def test_consistency_samplers_keep_the_mean_and_variance_of_a_gaussian_exactly(ladder, sampler, options, steps):
    model = Ladder.from_config(CONFIGS[ladder])
    table = compile_table(model, sampler, "auto", steps, options)
    steps_of = ways(model, table, sampler, options)
    lines = [distilled(way, sampler, t) for way, t in zip(steps_of, table.timestep, strict=True)]
    assert carried(table, marginal(*steps_of[0][0]), lines) == pytest.approx(marginal(*steps_of[-1][2]), rel=1e-6)


@pytest.mark.parametrize(("ladder", "sampler", "options", "steps"), CHAINS, ids=str)
def test_consistency_samplers_are_biased_on_a_plain_model_as_the_papers_chain_is(ladder, sampler, options, steps):
    """Mean and variance level by level, without the table: x at the jump's end is linear in x, and noise adds its variance."""
    model = Ladder.from_config(CONFIGS[ladder])
    table = compile_table(model, sampler, "auto", steps, options)
    steps_of = ways(model, table, sampler, options)
    mean, deviation = first = marginal(*steps_of[0][0])
    for way, timestep in zip(steps_of, table.timestep, strict=True):
        (gain, constant), (of_x, of_denoised), lift = linear(*way[0]), mixed(way, sampler, timestep), way[2][0] / way[1][0]
        mean = lift * ((of_x + of_denoised * gain) * mean + of_denoised * constant)
        fresh = way[2][1] ** 2 - (lift * way[1][1]) ** 2
        deviation = float(np.sqrt((lift * (of_x + of_denoised * gain) * deviation) ** 2 + fresh))
    assert carried(table, first) == pytest.approx((mean, deviation), rel=1e-6)


@pytest.mark.parametrize(("sampler", "options"), JUMPS, ids=str)
@pytest.mark.parametrize("ladder", CONFIGS)
def test_consistency_samplers_draw_the_gaussian_in_four_steps(sampler, options, ladder):
    """4,000 pictures of one number, seeded, against the target itself, with the bounds of `check`."""
    model, rng = Ladder.from_config(CONFIGS[ladder]), np.random.default_rng(21)
    table = compile_table(model, sampler, "auto", 4, options)
    steps_of = ways(model, table, sampler, options)
    lines = [distilled(way, sampler, t) for way, t in zip(steps_of, table.timestep, strict=True)]
    knows = replace(table, c_skip=np.zeros(4), c_out=np.ones(4), timestep=np.arange(4))  # the network says the denoised itself
    normals, picture = (rng.standard_normal(4000) for _ in range(5)), rng.normal(MEAN, DEVIATION, 4000)
    drawn = run_table(knows, lambda x, row: lines[int(row)][0] * x + lines[int(row)][1], normals, picture=picture)
    check(drawn[-1], *marginal(*steps_of[-1][2]))
