"""Samplers that diffusers does not have, over whole trajectories: against k-diffusion, and against loops written from the papers."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any

import numpy as np
import pytest

import oracles_cfgpp
import oracles_stages
from oracles import CONFIGS, Brownian, Mixture, difference, noises, run_table
from oracles_sigma import chosen, follow, of_k_diffusion
from pipelines.ladder import Ladder
from pipelines.params import kept_steps
from pipelines.samplers import compile_table
from pipelines.schedule_list import SCHEDULES
from pipelines.schedules import catalog
from pipelines.step_table import BASIS
from test_sampler_parity import SHAPE, mixture, tiny_unet

# sampler -> reference, and the options under which they are compared; the first are the defaults
CASES: dict[str, tuple[Any, list[dict[str, Any]]]] = {
    "dpm2_a": (of_k_diffusion("sample_dpm_2_ancestral"), [{"eta": 0.4, "s_noise": 0.9}, {"eta": 0.0}]),
    "dpmpp_2s_a": (of_k_diffusion("sample_dpmpp_2s_ancestral"), [{}, {"eta": 0.4, "s_noise": 0.9}, {"eta": 0.0}]),
    "dpmpp_sde": (of_k_diffusion("sample_dpmpp_sde", brownian=Brownian), [{}, {"eta": 0.4, "s_noise": 0.9, "r": 0.3}, {"r": 0.9}]),
    "heunpp2": (oracles_stages.heunpp2, [{}]),
    "gradient_estimation": (oracles_stages.gradient_estimation, [{}, {"gamma": 1.3}]),
    "res_multistep": (oracles_stages.res_multistep, [{}]),
    "res_multistep_ancestral": (oracles_stages.res_multistep_ancestral, [{}, {"eta": 0.4, "s_noise": 0.9}]),
    "er_sde": (oracles_stages.er_sde, [{}, {"stages": 1}, {"stages": 2, "s_noise": 0.5}, {"s_noise": 0.0}]),
    "seeds_2": (oracles_stages.seeds_2, [{}, {"eta": 0.4, "r": 0.3, "solver_type": "phi_2"}, {"r": 1.0, "s_noise": 0.9}]),
    "seeds_3": (oracles_stages.seeds_3, [{}, {"eta": 0.4, "s_noise": 0.9}, {"eta": 0.0}]),
    "exp_heun_2_x0": (oracles_stages.exp_heun_2_x0, [{}, {"solver_type": "phi_1"}]),
    "exp_heun_2_x0_sde": (oracles_stages.exp_heun_2_x0_sde, [{}, {"eta": 0.4, "solver_type": "phi_1"}]),
    "euler_cfgpp": (oracles_cfgpp.euler_cfgpp, [{}]),
    "euler_a_cfgpp": (oracles_cfgpp.euler_a_cfgpp, [{}, {"eta": 0.4, "s_noise": 0.9}]),
    "dpmpp_2m_cfgpp": (oracles_cfgpp.dpmpp_2m_cfgpp, [{}]),
    "dpmpp_2s_a_cfgpp": (oracles_cfgpp.dpmpp_2s_a_cfgpp, [{}, {"eta": 0.4, "s_noise": 0.9}]),
    "res_multistep_cfgpp": (oracles_cfgpp.res_multistep_cfgpp, [{}]),
    "res_multistep_ancestral_cfgpp": (oracles_cfgpp.res_multistep_ancestral_cfgpp, [{}, {"eta": 0.4, "s_noise": 0.9}]),
    "gradient_estimation_cfgpp": (oracles_cfgpp.gradient_estimation_cfgpp, [{}, {"gamma": 1.3}]),
}
COMPARED = [
    pytest.param(ladder, sampler, options, id=f"{ladder}-{sampler}-{i}")
    for ladder in CONFIGS
    for sampler, (_, known) in CASES.items()
    for i, options in enumerate(known)
    if (ladder, sampler) != ("zero_snr", "dpm2_a")  # a step of our own there
]
GUIDANCE = 1.4


@cache
def other_mixture(ladder: str) -> Any:
    return Mixture(seed=8).network(Ladder.from_config(CONFIGS[ladder]))


def gap(
    ladder: str,
    sampler: str,
    schedule: str,
    steps: int,
    options: dict[str, Any],
    plain: Any,
    prompted: Any,
    *,
    shape: tuple[int, ...] = SHAPE,
    strength: float = 1.0,
) -> float:
    """Largest relative difference; CFG++ is given the outputs of both models, guided, the others the first model's.

    Below strength 1 it begins on a picture.
    """
    model, network, more = Ladder.from_config(CONFIGS[ladder]), plain, {}
    if sampler.endswith("_cfgpp"):
        network, more = guided(plain, prompted), {"unguided": plain}
    if strength < 1.0:
        more["picture"] = next(noises(shape, seed=1))
    path = chosen(model, sampler, schedule, steps).part(*kept_steps(steps, strength=strength))
    between = sampler.startswith(("dpm2_a", "dpmpp_2s_a", "dpmpp_sde"))
    theirs = follow(CASES[sampler][0], network, model, path, noises(shape), between=between, **more, **options)
    table = compile_table(model, sampler, schedule, steps, options, strength=strength)
    return difference(run_table(table, network, noises(shape), **more), theirs)


def guided(plain: Any, prompted: Any) -> Any:
    return lambda x, t: plain(x, t) + GUIDANCE * (prompted(x, t) - plain(x, t))


def schedules_for(sampler: str) -> list[str]:
    # KDPM2's karras timesteps are rounded, those of its middles are not; that is compared with diffusers
    apart = {"custom"} | ({"karras"} if sampler == "dpm2_a" else set())
    return [info.id for info in catalog(Ladder.from_config(CONFIGS["epsilon"])) if info.id not in apart]


def counts_for(schedule: str, counts: Iterable[int]) -> list[int]:
    return [n for n in counts if n <= (SCHEDULES[schedule].most or n)]


@pytest.mark.parametrize(("ladder", "sampler", "options"), COMPARED)
def test_table_equals_its_reference_on_every_schedule(ladder, sampler, options):
    models = mixture(ladder), other_mixture(ladder)
    schedules = schedules_for(sampler) if options == CASES[sampler][1][0] else ("leading", "exponential", "cosine")
    counts = (1, 2, 3, 7, 20) if ladder == "epsilon" else (2, 7)
    found = {(s, n): gap(ladder, sampler, s, n, options, *models) for s in schedules for n in counts_for(s, counts)}
    assert max(found.values()) <= 1e-6, {k: v for k, v in found.items() if v > 1e-6}


@pytest.mark.parametrize(("ladder", "sampler", "options"), COMPARED)
def test_table_equals_its_reference_on_a_picture(ladder, sampler, options):
    models, default = (mixture(ladder), other_mixture(ladder)), options == CASES[sampler][1][0]
    wanted = [(s, n) for s in ("trailing", "exponential", "cosine") for n in ((2, 3, 7, 20) if default else (5,))]
    wanted += [(s, n) for s in schedules_for(sampler) if default for n in counts_for(s, (5,))]
    found = {(s, n): gap(ladder, sampler, s, n, options, *models, strength=0.6) for s, n in wanted}
    assert max(found.values()) <= 1e-6, {k: v for k, v in found.items() if v > 1e-6}


@pytest.mark.parametrize("sampler", CASES)
@pytest.mark.parametrize("schedule", ["trailing", "exponential"])
def test_table_equals_its_reference_on_a_unet(sampler, schedule):
    unet = tiny_unet()
    # a second model of the same weights, told that the picture is another one
    assert (
        gap("epsilon", sampler, schedule, 5, CASES[sampler][1][0], unet, lambda x, t: unet(x[..., ::-1].copy(), t), shape=(1, 4, 8, 8))
        <= 1e-5
    )


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("strength", [1.0, 0.6])
@pytest.mark.parametrize(("ladder", "sampler", "options"), COMPARED)
def test_table_equals_its_reference_for_every_number_of_steps(ladder, sampler, options, strength):
    models = mixture(ladder), other_mixture(ladder)
    some = {"trailing", "karras", "exponential", "cosine", "kl_optimal_open"} & set(schedules_for(sampler))
    wanted = [(s, n) for s in sorted(some) for n in counts_for(s, range(1, 61)) if int(n * strength)]
    found = {(s, n): gap(ladder, sampler, s, n, options, *models, strength=strength) for s, n in wanted}
    assert max(found.values()) <= 1e-6, {k: v for k, v in found.items() if v > 1e-6}


@pytest.mark.parametrize("ladder", CONFIGS)
@pytest.mark.parametrize("orders", [(3, 4), (2, 2), (1, 1), (4, 3)], ids=str)
@pytest.mark.parametrize("strength", [1.0, 0.6])
@pytest.mark.parametrize("sampler", ["sa_solver", "sa_solver_pece"])
def test_sa_solver_equals_its_loop(sampler, strength, orders, ladder):
    """Also where diffusers' class is no reference: with two evaluations, and on a picture with karras."""
    wanted = [("trailing", 1), ("trailing", 2), ("karras", 3), ("leading", 7), ("karras", 12), *((s, 5) for s in schedules_for(sampler))]
    found = {(s, n): sa_gap(sampler, ladder, s, n, orders, mixture(ladder), strength) for s, n in wanted if int(n * strength)}
    assert all(d <= 1e-6 for d in found.values()), found


