"""A picture is the same one by whichever door it comes: the same fault has the same code, and what is kept is its pixels alone."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from PIL import Image
from redis.client import Redis as BlockingRedis

from cards import card
from hostile_pictures import HOSTILE, PIXELS, of_modes, with_everything
from live_gateway import Live, depth, running
from picture_samples import as_file, sample_mask
from service.data_url import CLAIMS
from service.picture_cleaner import Cleaner, Plain
from service.picture_errors import UploadsBusy
from service.plain_pictures import PlainPictures
from service.settings import Settings
from test_picture_urls import sends
from test_uploads import shown
from tests.webhook_receiver import receiving

SIZE = {"width": 64, "height": 64}


@pytest.fixture(scope="module")
def gateway(valkey: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with BlockingRedis.from_url(valkey) as redis:
        redis.flushall()
    with running(valkey, tmp_path_factory.mktemp("doors"), card(), picture_urls="any", max_body_bytes=1_000_000) as live:
        yield live


def as_url(data: bytes, media_type: str = "image/png") -> str:
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"


def _form(live: Live, path: str, name: str, data: bytes, **fields: str) -> httpx2.Response:
    return live.http.post(path, files={name: ("x", data, "application/octet-stream")}, data=fields)


def _behind_a_url(live: Live, data: bytes) -> httpx2.Response:
    with receiving(sends(data)) as server:
        return live.post({"prompt": "x", "image": server.url(), **SIZE})


def _img2img(live: Live, image: str, **more: Any) -> httpx2.Response:
    return live.http.post("/sdapi/v1/img2img", json={"init_images": [image], **SIZE} | more)


def assert_refused(answer: httpx2.Response, code: str, param: str | None = None, name: str = "") -> str:
    """With this code, in whichever shape the door answers."""
    assert answer.status_code == 400, (name, answer.text)
    error = answer.json()["error"]
    assert error["code"] == code and param in (None, error["param"]), (name, error)
    return str(error["message"])


PNG = as_file(PIXELS)
DOORS: dict[str, tuple[str, Callable[[Live, bytes], httpx2.Response]]] = {
    "/uploads": ("file", lambda live, data: _form(live, "/uploads", "file", data)),
    "image": ("image", lambda live, data: live.post({"prompt": "x", "image": as_url(data), **SIZE})),
    "mask": ("mask", lambda live, data: live.post({"prompt": "x", "image": as_url(PNG), "mask": as_url(data), **SIZE})),
    "https": ("image", _behind_a_url),
    "edits": ("image", lambda live, data: _form(live, "/v1/images/edits", "image", data, prompt="x")),
    "variations": ("image", lambda live, data: _form(live, "/v1/images/variations", "image", data)),
    "init_images": ("init_images", lambda live, data: _img2img(live, base64.b64encode(data).decode())),
    "mask of img2img": ("mask", lambda live, data: _img2img(live, as_url(PNG), mask=as_url(data))),
}


@pytest.mark.parametrize("door", DOORS)
def test_a_fault_has_one_code_by_every_door(gateway: Live, redis_url_of: str, door: str) -> None:
    param, send = DOORS[door]
    for name, (code, make) in HOSTILE.items():
        data = make()
        if data or door not in ("init_images", "mask of img2img"):  # where an empty text is no picture at all
            assert_refused(send(gateway, data), code, param, name)
    assert depth(redis_url_of)["queued"] == 0
    assert not list(gateway.settings.image_dir.rglob("in-*"))


@pytest.fixture
def redis_url_of(gateway: Live) -> str:
    return gateway.settings.redis_url


def test_lines_of_a_batch_hear_the_same(gateway: Live) -> None:
    faults = {name: HOSTILE[name] for name in ("a bomb of pixels", "a png that moves", "a png of too few rows", "a jpeg of two pictures")}
    lines = [{"prompt": "x", "image": as_url(make()), **SIZE} for _, make in faults.values()]
    refused = gateway.http.post("/batches", json=lines)
    assert [line["error"]["code"] for line in refused.json()["lines"]] == [code for code, _ in faults.values()]


def test_the_setting_bounds_pictures_at_every_door(redis_url: str, tmp_path: Path) -> None:
    with running(redis_url, tmp_path, card(), max_upload_pixels=1000, picture_urls="any", max_body_bytes=100_000) as live:
        for door, (param, send) in DOORS.items():
            message = assert_refused(
                send(live, PNG), "picture_too_large", {"mask": "image", "mask of img2img": "init_images"}.get(door, param)
            )
            assert "1000" in message


# What it is said to be


def claims(live: Live, data: bytes, media_type: str) -> Iterator[httpx2.Response]:
    """All but uploads ask for a size that cannot be, which is found when the picture has been taken."""
    yield _img2img(live, as_url(data, media_type), width=63)
    yield live.post({"prompt": "x", "image": as_url(data, media_type), "width": 63, "height": 63})
    if media_type:
        yield live.http.post("/v1/images/edits", files={"image": ("x", data, media_type)}, data={"prompt": "x", "size": "64x63"})
        yield live.http.post("/uploads", files={"file": ("x", data, media_type)})


@pytest.mark.parametrize("media_type", sorted(CLAIMS))
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_which_of_the_three_it_is_its_bytes_say(gateway: Live, kind: str, media_type: str) -> None:
    """Browsers go by the name of the file, which is often wrong."""
    for answer in claims(gateway, as_file(PIXELS, kind), media_type):
        assert answer.status_code == 201 or answer.json()["error"]["code"] == "invalid_size", answer.text


@pytest.mark.parametrize("media_type", ["text/html", "image/gif", "image/svg+xml", "application/json", "image", "IMAGE/TIFF; q=1"])
def test_what_claims_to_be_no_picture_is_refused(gateway: Live, media_type: str) -> None:
    for answer in claims(gateway, PNG, media_type):
        assert "image/webp" in assert_refused(answer, "invalid_picture")


@pytest.mark.parametrize(
    "url",
    [
        "data:image/png;base64", "data:image/png,AAAA", "data:,x", "data:", "data:image/png;base64,&%", "data:image/png;base32,AAAA",
        "data:image/png;base64;x,AAAA",
    ],
)  # fmt: skip
def test_data_urls_that_are_none(gateway: Live, url: str) -> None:
    assert_refused(gateway.post({"prompt": "x", "image": url, **SIZE}), "invalid_picture", "image")
    assert_refused(_img2img(gateway, url), "invalid_picture", "init_images")


def test_a_data_url_may_be_written_in_capitals_and_with_parameters(gateway: Live) -> None:
    for about in ("DATA:IMAGE/PNG;BASE64", "data:;base64", "data:image/png;charset=utf-8;base64", "Data:image/jpg;base64"):
        url = f"{about},{base64.b64encode(PNG).decode()}"
        assert gateway.post({"prompt": "x", "image": url, **SIZE}).status_code == 202


def test_nothing_is_cut_off_before_what_a1111_takes_for_base64(gateway: Live) -> None:
    said = "nonsense;base64," + base64.b64encode(PNG).decode()
    assert_refused(_img2img(gateway, said), "invalid_picture", "init_images")


# What is kept


def kept(live: Live, data: bytes) -> np.ndarray:
    """As the job will find it; told with the right type, and the same upload."""
    job = live.post({"prompt": "x", "image": as_url(data), **SIZE})
    assert job.status_code == 202, job.text
    key = job.json()["params"]["image"]
    answer = live.http.get(f"/uploads/{key}")
    assert answer.headers["content-type"] == "image/png" and Image.open(io.BytesIO(answer.content)).format == "PNG"
    assert key == _form(live, "/uploads", "file", data).json()["key"]
    return shown(answer.content)


def test_pixels_alone_are_kept_of_a_data_url(gateway: Live) -> None:
    seen = kept(gateway, with_everything()).astype(int)
    assert np.abs(seen - np.rot90(PIXELS, -1)).mean() < 12
    for mode, (data, expected) in of_modes().items():
        assert np.array_equal(kept(gateway, data), expected), mode


def test_an_alpha_channel_that_hides_nothing_is_none(gateway: Live) -> None:
    whole = as_file(np.dstack([PIXELS, np.full((32, 48), 255, np.uint8)]))
    assert _form(gateway, "/uploads", "file", whole).json()["transparent"] is False
    assert_refused(gateway.post({"prompt": "x", "image": as_url(whole), "kind": "inpaint", **SIZE}), "missing_field", "mask")
    holed = as_file(np.dstack([PIXELS, 254 + sample_mask(48, 32) // 255]))
    assert _form(gateway, "/uploads", "file", holed).json()["transparent"] is True


# What it costs


class Counting(Cleaner):
    def __init__(self) -> None:
        super().__init__()
        self.cleaned = list[int]()

    async def clean(self, data: bytes, most_pixels: int, param: str) -> Plain:
        self.cleaned.append(len(data))
        return Plain(data, 48, 32, False)


async def test_a_picture_that_comes_again_is_not_decoded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures, cleaner = PlainPictures(Settings(data_dir=tmp_path)), Counting()
    monkeypatch.setattr(pictures, "_cleaner", cleaner)
    monkeypatch.setattr("service.plain_pictures.REMEMBERED_BYTES", 2 * len(PNG) + 10)
    others = [as_file(PIXELS + n) for n in (1, 2, 3)]
    for data in (PNG, PNG, others[0], PNG):
        await pictures.plain(data, "image")
    assert len(cleaner.cleaned) == 2
    for data in (*others, PNG):  # more than are remembered: the first is forgotten
        await pictures.plain(data, "image")
    assert len(cleaner.cleaned) == 5


async def test_bytes_that_wait_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuses_another(data: bytes, most: int, param: str) -> bytes:
        with pytest.raises(UploadsBusy):
            await cleaner.clean(PNG, most, param)
        return b'{"width": 1, "height": 1, "transparent": false}\npng'

    cleaner = Cleaner()
    monkeypatch.setattr("service.picture_cleaner.WAITING_BYTES", len(PNG))
    monkeypatch.setattr("service.picture_cleaner._run", refuses_another)
    for data in (PNG, PNG + PNG):  # one alone may have any size
        assert (await cleaner.clean(data, 9, "file")).png == b"png"


def test_who_comes_too_often_has_nothing_decoded(redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = list[Any]()
    real = PlainPictures.plain

    async def told(self: PlainPictures, data: bytes, param: str) -> Plain:
        seen.append(param)
        return await real(self, data, param)

    monkeypatch.setattr(PlainPictures, "plain", told)
    with running(redis_url, tmp_path, card(), rate_per_s=0.001, rate_burst=1, max_body_bytes=100_000) as live:
        assert DOORS["image"][1](live, PNG).status_code == 202
        for door in ("image", "edits", "variations", "init_images"):
            assert DOORS[door][1](live, PNG).json()["error"]["code"] == "rate_limited"
    assert seen == ["image"]
