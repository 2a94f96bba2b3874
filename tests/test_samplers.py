"""Samplers by themselves: orders of convergence, variance, every listed combination, and what is refused."""

from __future__ import annotations

import dataclasses
import itertools
from functools import cache

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from oracles import CONFIGS, EPSILON, ZERO_SNR, Mixture, difference, noises, run_table
from pipelines import schedules
from pipelines.card import OptionInfo
from pipelines.ladder import Ladder
from pipelines.sampler_list import SAMPLERS, samplers_of
from pipelines.samplers import catalog, compile_table
from pipelines.schedule_list import SCHEDULES
from pipelines.step_table import BASIS, STATE
from tests.fakes import schedule_options

SHAPE = (1, 4, 4, 4)


@cache
def mixture(ladder: str):
    return Mixture().network(Ladder.from_config(CONFIGS[ladder]))


@pytest.mark.parametrize("ladder", CONFIGS)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_one_step_goes_from_the_highest_level_to_the_end(ladder, sampler):
    for schedule in [id for id, one in SCHEDULES.items() if id != "custom" and not one.for_flow]:
        table = compile_table(Ladder.from_config(CONFIGS[ladder]), sampler, schedule, 1)
        # 998: diffusers floors what float32 leaves of 999 (DPM-Solver and UniPC with exponential)
        assert table.step[-1] == 0 and table.timestep[0] == pytest.approx(999.0, abs=1.0), schedule


@pytest.mark.parametrize("schedule", ["trailing", "linspace", "karras", "exponential", "cosine"])
def test_heun_reaches_the_picture_from_zero_snr(schedule):
    """Plain Heun from sigma = 4096 misses by hundreds at 3 steps."""
    ladder, network = Ladder.from_config(ZERO_SNR), mixture("zero_snr")
    exact = run_table(compile_table(ladder, "unipc", "trailing", 200), network, noises(SHAPE))[-1]
    missed = [abs(run_table(compile_table(ladder, "heun", schedule, n), network, noises(SHAPE))[-1] - exact).max() for n in (3, 8, 25)]
    assert missed[0] < 1.0 and missed[1] < 0.8 and missed[2] < 0.2, missed


# --- every combination ---------------------------------------------------------------------------------------------------


def levels_of(table) -> np.ndarray:
    """sigma / alpha of the rows that begin a step."""
    first = np.flatnonzero(np.diff(table.step, prepend=-1))
    return table.sigma[first] / np.maximum(table.alpha[first], 1e-300)


def rises(table) -> int:
    """Steps that do not start below the one before."""
    return int(np.sum(np.diff(levels_of(table)) >= 0))


def restarts(steps: int) -> int:
    """How often Restart may go up again: A1111's rule."""
    return 0 if steps < 20 else 1 if steps < 36 else 2


def check_churn(table, calm, s_churn, s_tmin, s_tmax, s_noise) -> None:
    """arXiv 2206.00364, algorithm 2: levels t_i fall as without churn (`calm`), and step i starts from (1 + gamma_i) t_i.

    What lifts x there is drawn at the end of the step before: alpha sqrt(t'^2 - t^2) s_noise.
    """
    fall, starts = levels_of(calm), levels_of(table)
    assert np.all(np.diff(fall) < 0)
    gamma = np.where((fall >= s_tmin) & (fall <= s_tmax), min(s_churn / len(fall), 2**0.5 - 1), 0.0)
    np.testing.assert_allclose(starts, fall * (1 + gamma), rtol=1e-9)
    first = np.flatnonzero(np.diff(table.step, prepend=-1))[1:]
    drawn = table.update[first - 1, STATE.index("x"), BASIS.index("noise")]  # by the last row of the step before
    np.testing.assert_allclose(drawn, table.alpha[first] * np.sqrt(starts**2 - fall**2)[1:] * s_noise, rtol=1e-6, atol=1e-9)


def check_fast(table) -> None:
    """arXiv 2206.00927, section 3.4: solver steps of three evaluations, then what is left, each from below the one before.

    Each evaluation is a row; within a solver step its stages fall.
    """
    n, whole = len(table), len(table) // 3
    orders = [3] * (whole - 1) + [2, 1] if n % 3 == 0 else [3] * whole + [n % 3]
    firsts = np.cumsum([0, *orders])[:-1]
    assert sum(orders) == n and np.all(np.diff(levels_of(table)[firsts]) < 0)
    assert all(np.all(np.diff(some) < 0) for some in np.split(levels_of(table), firsts[1:]))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_evaluations_are_what_the_card_says(sampler):
    check_evaluations(sampler, (*range(1, 13), 20, 35, 36, 63))


