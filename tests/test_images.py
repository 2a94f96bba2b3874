"""GET and HEAD /images/{key}: signatures, expiry, ranges, validators, headers, erasure."""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from urllib.parse import parse_qs, urlsplit

import httpx2
import pytest
from redis.client import Redis as BlockingRedis

from cards import card
from jobs.image_store import LocalImageStore, Signer
from jobs.job_queue import connect
from jobs.registry import Registry
from live_gateway import Live, assert_error, running

KEY = "3f9a0c/1-0.png"
DATA = bytes(range(256)) * 4


@pytest.fixture(scope="module")
def gateway(valkey: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """One for the whole file: nothing here is in the queue."""
    with BlockingRedis.from_url(valkey) as client:
        client.flushall()
    with running(valkey, tmp_path_factory.mktemp("data"), card()) as live:
        yield live


@dataclass(frozen=True)
class Picture:
    """A stored picture, and whoever may sign for it."""

    live: Live
    signer: Signer
    store: LocalImageStore

    def url(self, key: str = KEY, ttl_s: int = 600) -> str:
        return f"/images/{key}?{self.signer.sign(key, int(time.time()) + ttl_s)}"

    def get(self, **headers: str) -> httpx2.Response:
        return self.live.http.get(self.url(), headers={name.replace("_", "-"): value for name, value in headers.items()})


@pytest.fixture
async def picture(gateway: Live) -> AsyncIterator[Picture]:
    store = LocalImageStore(gateway.settings.image_dir)
    await store.put(KEY, DATA)
    redis = connect(gateway.settings.redis_url)
    yield Picture(gateway, Signer(await Registry(redis).image_secret()), store)
    await redis.aclose()


def test_a_signed_url_gives_the_picture(picture: Picture) -> None:
    answer = picture.get()
    assert answer.status_code == 200 and answer.content == DATA
    assert answer.headers["content-type"] == "image/png"
    assert answer.headers["content-length"] == "1024"
    assert answer.headers["accept-ranges"] == "bytes"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-disposition"] == 'inline; filename="celadon-3f9a0c-1-0.png"'
    private, age = answer.headers["cache-control"].split(", max-age=")
    assert private == "private" and 590 <= int(age) <= 600


async def test_every_format_has_its_type(picture: Picture) -> None:
    for extension, media_type in {"png": "image/png", "jpg": "image/jpeg", "webp": "image/webp"}.items():
        await picture.store.put(f"abc/2-7.{extension}", b"x")
        assert picture.live.http.get(picture.url(f"abc/2-7.{extension}")).headers["content-type"] == media_type


def test_head_says_the_same_without_the_bytes(picture: Picture) -> None:
    url = picture.url()
    head, get = picture.live.http.head(url, headers={"Range": "bytes=0-9"}), picture.live.http.get(url)
    assert head.status_code == 200 and head.content == b""
    own = {"x-request-id", "date", "cache-control"}
    assert {k: v for k, v in head.headers.items() if k not in own} == {k: v for k, v in get.headers.items() if k not in own}


@pytest.mark.parametrize(
    ("asked", "first", "last"),
    [("bytes=0-0", 0, 0), ("bytes=10-19", 10, 19), ("bytes=1000-", 1000, 1023), ("bytes=-24", 1000, 1023), ("bytes=1000-9999", 1000, 1023),
     ("bytes=-9999", 0, 1023), ("BYTES = 3 - 4", 3, 4)],
)  # fmt: skip
def test_a_range_gives_that_part(picture: Picture, asked: str, first: int, last: int) -> None:
    answer = picture.get(Range=asked)
    assert answer.status_code == 206
    assert answer.content == DATA[first : last + 1]
    assert answer.headers["content-range"] == f"bytes {first}-{last}/1024"
    assert answer.headers["content-length"] == str(last - first + 1)


@pytest.mark.parametrize("asked", ["bytes=1024-", "bytes=5000-6000", "bytes=-0"])
def test_a_range_outside_is_refused(picture: Picture, asked: str) -> None:
    answer = picture.get(Range=asked)
    assert_error(answer, 416, "range_not_satisfiable")
    assert answer.headers["content-range"] == "bytes */1024"


@pytest.mark.parametrize("asked", ["bytes=9-3", "bytes=-", "bytes=a-b", "pixels=0-9", "bytes=0-1,5-6", "0-9", "bytes=0-" + "9" * 40])
def test_a_range_that_is_none_gives_everything(picture: Picture, asked: str) -> None:
    answer = picture.get(Range=asked)
    assert answer.status_code == 200 and answer.content == DATA


def test_who_has_it_already_gets_304(picture: Picture) -> None:
    etag = picture.get().headers["etag"]
    assert re.fullmatch(r'"[^"]+"', etag)
    for known in (etag, f"W/{etag}", f'"other", {etag}', "*"):
        answer = picture.get(If_None_Match=known)
        assert answer.status_code == 304 and answer.content == b""
        assert answer.headers["etag"] == etag and "max-age" in answer.headers["cache-control"]
    assert picture.get(If_None_Match='"other"').status_code == 200
    assert picture.live.http.head(picture.url(), headers={"If-None-Match": etag}).status_code == 304
    assert picture.get(If_None_Match=etag, Range="bytes=0-1").status_code == 304


def test_if_range_gives_a_part_only_of_the_same_picture(picture: Picture) -> None:
    etag = picture.get().headers["etag"]
    assert picture.get(Range="bytes=0-1", If_Range=etag).status_code == 206
    assert picture.get(Range="bytes=0-1", If_Range='"other"').status_code == 200


async def test_two_pictures_have_two_etags(picture: Picture) -> None:
    await picture.store.put("3f9a0c/2-0.png", b"y")
    assert picture.live.http.get(picture.url("3f9a0c/2-0.png")).headers["etag"] != picture.get().headers["etag"]


def forgeries(url: str) -> dict[str, str]:
    query = {name: values[0] for name, values in parse_qs(urlsplit(url).query).items()}
    exp, kid, sig = query["exp"], query["kid"], query["sig"]
    return {
        "no query": "",
        "no signature": f"exp={exp}&kid={kid}",
        "no time": f"kid={kid}&sig={sig}",
        "no key id": f"exp={exp}&sig={sig}",
        "longer life": f"exp={int(exp) + 1}&kid={kid}&sig={sig}",
        "another key id": f"exp={exp}&kid={kid}0&sig={sig}",
        "another signature": f"exp={exp}&kid={kid}&sig={'0' * len(sig)}",
        "shorter signature": f"exp={exp}&kid={kid}&sig={sig[:-1]}",
        "upper case": f"exp={exp}&kid={kid}&sig={sig.upper()}X",
        "signature of other letters": f"exp={exp}&kid={kid}&sig=%C3%A9%00",
        "time in words": f"exp=never&kid={kid}&sig={sig}",
        "time below zero": f"exp=-1&kid={kid}&sig={sig}",
        "time as a fraction": f"exp={exp}.0&kid={kid}&sig={sig}",
        "time without end": f"exp={'9' * 400}&kid={kid}&sig={sig}",
        "time in other digits": f"exp=%D9%A1&kid={kid}&sig={sig}",
    }


@pytest.mark.parametrize("kind", list(forgeries("?exp=1&kid=a&sig=b")))
def test_a_forged_signature_is_refused(picture: Picture, kind: str) -> None:
    query = forgeries(picture.url())[kind]
    assert_error(picture.live.http.get(f"/images/{KEY}?{query}"), 403, "bad_signature")
    assert picture.live.http.head(f"/images/{KEY}?{query}").status_code == 403


async def test_a_signature_opens_no_other_picture(picture: Picture) -> None:
    await picture.store.put("3f9a0c/1-1.png", b"y")
    url = picture.url().replace("1-0.png", "1-1.png")
    assert_error(picture.live.http.get(url), 403, "bad_signature")


def test_another_secret_opens_nothing(picture: Picture) -> None:
    forged = Picture(picture.live, Signer(b"guess"), picture.store)
    assert_error(forged.get(), 403, "bad_signature")


def test_a_link_that_has_expired_is_gone_and_cannot_be_kept_alive(picture: Picture) -> None:
    url = picture.url(ttl_s=-1)
    answer = picture.live.http.get(url)
    assert_error(answer, 410, "link_expired")
    assert answer.headers["cache-control"] == "no-store"
    assert picture.live.http.head(url).status_code == 410
    assert picture.live.http.get(url, headers={"If-None-Match": "*"}).status_code == 410


async def test_an_erased_picture_is_gone(picture: Picture) -> None:
    url = picture.url()
    await picture.store.delete(KEY)
    assert_error(picture.live.http.get(url), 410, "image_erased")


@pytest.mark.parametrize(
    "key",
    ["..%2f..%2fetc%2fpasswd", "%2e%2e/%2e%2e/etc/passwd", "a/..%2f1-0.png", "a//1-0.png", "%2fetc%2fpasswd", "a%5c1-0.png", "a/1-0.png%00",
     "A/1-0.png", "a/1-0.svg", "a/1-0.png/", ".partial/x", "a", "", "a/%d9%a1-0.png", "x" * 300 + "/1-0.png",
     "a/1-0.png;b", "~root/1-0.png", "C:%5cx/1-0.png"],
)  # fmt: skip
def test_a_key_that_nobody_was_given_is_not_found_even_when_signed(picture: Picture, key: str) -> None:
    query = picture.signer.sign(key, int(time.time()) + 60)
    assert_error(picture.live.http.get(f"/images/{key}?{query}"), 404, "image_not_found")


def test_keys_name_files_below_the_store_only(picture: Picture) -> None:
    (picture.live.settings.data_dir / "1-0.png").write_bytes(b"outside")
    assert_error(picture.live.http.get(picture.url("images/1-0.png")), 410, "image_erased")


def test_pictures_are_counted(picture: Picture) -> None:
    def counted(name: str) -> float:
        return next(float(line.split()[1]) for line in picture.live.http.get("/metrics").text.splitlines() if line.startswith(name))

    pictures, size = counted("celadon_images_served_total"), counted("celadon_image_bytes_served_total")
    picture.get()
    picture.get(Range="bytes=0-9")
    picture.live.http.head(picture.url())
    assert counted("celadon_images_served_total") - pictures == 2
    assert counted("celadon_image_bytes_served_total") - size == 1034
