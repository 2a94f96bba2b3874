"""Every sampler's table against diffusers over whole trajectories, its order of convergence, and its limits."""

from __future__ import annotations

import dataclasses
import itertools
from functools import cache

import diffusers
import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from oracles import CONFIGS, EPSILON, ZERO_SNR, Mixture, accepts, difference, drive, noises, run_table, scheduler

from pipelines import schedules
from pipelines.card import OptionInfo
from pipelines.ladder import Ladder
from pipelines.samplers import SAMPLERS, catalog, compile_table
from pipelines.schedules import SCHEDULES
from pipelines.step_table import BASIS, STATE

pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")  # the reference, on numpy 2

SHAPE = (1, 4, 4, 4)
SPACED = ("leading", "trailing", "linspace")
# Whether the highest level of the reference is the ladder's: if not, one step of it starts in the middle.
STARTS_HIGH = {"trailing": SAMPLERS, "linspace": ("dpmpp_2m", "dpmpp_2m_sde", "unipc"), "lcm": ("lcm",)}


def settings_for(sampler: str, schedule: str) -> dict[str, object] | None:
    """The reference's settings for a schedule, or None where it has no such thing."""
    if sampler == "lcm":
        return {} if schedule == "lcm" else None
    if schedule in SPACED:
        return {"timestep_spacing": schedule}
    return {f"use_{schedule}_sigmas": True} if accepts(sampler, f"use_{schedule}_sigmas") else None


def starts_high(sampler: str, schedule: str, ladder: Ladder) -> bool:
    spans_ladder = schedule in ("karras", "exponential") and SAMPLERS[sampler].convention.full_range
    base = schedule if schedule in (*SPACED, "lcm") else ladder.spacing or "linspace"
    return spans_ladder or sampler in STARTS_HIGH.get(base, ())


PAIRS = [
    (ladder, sampler, schedule)
    for ladder in CONFIGS
    for sampler in SAMPLERS
    for schedule in (*SPACED, "karras", "exponential", "lcm")
    if settings_for(sampler, schedule) is not None
]
# diffusers floors these timesteps, and a last digit of float32 decides: they are compared as they are.
FLOORED = [p for p in PAIRS if p[2] == "exponential" and SAMPLERS[p[1]].convention.exponential_time == "floor"]
# At sigma = 4096 the float32 inside these classes costs up to three digits: they are compared in float64 only.
LOSSY = [p for p in PAIRS if p[0] == "zero_snr" and p[1] in ("euler", "euler_a", "heun", "dpm2") and p[2] != "leading"]
# Heun divides by alpha = 0 in the reference; ours has a step of its own there, tested below.
ALONE = [p for p in PAIRS if p[:2] == ("zero_snr", "heun")]


@cache
def mixture(ladder: str):
    return Mixture().network(Ladder.from_config(CONFIGS[ladder]))


@cache
def tiny_unet():
    """A random U-Net of diffusers, as a model of timesteps; float64."""
    torch.manual_seed(0)
    blocks = {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
    }
    unet = diffusers.UNet2DConditionModel(sample_size=8, norm_num_groups=4, cross_attention_dim=8, attention_head_dim=4, **blocks)
    unet, words = unet.double().eval(), torch.randn(1, 3, 8, dtype=torch.float64)

    @torch.inference_mode()
    def model(x, timestep):
        return unet(torch.from_numpy(x), float(np.float32(timestep)), encoder_hidden_states=words).sample.numpy()

    return model


def differences(pair, counts, network, *, clean: bool, options=None, step=None, shape=SHAPE, **more) -> dict[int, float]:
    """steps -> largest relative difference on the whole trajectory."""
    ladder, sampler, schedule = pair
    reference = scheduler(sampler, CONFIGS[ladder], **settings_for(sampler, schedule), **more)
    found = {}
    for steps in counts:
        theirs = drive(reference, network, steps, noises(shape), clean=clean, **(step or {}))
        table = compile_table(Ladder.from_config(CONFIGS[ladder]), sampler, schedule, steps, options)
        found[steps] = difference(run_table(table, network, noises(shape)), theirs)
    return found


