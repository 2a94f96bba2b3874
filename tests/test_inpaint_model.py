"""Inpainting models, whose U-Net sees the mask and the masked picture: both backends, against diffusers' pipeline."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionInpaintPipeline, UNet2DConditionModel
from PIL import Image

from pipelines.checkpoint_error import CheckpointError
from pipelines.checkpoint_folder import describe
from pipelines.denoiser import batch_invariant
from pipelines.engine.sample import Sample
from pipelines.known import Known
from pipelines.loading import Checkpoint, load
from pipelines.masks import latent_mask
from pipelines.params import GenerationParams
from pipelines.planning import table_for
from pipelines.text_to_image import denoise, encode_picture
from tests import checkpoints, test_architectures, test_drawing, test_image_kinds
from tests.test_drawing import Studio
from tests.test_image_kinds import SIZE, TOLERANCE, alone, as_sample, asked, pixels, reference
from tests.test_openvino import opened
from tests.test_openvino_graphs import relative
from tests.test_pipeline import latents_of, new_engine
from training.toy import write_toy
from workers.messages import Draw, Drawn, Inputs

picture, mask = test_image_kinds.picture, test_image_kinds.mask


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return with_channels(write_toy(tmp_path_factory.mktemp("toy") / "inpainting", prediction="epsilon", seed=3), 9)


def with_channels(folder: Path, channels: int, kind: str = "StableDiffusionInpaintPipeline") -> Path:
    """The same checkpoint with another U-Net, random as the first."""
    torch.manual_seed(0)
    config = UNet2DConditionModel.load_config(folder / "unet")
    UNet2DConditionModel.from_config(config, in_channels=channels).save_pretrained(folder / "unet")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"_class_name": kind}))
    return folder


@pytest.fixture(scope="module")
def checkpoint(folder: Path) -> Checkpoint:
    return load(folder, device=torch.device("cpu"), dtype=torch.float32)


def inpainted(checkpoint: Checkpoint, params: GenerationParams, picture: np.ndarray, mask: np.ndarray) -> Known:
    cells = checkpoint.latent_shape(params.width, params.height)[1:]
    both = encode_picture(checkpoint, picture), encode_picture(checkpoint, picture, mask)
    return Known(both[0], latent_mask(mask, cells), params.strength == 1, both[1])


def test_its_card_says_that_it_draws_with_masks_only_and_other_widths_are_refused(folder: Path, tmp_path: Path) -> None:
    assert describe(folder).card.kinds == ("inpaint", "outpaint") and describe(folder).latent_shape(64, 64) == (4, 8, 8)
    odd = with_channels(write_toy(tmp_path / "odd"), 8)
    with pytest.raises(CheckpointError, match="takes 8 channels"):
        describe(odd)
    assert len(describe(with_channels(odd, 4)).card.kinds) > 1, "an inpainting pipeline of a plain U-Net"


@pytest.mark.parametrize("strength", [0.6, 1.0])
@pytest.mark.parametrize("sampler", ["ddim", "euler_a", "dpmpp_2m"])
def test_it_is_diffusers(checkpoint: Checkpoint, folder: Path, picture: Any, mask: Any, sampler: str, strength: float) -> None:
    params = asked(checkpoint, kind="inpaint", sampler=sampler, strength=strength, steps=8)
    wanted = reference(
        StableDiffusionInpaintPipeline, folder, params,
        image=Image.fromarray(picture), mask_image=Image.fromarray(mask), height=SIZE[0], width=SIZE[1],
    )  # fmt: skip
    drawn = pixels(checkpoint, denoise(checkpoint, params, 0, inpainted(checkpoint, params, picture, mask)))
    assert np.abs(drawn - wanted).max() <= TOLERANCE


@pytest.mark.parametrize("strength", [0.6, 1.0])
def test_sdxls_are_diffusers_too(tmp_path: Path, picture: Any, mask: Any, strength: float) -> None:
    kind = "StableDiffusionXLInpaintPipeline"
    folder = with_channels(checkpoints.write(tmp_path / "sdxl", "sdxl"), 9, kind)
    checkpoint = load(folder, device=torch.device("cpu"), dtype=torch.float32)
    assert checkpoint.card.kinds == ("inpaint", "outpaint")
    sized = {"width": SIZE[1], "height": SIZE[0]}
    params = test_architectures.asked("sdxl", kind="inpaint", image="i", mask="m", strength=strength, steps=8, **sized)
    wanted = test_architectures.reference(
        folder,
        params,
        kind,
        image=Image.fromarray(picture),
        mask_image=Image.fromarray(mask),
        strength=strength,
        original_size=SIZE,
        target_size=SIZE,
    )
    drawn = test_architectures.pixels(checkpoint, denoise(checkpoint, params, 0, inpainted(checkpoint, params, picture, mask)))
    assert np.abs(drawn - wanted).max() <= TOLERANCE


def mixed(checkpoint: Checkpoint, picture: Any, mask: Any) -> dict[str, tuple[GenerationParams, Known]]:
    wanted = {
        "whole": asked(checkpoint, kind="inpaint", mask="m", sampler="euler_a", steps=6, seed=1),
        "part": asked(checkpoint, kind="inpaint", mask="m", sampler="dpmpp_2m", strength=0.5, steps=8, seed=2, guidance=1.0),
        "disturbed": asked(
            checkpoint, kind="inpaint", mask="m", sampler="heun", steps=4, seed=3, guidance_options={"pag_scale": 2.0, "rescale": 0.0}
        ),
    }
    masks = {"whole": mask, "part": np.ascontiguousarray(mask[::-1]), "disturbed": mask}
    return {name: (params, inpainted(checkpoint, params, picture, masks[name])) for name, params in wanted.items()}


def test_a_mixed_batch_equals_solo_runs_and_the_slow_loop(checkpoint: Checkpoint, picture: Any, mask: Any) -> None:
    jobs = mixed(checkpoint, picture, mask)
    engine = new_engine(checkpoint, rows=4)
    for name, (params, known) in jobs.items():
        engine.add(as_sample(checkpoint, name, params, known))
    together = latents_of(engine)
    for name, (params, known) in jobs.items():
        np.testing.assert_array_equal(together[name], alone(checkpoint, as_sample(checkpoint, name, params, known)))
        assert relative(together[name], denoise(checkpoint, params, 0, known)) < 1e-4


def test_a_worker_without_torch_draws_the_same(checkpoint: Checkpoint, folder: Path, picture: Any, mask: Any) -> None:
    from pipelines.engine.engine import Engine

    stages, denoiser = opened(folder)
    assert stages.unet_channels == 9
    assert isinstance(batch_invariant(denoiser, (9, 8, 12), stages.encode("").states), bool)
    engine = Engine(denoiser, rows=2)
    jobs = mixed(checkpoint, picture, mask)
    for name, (params, known) in jobs.items():
        found = stages.encode_picture(picture), stages.encode_picture(picture, mask if name != "part" else mask[::-1])
        engine.add(Sample(
            id=name, table=table_for(stages, params), shape=stages.latent_shape(params.width, params.height), seed=params.seed,
            cond=stages.encode(params.prompt).states, uncond=stages.encode(params.negative_prompt).states, guidance=params.guidance,
            guidance_options=params.guidance_options, known=Known(found[0], known.mask, known.from_noise, found[1]),
        ))  # fmt: skip
    for name, latents in latents_of(engine).items():
        assert relative(latents, denoise(checkpoint, jobs[name][0], 0, jobs[name][1])) < 1e-4


def test_the_drawing_thread_shows_it_what_is_known(checkpoint: Checkpoint) -> None:
    square = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    hidden = np.zeros((64, 64), np.uint8)
    hidden[:, 24:] = 255
    one = test_drawing.job("one", kind="inpaint", image="k", mask="m")
    studio = Studio(checkpoint, slots=1)
    studio.thread.put(Draw(one, inputs=Inputs(square, hidden)))
    [drawn] = studio.until(Drawn, one)
    studio.thread.stop()
    latents = denoise(checkpoint, one.params, 0, inpainted(checkpoint, one.params, square, hidden))
    wanted = np.round(pixels(checkpoint, latents) * 255)
    assert np.abs(drawn.pixels[:, 24:].astype(int) - wanted[:, 24:]).max() <= 1
    np.testing.assert_array_equal(drawn.pixels[:, :24], square[:, :24])