@pytest.mark.parametrize("sampler", ["sa_solver", "sa_solver_pece"])
@pytest.mark.parametrize("schedule", ["trailing", "exponential"])
def test_sa_solver_equals_its_loop_on_a_unet(sampler, schedule):
    assert sa_gap(sampler, "epsilon", schedule, 5, (3, 4), tiny_unet(), shape=(1, 4, 8, 8)) <= 1e-5


def sa_gap(sampler, ladder, schedule, steps, orders, network, strength=1.0, shape=SHAPE) -> float:
    """Largest relative difference to the loop, tau 0.8 on a part of the way."""
    model = Ladder.from_config(CONFIGS[ladder])
    more = {} if strength == 1.0 else {"picture": next(noises(shape, seed=1))}
    path = chosen(model, sampler, schedule, steps).part(*kept_steps(steps, strength=strength))
    options = {"predictor_order": orders[0], "corrector_order": orders[1]}
    taus = [0.8 if 300 <= t <= 900 else 0.0 for t in path.timestep[:-1]]
    of_loop = options | more | {"taus": taus, "again": sampler == "sa_solver_pece"}
    theirs = follow(oracles_stages.sa_solver_pece, network, model, path, noises(shape), **of_loop)
    own = options | {"tau": 0.8, "tau_start": 0.3, "tau_end": 0.9, "second_order": "exact"}
    table = compile_table(model, sampler, schedule, steps, own, strength=strength)
    return difference(run_table(table, network, noises(shape), **more), theirs)


