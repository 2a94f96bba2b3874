"""File bytes: a function of pixels, parameters, model and version alone."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from pipelines.params import GenerationParams
from tests.cards import card
from workers.encode import data_url, encode, read_metadata

PIXELS = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
CARD = card()
PARAMS = GenerationParams(
    prompt="a red apple",
    negative_prompt="blurry",
    model=CARD.id,
    width=24,
    height=16,
    steps=20,
    guidance=3.0,
    sampler="dpmpp_2m",
    schedule="karras",
    seed=11,
)


def test_a_png_keeps_every_pixel_and_both_texts() -> None:
    image = Image.open(io.BytesIO(encode(PIXELS, PARAMS, 0, CARD, "1.2.3")))
    np.testing.assert_array_equal(np.asarray(image), PIXELS)
    assert image.info["parameters"].splitlines()[:2] == ["a red apple", "Negative prompt: blurry"]
    assert "Steps: 20" in image.info["parameters"]
    assert "Seed: 11, Size: 24x16" in image.info["parameters"]


@pytest.mark.parametrize("output_format", ["png", "jpeg", "webp"])
def test_the_record_is_read_back_from_every_format(output_format: str) -> None:
    record = read_metadata(encode(PIXELS, replace(PARAMS, output_format=output_format, prompt="日本"), 0, CARD, "1.2.3"))
    assert record["request"]["prompt"] == "日本"
    assert record["model_hash"] == CARD.hash


def test_image_i_has_the_bytes_of_its_own_seed_and_shows_nothing_of_the_request_it_came_from() -> None:
    second_of_two = encode(PIXELS, replace(PARAMS, seed=10, num_images=2, preview=True), 1, CARD, "1.2.3")
    assert second_of_two == encode(PIXELS, PARAMS, 0, CARD, "1.2.3")


def test_a_picture_of_somebody_else_is_refused() -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")
    with pytest.raises(ValueError, match="carries no Celadon parameters"):
        read_metadata(buffer.getvalue())


def test_a_preview_is_a_small_data_url() -> None:
    url = data_url(PIXELS, 4)
    assert url.startswith("data:image/jpeg;base64,")
    assert len(url) < 20_000
