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
from pipelines.sampler_list import SAMPLERS
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


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_evaluations_are_what_the_card_says(sampler):
    """Whole schedules and parts of them, those that end clean and those that end above zero."""
    ladder, of_samplers, _ = listed("epsilon")
    info = next(i for i in of_samplers if i.id == sampler)
    for steps in [n for n in (*range(1, 41), 63, 100, 200, info.max_steps) if n <= info.max_steps]:
        assert len(compile_table(ladder, sampler, "exponential", steps)) == info.evaluations(steps), steps
        if steps <= 40:
            assert len(compile_table(ladder, sampler, "kl_optimal_open", steps)) == info.evaluations(steps, ends_open=True), steps
        if 2 < steps <= 40:
            cut, late = (compile_table(ladder, sampler, "exponential", steps, **part) for part in ({"end": 0.5}, {"strength": 0.5}))
            assert len(cut) == info.evaluations(round(0.5 * steps), ends_open=True) and len(late) == info.evaluations(steps // 2), steps


# These land at the first training level, on some schedules or on all, and LCM keeps a trace of x: held against their references only.
ABOVE_ZERO = ("ddim", "pndm", "deis", "sa_solver", "sa_solver_pece", "tcd", "dpm_fast", "lcm")


def missed(table) -> float:
    """How far the end is from the picture, where the model knows only that one: the last step lands clean, the weights of all add up."""
    knows = dataclasses.replace(table, c_skip=np.zeros(len(table)), c_out=np.ones(len(table)))
    return float(abs(run_table(knows, lambda x, t: np.full_like(x, 0.7), noises((1, 1, 2, 2)))[-1] - 0.7).max())


@pytest.mark.parametrize("ladder", CONFIGS)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_listed_pair_works(ladder, sampler):
    (model, of_samplers, of_schedules), network = listed(ladder), mixture(ladder)
    info = next(i for i in of_samplers if i.id == sampler)
    for schedule, steps in itertools.product(of_schedules, (1, 2, 3, 4, 7, 15, 16, 25)):
        table = compile_table(model, sampler, schedule.id, steps, {}, schedule_options(schedule.id, steps))
        assert info.min_steps <= 3 and min(info.max_steps, schedule.max_steps) >= 25
        assert len(table) == info.evaluations(steps, ends_open=schedule.ends_open) and table.step[-1] == steps - 1
        assert rises(table) <= (2 if sampler == "restart" else 0), (schedule.id, steps)
        end = run_table(table, network, noises((1, 4, 2, 2)))
        assert np.isfinite(end).all(), (schedule.id, steps)
        assert steps < 3 or abs(end[-1]).max() < 50, (schedule.id, steps)  # the data stays within 3; 14 is the noise
        if steps in (1, 3, 16) and not schedule.ends_open and sampler not in ABOVE_ZERO:
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
    # each evaluation of dpm_fast is a step, and with eta its stages lie below where the noise lifts it to
    lifted = request[4].get("s_churn") or (request[1] == "dpm_fast" and request[4]["eta"])
    lifts = 2 if request[1] == "restart" else request[3] if lifted else 0
    assert rises(table) <= lifts
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


def test_names_are_unique_and_options_have_lawful_defaults():
    ladder = Ladder.from_config(EPSILON)
    for infos in (catalog(ladder), schedules.catalog(ladder)):
        words = [w.lower() for i in infos for w in {i.id, i.name.lower(), *i.aliases}]
        assert len(words) == len(set(words))
    assert {i.id: i.name for i in catalog(ladder)}["euler_a"] == "Euler a"
