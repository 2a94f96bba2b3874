"""What models predict, and in which space: epsilon, v, x0, rectified flow, EDM; input scale and variance normalisation."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import EDMDPMSolverMultistepScheduler, EDMEulerScheduler, FlowMatchEulerDiscreteScheduler

from oracles import EPSILON, ZERO_SNR, Mixture, difference, noises, run_table
from pipelines import samplers, schedules
from pipelines.checkpoint_error import CheckpointError
from pipelines.denoiser_torch import TorchDenoiser
from pipelines.engine.engine import Engine
from pipelines.gamma import deviation
from pipelines.ladder import Ladder
from pipelines.loading import load
from pipelines.samplers import compile_table
from pipelines.text_to_image import denoise
from tests.fakes import schedule_options
from tests.test_pipeline import latents_of, request, sample_of
from training.toy import write_toy

SHAPE = (1, 4, 4, 4)
FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler"}
EDM = {"_class_name": "EDMEulerScheduler", "sigma_min": 0.002, "sigma_max": 80.0, "sigma_data": 0.5}
Model = Callable[[np.ndarray, float], np.ndarray]


def flow_network(x: np.ndarray, told: float) -> np.ndarray:
    """noise - x0, told 1000 t."""
    t = told / 1000
    return (x - Mixture().denoised(x, 1 - t, t)) / t


def edm_network(prediction_type: str) -> Model:
    """What stands between the denoised and x of table 1 of arXiv 2206.00364, told ln(sigma) / 4 and given c_in x."""

    def network(given: np.ndarray, told: float) -> np.ndarray:
        sigma = math.exp(4 * told)
        x = given * math.sqrt(sigma**2 + 0.25)
        away = Mixture().denoised(x, 1.0, sigma) - 0.25 / (sigma**2 + 0.25) * x
        return away / (sigma * 0.5 / math.sqrt(sigma**2 + 0.25)) * (-1 if prediction_type == "v_prediction" else 1)

    return network


def driven(reference: Any, network: Model, noise: np.ndarray) -> np.ndarray:
    """The end of a trajectory of a diffusers scheduler whose timesteps are set."""
    x = torch.tensor(noise)
    for t in reference.timesteps:
        given = reference.scale_model_input(x, t) if hasattr(reference, "scale_model_input") else x
        x = reference.step(torch.tensor(network(given.double().numpy(), float(t))), t, x).prev_sample.double()
    return x.numpy()


# --- rectified flow ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_is_diffusers(shift: float) -> None:
    config, noise = {**FLOW, "shift": shift}, next(noises(SHAPE))
    for steps in (1, 2, 3, 7, 20):
        reference = FlowMatchEulerDiscreteScheduler(shift=shift)
        reference.set_timesteps(steps)
        table = compile_table(Ladder.from_config(config), "euler", "auto", steps)
        np.testing.assert_allclose(table.timestep, reference.timesteps, rtol=1e-6)
        np.testing.assert_allclose(table.sigma, reference.sigmas[:-1], rtol=5e-6)
        np.testing.assert_allclose(table.alpha + table.sigma, 1.0, rtol=1e-12)
        assert difference(run_table(table, flow_network, iter([noise]))[-1], driven(reference, flow_network, noise)) < 2e-6


def test_flux_is_diffusers() -> None:
    for steps, mu in ((2, 1.15), (7, 0.5), (20, 1.15)):
        reference = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
        reference.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu)
        table = compile_table(Ladder.from_config(FLOW), "euler", "flux", steps, {}, {"mu": mu})
        np.testing.assert_allclose(table.sigma, reference.sigmas[:-1], rtol=5e-6)


def test_shifts_multiply() -> None:
    once = compile_table(Ladder.from_config(FLOW), "euler", "flux", 9, {}, {"mu": math.log(6)})
    plain = compile_table(Ladder.from_config(FLOW), "euler", "flux", 9, {}, {"mu": 0.0})
    assert np.allclose(once.sigma, 6 * plain.sigma / (1 + 5 * plain.sigma))
    both = compile_table(Ladder.from_config({**FLOW, "shift": 2.0}), "euler", "flow", 9, {}, {"shift": 3.0})
    assert both.sigma[0] == 1.0 and np.all(np.diff(both.sigma) < 0)


def test_flow_schedules_are_listed_for_flow_models_alone() -> None:
    listed = {name: {s.id for s in schedules.catalog(Ladder.from_config(config))} for name, config in (("flow", FLOW), ("vp", EPSILON))}
    assert listed["flow"] - listed["vp"] == {"flow", "flux"} and listed["vp"] < listed["flow"]
    with pytest.raises(ValueError, match="rectified-flow models"):
        compile_table(Ladder.from_config(EPSILON), "euler", "flow", 5)


# --- EDM --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_edm_is_diffusers(prediction_type: str) -> None:
    config, noise, network = {**EDM, "prediction_type": prediction_type}, next(noises(SHAPE)), edm_network(prediction_type)
    ladder = Ladder.from_config(config)
    for kind, sampler, name in (
        (EDMEulerScheduler, "euler", "euler"),
        (EDMEulerScheduler, "edm_euler", "edm_euler"),
        (EDMDPMSolverMultistepScheduler, "dpmpp_2m", "dpmpp_2m"),
    ):
        for steps in (2, 7, 20):
            reference = kind(prediction_type=prediction_type)
            reference.set_timesteps(steps)
            table = replace(compile_table(ladder, sampler, "auto", steps), init=reference.init_noise_sigma)
            np.testing.assert_allclose(table.timestep, reference.timesteps, rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(table.sigma, reference.sigmas[:-1], rtol=5e-6)
            ours = run_table(table, network, iter([noise]))[-1]
            theirs = driven(reference, network, noise * reference.init_noise_sigma)
            assert difference(ours, theirs) < 5e-5, (name, steps)  # the reference: float32, at sigma = 80
    assert compile_table(ladder, "dpmpp_2m", "auto", 5).init == pytest.approx(math.hypot(80, 1))


def test_plms_extrapolates_noise_in_edm_s_space() -> None:
    """v is a form of the answer there; diffusers' PNDM, which extrapolates v, preserves variance."""
    ends = []
    for kind in ("epsilon", "v_prediction"):
        table = compile_table(Ladder.from_config({**EDM, "prediction_type": kind}), "pndm", "karras", 12)
        ends.append(run_table(table, edm_network(kind), noises(SHAPE))[-1])
    assert difference(*ends) < 1e-9


