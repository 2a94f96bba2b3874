"""Every sampler's table against diffusers' scheduler over whole trajectories."""

from __future__ import annotations

import itertools
import re
from functools import cache, partial

import numpy as np
import pytest
import torch

from oracles import CONFIGS, EPSILON, REFERENCES, Mixture, accepts, difference, drive, noises, run_table, scheduler, tiny_unet
from oracles_sigma import chosen
from pipelines.ladder import Ladder
from pipelines.sampler_list import SAMPLERS
from pipelines.samplers import compile_table
from pipelines.schedule_list import SCHEDULES

pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")  # the reference, on numpy 2

SHAPE = (1, 4, 4, 4)
SPACED = ("leading", "trailing", "linspace")
# Whether the highest level of the reference is the ladder's: if not, one step of it starts in the middle.
STARTS_HIGH = {"trailing": SAMPLERS, "linspace": [s for s in SAMPLERS if SAMPLERS[s].convention.drops_last], "lcm": ("lcm", "tcd")}


def settings_for(sampler: str, schedule: str) -> dict[str, object] | None:
    """The reference's settings for a schedule, or None where it has no such thing."""
    if sampler in ("lcm", "tcd"):
        return {} if schedule == "lcm" else None
    if schedule in SPACED:
        return {"timestep_spacing": schedule} if accepts(sampler, "timestep_spacing") or schedule == "linspace" else None
    return {f"use_{schedule}_sigmas": True} if accepts(sampler, f"use_{schedule}_sigmas") else None


def starts_high(sampler: str, schedule: str, ladder: Ladder) -> bool:
    spans_ladder = schedule in ("karras", "exponential") and SAMPLERS[sampler].convention.full_range
    base = schedule if schedule in (*SPACED, "lcm") else ladder.spacing or "linspace"
    return spans_ladder or sampler in STARTS_HIGH.get(base, ())


PAIRS = [
    (ladder, sampler, schedule)
    for ladder in CONFIGS
    for sampler in REFERENCES
    for schedule in (*SPACED, "karras", "exponential", "lcm")
    if settings_for(sampler, schedule) is not None
]
# diffusers floors these timesteps, and a last digit of float32 decides: they are compared as they are.
FLOORED = [p for p in PAIRS if p[2] == "exponential" and SAMPLERS[p[1]].convention.exponential_time == "floor"]
# At sigma = 4096 the float32 inside these classes costs up to three digits: they are compared in float64 only.
FRAGILE = ("euler", "euler_a", "heun", "dpm2", "dpmpp_sde", "deis", "lms")
LOSSY = [p for p in PAIRS if p[0] == "zero_snr" and p[1] in FRAGILE and p[2] != "leading"]
# Heun, DPM2 a and PNDM know no zero terminal SNR; ours have a step of their own there, tested elsewhere.
ALONE = [p for p in PAIRS if p[0] == "zero_snr" and p[1] in ("heun", "dpm2_a", "pndm")]


def repeats_last(pair) -> bool:
    """The reference's SA-Solver and DEIS end these schedules with a step from the lowest level to itself; ours goes to zero."""
    return pair[1] in ("sa_solver", "deis") and pair[2] in ("karras", "exponential")


def spaced(sampler) -> str:
    return "trailing" if accepts(sampler, "timestep_spacing") else "linspace"


@cache
def mixture(ladder: str):
    return Mixture().network(Ladder.from_config(CONFIGS[ladder]))


def differences(pair, counts, network, *, clean: bool, options=None, step=None, shape=SHAPE, strength=1.0, **more) -> dict[int, float]:
    """steps -> largest relative difference on the whole trajectory; below strength 1 it begins on a picture."""
    ladder, sampler, schedule = pair
    reference = scheduler(sampler, CONFIGS[ladder], **settings_for(sampler, schedule), **more)
    picture = None if strength == 1.0 else next(noises(shape, seed=1))
    found = {}
    for steps in counts:
        theirs = drive(reference, network, steps, noises(shape), clean=clean, picture=picture, strength=strength, **(step or {}))
        table = compile_table(Ladder.from_config(CONFIGS[ladder]), sampler, schedule, steps, options, strength=strength)
        ours, until = run_table(table, network, noises(shape), picture=picture), -1 if repeats_last(pair) else None
        found[steps] = difference(ours[:until], theirs[:until])
    return found


