"""Errors name what the client sent, in the words of its door, also where they come from behind all doors."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import pytest

from cards import card
from live_gateway import Live, running
from picture_samples import as_file, sample_picture
from service.dialects import A1111, OPENAI

PICTURE = base64.b64encode(as_file(sample_picture(64, 64))).decode()
OTHER = base64.b64encode(as_file(sample_picture(64, 128))).decode()


@pytest.fixture(scope="module")
def gateway(valkey: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with running(valkey, tmp_path_factory.mktemp("gateway"), card(), max_images=2, max_pixels=16384) as live:
        yield live


@pytest.mark.parametrize(("asked", "param", "said"), [
    ({"n": 3}, "n", "n must be from 1 to 2."),
    ({"size": "65x64"}, "size", "size: width must be a multiple of 8"),
    ({"size": "64x65"}, "size", "size: height must be a multiple of 8"),
    ({"size": "256x128"}, "size", "width times height is 32768"),
    ({"prompt": "a\0"}, "prompt", "prompt holds control characters"),
    ({"prompt": "a" * 3000}, "prompt", "prompt has 3000 characters"),
])  # fmt: skip
def test_openai(gateway: Live, asked: dict[str, Any], param: str, said: str) -> None:
    error = gateway.http.post("/v1/images/generations", json={"prompt": "a"} | asked).json()["error"]
    assert error["param"] == param and error["message"].startswith(said), error
    assert not [name for name in OPENAI if "_" in name and name in error["message"]]


@pytest.mark.parametrize(("asked", "param", "said"), [
    ({"batch_size": 3}, "batch_size", "batch_size must be from 1 to 2."),
    ({"n_iter": 3}, "n_iter", "n_iter must be from 1 to 2."),
    ({"cfg_scale": 99}, "cfg_scale", "cfg_scale must be from 0 to 50"),
    ({"sampler_name": "Euler a", "eta": -1}, "eta", "eta must be at least 0"),
    ({"width": 63}, "width", "width must be a multiple of 8"),
    ({"steps": 1000}, "steps", "steps must be from "),
    ({"seed": 2**32}, "seed", "seed must be from 0 to "),
    ({"override_settings": {"sd_model_checkpoint": "nothing"}}, "override_settings", "There is no model 'nothing'."),
    ({"init_images": [PICTURE], "mask": OTHER}, "mask", "The mask has 64x128 pixels and the image 64x64"),
    ({"init_images": [PICTURE], "denoising_strength": 0.001, "steps": 2}, "denoising_strength", "No step of 2 is left"),
    ({"init_images": ["AAAA"]}, "init_images", "A picture is a PNG, JPEG or WebP"),
])  # fmt: skip
def test_a1111(gateway: Live, asked: dict[str, Any], param: str, said: str) -> None:
    door = "img2img" if "init_images" in asked else "txt2img"
    body = {"prompt": "a", "width": 64, "height": 64, "steps": 4, "sampler_name": "Euler"} | asked
    error = gateway.http.post(f"/sdapi/v1/{door}", json=body).json()["error"]
    assert error["param"] == param and error["message"].startswith(said), error
    assert not [name for name in A1111 if "_" in name and name in error["message"] and name != A1111[name]]


def test_an_edit_names_its_file(gateway: Live) -> None:
    form = {"prompt": (None, "a"), "image": ("a.png", as_file(sample_picture(64, 64)), "image/png"), "n": (None, "3")}
    error = gateway.http.post("/v1/images/edits", files=form).json()["error"]
    assert (error["param"], error["message"]) == ("n", "n must be from 1 to 2.")


def test_the_native_door_keeps_its_own_names(gateway: Live) -> None:
    error = gateway.http.post("/generate", json={"prompt": "a", "num_images": 3}).json()["error"]
    assert (error["param"], error["message"]) == ("num_images", "num_images must be from 1 to 2.")
