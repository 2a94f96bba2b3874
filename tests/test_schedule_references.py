"""Every schedule against its reference: diffusers, k-diffusion, or the formula of its project written out as a loop."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from diffusers.pipelines.mochi.pipeline_mochi import linear_quadratic_schedule
from diffusers.schedulers.scheduling_utils import AysSchedules
from hypothesis import given, settings
from hypothesis import strategies as st

from oracles import EPSILON, ZERO_SNR, scheduler
from oracles_sigma import k_diffusion
from pipelines import schedules
from pipelines.card import CLOSEST_GIVEN, LOWEST_GIVEN, falling_fault
from pipelines.ladder import Ladder
from pipelines.level import Convention
from pipelines.options import checked_options
from pipelines.samplers import compile_table
from pipelines.schedule_list import SCHEDULES

pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")  # the reference, on numpy 2

MINI = json.loads((Path(__file__).parent.parent / "models/celadon-mini/scheduler/scheduler_config.json").read_text())
LADDERS = {name: Ladder.from_config(config) for name, config in (("sd", EPSILON), ("zero_snr", ZERO_SNR), ("mini", MINI))}
CUSTOM = {name: info for name, ladder in LADDERS.items() for info in schedules.catalog(ladder) if info.id == "custom"}
COUNTS = (1, 2, 3, 7, 20, 30)
FULL = Convention(full_range=True)  # sigmas span the ladder, as in the projects that have no ladder in their formulas


@pytest.fixture
def in_float64() -> Iterator[None]:
    """k-diffusion makes its sigmas in torch's default dtype."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def sigmas(ladder: Ladder, schedule: str, steps: int, options: dict[str, Any] | None = None, convention: Convention = FULL) -> np.ndarray:
    """sigma/alpha of all n + 1 levels."""
    complete = checked_options("schedule", schedule, options or {}, SCHEDULES[schedule].options)
    made = schedules.levels(ladder, convention, schedule, steps, complete)
    return made.sigma / made.alpha


# --- the formulas, one level after the other --------------------------------------------------------------------------------------


def at(ladder: Ladder, t: float) -> float:
    """k-diffusion's t_to_sigma."""
    low = min(int(t), len(ladder) - 2)
    logs = np.log(ladder.ratios[low : low + 2])
    return math.exp(logs[0] + (t - low) * (logs[1] - logs[0]))


def sgm_uniform(ladder: Ladder, n: int) -> list[float]:
    top = len(ladder) - 1
    return [at(ladder, top - top * i / n) for i in range(n)] + [0.0]


def simple(ladder: Ladder, n: int) -> list[float]:
    return [ladder.ratios[-(1 + int(i * (len(ladder) / n)))] for i in range(n)] + [0.0]


def ddim_uniform(ladder: Ladder, n: int) -> list[float]:
    found, t = [], 1
    while t < len(ladder):
        found.append(ladder.ratios[t])
        t += len(ladder) // n
    return [*found[:n][::-1], 0.0]


def beta(ladder: Ladder, n: int, a: float = 0.6, b: float = 0.6) -> list[float]:
    timesteps = [int(np.rint(scipy.stats.beta.ppf(1 - i / n, a, b) * (len(ladder) - 1))) for i in range(n)]
    return [ladder.ratios[t] for t in dict.fromkeys(timesteps)] + [0.0]


def beta_sigma(ladder: Ladder, n: int, a: float = 0.6, b: float = 0.6) -> list[float]:
    low, high = ladder.ratios[0], ladder.ratios[-1]
    return [low + scipy.stats.beta.ppf(1 - i / max(n - 1, 1), a, b) * (high - low) for i in range(n)] + [0.0]


def kl_optimal(ladder: Ladder, n: int) -> list[float]:
    low, high = math.atan(ladder.ratios[0]), math.atan(ladder.ratios[-1])
    return [math.tan(i / max(n - 1, 1) * low + (1 - i / max(n - 1, 1)) * high) for i in range(n)] + [0.0]


def kl_optimal_open(ladder: Ladder, n: int) -> list[float]:
    low, high = math.atan(ladder.ratios[0]), math.atan(ladder.ratios[-1])
    return [math.tan(i / n * low + (1 - i / n) * high) for i in range(n + 1)]