@pytest.mark.parametrize("sampler", [s for s in CASES if s.endswith("_cfgpp")])
@pytest.mark.parametrize("schedule", ["trailing", "karras"])
def test_cfgpp_is_its_base_where_guidance_is_off(sampler, schedule):
    """D_u = D_c: the coefficients of both add up to those of the base."""
    ladder = Ladder.from_config(CONFIGS["epsilon"])
    form, base = (compile_table(ladder, id, schedule, 9) for id in (sampler, sampler.removesuffix("_cfgpp")))
    np.testing.assert_allclose(
        run_table(form, mixture("epsilon"), noises(SHAPE)), run_table(base, mixture("epsilon"), noises(SHAPE)), rtol=1e-10
    )
    assert form.init == base.init and form.update[..., BASIS.index("denoised_uncond")].any()


def test_cfgpp_renoises_with_the_unguided_model():
    """DDIM with CFG++, arXiv 2406.08070, algorithm 2, in its own terms: sqrt(a') x0(guided) + sqrt(1 - a') epsilon(unguided)."""
    ladder, plain, prompted = Ladder.from_config(CONFIGS["epsilon"]), mixture("epsilon"), other_mixture("epsilon")
    table = compile_table(ladder, "euler_cfgpp", "leading", 7)
    x = first = next(noises(SHAPE))
    for alpha, sigma, timestep, (to_alpha, to_sigma) in zip(
        table.alpha, table.sigma, table.timestep, [*zip(table.alpha[1:], table.sigma[1:], strict=True), (1.0, 0.0)], strict=True
    ):
        unguided = plain(x, timestep)
        epsilon = unguided + GUIDANCE * (prompted(x, timestep) - unguided)
        x = to_alpha * (x - sigma * epsilon) / alpha + to_sigma * unguided
    ours = run_table(table, guided(plain, prompted), iter([first]), unguided=plain)
    np.testing.assert_allclose(ours[-1], x, rtol=1e-9, atol=1e-12)
