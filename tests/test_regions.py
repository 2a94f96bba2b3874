"""Inpainting of a masked region alone: where it lies, what is drawn of it, and what comes back, against diffusers and the whole picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionInpaintPipeline
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

from pipelines.loading import load
from pipelines.masks import Box, crop_box, put_back
from pipelines.text_to_image import generate
from tests.picture_samples import sample_picture
from tests.test_image_kinds import asked, known_of
from training.toy import write_toy
from workers.messages import Kept
from workers.regions import filled, region, returned, whole


def a_mask(height: int, width: int, box: tuple[int, int, int, int]) -> np.ndarray:
    left, top, right, bottom = box
    mask = np.zeros((height, width), np.uint8)
    mask[top:bottom, left:right] = 255
    return mask


def test_the_box_is_that_of_diffusers() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        height, width = (int(v) for v in rng.integers(20, 200, 2))
        left, top = int(rng.integers(width - 1)), int(rng.integers(height - 1))
        mask = a_mask(height, width, (left, top, int(rng.integers(left + 1, width + 1)), int(rng.integers(top + 1, height + 1))))
        size, padding = (int(rng.integers(1, 9)) * 64, int(rng.integers(1, 9)) * 64), int(rng.integers(0, 60))
        assert tuple(crop_box(mask, size, padding)) == VaeImageProcessor.get_crop_region(Image.fromarray(mask), *size, pad=padding)


def test_a_mask_that_draws_nothing_has_the_whole_picture() -> None:
    assert crop_box(np.full((30, 50), 127, np.uint8), (64, 64), 3) == Box(0, 0, 50, 30)


@pytest.mark.parametrize("feather", [0, 5, 40])
@pytest.mark.parametrize("at", [(40, 30, 90, 60), (0, 0, 30, 20), (170, 100, 200, 150)])
def test_what_comes_back_is_what_blending_the_whole_picture_gives(at: tuple[int, int, int, int], feather: int) -> None:
    """The slow twin: draw on the whole picture, blend all of it."""
    picture, mask = sample_picture(200, 150), a_mask(150, 200, at)
    box = crop_box(mask, (64, 64), 7)
    drawn = np.random.default_rng(1).integers(0, 256, (box.bottom - box.top, box.right - box.left, 3)).astype(np.uint8)
    canvas = picture.copy()
    canvas[box.top : box.bottom, box.left : box.right] = drawn
    before = picture.copy()
    np.testing.assert_array_equal(returned(drawn, Kept(picture, mask, box), feather), put_back(canvas, picture, mask, feather))
    np.testing.assert_array_equal(picture, before)


def test_diffusers_draws_the_same_region(tmp_path: Path) -> None:
    """`padding_mask_crop`, with a box as wide as high, so that nothing is filled up, of a picture whose sides are multiples of nothing."""
    folder = write_toy(tmp_path / "toy", seed=3)
    checkpoint = load(folder, device=torch.device("cpu"), dtype=torch.float32)
    picture, mask = sample_picture(203, 151), a_mask(151, 203, (70, 50, 110, 90))
    params = asked(
        checkpoint, kind="inpaint", mask="m", mask_padding=12, width=96, height=96, sampler="ddim", steps=6, strength=0.7
    )  # fmt: skip
    pipe = StableDiffusionInpaintPipeline.from_pretrained(folder, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    said: dict[str, Any] = {"negative_prompt": params.negative_prompt, "guidance_scale": params.guidance, "strength": params.strength}
    wanted = pipe(
        params.prompt, image=Image.fromarray(picture), mask_image=Image.fromarray(mask), padding_mask_crop=12, width=96, height=96,
        num_inference_steps=params.steps, generator=torch.Generator("cpu").manual_seed(params.seed), **said,
    ).images[0]  # fmt: skip
    given = region(params, picture, mask)
    assert given.kept is not None and given.mask is not None and given.picture.shape == (96, 96, 3)
    assert tuple(given.kept.box) == (58, 38, 122, 102)
    drawn = generate(checkpoint, params, 0, known_of(checkpoint, params, given.picture, given.mask))
    found = returned(drawn, given.kept, 0)
    assert found.shape == picture.shape
    assert np.abs(found.astype(int) - np.asarray(wanted)).max() <= 1
    np.testing.assert_array_equal(found[mask == 0], picture[mask == 0])
    assert (found[mask > 0] != picture[mask > 0]).any()


def test_filling_knows_nothing_of_what_is_masked_and_changes_nothing_else() -> None:
    picture, mask = sample_picture(96, 64), a_mask(64, 96, (30, 20, 60, 50))
    other = picture.copy()
    other[mask > 0] = np.random.default_rng(2).integers(0, 256, other[mask > 0].shape)
    one, two = filled(picture, mask), filled(other, mask)
    np.testing.assert_array_equal(one, two)
    np.testing.assert_array_equal(one[mask == 0], picture[mask == 0])
    plain = np.full_like(picture, 90)
    plain[mask > 0] = 255
    assert np.abs(filled(plain, mask).astype(int) - 90).max() <= 8  # of thin alphas, in whole numbers


def test_a_filled_picture_returns_as_it_was_around_the_mask(tmp_path: Path) -> None:
    checkpoint = load(write_toy(tmp_path / "toy"), device=torch.device("cpu"), dtype=torch.float32)
    picture, mask = sample_picture(96, 64), a_mask(64, 96, (30, 20, 60, 50))
    params = asked(checkpoint, kind="inpaint", mask="m", mask_content="fill", mask_feather=6)
    given = whole(params, picture, mask)
    assert given.kept is not None
    np.testing.assert_array_equal(given.picture, filled(picture, mask))
    drawn = np.full_like(picture, 7)
    np.testing.assert_array_equal(returned(drawn, given.kept, 6), put_back(drawn, picture, mask, 6))