def test_churn_starts_from_noise_of_the_lifted_level() -> None:
    even, low = (compile_table(Ladder.from_config(EDM), "edm_euler", s, 10, {"s_churn": 2.0}) for s in ("karras", "leading"))
    assert even.sigma[0] == pytest.approx(80.0 * 1.2) and even.init == even.sigma[0]
    assert low.init == pytest.approx(math.hypot(low.sigma[0], 1.0))  # whole pictures' deviation, as diffusers starts leading


# --- every sampler in every space ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [FLOW, EDM], ids=["flow", "edm"])
def test_every_pair_works_in_every_space(config: dict[str, Any]) -> None:
    ladder, network = Ladder.from_config(config), flow_network if config is FLOW else edm_network("epsilon")
    for sampler in samplers.catalog(ladder):
        for schedule in schedules.catalog(ladder):
            for steps in (3, 25):
                table = compile_table(ladder, sampler.id, schedule.id, steps, {}, schedule_options(schedule.id, steps))
                assert len(table) == sampler.evaluations(steps, ends_open=schedule.ends_open), (sampler.id, schedule.id, steps)
                for column in (table.timestep, table.c_in, table.c_skip, table.c_out, table.update, [table.init]):
                    assert np.isfinite(column).all(), (sampler.id, schedule.id, steps)
        end = run_table(compile_table(ladder, sampler.id, "karras", 25), network, noises((1, 4, 2, 2)))[-1]
        assert abs(end).max() < 4, sampler.id  # the data stays within 3


# --- input scale and normalisation: algorithms 2 and 3 of arXiv 2301.10972 ------------------------------------------------------------

PICTURE = np.random.default_rng(3).standard_normal((1, 4, 6, 6))


def trained(b: float, normalize: str | None, prediction_type: str = "epsilon") -> tuple[Ladder, Model]:
    """A network that algorithm 2 has taught one picture, and nothing else: it knows its noise exactly."""
    config = EPSILON | {"prediction_type": prediction_type, "set_alpha_to_one": True}
    plain = Ladder.from_config(config)  # gamma of training, at b = 1

    def network(given: np.ndarray, told: float) -> np.ndarray:
        gamma = 1 / (1 + float(plain.ratio_at(np.array(told))) ** 2)
        x_t = given * deviation(gamma, b) if normalize else given
        return (x_t - math.sqrt(gamma) * b * PICTURE) / math.sqrt(1 - gamma)

    return Ladder.from_config(config, input_scale=b, normalize=normalize), network


@pytest.mark.parametrize("normalize", [None, "closed"])
@pytest.mark.parametrize("b", [0.3, 1.0, 2.0])
@pytest.mark.parametrize("sampler", ["ddim", "euler", "dpmpp_2m"])
def test_a_model_of_one_picture_draws_that_picture(sampler: str, b: float, normalize: str | None) -> None:
    ladder, network = trained(b, normalize)
    for schedule in ("trailing", "simple_linear"):
        path = run_table(compile_table(ladder, sampler, schedule, 5), network, noises(PICTURE.shape))
        np.testing.assert_allclose(path[-1], PICTURE, atol=1e-4)  # float32 levels at the network's door


def test_a_network_sees_what_it_was_trained_on() -> None:
    """Unnormalised, the deviation of its input is that of sqrt(gamma) b x0 + sqrt(1 - gamma) noise; normalised it is 1."""
    for b, normalize in ((0.3, None), (2.0, None), (0.3, "closed"), (2.0, "closed")):
        ladder = Ladder.from_config(EPSILON, input_scale=b, normalize=normalize)
        table, plain = compile_table(ladder, "ddim", "trailing", 5), compile_table(Ladder.from_config(EPSILON), "ddim", "trailing", 5)
        wanted = np.ones(5) if normalize else deviation(plain.alpha**2, b)
        np.testing.assert_allclose(table.c_in, wanted, rtol=1e-6)
        np.testing.assert_allclose(table.sigma / table.alpha * b, plain.sigma / plain.alpha, rtol=1e-6)  # logSNR + 2 ln b
        np.testing.assert_array_equal(table.timestep, plain.timestep)