@pytest.mark.parametrize("pair", [p for p in PAIRS if p not in FLOORED + ALONE], ids="-".join)
def test_table_equals_diffusers_in_float64(pair):
    counts = [n for n in (1, 2, 3, 7, 20) if n > 1 or starts_high(pair[1], pair[2], Ladder.from_config(CONFIGS[pair[0]]))]
    # 2e-6 for dpm2: its middle levels lie where the float32 logarithms of the ladder show
    tolerance = 2e-6 if pair[1] == "dpm2" else 1e-6
    found = differences(pair, counts, mixture(pair[0]), clean=True)
    assert all(d <= tolerance for d in found.values()), found


# The reference's LMS takes weights for a history that it has not, which k-diffusion's does not (`test_sampler_loops`); its SA-Solver
# noises a picture to the rounded karras timestep.
ELSEWHERE = [p for p in PAIRS if p[1] == "lms" or p[1:] == ("sa_solver", "karras")]


@pytest.mark.parametrize("pair", [p for p in PAIRS if p not in FLOORED + ALONE + ELSEWHERE], ids="-".join)
def test_table_equals_diffusers_on_a_picture(pair):
    tolerance = 2e-6 if pair[1] == "dpm2" else 1e-6
    found = differences(pair, (2, 3, 7, 20), mixture(pair[0]), clean=True, strength=0.6)
    assert all(d <= tolerance for d in found.values()), found


# Those that only diffusers has. Its SA-Solver and DEIS cannot end clean, as ours do where a schedule goes down to the lowest level.
# Schedules that end above zero are left out: its orders fall there all the same.
ITS_OWN = ("unipc", "dpmpp_1s", "dpmpp_2s", "dpmpp_3s", "dpmpp_3m", "deis", "sa_solver")
OF_OTHERS = [s for s, one in SCHEDULES.items() if s not in ("auto", *SPACED, "lcm", "custom") and not one.for_flow]


@pytest.mark.parametrize("sampler", ITS_OWN)
@pytest.mark.parametrize("ladder", CONFIGS)
def test_table_equals_diffusers_on_levels_that_it_is_given(sampler, ladder, monkeypatch):
    """Schedules that diffusers does not have, put into its class: its rule on our levels."""
    model, network, found = Ladder.from_config(CONFIGS[ladder]), mixture(ladder), {}
    for schedule, steps in itertools.product(OF_OTHERS, (2, 3, 7, 20)):
        path = chosen(model, sampler, schedule, steps)
        if SCHEDULES[schedule].ends_open or (path.sigma[-1] == 0.0) == SAMPLERS[sampler].convention.ends_low:
            continue
        reference = scheduler(sampler, CONFIGS[ladder])
        monkeypatch.setattr(reference, "set_timesteps", partial(give, reference, path, reference.set_timesteps))
        theirs = drive(reference, network, steps, noises(SHAPE))
        found[schedule, steps] = difference(run_table(compile_table(model, sampler, schedule, steps), network, noises(SHAPE)), theirs)
    assert len(found) >= 4 * 12 and all(d <= 1e-6 for d in found.values()), found


def give(reference, path, set_timesteps, steps) -> None:
    set_timesteps(steps)
    reference.sigmas, reference.timesteps = torch.tensor(path.sigma / path.alpha), torch.tensor(path.timestep[:-1])


@pytest.mark.parametrize("pair", [p for p in PAIRS if p not in LOSSY + ALONE], ids="-".join)
def test_table_equals_diffusers_as_it_is(pair):
    found = differences(pair, (3, 7, 20), mixture(pair[0]), clean=False)
    assert all(d <= 1e-5 for d in found.values()), found


@pytest.mark.parametrize("pair", [p for p in PAIRS if p[2] in ("karras", "lcm", spaced(p[1])) and p not in ALONE], ids="-".join)
def test_table_equals_diffusers_on_a_unet(pair):
    found = differences(pair, (3, 7), tiny_unet(), clean=True, shape=(1, 4, 8, 8))
    assert all(d <= 1e-5 for d in found.values()), found


def told(value: object) -> str:
    """The same in every process: without the addresses of functions."""
    return re.sub(r" at 0x[0-9a-f]+", "", str(value))


