"""/v1/images/edits, spoken to by the openai package: masks, sizes, streams, repeats, and what is refused."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from PIL import Image

from fleet import Fleet
from live_gateway import Live, depth, running
from picture_samples import as_file, sample_mask, sample_picture
from tests.cards import card

pytestmark = pytest.mark.timeout(300)  # whole services start here, on machines that may be busy

PICTURE = sample_picture(96, 64)
CLEAR = np.dstack([np.zeros_like(PICTURE), 255 - sample_mask(96, 64)])  # the right half is transparent
IMAGE, MASK = ("a.png", as_file(PICTURE), "image/png"), ("m.png", as_file(CLEAR), "image/png")


@pytest.fixture
def sdk(fleet: Fleet) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{fleet.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def pixels(found: Any, index: int = 0) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(found.data[index].b64_json))))


def params_of(fleet: Fleet, found: Any) -> dict[str, Any]:
    params: dict[str, Any] = fleet.client.get(f"/jobs/{found.model_extra['id']}").json()["params"]
    return params


def test_what_is_transparent_in_the_mask_is_drawn_and_the_rest_stays(sdk: openai.OpenAI, fleet: Fleet) -> None:
    found = sdk.images.edit(image=IMAGE, mask=MASK, prompt="a red hat", n=2)
    params = params_of(fleet, found)
    assert (params["kind"], params["strength"], found.size) == ("inpaint", 1.0, "96x64")
    for index in (0, 1):
        drawn = pixels(found, index)
        np.testing.assert_array_equal(drawn[:, : 48 - params["mask_feather"]], PICTURE[:, : 48 - params["mask_feather"]])
        assert (drawn[:, 60:] != PICTURE[:, 60:]).any()


def test_without_a_mask_the_whole_picture_is_drawn_in_the_size_that_is_asked_for(sdk: openai.OpenAI, fleet: Fleet) -> None:
    found = sdk.images.edit(image=[IMAGE], prompt="a cat", size="64x128", output_format="jpeg", response_format="b64_json", quality="low")
    params = params_of(fleet, found)
    assert (params["kind"], params["strength"], params["steps"]) == ("image_to_image", 0.8, 10)
    assert pixels(found).shape == (128, 64, 3) and found.output_format == "jpeg"


def test_a_stream_tells_of_an_edit(sdk: openai.OpenAI) -> None:
    with sdk.images.edit(image=IMAGE, mask=MASK, prompt="a cat", stream=True, partial_images=2) as stream:
        events = list(stream)
    assert [event.type for event in events] == ["image_edit.partial_image"] * 2 + ["image_edit.completed"]
    drawn = np.asarray(Image.open(io.BytesIO(base64.b64decode(events[-1].b64_json))))
    np.testing.assert_array_equal(drawn[:, :40], PICTURE[:, :40])


def test_a_repeat_joins_the_job_of_the_first_try(sdk: openai.OpenAI) -> None:
    def ask(prompt: str, retry: str, mask: Any = MASK) -> str:
        headers = {"x-stainless-retry-count": retry}
        return str(sdk.images.edit(image=IMAGE, mask=mask, prompt=prompt, extra_headers=headers).model_extra["id"])

    other = ("m.png", as_file(np.ascontiguousarray(CLEAR[:, ::-1])), "image/png")
    first = ask("a lost cat", "0")
    assert ask("a lost cat", "1") == first
    assert len({first, ask("a lost cat", "0"), ask("a lost cat", "1", other), ask("a lost dog", "1")}) == 4


@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")  # there, by OpenAI; here it stays
def test_variations_are_drawn_from_the_picture_alone(sdk: openai.OpenAI, fleet: Fleet) -> None:
    found = sdk.images.create_variation(image=IMAGE, n=2, size="64x64", response_format="b64_json")
    params = params_of(fleet, found)
    assert (params["kind"], params["strength"], params["guidance"], params["prompt"]) == ("variations", 0.6, 1.0, "")
    assert pixels(found).shape == (64, 64, 3) and (pixels(found, 0) != pixels(found, 1)).any()
    assert found.model_extra["warnings"] == []
    for files, code in (
        ({"image": IMAGE, "mask": MASK}, "unknown_field"),
        ({"mask": MASK}, "unknown_field"),
        ({}, "unsupported_media_type"),
    ):
        answer = fleet.client.post("/v1/images/variations", files=files)
        assert answer.json()["error"]["code"] == code
    assert fleet.client.post("/v1/images/variations", files={"n": (None, "1")}).json()["error"]["code"] == "missing_field"


@pytest.mark.parametrize("path", ["/v1/images/edits", "/v1/images/variations"])
def test_a_picture_may_be_larger_than_other_bodies(gateway: Live, path: str) -> None:
    picture = as_file(np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8))
    prompt = {"prompt": "a cat"} if path.endswith("edits") else {}
    assert len(picture) > gateway.settings.max_body_bytes
    assert gateway.http.post(path, files={"image": ("a.png", picture)}, data=prompt).status_code == 504  # nobody draws here: it was queued


@pytest.fixture
def gateway(redis_url: str, tmp_path: Path) -> Iterator[Live]:
    with running(redis_url, tmp_path, card(max_width=128), door_wait_s=1, max_body_bytes=1024, max_picture_bytes=60_000) as live:
        yield live


@pytest.mark.parametrize(("asked", "code", "param"), [
    ({"image": [IMAGE, IMAGE]}, "not_supported", "image"),
    ({"image": ("a.gif", as_file(PICTURE, "GIF"), "image/gif")}, "invalid_picture", "image"),
    ({"image": ("a.png", b"", "image/png")}, "invalid_picture", "image"),
    ({"mask": ("m.png", as_file(CLEAR[:32]), "image/png")}, "invalid_size", "mask"),
    ({"mask": ("m.png", b"nothing", "image/png")}, "invalid_picture", "mask"),
    ({"size": "100x64"}, "invalid_size", "size"),
    ({"size": "big"}, "invalid_value", "size"),
    ({"n": 11}, "invalid_value", "n"),
    ({"input_fidelity": "high"}, "not_supported", "input_fidelity"),
    ({"background": "transparent"}, "not_supported", "background"),
    ({"extra_body": {"strength": 0.5}}, "unknown_field", "strength"),
])  # fmt: skip
def test_what_cannot_be_honoured_is_refused(gateway: Live, redis_url: str, asked: dict[str, Any], code: str, param: str) -> None:
    client = openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0)
    with client, pytest.raises(openai.BadRequestError) as refused:
        client.images.edit(**{"image": IMAGE, "mask": MASK, "prompt": "a cat"} | asked)
    assert (refused.value.code, refused.value.param) == (code, param)
    assert sum(depth(redis_url).values()) == 0


FORM = "multipart/form-data; boundary=b"


def form(*parts: tuple[str, bytes]) -> bytes:
    return (
        b"".join(b"--b\r\nContent-Disposition: form-data; %s\r\n\r\n%s\r\n" % (head.encode(), data) for head, data in parts) + b"--b--\r\n"
    )


@pytest.mark.parametrize(("body", "media_type", "status", "code"), [
    (b"{}", "application/json", 415, "unsupported_media_type"),
    (b"", FORM, 400, "invalid_value"),
    (b"", "multipart/form-data", 400, "invalid_value"),
    (b"--b\r\nnonsense", FORM, 400, "invalid_value"),
    (form(('name="prompt"', b"a cat"), ('name="image"; filename="a"', as_file(PICTURE)))[:-20], FORM, 400, "invalid_value"),
    (form(('name="prompt"', b"a cat")), FORM, 400, "missing_field"),
    (form(('name="prompt"', b"a"), ('name="prompt"', b"b"), ('name="image"; filename="a"', b"c")), FORM, 400, "invalid_value"),
    (form(('name="prompt"', b"a cat"), ('name="image"', b"text")), FORM, 400, "invalid_value"),
    (form(('name="prompt"', b"\xff\xfe"), ('name="image"; filename="a"', b"c")), FORM, 400, "invalid_value"),
    (form(*[(f'name="x{i}"', b"1") for i in range(70)]), FORM, 400, "invalid_value"),
    (form(('name="image"; filename="a"', b"x" * 70_000)), FORM, 413, "body_too_large"),
])  # fmt: skip
def test_forms_that_are_none(gateway: Live, redis_url: str, body: bytes, media_type: str, status: int, code: str) -> None:
    answer = gateway.http.post("/v1/images/edits", content=body, headers={"Content-Type": media_type})
    assert answer.status_code == status and answer.json()["error"]["code"] == code, answer.text
    assert sum(depth(redis_url).values()) == 0