@pytest.mark.parametrize("pair", [p for p in PAIRS if p not in FLOORED + ALONE], ids="-".join)
def test_table_equals_diffusers_in_float64(pair):
    counts = [n for n in (1, 2, 3, 7, 20) if n > 1 or starts_high(pair[1], pair[2], Ladder.from_config(CONFIGS[pair[0]]))]
    # 2e-6 for dpm2: its middle levels lie where the float32 logarithms of the ladder show
    tolerance = 2e-6 if pair[1] == "dpm2" else 1e-6
    found = differences(pair, counts, mixture(pair[0]), clean=True)
    assert all(d <= tolerance for d in found.values()), found


@pytest.mark.parametrize("pair", [p for p in PAIRS if p not in LOSSY + ALONE], ids="-".join)
def test_table_equals_diffusers_as_it_is(pair):
    found = differences(pair, (3, 7, 20), mixture(pair[0]), clean=False)
    assert all(d <= 1e-5 for d in found.values()), found


@pytest.mark.parametrize("pair", [p for p in PAIRS if p[2] in ("trailing", "karras", "lcm") and p not in ALONE], ids="-".join)
def test_table_equals_diffusers_on_a_unet(pair):
    found = differences(pair, (3, 7), tiny_unet(), clean=True, shape=(1, 4, 8, 8))
    assert all(d <= 1e-5 for d in found.values()), found


@pytest.mark.parametrize(("pair", "options", "of_class", "of_step"), [
    (("epsilon", "ddim", "leading"), {"eta": 0.5}, {}, {"eta": 0.5}),
    (("zero_snr", "ddim", "trailing"), {"eta": 1.0}, {}, {"eta": 1.0}),
    (("epsilon", "ddim", "leading"), {"eta": 0.3}, {"set_alpha_to_one": True}, {"eta": 0.3}),
    (("epsilon", "unipc", "linspace"), {"order": 1}, {"solver_order": 1}, {}),
    (("epsilon", "unipc", "linspace"), {"order": 3}, {"solver_order": 3}, {}),
    (("zero_snr", "unipc", "karras"), {"order": 3}, {"solver_order": 3}, {}),
], ids=str)  # fmt: skip
def test_options_equal_diffusers(pair, options, of_class, of_step, monkeypatch):
    monkeypatch.setitem(CONFIGS, pair[0], CONFIGS[pair[0]] | {k: v for k, v in of_class.items() if k == "set_alpha_to_one"})
    # not 2 steps: there the reference's DDIM at eta = 1 takes the root of -1e-17
    found = differences(pair, (3, 7, 20), mixture(pair[0]), clean=True, options=options, step=of_step, **of_class)
    assert all(d <= 1e-6 for d in found.values()), found