@pytest.mark.parametrize(("pair", "options", "of_class", "of_step"), [
    (("epsilon", "ddim", "leading"), {"eta": 0.5}, {}, {"eta": 0.5}),
    (("zero_snr", "ddim", "trailing"), {"eta": 1.0}, {}, {"eta": 1.0}),
    (("epsilon", "ddim", "leading"), {"eta": 0.3}, {"set_alpha_to_one": True}, {"eta": 0.3}),
    (("epsilon", "unipc", "linspace"), {"order": 1}, {"solver_order": 1}, {}),
    (("epsilon", "unipc", "linspace"), {"order": 3}, {"solver_order": 3}, {}),
    (("zero_snr", "unipc", "karras"), {"order": 3}, {"solver_order": 3}, {}),
    (("epsilon", "tcd", "lcm"), {"gamma": 0.0}, {}, {"eta": 0.0}),
    (("zero_snr", "tcd", "lcm"), {"gamma": 0.8}, {}, {"eta": 0.8}),
    (("epsilon", "tcd", "lcm"), {"gamma": 1.0}, {}, {"eta": 1.0}),
    *((("epsilon", "deis", "trailing"), {"order": k}, {"solver_order": k}, {}) for k in (1, 3)),
    (("zero_snr", "deis", "leading"), {"order": 3}, {"solver_order": 3}, {}),
    (("epsilon", "deis", "karras"), {"order": 3}, {"solver_order": 3}, {}),
    *((("epsilon", "lms", "trailing"), {"order": k}, {}, {"order": k}) for k in (1, 2, 3)),
    *(((ladder, "dpmpp_2m", "trailing"), {"solver_type": "heun"}, {"solver_type": "heun"}, {}) for ladder in CONFIGS),
    *(((ladder, f"dpmpp_{k}s", "karras"), {"solver_type": "heun"}, {"solver_type": "heun"}, {}) for k in (2, 3) for ladder in CONFIGS),
    (("epsilon", "sa_solver", "trailing"), {"predictor_order": 3, "corrector_order": 4}, {"predictor_order": 3, "corrector_order": 4}, {}),
    (("zero_snr", "sa_solver", "leading"), {"predictor_order": 1, "corrector_order": 3}, {"predictor_order": 1, "corrector_order": 3}, {}),
    (("epsilon", "sa_solver", "karras"), {"tau": 0.5, "tau_start": 0.0, "tau_end": 1.0}, {"tau_func": lambda t: 0.5}, {}),
    (("epsilon", "sa_solver", "linspace"), {"tau": 0.0}, {"tau_func": lambda t: 0.0}, {}),
], ids=told)  # fmt: skip
def test_options_equal_diffusers(pair, options, of_class, of_step, monkeypatch):
    monkeypatch.setitem(CONFIGS, pair[0], CONFIGS[pair[0]] | {k: v for k, v in of_class.items() if k == "set_alpha_to_one"})
    # not 2 steps: there the reference's DDIM at eta = 1 takes the root of -1e-17
    found = differences(pair, (3, 7, 20), mixture(pair[0]), clean=True, options=options, step=of_step, **of_class)
    assert all(d <= 1e-6 for d in found.values()), found


@pytest.mark.parametrize("spacing", SPACED)
@pytest.mark.parametrize("final", [False, True], ids=["ends low", "ends clean"])
def test_pndm_extrapolates_v_as_diffusers_does(spacing, final):
    config = EPSILON | {"prediction_type": "v_prediction", "set_alpha_to_one": final}
    ladder = Ladder.from_config(config)
    reference, network = scheduler("pndm", config, timestep_spacing=spacing), Mixture().network(ladder)
    for steps in (2, 3, 7, 20):
        theirs = drive(reference, network, steps, noises(SHAPE))
        assert difference(run_table(compile_table(ladder, "pndm", spacing, steps), network, noises(SHAPE)), theirs) <= 1e-6, steps


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("pair", "strength"), [
    pytest.param(pair, strength, id=f"{'-'.join(pair)}-{strength}")
    for strength in (1.0, 0.6)
    for pair in PAIRS
    if pair not in FLOORED + ALONE and (strength == 1.0 or pair not in ELSEWHERE)
])  # fmt: skip
def test_table_equals_diffusers_at_every_length(pair, strength):
    high = starts_high(pair[1], pair[2], Ladder.from_config(CONFIGS[pair[0]])) and strength == 1.0
    most = min(60, SAMPLERS[pair[1]].most or 60)
    found = differences(pair, range(1 if high else 2, most + 1), mixture(pair[0]), clean=True, strength=strength)
    assert all(d <= 2e-6 for d in found.values()), {n: d for n, d in found.items() if d > 2e-6}


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