def laplace(ladder: Ladder, n: int, mu: float = 0.0, b: float = 0.5) -> list[float]:
    found = []
    for i in range(n + 1):
        away = 0.5 - i / n
        log = mu - b * ((away > 0) - (away < 0)) * math.log(1 - 2 * abs(away) + 1e-5)
        found.append(min(max(math.exp(log), ladder.ratios[0]), ladder.ratios[-1]))
    return found


def linear_quadratic(ladder: Ladder, n: int) -> list[float]:
    return [s * ladder.ratios[-1] for s in (linear_quadratic_schedule(n, 0.025) if n > 1 else [1.0])] + [0.0]


def smoothstep(ladder: Ladder, n: int) -> list[float]:
    found = []
    for i in range(n):
        u = 1 - i / n
        found.append(ladder.ratios[round(u * u * (3 - 2 * u) * (len(ladder) - 1))])
    return [*found, 0.0]


def lcm(ladder: Ladder, n: int) -> list[float]:
    return [ladder.ratios[(50 - i * 50 // n) * 20 - 1] for i in range(n)] + [0.0]


def turbo(ladder: Ladder, n: int) -> list[float]:
    return [ladder.ratios[round(k * (1000.0 / n) - 1)] for k in range(n, 0, -1)] + [0.0]


def sd_turbo(ladder: Ladder, n: int) -> list[float]:
    return [ladder.ratios[t] for t in (999, 899, 799, 699, 599, 499, 399, 299, 199, 99)[:n]] + [0.0]


def bong_tangent(ladder: Ladder, n: int) -> list[float]:
    low, high = ladder.ratios[0], ladder.ratios[-1]
    middle, steps = (low + high) / 2, n + 2
    joint = int(np.float32(steps) * np.float32(0.6))

    def arc(count: int, pivot: float, start: float, end: float) -> list[float]:
        def v(x: float) -> float:
            return (2 / math.pi * math.atan(-0.2 / (steps / 40) * (x - pivot)) + 1) / 2

        if count == 1:
            return [start]
        return [(v(x) - v(count - 1)) / (v(0) - v(count - 1)) * (start - end) + end for x in range(count)]

    both = arc(joint, joint, high, middle)[:-1] + arc(steps - joint, 0, middle, low)
    return [*both[:n], 0.0]


def table(rows: list[float], n: int, *, replaced: bool) -> list[float]:
    """Log-linear interpolation of a table to n points, zero after them; or to n + 1, zero for the last."""
    count, found = n + 1 if replaced else n, []
    for i in range(count):
        at = i / max(count - 1, 1) * (len(rows) - 1)
        low = min(int(at), len(rows) - 2)
        found.append(math.exp((1 - at + low) * math.log(rows[low]) + (at - low) * math.log(rows[low + 1])))
    return [*found[:n], 0.0]


FORMULAS: dict[str, Callable[[Ladder, int], list[float]]] = {
    f.__name__: f
    for f in (sgm_uniform, simple, ddim_uniform, beta, beta_sigma, kl_optimal, kl_optimal_open, laplace, linear_quadratic, smoothstep, lcm)
} | {f.__name__: f for f in (turbo, sd_turbo, bong_tangent)}
K_DIFFUSION = {"karras": "get_sigmas_karras", "exponential": "get_sigmas_exponential", "polyexponential": "get_sigmas_polyexponential"}


@pytest.mark.parametrize("name", LADDERS)
@pytest.mark.parametrize("schedule", FORMULAS)
def test_schedule_is_the_formula_of_its_project(schedule: str, name: str) -> None:
    ladder = LADDERS[name]
    for n in COUNTS:
        found = sigmas(ladder, schedule, n)
        if n == 1:  # everywhere from the highest level, also where a project starts in the middle
            assert found[0] == pytest.approx(ladder.ratios[-1], rel=1e-6) and found[1] == pytest.approx(FORMULAS[schedule](ladder, 1)[-1])
        elif schedule == "sd_turbo" and n > 10:
            np.testing.assert_array_equal(found, sigmas(ladder, "turbo", n))
        else:
            np.testing.assert_allclose(found, FORMULAS[schedule](ladder, n), rtol=1e-6, err_msg=str(n))


@pytest.mark.parametrize("name", LADDERS)
def test_schedules_take_their_options_each_for_what_it_is(name: str) -> None:
    ladder, shape = LADDERS[name], {"alpha": 0.5, "beta": 2.0}
    for n in COUNTS[1:]:
        for schedule in (beta, beta_sigma):
            np.testing.assert_allclose(sigmas(ladder, schedule.__name__, n, shape), schedule(ladder, n, 0.5, 2.0), rtol=1e-6)
        np.testing.assert_allclose(sigmas(ladder, "laplace", n, {"mu": 0.7, "beta": 0.4}), laplace(ladder, n, 0.7, 0.4), rtol=1e-6)


@pytest.mark.usefixtures("in_float64")
@pytest.mark.parametrize("name", LADDERS)
@pytest.mark.parametrize("schedule", K_DIFFUSION)
@pytest.mark.parametrize("rho", [None, 0.7, 3.0])
def test_schedule_is_k_diffusion_s(schedule: str, name: str, rho: float | None) -> None:
    ladder, options = LADDERS[name], {} if rho is None or schedule == "exponential" else {"rho": rho}
    for n in COUNTS:
        theirs = getattr(k_diffusion(), K_DIFFUSION[schedule])(n, float(ladder.ratios[0]), float(ladder.ratios[-1]), **options)
        np.testing.assert_allclose(sigmas(ladder, schedule, n, options), theirs.numpy(), rtol=1e-7, err_msg=str(n))


@pytest.mark.usefixtures("in_float64")
def test_vp_is_k_diffusion_s_from_where_it_meets_the_ladder() -> None:
    for n in COUNTS[1:]:
        theirs = k_diffusion().get_sigmas_vp(n).numpy()
        np.testing.assert_allclose(sigmas(LADDERS["zero_snr"], "vp", n), theirs, rtol=1e-9)
        found = sigmas(LADDERS["sd"], "vp", n)
        assert found[0] == pytest.approx(LADDERS["sd"].ratios[-1], rel=1e-7) and found[-2] == pytest.approx(theirs[-2])
        times = [math.sqrt(0.1**2 + 2 * 19.9 * math.log1p(s * s)) for s in found[:-1]]  # linear in t
        np.testing.assert_allclose(np.diff(times), (times[-1] - times[0]) / (n - 1), rtol=1e-6)


@pytest.mark.parametrize("sampler", ["euler", "dpm2", "dpmpp_2m", "unipc"])
@pytest.mark.parametrize("config", [EPSILON, EPSILON | {"timestep_spacing": "trailing"}], ids=["own", "trailing"])
def test_beta_sigma_is_what_each_class_of_diffusers_makes_of_it(sampler: str, config: dict[str, Any]) -> None:
    reference = scheduler(sampler, config, use_beta_sigmas=True)
    for n in COUNTS[1:]:
        reference.set_timesteps(n)
        made = compile_table(Ladder.from_config(config), sampler, "beta_sigma", n)
        first = np.flatnonzero(np.diff(made.step, prepend=-1))
        np.testing.assert_allclose((made.sigma / made.alpha)[first], reference.sigmas.unique_consecutive()[:-1], rtol=1e-5)
        if sampler != "dpm2":  # it asks in between, too
            np.testing.assert_allclose(made.timestep[first], reference.timesteps, atol=2e-3)


def test_align_your_steps_is_diffusers() -> None:
    for name, rows in (("sd", "StableDiffusionSigmas"), ("sdxl", "StableDiffusionXLSigmas")):
        theirs = AysSchedules[rows]
        np.testing.assert_allclose(sigmas(LADDERS["sd"], "align_your_steps", 10, {"table": name}), theirs, rtol=1e-9)
        whole = [*theirs[:-1], 0.029]
        for n in COUNTS[1:]:
            for schedule, replaced in (("align_your_steps", True), ("align_your_steps_11", False)):
                wanted = table(whole, n, replaced=replaced)
                np.testing.assert_allclose(sigmas(LADDERS["sd"], schedule, n, {"table": name}), wanted, rtol=1e-9)


def test_a_table_that_begins_above_the_ladder_is_scaled_in_its_logarithm() -> None:
    short = Ladder.from_config({"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.004})
    assert short.ratios[-1] < 5.0
    found, table = np.log(sigmas(short, "align_your_steps_11", 11)[:-1]), np.log(sigmas(LADDERS["sd"], "align_your_steps_11", 11)[:-1])
    assert found[0] == pytest.approx(np.log(short.ratios[-1])) and found[-1] == pytest.approx(table[-1])
    np.testing.assert_allclose(np.diff(found) / np.diff(table), (found[0] - found[-1]) / (table[0] - table[-1]), rtol=1e-6)


def test_laplace_without_clamping_where_the_clamp_would_make_equal_levels() -> None:
    options = {"mu": 1.0, "beta": 1.0}
    clamped = laplace(LADDERS["sd"], 25, 1.0, 1.0)
    found = sigmas(LADDERS["sd"], "laplace", 25, options)
    assert clamped[0] == clamped[1] and np.all(np.diff(found) < 0)
    assert found[0] == pytest.approx(LADDERS["sd"].ratios[-1]) and found[-1] >= LADDERS["sd"].ratios[0] * (1 - 1e-9)


def test_rounded_timesteps_that_would_meet_stay_fractional() -> None:
    """The reference of beta drops equal timesteps and so makes 199 steps of 200; smoothstep makes equal ones from 78 on."""
    assert len(beta(LADDERS["sd"], 200)) - 1 == 199 and len(sigmas(LADDERS["sd"], "beta", 200)) - 1 == 200
    assert len(set(smoothstep(LADDERS["sd"], 78))) == 78 and len(set(sigmas(LADDERS["sd"], "smoothstep", 78))) == 79


def test_ddim_uniform_takes_as_many_steps_as_it_is_asked_for() -> None:
    """The rule of its projects makes 31 levels of 30; the lowest 30 are `leading` with an offset of 1."""
    assert len(range(1, 1000, 1000 // 30)) == 31
    for n in (7, 15, 30):
        made = compile_table(Ladder.from_config(EPSILON), "euler", "ddim_uniform", n)
        np.testing.assert_array_equal(made.timestep, compile_table(Ladder.from_config(EPSILON), "euler", "leading", n).timestep)


@pytest.mark.parametrize("name", LADDERS)
@pytest.mark.parametrize("schedule", ["simple_linear", "cosine", "sigmoid"])
def test_input_scale_is_a_shift_of_logsnr(schedule: str, name: str) -> None:
    """The levels of b are those of b = 1 at other times, so moved by 2 ln b before t is cut at the ladder's end."""
    ladder = LADDERS[name]
    for b in (0.3, 2.0):
        found = sigmas(ladder, schedule, 20, {"input_scale": b})
        fine = sigmas(ladder, schedule, 900)[:-1]
        inside = (found[:-1] * b < fine[0]) & (found[:-1] * b > fine[-1])
        times = np.interp(np.log(found[:-1] * b), np.log(fine[::-1]), np.arange(900, 0, -1)[::-1] / 900.0)[inside]
        np.testing.assert_allclose(np.diff(times, 2), 0.0, atol=2e-3)
        assert found[0] == pytest.approx(ladder.ratios[-1], rel=1e-6)


def test_custom_sigmas_are_the_levels() -> None:
    for given_sigmas in ([14.6, 3.0, 0.5, 0.0], [14.615, 2.0, 0.1], [5.0, 1e-3]):
        found = sigmas(LADDERS["sd"], "custom", len(given_sigmas) - 1, {"sigmas": given_sigmas})
        np.testing.assert_allclose(found, given_sigmas, rtol=1e-10)
    made = compile_table(LADDERS["sd"], "euler", "custom", 2, {}, {"sigmas": [14.6, 3.0, 0.0]})
    np.testing.assert_allclose(made.timestep, LADDERS["sd"].timestep_at(np.array([14.6, 3.0])))


@pytest.mark.parametrize(("steps", "options", "message"), [
    (3, {"sigmas": [3.0, 2.0, 0.0]}, "3 steps need 4 sigmas, not 3"),
    (2, {"sigmas": [3.0, 3.0, 0.0]}, "must be falling"),
    (2, {"sigmas": [3.0, 1.0, -1.0]}, "numbers of 0 or more, falling"),
    (2, {"sigmas": [3.0, 1e-9, 0.0]}, "0.0001 or more"),
    (2, {"sigmas": [3.0, 2.9999999, 0.0]}, "by 1e-06 of it"),
    (1, {"sigmas": [3.0]}, "two or more"),
    (1, {"sigmas": 3.0}, "two or more"),
    (1, {"sigmas": [3.0, "0"]}, "two or more numbers"),
    (1, {"sigmas": [10**400, 0]}, "two or more numbers"),
    (1, {}, "two or more"),
])  # fmt: skip
def test_custom_sigmas_that_cannot_be_are_refused(steps: int, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compile_table(LADDERS["sd"], "euler", "custom", steps, {}, options)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.sampled_from(list(LADDERS)), st.lists(st.floats(0.0, 5000.0), min_size=2, max_size=40), st.booleans())
def test_whatever_the_gateway_takes_has_levels(name: str, numbers: list[float], sort: bool) -> None:
    """What clients give is refused by the rule of the card or drawn: there is nothing in between."""
    info = CUSTOM[name]
    wanted = sorted(numbers, reverse=True) if sort else numbers
    if falling_fault(wanted, info.options["sigmas"]) is None:
        for convention in (Convention(), Convention(exact=True, full_range=True, strided=True)):
            made = schedules.levels(LADDERS[name], convention, "custom", len(wanted) - 1, {"sigmas": tuple(wanted)})
            np.testing.assert_allclose(made.sigma / made.alpha, wanted, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("name", LADDERS)
def test_numbers_as_near_as_may_be_are_levels(name: str) -> None:
    info = CUSTOM[name]
    for first in (info.options["sigmas"].maximum, 1.0, LOWEST_GIVEN * 1.001):
        wanted = [first * (1 - 1.01 * CLOSEST_GIVEN) ** i for i in range(50)]
        assert falling_fault(wanted, info.options["sigmas"]) is None
        assert len(sigmas(LADDERS[name], "custom", 49, {"sigmas": wanted})) == 50


# --- every schedule, every option --------------------------------------------------------------------------------------------------


@st.composite
def asked(draw: st.DrawFn) -> tuple[Ladder, str, int, dict[str, Any]]:
    ladder = LADDERS[draw(st.sampled_from(list(LADDERS)))]
    schedule = draw(st.sampled_from([id for id, one in SCHEDULES.items() if id != "custom" and not one.for_flow]))
    steps = draw(st.integers(1, SCHEDULES[schedule].most or 400))
    options = {
        name: draw(st.sampled_from(option.choices) if option.choices else st.floats(option.minimum, option.maximum))
        for name, option in SCHEDULES[schedule].options.items()
    }
    return ladder, schedule, steps, options


@settings(max_examples=400, deadline=None, derandomize=True)
@given(asked(), st.booleans(), st.booleans())
def test_levels_are_finite_fall_strictly_and_reach_their_end(request: Any, exact: bool, full_range: bool) -> None:
    ladder, schedule, steps, options = request
    made = schedules.levels(ladder, Convention(exact=exact, full_range=full_range), schedule, steps, options)
    assert len(made) == steps == len(made.landing)
    for column in (made.alpha, made.sigma, made.timestep):
        assert len(column) == steps + 1 and np.isfinite(column).all()
    np.testing.assert_allclose(made.alpha**2 + made.sigma**2, 1.0, rtol=1e-12)
    assert np.all(np.diff(made.alpha) > 0) and np.all(np.diff(made.sigma) < 0) and np.all(np.diff(made.timestep) <= 0)
    assert made.timestep.min() >= 0.0 and made.timestep.max() <= len(ladder) - 1
    assert (made.sigma[-1] > 0.0) == SCHEDULES[schedule].ends_open and made.landing[-1].sigma == made.sigma[-1]