@pytest.mark.parametrize("order", [1, 2, 3])
def test_unipc_bh1_equals_diffusers_until_its_end(order):
    """The reference's bh1 ends in 0 * infinity = NaN; ours ends in the last denoised."""
    ladder, network = Ladder.from_config(EPSILON), mixture("epsilon")
    reference = scheduler("unipc", EPSILON, solver_order=order, solver_type="bh1")
    theirs = drive(reference, network, 10, noises(SHAPE))
    ours = run_table(compile_table(ladder, "unipc", "linspace", 10, {"order": order, "solver_type": "bh1"}), network, noises(SHAPE))
    assert np.isnan(theirs[-1]).all() and np.isfinite(ours).all()
    assert difference(ours[:-1], theirs[:-1]) <= 1e-6


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "unipc", "euler"])
@pytest.mark.parametrize("schedule", ["karras", "trailing", "leading"])
def test_squared_cosine_ladder_equals_diffusers(sampler, schedule):
    """DPM-Solver floors karras timesteps on this ladder and rounds them on others."""
    config = {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction"}
    ladder = Ladder.from_config(config)
    network = Mixture().network(ladder)
    reference = scheduler(sampler, config, **settings_for(sampler, schedule))
    theirs = drive(reference, network, 12, noises(SHAPE))
    assert difference(run_table(compile_table(ladder, sampler, schedule, 12), network, noises(SHAPE)), theirs) <= 1e-6


@pytest.mark.parametrize("ladder", CONFIGS)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_one_step_goes_from_the_highest_level_to_the_end(ladder, sampler):
    for schedule in SCHEDULES:
        table = compile_table(Ladder.from_config(CONFIGS[ladder]), sampler, schedule, 1)
        # 998: diffusers floors what float32 leaves of 999 (DPM-Solver and UniPC with exponential)
        assert len(table) == 1 and table.timestep[0] == pytest.approx(999.0, abs=1.0), schedule


# --- order of convergence -----------------------------------------------------------------------------------------------

ORDERS = {"ddim": 1, "euler": 1, "heun": 2, "dpm2": 2, "dpmpp_2m": 2, "unipc": 3}  # UniPC-2 with its corrector: 3


def at_last_level(table) -> np.ndarray:
    """x at the lowest level above zero, the model asked at the levels themselves."""
    model, levels = Mixture(), dict(zip(range(len(table)), zip(table.alpha, table.sigma, strict=True), strict=True))
    by_row = dataclasses.replace(table, timestep=np.arange(len(table)))
    return run_table(by_row, lambda x, row: model.output(x, *levels[row], "epsilon"), noises(SHAPE))[-2]


@cache
def limit() -> np.ndarray:
    return at_last_level(compile_table(Ladder.from_config(EPSILON), "unipc", "exponential", 2000, {"order": 3}))


@pytest.mark.parametrize(("sampler", "options", "order"), [
    *((sampler, None, order) for sampler, order in ORDERS.items()),
    *(("unipc", {"order": p, "solver_type": b}, p + 1) for p in (1, 2, 3) for b in ("bh1", "bh2")),
], ids=str)  # fmt: skip
def test_deterministic_samplers_have_their_order(sampler, options, order):
    steps = np.array([40, 80, 160, 320])
    tables = [compile_table(Ladder.from_config(EPSILON), sampler, "exponential", int(n) + 1, options) for n in steps]
    errors = [abs(at_last_level(dataclasses.replace(t, init=1.0)) - limit()).max() for t in tables]
    slope = -np.polyfit(np.log(steps), np.log(errors), 1)[0]
    assert slope == pytest.approx(order, abs=0.3), slope


@pytest.mark.parametrize("schedule", ["trailing", "linspace", "karras", "exponential", "cosine"])
def test_heun_reaches_the_picture_from_zero_snr(schedule):
    """Plain Heun from sigma = 4096 misses by hundreds at 3 steps."""
    ladder, network = Ladder.from_config(ZERO_SNR), mixture("zero_snr")
    exact = run_table(compile_table(ladder, "unipc", "trailing", 200), network, noises(SHAPE))[-1]
    missed = [abs(run_table(compile_table(ladder, "heun", schedule, n), network, noises(SHAPE))[-1] - exact).max() for n in (3, 8, 25)]
    assert missed[0] < 1.0 and missed[1] < 0.8 and missed[2] < 0.2, missed


@pytest.mark.parametrize("sampler", ["ddpm", "euler_a", "dpmpp_2m_sde", "ddim"])
@pytest.mark.parametrize("ladder", CONFIGS)
def test_stochastic_samplers_end_with_the_variance_of_a_gaussian(sampler, ladder):
    """On x0 ~ N(0, s^2) the denoised is linear in x, so that the covariance of the registers can be carried exactly."""
    target, options = 0.6, {"eta": 1.0} if sampler == "ddim" else None
    table = compile_table(Ladder.from_config(CONFIGS[ladder]), sampler, "exponential", 600, options)
    covariance = np.zeros((len(STATE), len(STATE)))
    covariance[0, 0] = table.init**2
    for row, (alpha, sigma) in enumerate(zip(table.alpha, table.sigma, strict=True)):
        update, gain = table.update[row], alpha * target**2 / (alpha**2 * target**2 + sigma**2)
        carried = update[:, [BASIS.index(name) for name in STATE]]
        carried[:, 0] += gain * update[:, BASIS.index("denoised")]
        fresh = update[:, BASIS.index("noise")]
        covariance = carried @ covariance @ carried.T + np.outer(fresh, fresh)
    assert np.sqrt(covariance[0, 0]) == pytest.approx(target, rel=0.02)


# --- every combination ---------------------------------------------------------------------------------------------------


def levels_of(table) -> np.ndarray:
    """sigma / alpha of the rows that begin a step."""
    first = np.flatnonzero(np.diff(table.step, prepend=-1))
    return table.sigma[first] / np.maximum(table.alpha[first], 1e-300)


@pytest.mark.parametrize("ladder", CONFIGS)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_listed_pair_works(ladder, sampler):
    model, network = Ladder.from_config(CONFIGS[ladder]), mixture(ladder)
    info = next(i for i in catalog(model) if i.id == sampler)
    for schedule, steps in itertools.product(schedules.catalog(model), (1, 2, 3, 4, 7, 15, 16, 25)):
        table = compile_table(model, sampler, schedule.id, steps)
        assert info.min_steps <= 3 and min(info.max_steps, schedule.max_steps) >= 25
        assert len(table) == info.evaluations(steps) and table.step[-1] == steps - 1
        assert np.all(np.diff(levels_of(table)) < 0), (schedule.id, steps)
        end = run_table(table, network, noises((1, 4, 2, 2)))
        assert np.isfinite(end).all(), (schedule.id, steps)
        assert steps < 3 or abs(end[-1]).max() < 10, (schedule.id, steps)  # the data stays within 3


def values(info: OptionInfo):
    if info.choices:
        return st.sampled_from(info.choices)
    return st.integers(int(info.minimum), int(info.maximum)) if info.integer else st.floats(info.minimum, info.maximum)


@st.composite
def requests(draw):
    ladder = Ladder.from_config(CONFIGS[draw(st.sampled_from(list(CONFIGS)))])
    sampler, schedule = draw(st.sampled_from(catalog(ladder))), draw(st.sampled_from(schedules.catalog(ladder)))
    steps = draw(st.integers(1, min(120, sampler.max_steps, schedule.max_steps)))
    of_sampler, of_schedule = ({k: draw(values(v)) for k, v in info.options.items()} for info in (sampler, schedule))
    assume(of_schedule.get("end", 1.0) - of_schedule.get("start", 0.0) > 0.05)
    return ladder, sampler.id, schedule.id, steps, of_sampler, of_schedule


@settings(max_examples=300, deadline=None, derandomize=True)
@given(requests())
def test_no_legal_request_gives_infinities(request):
    try:
        table = compile_table(*request)
    except ValueError as error:
        assert "distinct levels" in str(error) and request[5]  # only extreme shapes of a curve may be refused
        return
    for column in (table.alpha, table.sigma, table.timestep, table.c_skip, table.c_out, table.update, [table.init]):
        assert np.isfinite(column).all()
    assert np.all(np.diff(levels_of(table)) < 0)
    assert table.timestep.min() >= 0 and table.timestep.max() <= 999


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_prediction_types_agree(sampler, prediction_type):
    """The same denoiser behind another output draws the same picture."""
    paths = []
    for kind in ("epsilon", prediction_type):
        ladder = Ladder.from_config(EPSILON | {"prediction_type": kind})
        paths.append(run_table(compile_table(ladder, sampler, "trailing", 8), Mixture().network(ladder), noises(SHAPE)))
    assert difference(*paths) < 1e-6


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
    (("euler", "auto", 0), "steps must be at least 1"),
    (("euler", "auto", 5, {"eta": 1.0}), "sampler 'euler' has no option 'eta': it has none"),
    (("euler_a", "auto", 5, {"et": 1.0}), "no option 'et': its options are eta, s_noise"),
    (("ddim", "auto", 5, {"eta": 1.5}), "'eta'.*between 0.0 and 1.0"),
    (("ddim", "auto", 5, {"eta": float("nan")}), "'eta'.*must be a number"),
    (("ddim", "auto", 5, {"eta": True}), "'eta'.*must be a number"),
    (("unipc", "auto", 5, {"order": 2.5}), "'order'.*whole number"),
    (("unipc", "auto", 5, {"solver_type": "bh3"}), "'solver_type'.*bh1, bh2"),
    (("lcm", "auto", 51), "lcm schedule has 50 levels"),
    (("euler", "karras", 5, {}, {"rho": 0.1}), "'rho' of the schedule 'karras'"),
    (("euler", "cosine", 5, {}, {"start": 0.9, "end": 0.5}), "start must be smaller than end"),
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
