"""POST /uploads: what comes in is looked at, made plain, and its client's alone; whatever is hostile is refused with a code."""

from __future__ import annotations

import asyncio
import io
import itertools
import os
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from PIL import Image
from redis.client import Redis as BlockingRedis

import service.picture_cleaner
from cards import card
from celadon.async_client import AsyncClient
from celadon.client import ApiError, Client
from hostile_pictures import HOSTILE, PIXELS, of_modes, png_chunk, png_with_text, with_everything
from keyed import asking, make_key
from live_gateway import Live, assert_error, running
from picture_samples import as_file
from service.picture_cleaner import AT_ONCE, WAITING, Cleaner
from service.picture_end import end
from service.picture_errors import InvalidPicture, UploadsBusy
from workers.clean_picture import png_rows, rows_of

LIMIT = 400_000  # bytes of a body
PNG = as_file(PIXELS)


@pytest.fixture(scope="module")
def gateway(valkey: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with BlockingRedis.from_url(valkey) as redis:
        redis.flushall()
    with running(valkey, tmp_path_factory.mktemp("uploads"), card(), max_picture_bytes=LIMIT) as live:
        yield live


def send(live: Live, data: bytes, media_type: str = "application/octet-stream", **options: Any) -> httpx2.Response:
    return live.http.post("/uploads", files={"file": ("x", data, media_type)}, **options)


def stored(live: Live) -> list[Path]:
    return [path for path in live.settings.image_dir.rglob("*") if path.is_file()]


def shown(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


@pytest.mark.parametrize("kind, media_type", [("PNG", "image/png"), ("JPEG", "image/jpeg"), ("WEBP", "image/webp")])
def test_a_picture_comes_in_as_a_body_or_in_a_form_and_is_the_same_one(gateway: Live, kind: str, media_type: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    data = as_file(PIXELS, kind, **options)
    answer = gateway.http.post("/uploads", content=data, headers={"Content-Type": media_type})
    assert answer.status_code == 201, answer.text
    told = answer.json()
    assert (told["width"], told["height"], told["transparent"]) == (48, 32, False)
    assert answer.headers["location"] == told["url"] == f"{gateway.url}/uploads/{told['key']}"
    for claimed in (media_type, "application/octet-stream"):
        assert send(gateway, data, claimed).json()["key"] == told["key"]
    picture = gateway.http.get(f"/uploads/{told['key']}")
    assert picture.headers["content-type"] == "image/png" and len(picture.content) == told["size"]
    assert np.array_equal(shown(picture.content), shown(data))
    job = gateway.post({"prompt": "a boat", "image": told["key"], "width": 64, "height": 64})
    assert job.status_code == 202 and job.json()["params"]["image"] == told["key"]


@pytest.mark.parametrize("make", [with_everything, png_with_text])
def test_nothing_but_pixels_is_kept(gateway: Live, make: Any) -> None:
    key = send(gateway, make()).json()["key"]
    data = gateway.http.get(f"/uploads/{key}").content
    picture = Image.open(io.BytesIO(data))
    picture.load()
    assert not picture.info and not picture.getexif()
    assert b"secret" not in data and b"profile" not in data and b"camera" not in data
    assert {data[at - 4 : at] for at in _chunks(data)} == {b"IHDR", b"IDAT", b"IEND"}


def _chunks(png: bytes) -> Iterator[int]:
    at = 8
    while at < len(png):
        yield at + 8
        at += 12 + int.from_bytes(png[at : at + 4], "big")


def test_a_picture_is_turned_as_the_camera_says(gateway: Live) -> None:
    told = send(gateway, with_everything()).json()
    assert (told["width"], told["height"]) == (32, 48)
    seen = shown(gateway.http.get(f"/uploads/{told['key']}").content).astype(int)
    assert np.abs(seen - np.rot90(PIXELS, -1)).mean() < 12 < np.abs(seen - np.rot90(PIXELS, 1)).mean()


def test_every_kind_of_pixel_is_seen_as_it_is(gateway: Live) -> None:
    for mode, (data, expected) in of_modes().items():
        told = send(gateway, data).json()
        assert told["transparent"] is (expected.shape[2] == 4), mode
        assert np.array_equal(shown(gateway.http.get(f"/uploads/{told['key']}").content), expected), mode


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused(gateway: Live, name: str) -> None:
    code, make = HOSTILE[name]
    before = stored(gateway)
    data = make()
    assert len(data) < LIMIT, "it is small: what it becomes is not"
    assert_error(send(gateway, data), 400, code, "file")
    assert stored(gateway) == before


@pytest.mark.parametrize("mode, depth", [(0, 1), (0, 16), (2, 8), (3, 4), (4, 8), (6, 16)])
def test_the_rows_of_a_png_are_counted_as_they_are_written(mode: int, depth: int) -> None:
    """Interlaced too: each of the seven small pictures that Adam7 makes of this one, by asking for every pixel where it belongs."""
    width, height = 13, 9
    pattern = ["16462646", "77777777", "56565656", "77777777", "36463646", "77777777", "56565656", "77777777"]  # PNG, figure 8.1
    for interlaced in (0, 1):
        head = struct.pack(">IIBBBBB", width, height, depth, mode, 0, 0, interlaced)
        rows: dict[tuple[str, int], int] = {}
        for y, x in itertools.product(range(height), range(width)):
            place = (pattern[y % 8][x % 8] if interlaced else "1", y)
            rows[place] = rows.get(place, 0) + 1
        bits = depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[mode]
        expected = sum(1 + (count * bits + 7) // 8 for count in rows.values())
        assert rows_of(b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", head)) == expected
    assert png_rows(PNG) == rows_of(PNG) == 32 * (1 + 3 * 48)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_where_a_picture_ends(kind: str) -> None:
    for options in ({}, {"progressive": True} if kind == "JPEG" else {"lossless": True} if kind == "WEBP" else {"compress_level": 0}):
        data = as_file(np.random.default_rng(0).integers(0, 255, (90, 70, 3), np.uint8), kind, **options)
        extension = {"JPEG": "jpg"}.get(kind, kind.lower())
        assert end(data, extension) == end(data + b"more", extension) == len(data)
        assert all(end(data[:n], extension) is None for n in range(12, len(data), 97))


@pytest.mark.parametrize(
    "options, status, code",
    [
        ({"content": PNG, "headers": {"Content-Type": "image/gif"}}, 415, "unsupported_media_type"),
        ({"content": PNG}, 415, "unsupported_media_type"),
        ({"json": {"file": "x"}}, 415, "unsupported_media_type"),
        ({"files": {"file": ("x", PNG, "image/gif")}}, 400, "invalid_picture"),
        ({"files": {"picture": ("x", PNG, "image/png")}}, 400, "invalid_value"),
        ({"files": [("file", ("x", PNG, "image/png")), ("file", ("y", PNG, "image/png"))]}, 400, "invalid_value"),
        ({"files": {"file": ("x", PNG, "image/png")}, "data": {"more": "x"}}, 400, "invalid_value"),
        ({"content": b"--x\r\n", "headers": {"Content-Type": "multipart/form-data"}}, 400, "invalid_value"),
        ({"content": b"--x\r\nno end", "headers": {"Content-Type": "multipart/form-data; boundary=x"}}, 400, "invalid_value"),
        ({"content": bytes(LIMIT + 1), "headers": {"Content-Type": "image/png"}}, 413, "body_too_large"),
        ({"files": {"file": ("x", bytes(LIMIT + 1), "image/png")}}, 413, "body_too_large"),
    ],
)
def test_requests_that_are_none(gateway: Live, options: dict[str, Any], status: int, code: str) -> None:
    before = stored(gateway)
    assert_error(gateway.http.post("/uploads", **options), status, code)
    assert stored(gateway) == before


def test_a_body_without_a_length_is_cut_off_at_the_limit(gateway: Live) -> None:
    def pieces() -> Iterator[bytes]:
        for _ in range(5):
            yield bytes(LIMIT // 4)

    answer = gateway.http.post("/uploads", content=pieces(), headers={"Content-Type": "image/png"})
    assert_error(answer, 413, "body_too_large")
    assert_error(
        gateway.http.post("/generate", content=bytes(300_000), headers={"Content-Type": "application/json"}), 413, "body_too_large"
    )


def test_a_picture_is_its_clients_alone_and_goes_when_it_says(valkey: str, tmp_path: Path) -> None:
    with BlockingRedis.from_url(valkey) as redis:
        redis.flushall()
    keys = [make_key(valkey, name) for name in ("ada", "bob")]
    with running(valkey, tmp_path, card(), keys="required") as live, asking(live, keys[0]) as ada, asking(live, keys[1]) as bob:
        hers, his = (c.post("/uploads", files={"file": PNG}).json()["key"] for c in (ada, bob))
        assert hers != his, "not even the same picture is shared"
        for method in ("GET", "DELETE"):
            assert_error(bob.request(method, f"/uploads/{hers}"), 404, "picture_not_found")
            assert_error(bob.request(method, "/uploads/in-" + "0" * 40 + "/0.png"), 404, "picture_not_found")
        assert_error(bob.post("/generate", json={"prompt": "x", "image": hers}), 404, "picture_not_found", "image")
        assert_error(live.http.get(f"/uploads/{hers}"), 401, "key_missing")
        assert ada.get(f"/uploads/{hers}").status_code == 200
        assert ada.delete(f"/uploads/{hers}").status_code == 204
        assert_error(ada.get(f"/uploads/{hers}"), 404, "picture_not_found")
        assert_error(ada.delete(f"/uploads/{hers}"), 404, "picture_not_found")
        assert bob.get(f"/uploads/{his}").status_code == 200


NEVER = ("x", "in-x", "../images", "in-" + "0" * 40, "in-" + "0" * 40 + "/../../s", "a" * 300, "%2e%2e/x", "é/x", "x/1-0.png")


@pytest.mark.parametrize("key", NEVER)
def test_keys_that_never_were(gateway: Live, key: str) -> None:
    assert gateway.http.get(f"/uploads/{key}").status_code == 404
    assert gateway.http.delete(f"/uploads/{key}").status_code == 404


def test_a_client_has_so_many_and_comes_so_often(valkey: str, tmp_path: Path) -> None:
    with BlockingRedis.from_url(valkey) as redis:
        redis.flushall()
    with running(valkey, tmp_path, card(), max_uploads=2, retention_s=1000) as live:
        first, second = (send(live, as_file(PIXELS + n)).json()["key"] for n in range(2))
        full = send(live, as_file(PIXELS + 2))
        assert_error(full, 429, "too_many_uploads")
        assert 900 < int(full.headers["retry-after"]) <= 1000
        live.http.delete(f"/uploads/{first}")
        assert send(live, as_file(PIXELS + 2)).status_code == 201
        assert live.http.get(f"/uploads/{second}").status_code == 200
    with BlockingRedis.from_url(valkey) as redis:
        redis.flushall()
    with running(valkey, tmp_path, card(), rate_per_s=0.01, rate_burst=2) as live:
        assert [send(live, PNG).status_code for _ in range(3)] == [201, 201, 429]
        refused = live.post({"prompt": "x"})
        assert_error(refused, 429, "rate_limited")  # one rate for all that a client sends


def test_it_is_swept_when_its_time_is_over(valkey: str, tmp_path: Path) -> None:
    with BlockingRedis.from_url(valkey) as redis:
        redis.flushall()
    with running(valkey, tmp_path, card()) as live:
        told = send(live, PNG).json()
        kept = stored(live)
    os.utime(kept[0].parent, (1000, 1000))
    with running(valkey, tmp_path, card()) as live:
        until = time.monotonic() + 20
        while kept[0].exists() and time.monotonic() < until:
            assert live.http.get("/healthz").status_code == 200
        assert_error(live.http.get(f"/uploads/{told['key']}"), 404, "picture_not_found")


async def test_both_clients_upload(gateway: Live, tmp_path: Path) -> None:
    (tmp_path / "picture").write_bytes(PNG)

    def blocking() -> str:
        with Client(gateway.url) as client:
            return str(client.upload(tmp_path / "picture")["key"])

    async with AsyncClient(gateway.url) as client:
        told = await client.upload(PNG)
        assert told["key"] == await asyncio.to_thread(blocking) and (told["width"], told["height"]) == (48, 32)
        await client.delete_upload(told["key"])
        with pytest.raises(ApiError) as refused:
            await client.delete_upload(told["key"])
        assert refused.value.code == "picture_not_found"
        with pytest.raises(ApiError) as refused:
            await client.upload(b"no picture")
        assert refused.value.code == "invalid_picture"


async def test_a_cleaner_that_hangs_or_dies_is_ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(service.picture_cleaner, "CLEANER", "http.server")  # listens, and says nothing
    monkeypatch.setattr(service.picture_cleaner, "PATIENCE_S", 0.5)
    with pytest.raises(InvalidPicture, match="too long"):
        await Cleaner().clean(PNG, 8000, "file")
    monkeypatch.setattr(service.picture_cleaner, "CLEANER", "this.is.none")
    with pytest.raises(InvalidPicture, match="memory and time"):
        await Cleaner().clean(PNG, 8000, "file")


async def test_so_many_wait_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    go = asyncio.Event()

    async def slow(data: bytes, most: int, param: str) -> bytes:
        await go.wait()
        return b'{"width": 1, "height": 1, "transparent": false}\npng'

    monkeypatch.setattr(service.picture_cleaner, "_run", slow)
    cleaner = Cleaner()
    inside = [asyncio.create_task(cleaner.clean(PNG, 9, "file")) for _ in range(AT_ONCE + WAITING)]
    await asyncio.sleep(0)
    with pytest.raises(UploadsBusy):
        await cleaner.clean(PNG, 9, "file")
    go.set()
    assert {plain.png for plain in await asyncio.gather(*inside)} == {b"png"}
    assert (await cleaner.clean(PNG, 9, "file")).png == b"png"