@pytest.mark.slow
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_evaluations_are_what_the_card_says_for_many_steps(sampler):
    check_evaluations(sampler, (*range(13, 41), 100, 200, 10**9))


def check_evaluations(sampler, counts):
    """Whole schedules and parts of them, those that end clean and those that end above zero."""
    ladder, of_samplers, _ = listed("epsilon")
    info = next(i for i in of_samplers if i.id == sampler)
    for steps in sorted({min(n, info.max_steps) for n in counts}):
        assert len(compile_table(ladder, sampler, "exponential", steps)) == info.evaluations(steps), steps
        if steps <= 40:
            assert len(compile_table(ladder, sampler, "kl_optimal_open", steps)) == info.evaluations(steps, ends_open=True), steps
        if 2 < steps <= 40:
            cut, late = (compile_table(ladder, sampler, "exponential", steps, **part) for part in ({"end": 0.5}, {"strength": 0.5}))
            assert len(cut) == info.evaluations(round(0.5 * steps), ends_open=True) and len(late) == info.evaluations(steps // 2), steps


# These land at the first training level, on some schedules or on all, and LCM keeps a trace of x: held against their references only.
ABOVE_ZERO = ("ddim", "pndm", "deis", "sa_solver", "sa_solver_pece", "tcd", "dpm_fast", "lcm")

# Third order from sigma = 4096 in few steps, with the published rules (docs/LOG.md).
OVERSHOOT = (("dpm_fast", "zero_snr"), ("dpmpp_3m_sde", "zero_snr"))


def missed(table) -> float:
    """How far the end is from the picture, where the model knows only that one: the last step lands clean, the weights of all add up."""
    knows = dataclasses.replace(table, c_skip=np.zeros(len(table)), c_out=np.ones(len(table)))
    return float(abs(run_table(knows, lambda x, t: np.full_like(x, 0.7), noises((1, 1, 2, 2)))[-1] - 0.7).max())


@pytest.mark.parametrize("ladder", CONFIGS)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_listed_pair_works(ladder, sampler):
    check_pairs(ladder, sampler, (1, 2, 3, 7, 16, 25))


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("ladder", CONFIGS)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_listed_pair_works_with_other_numbers_of_steps(ladder, sampler):
    check_pairs(ladder, sampler, (4, 5, 6, 8, 9, 10, 12, 15, 20, 30, 40, 50))


def check_pairs(ladder, sampler, counts):
    (model, of_samplers, of_schedules), network = listed(ladder), mixture(ladder)
    info = next(i for i in of_samplers if i.id == sampler)
    for schedule, steps in itertools.product(of_schedules, counts):
        if steps > min(info.max_steps, schedule.max_steps):
            continue
        table = compile_table(model, sampler, schedule.id, steps, {}, schedule_options(schedule.id, steps))
        assert info.min_steps <= 3 and min(info.max_steps, schedule.max_steps) >= 25
        assert len(table) == info.evaluations(steps, ends_open=schedule.ends_open) and table.step[-1] == steps - 1
        assert rises(table) <= (restarts(steps) if sampler == "restart" else 0), (schedule.id, steps)
        end = run_table(table, network, noises((1, 4, 2, 2)))
        assert np.isfinite(end).all(), (schedule.id, steps)
        bound = 300 if (sampler, ladder) in OVERSHOOT else 50  # the data stays within 3; 14 is the noise
        assert steps < 3 or abs(end[-1]).max() < bound, (schedule.id, steps)
        if steps in (1, 3, 10, 16) and not schedule.ends_open and sampler not in ABOVE_ZERO:
            assert missed(table) < 1e-7, (schedule.id, steps)


@cache
def listed(name: str):
    ladder = Ladder.from_config(CONFIGS[name])
    return ladder, catalog(ladder), schedules.catalog(ladder)


def values(info: OptionInfo, steps: int):
    if info.choices:
        return st.sampled_from(info.choices)
    if info.falling:
        numbers = st.lists(st.floats(1e-3, info.maximum), min_size=steps, max_size=steps, unique_by=lambda x: round(np.log(x), 2))
        return numbers.map(lambda some: [*sorted(some, reverse=True), 0.0])
    return st.integers(int(info.minimum), int(info.maximum)) if info.integer else st.floats(info.minimum, info.maximum)


@st.composite
def requests(draw):
    ladder, of_samplers, of_schedules = listed(draw(st.sampled_from(list(CONFIGS))))
    sampler, schedule = draw(st.sampled_from(of_samplers)), draw(st.sampled_from(of_schedules))
    steps = draw(st.integers(1, min(20 if schedule.id == "custom" else 120, sampler.max_steps, schedule.max_steps)))
    of_sampler, of_schedule = ({k: draw(values(v, steps)) for k, v in info.options.items()} for info in (sampler, schedule))
    assume(of_schedule.get("end", 1.0) - of_schedule.get("start", 0.0) > 0.05)
    return ladder, sampler.id, schedule.id, steps, of_sampler, of_schedule


@settings(max_examples=200, deadline=None, derandomize=True)
@given(requests())
def test_no_legal_request_gives_infinities(request):
    try:
        table = compile_table(*request)
    except ValueError as error:
        assert "distinct levels" in str(error) and request[5]  # only extreme shapes of a curve may be refused
        return
    for column in (table.alpha, table.sigma, table.timestep, table.c_skip, table.c_out, table.update, [table.init]):
        assert np.isfinite(column).all()
    assert SCHEDULES[request[2]].ends_open or request[1] in ABOVE_ZERO or missed(table) < 1e-6
    churn = {name: value for name, value in request[4].items() if name in ("s_churn", "s_tmin", "s_tmax", "s_noise")}
    if request[4].get("s_churn"):
        check_churn(table, compile_table(*request[:4], {**request[4], "s_churn": 0.0}, request[5]), **churn)
    elif request[1] == "dpm_fast":
        check_fast(table)
    else:
        assert rises(table) <= (restarts(request[3]) if request[1] == "restart" else 0)
    assert table.timestep.min() >= 0 and table.timestep.max() <= 999


@pytest.mark.parametrize("prediction_type", ["v_prediction", "sample"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_prediction_types_agree(sampler, prediction_type):
    """The same denoiser behind another output draws the same picture; but PLMS extrapolates whatever the model says, as in diffusers."""
    paths = []
    for kind in ("epsilon", prediction_type):
        ladder = Ladder.from_config(EPSILON | {"prediction_type": kind})
        paths.append(run_table(compile_table(ladder, sampler, "trailing", 8), Mixture().network(ladder), noises(SHAPE)))
    assert (difference(*paths) < 1e-6) != ((sampler, prediction_type) == ("pndm", "v_prediction"))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.sampled_from(list(CONFIGS)),
    st.sampled_from(["euler", "heun", "dpm2"]),
    st.sampled_from([id for id, one in SCHEDULES.items() if id != "custom" and not one.for_flow]),
    st.integers(1, 40),
    st.floats(0.01, 60.0),
    st.floats(0.0, 4.0),
    st.floats(0.0, 40.0),
    st.floats(0.0, 2.0),
)
def test_churn_lifts_by_the_factor_of_the_paper_and_levels_fall(ladder, sampler, schedule, steps, s_churn, s_tmin, width, s_noise):
    churn = {"s_churn": s_churn, "s_tmin": s_tmin, "s_tmax": s_tmin + width, "s_noise": s_noise}
    model = listed(ladder)[0]
    table, calm = (compile_table(model, sampler, schedule, steps, options) for options in (churn, {}))
    check_churn(table, calm, **churn)


@pytest.mark.parametrize("ladder", CONFIGS)
@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_solver_steps_of_dpm_fast_fall_also_with_noise(ladder, eta):
    for schedule, steps in itertools.product(("exponential", "karras", "trailing", "cosine", "kl_optimal_open"), range(1, 41)):
        check_fast(compile_table(listed(ladder)[0], "dpm_fast", schedule, steps, {"eta": eta}))


def test_restart_draws_without_its_interval():
    """Levels that do not reach over sigma = 2 to 0.1 are taken by Heun, every one of them."""
    ladder, sigmas = Ladder.from_config(EPSILON), [*np.linspace(14.0, 3.0, 25), 0.0]
    table, heun = (compile_table(ladder, sampler, "custom", 25, {}, {"sigmas": sigmas}) for sampler in ("restart", "heun"))
    assert not table.noisy.any()
    np.testing.assert_allclose(table.update[:, :2, :3], heun.update[:, :2, :3], rtol=1e-12)


def test_equal_requests_share_one_read_only_table():
    one, two = (compile_table(Ladder.from_config(dict(ZERO_SNR)), "euler_a", "karras", 9, {"eta": 0.5}) for _ in range(2))
    assert one is two
    with pytest.raises(ValueError, match="read-only"):
        one.update[0] = 0.0


def test_memories_shift_in_the_update():
    update = compile_table(Ladder.from_config(EPSILON), "unipc", "trailing", 8, {"order": 3}).update
    state, basis = STATE.index, BASIS.index
    assert np.all(update[:, state("m1"), basis("denoised")] == 1.0)
    assert np.all(update[:, state("m2"), basis("m1")] == 1.0) and np.all(update[:, state("m3"), basis("m2")] == 1.0)
    assert not update[:, state("m4") :].any()


@pytest.mark.parametrize(("arguments", "message"), [
    (("eulr", "auto", 5), "unknown sampler 'eulr'.*dpmpp_2m"),
    (("euler", "kerras", 5), "unknown schedule 'kerras'.*karras"),
    (("edm_euler", "auto", 5), "unknown sampler 'edm_euler'"),
    (("euler", "auto", 0), "steps must be at least 1"),
    (("ddpm", "auto", 5, {"eta": 1.0}), "sampler 'ddpm' has no option 'eta': it has none"),
    (("euler", "auto", 5, {"eta": 1.0}), "sampler 'euler' has no option 'eta': its options are s_churn"),
    (("euler_a", "auto", 5, {"et": 1.0}), "no option 'et': its options are eta, s_noise"),
    (("ddim", "auto", 5, {"eta": 1.5}), "'eta'.*between 0.0 and 1.0"),
    (("ddim", "auto", 5, {"eta": float("nan")}), "'eta'.*must be a number"),
    (("ddim", "auto", 5, {"eta": True}), "'eta'.*must be a number"),
    (("unipc", "auto", 5, {"order": 2.5}), "'order'.*whole number"),
    (("unipc", "auto", 5, {"solver_type": "bh3"}), "'solver_type'.*bh1, bh2"),
    (("lcm", "auto", 51), "lcm schedule has 50 levels"),
    (("euler", "karras", 5, {}, {"rho": 0.1}), "'rho' of the schedule 'karras'"),
    (("euler", "cosine", 5, {}, {"start": 0.9}), "'start' of the schedule 'cosine'"),
    (("euler", "trailing", 1001), "1001 distinct levels|beyond"),
])  # fmt: skip
def test_what_has_no_table_is_refused_in_one_sentence(arguments, message):
    with pytest.raises(ValueError, match=message):
        compile_table(Ladder.from_config(EPSILON), *arguments)


# The samplers that the service promises, by families; further ones may come.
PROMISED = (
    "euler", "euler_a", "heun", "heunpp2", "exp_heun_2_x0", "exp_heun_2_x0_sde", "dpm2", "dpm2_a", "lms", "dpm_fast", "dpmpp_2m",
    "dpmpp_3m", "dpmpp_2m_sde", "dpmpp_2m_sde_heun", "dpmpp_3m_sde", "dpmpp_sde", "dpmpp_2s_a", "dpmpp_1s", "dpmpp_2s", "ddim", "ddpm",
    "pndm", "ipndm", "ipndm_v", "deis", "unipc", "sa_solver", "sa_solver_pece", "er_sde", "res_multistep", "res_multistep_ancestral",
    "gradient_estimation", "seeds_2", "seeds_3", "lcm", "tcd", "restart", "edm_euler", "euler_cfgpp", "euler_a_cfgpp", "dpmpp_2m_cfgpp",
    "dpmpp_2s_a_cfgpp", "res_multistep_cfgpp", "gradient_estimation_cfgpp",
)  # fmt: skip


def test_every_promised_sampler_is_there_with_its_options():
    known = samplers_of("edm")
    assert set(PROMISED) <= set(known) and set(known) - set(PROMISED) == {"dpmpp_3s", "res_multistep_ancestral_cfgpp"}
    assert set(PROMISED) - set(SAMPLERS) == {"edm_euler"}, "only models of EDM's space have it"
    for sampler, options in {
        "ddim": {"eta"},
        "euler": {"s_churn", "s_noise"},
        "euler_a": {"eta", "s_noise"},
        "tcd": {"gamma"},
        "gradient_estimation": {"gamma"},
        "unipc": {"order", "solver_type"},
        "sa_solver": {"predictor_order", "corrector_order"},
        "er_sde": {"stages"},
    }.items():
        assert options <= set(known[sampler].options), sampler
    assert known["unipc"].options["order"].maximum == 3 and known["unipc"].options["solver_type"].choices == ("bh1", "bh2")
    assert known["dpmpp_2m_sde"].rows is not known["dpmpp_2m_sde_heun"].rows


def test_names_are_unique_and_options_have_lawful_defaults():
    ladder = Ladder.from_config(EPSILON)
    for infos in (catalog(ladder), schedules.catalog(ladder)):
        words = [w.lower() for i in infos for w in {i.id, i.name.lower(), *i.aliases}]
        assert len(words) == len(set(words))
    assert {i.id: i.name for i in catalog(ladder)}["euler_a"] == "Euler a"
