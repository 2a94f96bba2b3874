"""The whole pipeline on small random weights: engine = slow loop = diffusers' StableDiffusionPipeline."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
)

from pipelines.checkpoint_error import CheckpointError
from pipelines.denoiser import batch_invariant
from pipelines.denoiser_torch import TorchDenoiser
from pipelines.engine.engine import Engine
from pipelines.engine.events import Finished
from pipelines.engine.sample import Sample
from pipelines.loading import Checkpoint, load
from pipelines.params import GenerationParams
from pipelines.planning import preview, table_for
from pipelines.text_to_image import decode, denoise, encode_prompt, generate, prompt_tokens
from training.toy import write_toy

SIZE = 64
TOLERANCE = 1e-3  # on pixels in [0, 1], float32

MIXED = [
    ("ddim", "auto", 6, 5.0, (64, 64), 0),
    ("euler", "karras", 5, 3.0, (64, 64), 0),
    ("dpmpp_2m", "karras", 8, 1.0, (64, 64), 1),
    ("euler_a", "auto", 5, 4.0, (64, 96), 1),
    ("heun", "exponential", 4, 2.0, (64, 64), 1),
    ("dpm2", "auto", 4, 6.0, (64, 64), 2),
    ("dpmpp_2m_sde", "karras", 6, 3.0, (96, 64), 2),
    ("unipc", "auto", 7, 5.0, (64, 64), 2),
    ("lcm", "auto", 4, 1.0, (64, 64), 3),
    ("ddpm", "auto", 6, 3.0, (64, 64), 4),
    ("euler", "simple_linear", 5, 7.0, (64, 64), 4),
    ("ddim", "sigmoid", 5, 2.0, (64, 96), 5),
    ("gradient_estimation_cfgpp", "auto", 5, 0.7, (64, 64), 3),
]


@pytest.fixture(scope="module", params=["epsilon", "v_prediction"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("toy") / request.param
    write_toy(folder, prediction=request.param, seed=3)
    torch.set_num_threads(1)
    yield folder


@pytest.fixture(scope="module")
def checkpoint(folder: Path) -> Checkpoint:
    return load(folder, device=torch.device("cpu"), dtype=torch.float32)


def request(checkpoint: Checkpoint, **changes: Any) -> GenerationParams:
    fields: dict[str, Any] = {
        "prompt": "a red apple",
        "negative_prompt": "a blue car",
        "model": checkpoint.card.id,
        "width": SIZE,
        "height": SIZE,
        "steps": 5,
        "guidance": 4.0,
        "sampler": "ddim",
        "schedule": "auto",
        "seed": 42,
    }
    return GenerationParams(**fields | changes)


def sample_of(checkpoint: Checkpoint, params: GenerationParams, name: str) -> Sample:
    return Sample(
        id=name,
        table=table_for(checkpoint, params),
        shape=checkpoint.latent_shape(params.width, params.height),
        seed=params.seed,
        cond=encode_prompt(checkpoint, params.prompt).numpy(),
        uncond=encode_prompt(checkpoint, params.negative_prompt).numpy(),
        guidance=params.guidance,
        guidance_rescale=checkpoint.card.defaults.guidance_rescale if params.guidance != 1 else 0.0,
    )


def new_engine(checkpoint: Checkpoint, **options: Any) -> Engine:
    denoiser = TorchDenoiser(checkpoint.unet, device=checkpoint.device, dtype=checkpoint.dtype)
    return Engine(denoiser, **options)


def latents_of(engine: Engine) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    while engine.busy:
        found |= {e.sample_id: e.latents for e in engine.step(0.0) if isinstance(e, Finished)}
    return found


REFERENCES = {
    "ddim": lambda config: DDIMScheduler.from_config(config, clip_sample=False),
    "euler": lambda config: EulerDiscreteScheduler.from_config(config),
    "dpmpp_2m": lambda config: DPMSolverMultistepScheduler.from_config(config),
}


@pytest.mark.parametrize("sampler", sorted(REFERENCES))
@pytest.mark.parametrize("steps", [4, 11])
def test_the_same_picture_as_diffusers(checkpoint: Checkpoint, folder: Path, sampler: str, steps: int) -> None:
    params = request(checkpoint, sampler=sampler, steps=steps)
    pipe = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    pipe.scheduler = REFERENCES[sampler](pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    reference = pipe(
        params.prompt,
        negative_prompt=params.negative_prompt,
        num_inference_steps=steps,
        guidance_scale=params.guidance,
        guidance_rescale=checkpoint.card.defaults.guidance_rescale,
        width=SIZE,
        height=SIZE,
        generator=torch.Generator("cpu").manual_seed(params.seed),
        output_type="pt",
    ).images[0]
    engine = new_engine(checkpoint)
    engine.add(sample_of(checkpoint, params, "s"))
    for latents in (denoise(checkpoint, params), latents_of(engine)["s"]):
        ours = checkpoint.vae.decode(torch.from_numpy(latents)[None] / checkpoint.vae.config.scaling_factor).sample[0]
        difference = (ours / 2 + 0.5).clamp(0, 1) - reference
        assert difference.abs().max().item() <= TOLERANCE
    assert reference.std().item() > 0.01, "a flat picture would make the comparison empty"


def test_mixed_samples_equal_their_solo_runs(checkpoint: Checkpoint) -> None:
    """Different sampler, schedule, steps, guidance, size, seed and time of joining; every call has four rows: equal bytes."""

    def wanted(index: int) -> Sample:
        sampler, schedule, steps, guidance, (width, height), _ = MIXED[index]
        params = request(
            checkpoint,
            prompt=f"a red apple {index}",
            sampler=sampler,
            schedule=schedule,
            steps=steps,
            guidance=guidance,
            width=width,
            height=height,
            seed=index,
        )
        return sample_of(checkpoint, params, str(index))

    together: dict[str, np.ndarray] = {}
    crowd = new_engine(checkpoint, slots=len(MIXED), rows=4)
    tick = 0
    while crowd.busy or tick <= 5:
        for index, row in enumerate(MIXED):
            if row[-1] == tick:
                crowd.add(wanted(index))
        together |= {e.sample_id: e.latents for e in crowd.step(0.0) if isinstance(e, Finished)}
        tick += 1
    for index in range(len(MIXED)):
        alone = new_engine(checkpoint, rows=4)
        alone.add(wanted(index))
        np.testing.assert_array_equal(together[str(index)], latents_of(alone)[str(index)])


def test_the_slow_loop_draws_what_the_engine_draws(checkpoint: Checkpoint) -> None:
    for sampler, schedule, steps, guidance, (width, height), _ in MIXED:
        params = request(checkpoint, sampler=sampler, schedule=schedule, steps=steps, guidance=guidance, width=width, height=height)
        engine = new_engine(checkpoint)
        engine.add(sample_of(checkpoint, params, "s"))
        np.testing.assert_allclose(latents_of(engine)["s"], denoise(checkpoint, params), rtol=1e-3, atol=1e-3)


def test_generate_gives_a_picture_of_the_asked_size(checkpoint: Checkpoint) -> None:
    picture = generate(checkpoint, request(checkpoint, width=96, height=64, steps=2))
    assert picture.shape == (64, 96, 3)
    assert picture.dtype == np.uint8


def test_image_i_is_the_picture_of_seed_plus_i(checkpoint: Checkpoint) -> None:
    params = request(checkpoint, steps=2, num_images=2)
    second = denoise(checkpoint, params, 1)
    np.testing.assert_array_equal(second, denoise(checkpoint, replace(params, seed=43, num_images=1)))
    assert not np.array_equal(second, denoise(checkpoint, params, 0))


def test_bfloat16_batches_are_measured_not_assumed(checkpoint: Checkpoint) -> None:
    """The probe tells apart a denoiser that keeps its promise and one whose rows see each other."""

    class Leaky(TorchDenoiser):
        def __call__(self, x: Any, timestep: Any, context: Any) -> Any:
            return super().__call__(x, timestep, context) + 1e-6 * len(x)

    class RowByRow(TorchDenoiser):
        def __call__(self, x: Any, timestep: Any, context: Any) -> Any:
            one = super().__call__
            return np.concatenate([one(x[i : i + 1], timestep[i : i + 1], context[i : i + 1]) for i in range(len(x))])

    shape, states = checkpoint.latent_shape(64, 64), encode_prompt(checkpoint, "").numpy()
    for kind, promise in ((Leaky, False), (RowByRow, True)):
        assert batch_invariant(kind(checkpoint.unet, device=checkpoint.device, dtype=torch.float32), shape, states) is promise


def test_preview_has_one_pixel_per_latent_cell(checkpoint: Checkpoint) -> None:
    picture = preview(checkpoint, np.zeros((4, 8, 12), np.float32))
    assert picture.shape == (8, 12, 3)
    bias = np.round(np.clip(checkpoint.latent_rgb[1], 0, 1) * 255)
    np.testing.assert_array_equal(picture[0, 0], bias)


def test_a_vae_that_overflows_is_an_error_not_a_black_picture(checkpoint: Checkpoint) -> None:
    with pytest.raises(FloatingPointError, match="not finite"):
        decode(checkpoint, np.full((4, 8, 8), np.nan, np.float32))


def test_prompt_tokens_are_counted_before_they_are_cut(checkpoint: Checkpoint) -> None:
    assert prompt_tokens(checkpoint, "") == 0
    assert prompt_tokens(checkpoint, "red apple " * 100) > checkpoint.card.max_prompt_tokens


def test_the_card_tells_what_the_model_can_do(checkpoint: Checkpoint, folder: Path) -> None:
    card = checkpoint.card
    assert card.size_multiple == checkpoint.vae_factor
    assert card.prediction_type == folder.name
    assert type(card).from_dict(card.to_dict()) == card
    assert {"ddim", "euler", "dpmpp_2m"} <= {s.id for s in card.samplers}


def test_what_is_no_checkpoint_is_refused_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="model_index"):
        load(tmp_path, device=torch.device("cpu"), dtype=torch.float32)
    with pytest.raises(CheckpointError, match="no folder"):
        load(tmp_path / "missing", device=torch.device("cpu"), dtype=torch.float32)
    (tmp_path / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    with pytest.raises(CheckpointError, match="FluxPipeline"):
        load(tmp_path, device=torch.device("cpu"), dtype=torch.float32)
