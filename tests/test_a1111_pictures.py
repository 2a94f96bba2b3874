"""img2img of A1111's door, spoken to by webuiapi; and what of it is refused."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webuiapi
from PIL import Image

from fleet import Fleet
from live_gateway import Live, depth, running
from picture_samples import as_file, as_url, sample_mask, sample_picture
from service.sdapi import Txt2ImgRequest
from service.sdapi_img2img import Img2ImgRequest
from tests.cards import card

pytestmark = pytest.mark.timeout(300)  # whole services start here, on machines that may be busy

PICTURE, MASK = sample_picture(), sample_mask()


@pytest.fixture
def api(fleet: Fleet) -> Iterator[webuiapi.WebUIApi]:
    client = webuiapi.WebUIApi(host="127.0.0.1", port=fleet.port, steps=6)
    yield client
    client.session.close()


def params_of(fleet: Fleet, found: Any) -> dict[str, Any]:
    params: dict[str, Any] = fleet.client.get(f"/jobs/{found.info['job_id']}").json()["params"]
    return params


def test_img2img_as_the_client_sends_it(api: webuiapi.WebUIApi, fleet: Fleet) -> None:
    image = Image.fromarray(PICTURE)
    found = api.img2img(images=[image], prompt="a red apple", seed=7, width=96, height=64, denoising_strength=0.5, batch_size=2)
    assert [one.size for one in found.images] == [(96, 64)] * 2 and found.info["all_seeds"] == [7, 8]
    assert found.info["denoising_strength"] == 0.5 and "Denoising strength: 0.5" in found.info["infotexts"][0]
    assert found.parameters["init_images"] is None and found.parameters["denoising_strength"] == 0.5
    params = params_of(fleet, found)
    assert (params["kind"], params["strength"], params["mask"], params["sampler"]) == ("image_to_image", 0.5, "", "euler_a")
    again = api.img2img(images=[image], prompt="a red apple", seed=8, width=96, height=64, denoising_strength=0.5)
    assert again.image.tobytes() == found.images[1].tobytes()


def test_a_mask_keeps_what_is_black(api: webuiapi.WebUIApi, fleet: Fleet) -> None:
    found = api.img2img(
        images=[Image.fromarray(PICTURE)], mask_image=Image.fromarray(MASK), inpainting_fill=1, inpaint_full_res=False, mask_blur=3,
        prompt="a red hat", seed=1, width=64, height=64,
    )  # fmt: skip
    drawn = np.asarray(found.image)
    np.testing.assert_array_equal(drawn[:, : 32 - 6], PICTURE[:, : 32 - 6])
    assert (drawn[:, 40:] != PICTURE[:, 40:]).any()
    params = params_of(fleet, found)
    assert (params["kind"], params["strength"], params["mask_feather"]) == ("inpaint", 0.75, 6)


def test_by_default_the_masked_region_is_drawn_alone_at_full_size(api: webuiapi.WebUIApi, fleet: Fleet) -> None:
    found = api.img2img(
        images=[Image.fromarray(PICTURE)], mask_image=Image.fromarray(MASK), prompt="a red hat", seed=1, width=128, height=128,
        inpaint_full_res_padding=4,
    )  # fmt: skip
    params, drawn = params_of(fleet, found), np.asarray(found.image)
    assert (params["mask_padding"], params["mask_content"], params["width"], params["mask_feather"]) == (4, "fill", 128, 8)
    assert drawn.shape == PICTURE.shape
    np.testing.assert_array_equal(drawn[:, : 32 - 8], PICTURE[:, : 32 - 8])
    assert (drawn[:, 40:] != PICTURE[:, 40:]).any()


@pytest.fixture
def gateway(redis_url: str, tmp_path: Path) -> Iterator[Live]:
    with running(redis_url, tmp_path, card(), door_wait_s=1, max_body_bytes=1024, max_picture_bytes=100_000) as live:
        yield live


@pytest.mark.parametrize(("body", "code", "param"), [
    ({"init_images": None}, "missing_field", "init_images"),
    ({"init_images": []}, "missing_field", "init_images"),
    ({"init_images": [as_url(PICTURE)] * 2}, "not_supported", "init_images"),
    ({"init_images": ["!"]}, "invalid_picture", "init_images"),
    ({"init_images": [as_url(PICTURE, "GIF")]}, "invalid_picture", "init_images"),
    ({"denoising_strength": 0}, "invalid_value", "denoising_strength"),
    ({"denoising_strength": 1.1}, "invalid_value", "denoising_strength"),
    ({"resize_mode": 1}, "not_supported", "resize_mode"),
    ({"include_init_images": True}, "not_supported", "include_init_images"),
    ({"initial_noise_multiplier": 0.9}, "not_supported", "initial_noise_multiplier"),
    ({"inpainting_mask_invert": 1}, "not_supported", "inpainting_mask_invert"),
    ({"latent_mask": "x"}, "not_supported", "latent_mask"),
    ({"mask": as_url(MASK), "inpainting_fill": 2}, "not_supported", "inpainting_fill"),
    ({"mask": as_url(MASK), "inpaint_full_res_padding": 2000}, "invalid_value", "inpaint_full_res_padding"),
    ({"mask": as_url(MASK), "inpaint_full_res": "yes, please"}, "invalid_value", "inpaint_full_res"),
    ({"mask": as_url(np.dstack([PICTURE, MASK]))}, "not_supported", "mask"),
    ({"mask": as_url(sample_mask(64, 32))}, "invalid_size", "mask"),
    ({"mask": as_url(MASK), "mask_blur": 65}, "invalid_value", "mask_blur"),
    ({"restore_faces": True}, "not_supported", "restore_faces"),
    ({"strength": 0.5}, "unknown_field", "strength"),
    ({"schedule_label": "Karras"}, "unknown_field", "schedule_label"),
    ({"_fields_set": 1}, "unknown_field", "_fields_set"),
    ({"cls": 1}, "unknown_field", "cls"),
    ({"sampler_name": "Eular"}, "unknown_sampler", "sampler_name"),
])  # fmt: skip
def test_what_cannot_be_honoured_is_refused(gateway: Live, redis_url: str, body: dict[str, Any], code: str, param: str) -> None:
    whole = {"init_images": [as_url(PICTURE)], "width": 64, "height": 64, "steps": 4, "prompt": "a cat"} | body
    answer = gateway.http.post("/sdapi/v1/img2img", json=whole)
    assert answer.status_code == 400 and (answer.json()["error"]["code"], answer.json()["error"]["param"]) == (code, param), answer.text
    assert sum(depth(redis_url).values()) == 0


@pytest.mark.parametrize(("door", "kind"), [("txt2img", Txt2ImgRequest), ("img2img", Img2ImgRequest)])
def test_null_is_the_default_everywhere(redis_url: str, tmp_path: Path, door: str, kind: type[Txt2ImgRequest]) -> None:
    """Two jobs of the same params: one with every field null, one with every field left out."""
    picture = {"init_images": [as_url(PICTURE)], "mask": as_url(MASK)} if door == "img2img" else {}
    nulls = {field.alias or name: None for name, field in kind.model_fields.items()}
    with running(redis_url, tmp_path, replace(card(), max_width=512, max_height=512), door_wait_s=1) as live:
        for body in (nulls | picture | {"seed": 7}, picture | {"seed": 7}):
            answer = live.http.post(f"/sdapi/v1/{door}", json=body)
            assert answer.status_code == 504, answer.text  # nobody draws here: it was queued
        first, second = (job["params"] for job in live.http.get("/jobs").json()["jobs"])
    assert first == second
    assert (first["width"], first["height"], first["steps"], first["guidance"], first["num_images"]) == (512, 512, 50, 7.0, 1)


def test_bare_base64_and_nulls_are_taken_and_a_body_is_bounded(gateway: Live, redis_url: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (256, 256, 3)).astype(np.uint8)
    picture = base64.b64encode(as_file(noise[:64, :64])).decode()
    nulls = dict.fromkeys(("mask", "denoising_strength", "mask_blur", "inpainting_fill", "resize_mode", "inpaint_full_res", "latent_mask"))
    whole = {"init_images": [picture], "width": 64, "height": 64, "steps": 4} | nulls
    assert len(picture) > 1024
    assert gateway.http.post("/sdapi/v1/img2img", json=whole).status_code == 504  # nobody draws here: it was queued
    assert sum(depth(redis_url).values()) == 1
    answer = gateway.http.post("/sdapi/v1/img2img", json=whole | {"init_images": [base64.b64encode(as_file(noise)).decode()]})
    assert answer.json()["error"]["code"] == "body_too_large"
