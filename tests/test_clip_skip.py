"""clip_skip: layers of the text encoder, counted as A1111 does, equal to diffusers' clip_skip of one less, on both backends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline

from pipelines.checkpoint_folder import describe
from pipelines.loading import load
from pipelines.prompts import Reading
from pipelines.text_to_image import TorchStages, decode, generate
from service import drafts
from service.errors import InvalidValue
from service.settings import Settings
from tests.cards import card
from tests.checkpoints import write
from tests.test_openvino import drawn, opened, request


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small checkpoint whose text encoder has three layers."""
    torch.set_num_threads(1)
    return write(tmp_path_factory.mktemp("deep") / "sd", "sd1")


def reference(folder: Path, prompt: str, seed: int, clip_skip: int | None) -> np.ndarray:
    """[H, W, 3] of diffusers' own pipeline, which leaves negative prompts at the last layer: none is given."""
    pipe = DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    if isinstance(pipe, StableDiffusionPipeline):
        object.__setattr__(pipe.text_encoder, "text_model", pipe.text_encoder)  # where it looks for the norm
    size = {"width": 64, "height": 64, "num_inference_steps": 4, "guidance_scale": 1.0}
    draw = {"clip_skip": clip_skip, "generator": torch.Generator("cpu").manual_seed(seed), "output_type": "np"}
    picture: np.ndarray = pipe(prompt, **size, **draw).images[0]
    return picture


def test_the_same_picture_as_diffusers(deep: Path) -> None:
    checkpoint = load(deep, device=torch.device("cpu"), dtype=torch.float32)
    stages, denoiser = opened(deep)
    usual: dict[str, Any] = {"prompt": "a red apple", "sampler": "ddim", "steps": 4, "guidance": 1.0, "width": 64, "height": 64}
    asked = [request(**usual, clip_skip=skip) for skip in (1, 2, 3)]
    pictures = []
    for params, latents in zip(asked, drawn(stages, denoiser, asked), strict=True):
        wanted = reference(deep, params.prompt, params.seed, params.clip_skip - 1 or None)
        for found in (generate(checkpoint, params), decode(checkpoint, latents)):
            assert np.abs(found / 255 - wanted).max() <= 1e-3 + 0.5 / 255
        pictures.append(wanted)
    assert np.abs(pictures[0] - pictures[1]).max() > 0.01 < np.abs(pictures[1] - pictures[2]).max()


def test_sdxl_counts_from_the_last_layer_but_one(tmp_path: Path) -> None:
    folder = write(tmp_path / "xl", "sdxl")
    checkpoint = load(folder, device=torch.device("cpu"), dtype=torch.float32)
    assert checkpoint.card.max_clip_skip == 2
    for skip in (1, 2):
        params = request(prompt="a red apple", sampler="euler", steps=4, guidance=1.0, width=64, height=64, clip_skip=skip)
        wanted = reference(folder, params.prompt, params.seed, skip - 1 or None)
        assert np.abs(generate(checkpoint, params) / 255 - wanted).max() <= 1e-3 + 0.5 / 255


def test_it_goes_with_weights_and_chunks(deep: Path) -> None:
    checkpoint = load(deep, device=torch.device("cpu"), dtype=torch.float32)
    stages, _ = opened(deep)
    for skip in (2, 3):
        reading = Reading("a1111", skip)
        wanted = TorchStages(checkpoint).encode("a (red:1.4) apple BREAK [wood]", reading).states
        assert wanted.shape == (64, 20) and np.abs(stages.encode("a (red:1.4) apple BREAK [wood]", reading).states - wanted).max() < 1e-5


def test_a_model_has_as_many_layers_as_it_has(deep: Path) -> None:
    assert describe(deep).card.max_clip_skip == 3
    shallow = card(max_clip_skip=3)
    assert drafts.resolve(drafts.Draft(prompt="a", clip_skip=3), shallow, Settings()).params.reading == Reading("plain", 3)
    for wrong in (0, 4):
        with pytest.raises(InvalidValue, match="from 1 to 3"):
            drafts.resolve(drafts.Draft(prompt="a", clip_skip=wrong), shallow, Settings())
    old = card().to_dict()
    del old["max_clip_skip"]
    assert type(card()).from_dict(old).max_clip_skip == 1