def test_a_measured_model_sees_unit_deviation_and_draws_what_it_knows() -> None:
    """Two pictures, one the negative of the other: which of them an input holds does not depend on its scale."""
    ladder, seen = Ladder.from_config(EPSILON | {"prediction_type": "sample"}, input_scale=0.4, normalize="measured"), []

    def network(given: np.ndarray, told: float) -> np.ndarray:
        seen.append(float(given.std()))
        return PICTURE if (given * PICTURE).sum() > 0 else -PICTURE

    for seed in range(4):
        noise = next(noises(PICTURE.shape, seed))
        path = run_table(compile_table(ladder, "dpmpp_2m", "trailing", 6), network, iter([noise]))
        np.testing.assert_allclose(path[-1], PICTURE * np.sign((noise * PICTURE).sum()), rtol=1e-9)
    np.testing.assert_allclose(seen, 1.0, rtol=1e-12)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return write_toy(tmp_path_factory.mktemp("toy") / "toy", prediction="epsilon", seed=3)


def with_extra(folder: Path, **extra: Any) -> Path:
    path = folder / "celadon.json"
    kept = {k: v for k, v in json.loads(path.read_text()).items() if k not in ("input_scale", "normalize")}
    path.write_text(json.dumps(kept | extra))
    return folder


@pytest.mark.parametrize("normalize", ["measured", "closed", None])
def test_engine_and_slow_loop_agree_on_models_trained_with_input_scale(folder: Path, normalize: str | None) -> None:
    plain = load(with_extra(folder), device=torch.device("cpu"), dtype=torch.float32)
    checkpoint = load(with_extra(folder, input_scale=0.5, normalize=normalize), device=torch.device("cpu"), dtype=torch.float32)
    assert checkpoint.card.hash != plain.card.hash
    inputs: list[float] = []

    class Recording(TorchDenoiser):
        def __call__(self, x: Any, timestep: Any, context: Any) -> Any:
            inputs.extend(np.asarray(x).std(axis=(1, 2, 3)).tolist())
            return super().__call__(x, timestep, context)

    engine = Engine(Recording(checkpoint.unet, device=checkpoint.device, dtype=checkpoint.dtype))
    wanted = {}
    for i, (sampler, model) in enumerate((("euler", checkpoint), ("dpmpp_2m", checkpoint), ("euler_a", checkpoint), ("euler", plain))):
        params = request(model, sampler=sampler, guidance=3.0, seed=i)
        engine.add(sample_of(model, params, str(i)))
        wanted[str(i)] = denoise(model, params)
    for name, latents in latents_of(engine).items():  # one batch of both kinds of models
        np.testing.assert_allclose(latents, wanted[name], atol=2e-4 * abs(wanted[name]).max(), err_msg=name)
    assert difference(wanted["0"], denoise(plain, request(plain, sampler="euler", guidance=3.0, seed=0))) > 0.01
    unit = np.isclose(np.array(inputs).reshape(-1, 8), 1.0, rtol=1e-4).sum(axis=1)  # of four conditional and four unconditional rows
    assert np.all(unit == 6) if normalize == "measured" else np.all(unit < 4)


@pytest.mark.parametrize(("extra", "message"), [
    ({"input_scale": 0}, "input_scale must be a number from 0.001 to 1000"),
    ({"input_scale": "half"}, "input_scale must be a number"),
    ({"normalize": "batch"}, "normalize must be closed, measured or null"),
])  # fmt: skip
def test_options_of_the_model_card_are_checked(folder: Path, extra: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        load(with_extra(folder, **extra), device=torch.device("cpu"), dtype=torch.float32)


def test_an_epsilon_model_with_alpha_zero_is_refused_at_loading(folder: Path, tmp_path: Path) -> None:
    broken = write_toy(tmp_path / "toy", prediction="epsilon", seed=3)
    (broken / "scheduler" / "scheduler_config.json").write_text(json.dumps(ZERO_SNR | {"prediction_type": "epsilon"}))
    with pytest.raises(CheckpointError, match="epsilon cannot have zero terminal SNR"):
        load(broken, device=torch.device("cpu"), dtype=torch.float32)


@pytest.mark.parametrize(("config", "extra", "message"), [
    ({**FLOW, "use_dynamic_shifting": True}, {}, "depend on the picture's size"),
    ({**EDM, "prediction_type": "sample"}, {}, "predicts epsilon or v_prediction"),
    (FLOW, {"input_scale": 0.5}, "variance-preserving"),
    (EDM, {"normalize": "closed"}, "variance-preserving"),
])  # fmt: skip
def test_models_that_cannot_be_are_refused(config: dict[str, Any], extra: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Ladder.from_config(config, **extra)
