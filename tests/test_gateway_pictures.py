"""Pictures at the native door: what follows from them, what is refused before anything is queued, and whose they are."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cards import card
from keyed import asking, make_key
from live_gateway import Live, assert_error, depth, running
from picture_samples import as_file, as_url, sample_mask, sample_picture
from service.picture_head import head

PICTURE, MASK = as_url(sample_picture()), as_url(sample_mask())
CLEAR = as_url(np.dstack([sample_picture(), 255 - sample_mask()]))
GOOD: dict[str, Any] = {"prompt": "a red apple", "steps": 10, "sampler": "euler"}


@pytest.fixture
def gateway(redis_url: str, tmp_path: Path) -> Iterator[Live]:
    text_only = card(id="text-only", kinds=("text_to_image",))
    with running(redis_url, tmp_path, card(), text_only, default_model="celadon-test") as live:
        yield live


def params(gateway: Live, **body: Any) -> tuple[dict[str, Any], int]:
    answer = gateway.post(GOOD | body)
    assert answer.status_code == 202, answer.text
    return answer.json()["params"], answer.json()["progress"]["steps_total"]


def test_the_kind_follows_from_what_comes_along(gateway: Live) -> None:
    """Steps that are not taken are no work: neither counted, nor charged."""
    found, total = params(gateway, image=as_url(sample_picture(96, 64)))
    assert (found["kind"], found["mask"], found["width"], found["height"]) == ("image_to_image", "", 96, 64)
    assert (found["strength"], found["start"], found["end"], total) == (0.8, 0.0, 1.0, 8)
    found, total = params(gateway, image=PICTURE, mask=MASK, num_images=2)
    assert (found["kind"], found["strength"], found["mask_feather"], total) == ("inpaint", 1.0, 8, 20)
    assert found["image"] != found["mask"] and found["mask"]
    found, total = params(gateway, image=CLEAR, kind="inpaint", mask_feather=0, strength=0.35)
    assert found["mask"] == found["image"] and found["mask_feather"] == 0 and total == 3
    assert params(gateway, image=PICTURE, start=0.5, end=0.8)[1] == 3
    assert params(gateway, image=PICTURE, sampler="heun", strength=0.5)[1] == 9
    found, total = params(gateway, image=PICTURE, kind="variations")
    assert (found["kind"], found["strength"], total) == ("variations", 0.6, 6)
    assert params(gateway, kind="text_to_image")[0]["image"] == ""


def test_a_masked_region_is_drawn_in_the_size_of_the_model_or_as_asked(gateway: Live) -> None:
    odd = {"image": as_url(sample_picture(301, 99)), "mask": as_url(sample_mask(301, 99))}
    found, _ = params(gateway, mask_padding=16, **odd)
    assert (found["width"], found["height"], found["mask_padding"], found["mask_content"]) == (64, 64, 16, "original")
    found, total = params(gateway, mask_padding=0, mask_content="fill", width=64, height=96, **odd)
    assert (found["width"], found["height"], found["mask_padding"], found["mask_content"]) == (64, 96, 0, "fill")
    assert params(gateway, **found) == (found, total)
    for strength, codes in ((1.0, ["mask_content_unused"]), (0.5, [])):
        answer = gateway.post(GOOD | odd | {"mask_padding": 0, "mask_content": "fill", "strength": strength}).json()
        assert [warning["code"] for warning in answer["warnings"]] == codes


def test_outpaint_makes_the_picture_larger(gateway: Live) -> None:
    found, total = params(gateway, image=PICTURE, outpaint={"right": 32, "top": 16})
    assert (found["kind"], found["width"], found["height"], found["outpaint"]) == ("outpaint", 96, 80, {"right": 32, "top": 16})
    assert (found["strength"], found["mask_feather"], found["mask"], total) == (1.0, 16, "", 10)
    assert params(gateway, **found) == (found, total)
    assert params(gateway, outpaint={})[0]["kind"] == "text_to_image"  # as answers hold it
    plain, _ = params(gateway, image=PICTURE, outpaint={})
    assert plain["outpaint"] == {} and params(gateway, **plain)[0] == plain  # as answers hold it


def test_what_is_transparent_is_said_to_be_laid_on_white(gateway: Live) -> None:
    for more, codes in (
        ({"image": CLEAR}, ["transparency_flattened"]),
        ({"image": CLEAR, "kind": "variations"}, ["transparency_flattened"]),
        ({"image": CLEAR, "outpaint": {"left": 16}}, ["beyond_trained_size", "transparency_flattened"]),
        ({"image": CLEAR, "mask": MASK}, ["transparency_flattened"]),
        ({"image": CLEAR, "kind": "inpaint"}, []),
        ({"image": PICTURE}, []),
        ({"image": as_url(np.dstack([sample_picture(), np.full((64, 64), 255, np.uint8)]))}, []),
    ):
        answer = gateway.post(GOOD | more).json()
        assert [warning["code"] for warning in answer["warnings"]] == codes, more


def test_predicted_seconds_count_only_the_steps_that_are_taken(gateway: Live) -> None:
    def predicted(**body: Any) -> float:
        return float(gateway.http.post("/generate?dry_run=true", json=GOOD | body).json()["predicted_s"])

    whole = predicted()
    assert predicted(image=PICTURE, strength=0.3) == pytest.approx(0.3 * whole) and whole > 0
    assert not list((gateway.settings.data_dir / "images").rglob("in-*")), "a dry run stores nothing"


def test_what_a_job_says_may_be_posted_again(gateway: Live) -> None:
    for body in ({}, {"image": PICTURE, "start": 0.3}, {"image": PICTURE, "mask": MASK}):
        said, total = params(gateway, **body)
        assert params(gateway, **said) == (said, total)


def test_a_picture_of_another_size_is_drawn_in_the_size_that_is_asked_for(gateway: Live) -> None:
    found, _ = params(gateway, image=as_url(sample_picture(50, 40)), width=128, height=64)
    assert (found["width"], found["height"]) == (128, 64)
    assert_error(gateway.post(GOOD | {"image": as_url(sample_picture(50, 40))}), 400, "invalid_size", "width")
    assert_error(gateway.post(GOOD | {"image": PICTURE, "width": 64}), 400, "invalid_value", "width")


@pytest.mark.parametrize(("body", "code", "param"), [
    ({"mask": MASK}, "missing_field", "image"),
    ({"kind": "inpaint"}, "missing_field", "image"),
    ({"kind": "image_to_image"}, "missing_field", "image"),
    ({"kind": "inpaint", "image": PICTURE}, "missing_field", "mask"),
    ({"kind": "text_to_image", "image": PICTURE}, "invalid_value", "kind"),
    ({"kind": "image_to_image", "image": PICTURE, "mask": MASK}, "invalid_value", "mask"),
    ({"kind": "upscale", "image": PICTURE}, "invalid_value", "kind"),
    ({"image": PICTURE, "model": "text-only"}, "kind_not_supported", "kind"),
    ({"image": PICTURE, "mask": as_url(sample_mask(64, 72))}, "invalid_size", "mask"),
    ({"strength": 0.5}, "invalid_value", "strength"),
    ({"start": 0.5}, "invalid_value", "start"),
    ({"mask_feather": 4}, "invalid_value", "mask_feather"),
    ({"image": PICTURE, "mask_feather": 4}, "invalid_value", "mask_feather"),
    ({"image": PICTURE, "mask": MASK, "mask_feather": 129}, "invalid_value", "mask_feather"),
    ({"mask_padding": 4}, "invalid_value", "mask_padding"),
    ({"image": PICTURE, "mask_padding": 4}, "invalid_value", "mask_padding"),
    ({"image": PICTURE, "mask": MASK, "mask_padding": 1025}, "invalid_value", "mask_padding"),
    ({"image": PICTURE, "mask": MASK, "mask_content": "noise"}, "invalid_value", "mask_content"),
    ({"image": PICTURE, "mask_content": "fill"}, "invalid_value", "mask_content"),
    ({"image": PICTURE, "outpaint": {"left": 8}, "mask_padding": 4}, "invalid_value", "mask_padding"),
    ({"image": PICTURE, "strength": 0}, "invalid_value", "strength"),
    ({"image": PICTURE, "strength": 1.01}, "invalid_value", "strength"),
    ({"image": PICTURE, "strength": 0.09}, "invalid_value", "strength"),  # not one step of ten
    ({"image": PICTURE, "strength": 0.5, "start": 0.5}, "invalid_value", "strength"),
    ({"image": PICTURE, "start": 0.6, "end": 0.6}, "invalid_value", "start"),
    ({"image": PICTURE, "mask": MASK, "end": 0.9}, "invalid_value", "end"),
    ({"outpaint": {"left": 8}}, "invalid_value", "outpaint"),
    ({"image": PICTURE, "outpaint": {"left": 0}}, "invalid_value", "outpaint"),
    ({"image": PICTURE, "kind": "image_to_image", "outpaint": {"left": 0, "top": 0}}, "invalid_value", "outpaint"),
    ({"image": PICTURE, "kind": "outpaint", "outpaint": {}}, "invalid_value", "outpaint"),
    ({"kind": "outpaint", "image": PICTURE}, "invalid_value", "outpaint"),
    ({"kind": "image_to_image", "image": PICTURE, "outpaint": {"left": 8}}, "invalid_value", "outpaint"),
    ({"image": PICTURE, "mask": MASK, "outpaint": {"left": 8}}, "invalid_value", "mask"),
    ({"image": PICTURE, "outpaint": {"left": 7}}, "invalid_size", "width"),
    ({"image": PICTURE, "outpaint": {"left": 256}}, "invalid_size", "width"),
    ({"image": PICTURE, "outpaint": {"left": 8}, "width": 64, "height": 64}, "invalid_size", "width"),
    ({"image": PICTURE, "outpaint": {"left": -8}}, "invalid_value", "outpaint.left"),
    ({"image": PICTURE, "outpaint": {"front": 8}}, "unknown_field", "outpaint.front"),
    ({"image": PICTURE, "outpaint": {"left": 8}, "end": 0.5}, "invalid_value", "end"),
    ({"image": PICTURE, "strength": 0.3, "guidance_options": {"scales": [5] * 10}}, "invalid_value", "guidance_options"),
    ({"image": as_url(sample_picture(), "GIF")}, "invalid_picture", "image"),
    ({"image": PICTURE, "mask": "data:image/png;base64,AAAA"}, "invalid_picture", "mask"),
    ({"image": "data:image/png;base64,!"}, "invalid_picture", "image"),
    ({"image": PICTURE[:-24]}, "picture_truncated", "image"),
    ({"image": PICTURE, "mask": as_url(sample_mask(), more=b"<?php")}, "picture_trailing_data", "mask"),
    ({"kind": "variations", "image": PICTURE, "mask": MASK}, "invalid_value", "mask"),
    ({"image": "data:image/png,%89PNG"}, "invalid_picture", "image"),
    ({"image": "https://example.com/cat.png"}, "not_supported", "image"),
    ({"image": "../../etc/passwd"}, "picture_not_found", "image"),
    ({"image": "in-00/0.png"}, "picture_not_found", "image"),
    ({"image": "no-such-job/1-0.png"}, "picture_not_found", "image"),
    ({"image": 3}, "invalid_value", "image"),
])  # fmt: skip
def test_what_cannot_be_is_refused_before_anything_is_queued(
    gateway: Live, redis_url: str, body: dict[str, Any], code: str, param: str
) -> None:
    assert_error(gateway.post(GOOD | body), 404 if code == "picture_not_found" else 400, code, param)
    assert sum(depth(redis_url).values()) == 0
    assert not list((gateway.settings.data_dir / "images").rglob("in-*"))


def test_a_key_opens_for_its_client_alone(redis_url: str, tmp_path: Path) -> None:
    with running(redis_url, tmp_path, card(), keys="required") as live:
        keys = [make_key(redis_url, client) for client in ("ada", "bob")]
        with asking(live, keys[0]) as ada, asking(live, keys[1]) as bob:
            mine = ada.post("/generate", json=GOOD | {"image": PICTURE}).json()["params"]["image"]
            assert ada.post("/generate", json=GOOD | {"image": mine}).json()["params"]["image"] == mine
            assert_error(bob.post("/generate", json=GOOD | {"image": mine}), 404, "picture_not_found", "image")
            assert bob.post("/generate", json=GOOD | {"image": PICTURE}).json()["params"]["image"] != mine
            assert ada.get(f"/images/{mine}").status_code != 200


def test_a_line_of_a_batch_may_begin_with_a_picture(gateway: Live) -> None:
    lines = [GOOD | {"image": PICTURE}, GOOD | {"image": "in-00/0.png"}, GOOD]
    answer = gateway.http.post("/batches", json=lines)
    assert answer.status_code == 202, answer.text
    assert [bad["error"]["code"] for bad in answer.json()["refused"]] == ["picture_not_found"]


# Heads


@pytest.mark.parametrize(("kind", "mode", "options"), [
    ("PNG", "RGB", {}), ("PNG", "RGBA", {}), ("PNG", "L", {}), ("PNG", "P", {"transparency": 0}), ("JPEG", "RGB", {}),
    ("JPEG", "L", {"progressive": True}), ("WEBP", "RGB", {}), ("WEBP", "RGBA", {}), ("WEBP", "RGB", {"lossless": True}),
    ("WEBP", "RGBA", {"lossless": True}),
])  # fmt: skip
def test_a_head_tells_what_pillow_finds(kind: str, mode: str, options: dict[str, Any]) -> None:
    image = Image.fromarray(np.dstack([sample_picture(37, 21), sample_mask(37, 21)])).convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    found, seen = head(buffer.getvalue()), Image.open(buffer)
    assert (found.width, found.height) == seen.size == (37, 21)
    assert found.transparent == seen.has_transparency_data
    for end in range(len(buffer.getvalue())):
        try:
            cut = head(buffer.getvalue()[:end])
            assert (cut.width, cut.height) == (37, 21) and (cut == found or kind == "PNG")  # whose transparency is told later
        except ValueError:
            continue


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_that_lies_is_told_as_it_is_seen(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = head(as_file(sample_picture(40, 24), "JPEG", exif=exif))
    assert (found.width, found.height) == ((24, 40) if orientation >= 5 else (40, 24))


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_what_moves_is_refused(kind: str) -> None:
    frames = [Image.fromarray(sample_picture(seed=i)) for i in range(3)]
    buffer = io.BytesIO()
    frames[0].save(buffer, kind, save_all=True, append_images=frames[1:])
    with pytest.raises(ValueError, match="moves"):
        head(buffer.getvalue())
