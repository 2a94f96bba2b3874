"""Samplers of several stages by themselves: the ends of their options, and the pictures that CFG++ draws."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest

from oracles import CONFIGS, EPSILON, ZERO_SNR, noises, run_table
from pipelines.engine.engine import Engine
from pipelines.ladder import Ladder
from pipelines.samplers import catalog, compile_table
from pipelines.step_table import BASIS
from test_samplers import SHAPE, mixture
from tests.fakes import RowwiseDenoiser
from tests.test_engine import LADDER, run, sample

BELOW_ONE = math.nextafter(1.0, 0.0)


NOISE = (0.0, 1e-300, BELOW_ONE, 1.0)
SHARE = (0.1, 0.999999999, BELOW_ONE, 1.0)
ENDS: dict[str, dict[str, tuple[Any, ...]]] = {
    "dpm2_a": {"eta": NOISE},
    "dpmpp_2s_a": {"eta": NOISE},
    "res_multistep_ancestral": {"eta": NOISE},
    "dpmpp_sde": {"r": SHARE, "eta": NOISE},
    "seeds_2": {"r": SHARE, "eta": NOISE, "solver_type": ("phi_1", "phi_2")},
    "seeds_3": {"eta": NOISE},
    "tcd": {"gamma": NOISE},
    "sa_solver": {
        "tau": (0.0, 1e-9, 2.0),
        "tau_start": (0.0, 1.0),
        "tau_end": (0.0, 1.0),
        "predictor_order": (4,),
        "corrector_order": (4,),
    },
}


@pytest.mark.parametrize("ladder", CONFIGS)
@pytest.mark.parametrize("sampler", ENDS)
def test_options_at_their_ends_give_finite_tables(ladder, sampler):
    """A stage at a share of nearly 1, and noise of nearly all or nearly nothing, once took roots of negative numbers."""
    model = Ladder.from_config(CONFIGS[ladder])
    for values in itertools.product(*ENDS[sampler].values()):
        options = dict(zip(ENDS[sampler], values, strict=True))
        for schedule, steps in (("trailing", 1), ("karras", 2), ("linspace", 40)):
            table = compile_table(model, sampler, schedule, steps, options)
            assert np.isfinite(table.update).all() and np.isfinite(table.timestep).all(), (options, schedule)


@pytest.mark.parametrize("sampler", ["seeds_3", "dpmpp_sde", "er_sde", "res_multistep_ancestral", "heunpp2"])
def test_as_many_steps_as_the_ladder_has_levels(sampler):
    table = compile_table(Ladder.from_config(EPSILON), sampler, "linspace", 998)
    assert np.isfinite(table.update).all()


@pytest.mark.parametrize(("sampler", "option"), [("dpmpp_sde", "r"), ("seeds_2", "r"), ("dpm2_a", "eta"), ("tcd", "gamma")])
def test_an_option_acts_evenly_up_to_its_end(sampler, option):
    near, end = (compile_table(Ladder.from_config(EPSILON), sampler, "lcm", 7, {option: value}) for value in (1.0 - 1e-12, 1.0))
    # at r = 1 the last noise vanishes, and with it the draw
    assert near.update.shape == end.update.shape
    np.testing.assert_allclose(near.update, end.update, atol=1e-5)


def test_dpm2_a_reaches_the_picture_from_zero_snr():
    """Plain DPM2 a multiplies the denoised by 4096 / sigma' at its first step."""
    ladder, network = Ladder.from_config(ZERO_SNR), mixture("zero_snr")
    exact = run_table(compile_table(ladder, "unipc", "trailing", 200), network, noises(SHAPE))[-1]
    for steps in (3, 8, 25):
        ends = run_table(compile_table(ladder, "dpm2_a", "trailing", steps, {"eta": 0.0}), network, noises(SHAPE))[-1]
        assert abs(ends - exact).max() < 1.0, steps


def test_sa_solver_adds_noise_between_two_times_in_either_order():
    ladder = Ladder.from_config(EPSILON)
    one, other = (
        compile_table(ladder, "sa_solver", "trailing", 9, {"tau_start": low, "tau_end": high}) for low, high in ((0.3, 0.7), (0.7, 0.3))
    )
    np.testing.assert_array_equal(one.update, other.update)
    loud = one.update[:, 0, BASIS.index("noise")] > 0.0
    np.testing.assert_array_equal(loud, (one.timestep >= 300) & (one.timestep <= 700))


def test_sa_solver_lands_at_the_first_training_level_where_its_schedule_ends_above_it():
    ladder, all_along = Ladder.from_config(EPSILON), {"tau_start": 0.0, "tau_end": 1.0}
    spaced, karras = (compile_table(ladder, "sa_solver", schedule, 5, all_along).update[-1, 0] for schedule in ("trailing", "karras"))
    assert 0.0 < spaced[BASIS.index("noise")] < math.sqrt(1.0 - ladder.alphas_cumprod[0])
    assert karras[BASIS.index("noise")] == 0.0 and karras[BASIS.index("denoised")] == pytest.approx(1.0)


# --- CFG++ ----------------------------------------------------------------------------------------------------------------------------


def cfgpp() -> list[Any]:
    return [info for info in catalog(Ladder.from_config(EPSILON)) if info.id.endswith("_cfgpp")]


@pytest.mark.parametrize("info", cfgpp(), ids=lambda info: info.id)
def test_cfgpp_without_guidance_costs_one_row_and_is_its_base(info):
    drawn, rows = zip(*(drawn_alone(id, 1.0) for id in (info.id, info.id.removesuffix("_cfgpp"))), strict=True)
    np.testing.assert_allclose(*drawn, rtol=2e-5, atol=2e-5)
    assert set(rows[0] + rows[1]) == {1}
    guided, rows = drawn_alone(info.id, 0.4)
    assert abs(guided - drawn[0]).max() > 1e-3 and set(rows) == {2}


def drawn_alone(sampler: str, guidance: float) -> tuple[Any, list[int]]:
    """Latents, and the U-Net rows of each call."""
    denoiser = RowwiseDenoiser()
    engine = Engine(denoiser)
    engine.add(sample("s", table=compile_table(LADDER, sampler, "karras", 6), guidance=guidance))
    return run(engine)["s"].latents, denoiser.calls
