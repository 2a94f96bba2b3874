"""Guidance in the engine: what it costs, mixed batches, checkpoints with momentum, and the slow loop beside it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline

from pipelines.engine import checkpoint as archive
from pipelines.engine.engine import Engine
from pipelines.engine.events import Event, Finished
from pipelines.engine.sample import Sample
from pipelines.engine.slots import AVERAGE
from pipelines.loading import Checkpoint, load
from pipelines.samplers import compile_table
from pipelines.text_to_image import denoise
from tests.fakes import RowwiseDenoiser
from tests.test_engine import LADDER, OnTorch, context, run, sample
from tests.test_pipeline import latents_of, new_engine, request, sample_of
from training.toy import write_toy

# sampler, schedule, steps, guidance, options, tick of joining
GUIDED: list[tuple[str, str, int, float, dict[str, Any], int]] = [
    ("euler", "karras", 6, 5.0, {}, 0),
    ("dpmpp_2m", "karras", 7, 4.0, {"start": 0.2, "end": 0.7}, 0),
    ("heun", "trailing", 4, 6.0, {"curve": "linear", "rescale": 0.4}, 0),
    ("ddim", "leading", 5, 3.0, {"scales": [3, 1, 4, 1.5, 9]}, 1),
    ("euler_a", "exponential", 6, 7.0, {"variant": "apg", "eta": 0.3, "norm_threshold": 4.0, "momentum": -0.5, "start": 0.2}, 1),
    ("unipc", "auto", 6, 5.0, {"variant": "apg", "momentum": 0.3, "rescale": 0.5}, 2),
    ("euler", "linspace", 6, 4.0, {"variant": "apg"}, 2),
    ("dpmpp_2m_sde", "simple", 5, 5.0, {"variant": "cfg_zero_star", "zero_init": 1}, 3),
    ("dpm2", "linspace", 4, 3.0, {"variant": "cfg_zero_star", "rescale": 1.0, "end": 0.8}, 3),
    ("ddim", "cosine", 6, 5.0, {"variant": "tcfg", "curve": "cosine", "final": 8.0}, 4),
    ("lcm", "auto", 4, 1.0, {"variant": "tcfg"}, 4),
    ("euler_cfgpp", "karras", 6, 0.6, {"start": 0.2, "end": 0.7, "variant": "cfg_zero_star"}, 4),
]


def guided(index: int, **changes: Any) -> Sample:
    sampler, schedule, steps, scale, options, _ = GUIDED[index]
    fields = {
        "table": compile_table(LADDER, sampler, schedule, steps),
        "seed": 50 + index,
        "cond": context(0.1 * index),
        "guidance": scale,
        "guidance_options": options,
    }
    return sample(f"g{index}", **fields | changes)


def alone(index: int) -> Any:
    engine = Engine(RowwiseDenoiser())
    engine.add(guided(index))
    finished = run(engine)[f"g{index}"]
    assert isinstance(finished, Finished)
    return finished.latents


@pytest.mark.parametrize("options", [{}, {"rows": 3}, {"max_rows": 5}])
def test_all_variants_in_one_batch_equal_their_solo_runs(options: dict[str, int]) -> None:
    engine, last, tick = Engine(RowwiseDenoiser(), **options), dict[str, Event](), 0
    while engine.busy or tick <= 4:
        for index, row in enumerate(GUIDED):
            if row[-1] == tick:
                engine.add(guided(index))
        last |= {e.sample_id: e for e in engine.step(float(tick))}
        tick += 1
    for index in range(len(GUIDED)):
        finished = last[f"g{index}"]
        assert isinstance(finished, Finished)
        np.testing.assert_array_equal(finished.latents, alone(index))


def test_every_variant_draws_something_else() -> None:
    """Options that changed nothing would make the equalities of this file empty."""
    for index, row in enumerate(GUIDED):
        engine = Engine(RowwiseDenoiser())
        engine.add(guided(index, guidance_options={}))
        finished = run(engine)[f"g{index}"]
        assert isinstance(finished, Finished)
        assert np.array_equal(finished.latents, alone(index)) == (row[3] == 1.0 or not row[4])


@pytest.mark.parametrize("index", range(len(GUIDED)))
def test_an_image_goes_on_from_every_row_bit_for_bit(index: int) -> None:
    """Momentum, too, travels with the image."""
    wanted, first = guided(index), Engine(RowwiseDenoiser())
    first.add(wanted)
    for _ in range(len(wanted.table)):
        saved = first.export(wanted.id)
        assert saved is not None
        assert (AVERAGE in saved.live) == bool(GUIDED[index][4].get("momentum"))
        second = Engine(RowwiseDenoiser())
        second.add(sample("company", seed=99))
        second.add(wanted, archive.load(archive.dump({0: saved}))[0])
        finished = run(second)[wanted.id]
        assert isinstance(finished, Finished)
        np.testing.assert_array_equal(finished.latents, alone(index))
        first.step(0.0)


def test_a_checkpoint_without_the_average_is_no_state_of_guidance_with_momentum() -> None:
    engine = Engine(RowwiseDenoiser())
    engine.add(guided(6))
    engine.step(0.0)
    saved = engine.export("g6")
    with pytest.raises(ValueError, match="no state of sample"):
        Engine(RowwiseDenoiser()).add(guided(6, guidance_options={"variant": "apg", "momentum": -0.5}), saved)


@pytest.mark.parametrize("index", range(len(GUIDED)))
def test_torch_registers_give_what_numpy_registers_give(index: int) -> None:
    engine, wanted = Engine(OnTorch()), guided(index)
    engine.add(replace(wanted, cond=torch.from_numpy(wanted.cond), uncond=torch.from_numpy(wanted.uncond)))
    finished = run(engine)[wanted.id]
    assert isinstance(finished, Finished)
    np.testing.assert_allclose(finished.latents.numpy(), alone(index), rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize(
    ("guidance", "options", "rows"),
    [
        (5.0, {}, [2] * 10),
        (1.0, {}, [1] * 10),
        (5.0, {"start": 0.2, "end": 0.6}, [1, 1, 2, 2, 2, 2, 1, 1, 1, 1]),
        (5.0, {"end": 0.3, "variant": "apg", "momentum": -0.5}, [2, 2, 2, 1, 1, 1, 1, 1, 1, 1]),
        (5.0, {"curve": "linear"}, [2] * 9 + [1]),  # it ends at 1, which is off
        (1.0, {"curve": "linear", "final": 4.0}, [1] + [2] * 9),
        (5.0, {"variant": "cfg_zero_star", "zero_init": 3}, [1, 1, 1] + [2] * 7),
        (2.0, {"scales": [2, 1, 2, 1, 2, 1, 1, 1, 1, 1]}, [2, 1, 2, 1, 2, 1, 1, 1, 1, 1]),
    ],
)
def test_rows_that_are_not_guided_cost_one_unet_row(guidance: float, options: dict[str, Any], rows: list[int]) -> None:
    denoiser = RowwiseDenoiser()
    engine = Engine(denoiser)
    engine.add(sample("s", table=compile_table(LADDER, "euler", "karras", 10), guidance=guidance, guidance_options=options))
    run(engine)
    assert denoiser.calls == rows


def test_an_interval_counts_steps_and_not_rows() -> None:
    denoiser = RowwiseDenoiser()
    engine = Engine(denoiser)
    engine.add(sample("s", table=compile_table(LADDER, "heun", "karras", 4), guidance_options={"start": 0.25, "end": 0.75}))
    run(engine)
    assert denoiser.calls == [1, 1, 2, 2, 2, 2, 1]


def test_a_full_pass_takes_along_more_samples_while_they_are_not_guided() -> None:
    denoiser = RowwiseDenoiser()
    engine = Engine(denoiser, max_rows=4)
    table = compile_table(LADDER, "euler", "karras", 2)
    for i in range(4):
        engine.add(sample(f"s{i}", table=table, guidance_options={"start": 0.5}))
    run(engine)
    assert denoiser.calls == [4, 4, 4]


@pytest.mark.parametrize(("options", "same"), [({"start": 0.5}, True), ({"variant": "cfg_zero_star", "zero_init": 2}, True), ({}, False)])
def test_a_row_of_one_unet_row_tells_the_same_denoised_twice(options: dict[str, Any], same: bool) -> None:
    """Tables that read `denoised_uncond` (CFG++) meet `denoised` there where guidance is off."""
    plain = compile_table(LADDER, "euler", "karras", 4)
    swapped = plain.update[:, :, [0, 1, 3, 2, *range(4, plain.update.shape[2])]]
    ends = []
    for table in (plain, replace(plain, update=swapped)):
        engine = Engine(RowwiseDenoiser())
        engine.add(sample("s", table=table, guidance_options=options))
        engine.step(0.0)
        engine.step(0.0)
        saved = engine.export("s")
        assert saved is not None
        ends.append(saved.registers)
    assert np.array_equal(*ends) == same


@pytest.fixture(scope="module", params=["epsilon", "v_prediction"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return Path(write_toy(tmp_path_factory.mktemp("toy") / request.param, prediction=request.param, seed=3))


@pytest.fixture(scope="module")
def checkpoint(folder: Path) -> Checkpoint:
    return load(folder, device=torch.device("cpu"), dtype=torch.float32)


@pytest.mark.parametrize("index", range(len(GUIDED)))
def test_the_slow_loop_draws_what_the_engine_draws(checkpoint: Checkpoint, index: int) -> None:
    sampler, schedule, steps, scale, options, _ = GUIDED[index]
    params = request(checkpoint, sampler=sampler, schedule=schedule, steps=steps, guidance=scale, guidance_options=options)
    engine = new_engine(checkpoint)
    engine.add(replace(sample_of(checkpoint, params, "s"), guidance_options=options))
    np.testing.assert_allclose(latents_of(engine)["s"], denoise(checkpoint, params), rtol=1e-3, atol=1e-3)


def test_rescale_and_curve_are_those_of_diffusers_own_pipeline(checkpoint: Checkpoint, folder: Path) -> None:
    """The pipeline's own rescale, and its guidance scale moved by its callback after each step."""
    scales = [6.0, 5.0, 4.0, 3.0, 2.0]
    options = {"rescale": 0.45, "curve": "linear", "final": 2.0}
    pipe = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)
    pipe.set_progress_bar_config(disable=True)

    def move(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        pipe._guidance_scale = scales[min(step + 1, 4)]
        return tensors

    params = request(checkpoint, guidance=scales[0], guidance_options=options)
    theirs = pipe(
        params.prompt,
        negative_prompt=params.negative_prompt,
        num_inference_steps=params.steps,
        guidance_scale=scales[0],
        guidance_rescale=0.45,
        width=params.width,
        height=params.height,
        generator=torch.Generator("cpu").manual_seed(params.seed),
        output_type="latent",
        callback_on_step_end=move,
    ).images[0]
    ours = denoise(checkpoint, params)
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-3, atol=1e-4)
    assert not np.allclose(ours, denoise(checkpoint, replace(params, guidance_options=options | {"rescale": 0.5})), rtol=1e-3, atol=1e-4)
