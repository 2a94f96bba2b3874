"""Every sampler's table against loops that others wrote or that follow a paper: `oracles_loops.Case`, one list per family.

Each on every schedule that both mean alike, in float64, over whole trajectories. A new sampler adds its Case to its family's list.
"""

from __future__ import annotations

from functools import cache

import pytest

import oracles_exponential
import oracles_multistep
from oracles import CONFIGS, REFERENCES, Mixture, difference, noises, run_table, tiny_unet
from oracles_loops import Case, drive_loop
from pipelines import schedule_list
from pipelines.ladder import Ladder
from pipelines.options import checked_options
from pipelines.params import kept_steps
from pipelines.sampler_list import SAMPLERS
from pipelines.samplers import compile_table
from pipelines.schedules import levels
from test_stage_parity import CASES as STAGES
from tests.fakes import schedule_options

CASES = [*oracles_multistep.CASES, *oracles_exponential.CASES]
SCHEDULES = {id: schedule for id, schedule in schedule_list.SCHEDULES.items() if not schedule.for_flow}
SOME = ("trailing", "karras", "exponential", "kl_optimal_open")  # even in time, in sigma and in its logarithm; one that ends above zero
# Plain Heun divides by small numbers at zero terminal SNR; these take a step of their own there, and DDIM, LCM and TCD begin at alpha = 0.
OWN_WAY_FROM_ZERO_SNR = ("heun", "restart", "pndm", "ddim", "ddpm", "lcm", "tcd")


@cache
def mixture(ladder: str):
    return Mixture().network(Ladder.from_config(CONFIGS[ladder]), rounds=False)


def differs(case: Case, ladder_name: str, schedule: str, steps: int, network, shape, strength: float) -> float:
    """The largest relative difference on a trajectory of equally many evaluations; below strength 1 it begins on a picture."""
    ladder = Ladder.from_config(CONFIGS[ladder_name])
    convention = SAMPLERS[case.sampler].convention
    options = schedule_options(schedule, steps)
    whole = levels(ladder, convention, schedule, steps, checked_options("schedule", schedule, options, SCHEDULES[schedule].options))
    picture = None if strength == 1.0 else next(noises(shape, seed=1))
    theirs = drive_loop(case, whole.part(*kept_steps(steps, strength=strength)), network, noises(shape), picture)
    table = compile_table(ladder, case.sampler, schedule, steps, case.options, options, strength=strength)
    ours = run_table(table, network, noises(shape), picture=picture)
    assert len(ours) == len(theirs)
    return difference(ours, theirs)


def found(case: Case, ladder: str, schedules, counts, network, shape=(1, 4, 4, 4), strength=1.0) -> dict[tuple[str, int], float]:
    legal = [s for s in schedules if not case.schedules or s in case.schedules]
    most = SAMPLERS[case.sampler].most or 60
    pairs = [(s, n) for s in legal for n in counts if case.least <= int(n * strength) and n <= min(SCHEDULES[s].most or n, most)]
    return {(s, n): differs(case, ladder, s, n, network, shape, strength) for s, n in pairs}


def ladders(case: Case) -> list[str]:
    return ["epsilon"] if case.sampler in OWN_WAY_FROM_ZERO_SNR else list(CONFIGS)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_table_equals_its_loop(case):
    for ladder in ladders(case):
        apart = found(case, ladder, SOME, (1, 2, 3, 7, 20), mixture(ladder))
        apart |= found(case, ladder, SCHEDULES, (4, *case.more), mixture(ladder))
        assert apart and all(d <= 1e-6 for d in apart.values()), (ladder, apart)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_table_equals_its_loop_on_a_picture(case):
    for ladder in ladders(case):
        apart = found(case, ladder, SOME, (2, 3, 7, 20), mixture(ladder), strength=0.6)
        apart |= found(case, ladder, SCHEDULES, (5, *case.more[1:]), mixture(ladder), strength=0.6)
        assert apart and all(d <= 1e-6 for d in apart.values()), (ladder, apart)


@pytest.mark.parametrize("case", {case.sampler: case for case in CASES}.values(), ids=lambda case: case.id)
def test_table_equals_its_loop_on_a_unet(case):
    apart = found(case, "epsilon", ("karras", "exponential"), (3, 7, *case.more[:1]), tiny_unet(rounds=False), (1, 4, 8, 8))
    assert apart and all(d <= 1e-6 for d in apart.values()), apart


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("strength", [1.0, 0.6])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_table_equals_its_loop_at_every_length(case, strength):
    for ladder in ladders(case):
        apart = found(case, ladder, SOME, range(1, 61), mixture(ladder), strength=strength)
        assert apart and all(d <= 1e-6 for d in apart.values()), (ladder, {k: d for k, d in apart.items() if d > 1e-6})


def test_every_sampler_is_held_against_someone_elses():
    held = {case.sampler for case in CASES} | set(STAGES) | set(REFERENCES)
    assert set(SAMPLERS) == held | {"sa_solver_pece"}  # that one has a test of its own beside STAGES
