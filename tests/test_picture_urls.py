"""Pictures behind URLs: where the service connects, how often it is led on, how much it reads, and what becomes of what it got."""

from __future__ import annotations

import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import numpy as np
import pytest

from cards import card
from hostile_pictures import HOSTILE
from jobs.guarded_network import Refused, Unreachable
from keyed import asking, make_key
from live_gateway import Live, assert_error, depth, running
from picture_samples import as_file, as_url, sample_picture
from service.picture_fetch import MOST_REDIRECTS, PictureGet
from test_uploads import shown
from tests.webhook_receiver import NAME, Answer, client_tls, receiving, status

PIXELS = sample_picture()
PNG = as_file(PIXELS)
MOST = 100_000
PUBLIC = "1.1.1.1"


def names(**known: str) -> object:
    """A name server that knows NAME, and others by their first label."""

    async def resolve(host: str, port: int) -> Sequence[str]:
        return [known.get(host.partition(".")[0], PUBLIC)]

    return resolve


def getter(timeout_s: float = 10.0, **known: str) -> PictureGet:
    return PictureGet(resolve=names(**known), tls=client_tls(), timeout_s=timeout_s)  # type: ignore[arg-type]


def sends(data: bytes, **headers: str) -> Answer:
    def answer(request: BaseHTTPRequestHandler, before: int) -> None:
        request.send_response(200)
        for name, value in ({"content_length": str(len(data))} | headers).items():
            request.send_header(name.replace("_", "-"), value)
        request.end_headers()
        request.wfile.write(data)

    return answer


def leads(*places: str, then: Answer | None = None) -> Answer:
    """On to these one after the other."""

    def answer(request: BaseHTTPRequestHandler, before: int) -> None:
        if before >= len(places):
            return (then or sends(PNG))(request, before)
        status(302, location=places[before])(request, 0)

    return answer


def drips(request: BaseHTTPRequestHandler, before: int) -> None:
    """A byte now and then, for ever."""
    request.send_response(200)
    request.send_header("content-length", "90000")
    request.end_headers()
    while not request.server.receiver.closing.wait(0.02):  # type: ignore[attr-defined]
        request.wfile.write(b"x")
        request.wfile.flush()


def drips_headers(request: BaseHTTPRequestHandler, before: int) -> None:
    """A head that never ends, slowly."""
    request.wfile.write(b"HTTP/1.1 200 OK\r\n")
    while not request.server.receiver.closing.wait(0.02):  # type: ignore[attr-defined]
        request.wfile.write(b"x: y\r\n")
        request.wfile.flush()


def leads_slowly(request: BaseHTTPRequestHandler, before: int) -> None:
    """Each answer would be in time by itself; all of them are not."""
    request.server.receiver.closing.wait(0.4)  # type: ignore[attr-defined]
    status(302, location="/on")(request, before)


def bomb(*codings: str) -> Answer:
    """Ninety megabytes of nothing in less than may be sent."""
    packed = zlib.compress(bytes(90_000_000), 9, wbits=31)
    assert len(packed) < MOST
    return sends(packed, content_encoding=", ".join(codings))


def floods(request: BaseHTTPRequestHandler, before: int) -> None:
    """More than it says: nothing, since it tells no length."""
    request.send_response(200)
    request.send_header("transfer-encoding", "chunked")
    request.end_headers()
    while not request.server.receiver.closing.is_set():  # type: ignore[attr-defined]
        request.wfile.write(b"1000\r\n" + bytes(4096) + b"\r\n")


async def test_a_picture_comes_over_https_with_its_name_checked(connections: list[str]) -> None:
    with receiving(sends(PNG), tls=True) as server:
        assert await getter()(server.url(NAME, "/a.png?b=c", "https"), MOST) == PNG
        (got,) = server.got
        assert (got.path, got.headers["host"], server.names) == ("/a.png?b=c", f"{NAME}:{server.port}", [NAME])
        assert not set(got.headers) & {"authorization", "cookie", "x-request-id"}
        with pytest.raises(Unreachable, match="tls"):
            await getter()(server.url("other.example.com", scheme="https"), MOST)
    assert connections == [PUBLIC] * 2


@pytest.mark.parametrize("address", ["127.0.0.1", "10.0.0.1", "169.254.169.254", "::1", "::ffff:127.0.0.1", "fd00::1", "fe80::1"])
async def test_a_name_that_leads_inside_is_not_connected_to(address: str, connections: list[str]) -> None:
    with pytest.raises(Refused, match="public internet"):
        await getter(inside=address)(f"https://inside.{NAME}/", MOST)
    assert connections == []


@pytest.mark.parametrize("answers", [[PUBLIC, "10.0.0.1"], ["::ffff:10.0.0.1", PUBLIC]])
async def test_one_address_inside_damns_the_name(answers: list[str], connections: list[str]) -> None:
    async def resolve(host: str, port: int) -> Sequence[str]:
        return answers

    with pytest.raises(Refused, match="public internet"):
        await PictureGet(resolve=resolve, tls=client_tls())(f"https://{NAME}/", MOST)
    assert connections == []


async def test_a_name_that_moves_inside_is_not_followed_there(connections: list[str]) -> None:
    """Asked once for each connection, which goes to what was judged; a redirect to the same name asks again, and is judged again."""
    asked = [PUBLIC, "169.254.169.254"]

    async def resolve(host: str, port: int) -> Sequence[str]:
        return [asked.pop(0)]

    with receiving(leads("/b"), tls=True) as server:
        get = PictureGet(resolve=resolve, tls=client_tls())
        with pytest.raises(Refused, match="public internet"):
            await get(server.url(NAME, scheme="https"), MOST)
        assert len(server.got) == 1
    assert connections == [PUBLIC] and asked == []


INSIDE = [
    "https://127.0.0.1:{port}/",
    "http://hooks.example.com/",
    "https://169.254.169.254/latest",
    "https://localhost/",
    "https://[::1]:8443/",
    "https://[::ffff:127.0.0.1]/",
    "https://[::ffff:a9fe:a9fe]/latest",
    "https://10.0.0.1/",
    "https://0x7f.1/",
    "https://hooks.example.com:22/",
    "https://2130706433/",
    "https://inside.hooks.example.com:{port}/",
    "file:///etc/passwd",
    "gopher://hooks.example.com/",
    "//127.0.0.1:{port}/x",
    "https://a:b@hooks.example.com/",
]


@pytest.mark.parametrize("place", [place for place in INSIDE if "{port}" not in place])
async def test_who_names_the_inside_is_not_served(place: str, connections: list[str]) -> None:
    with pytest.raises(Refused):
        await getter(inside="10.0.0.1")(place, MOST)
    assert connections == []


@pytest.mark.parametrize("place", INSIDE)
async def test_who_is_led_inside_does_not_go(place: str, connections: list[str]) -> None:
    """Each redirect is checked as the first URL was, its name looked up anew."""
    made: list[str] = []

    def answer(request: BaseHTTPRequestHandler, before: int) -> None:
        leads(place.format(port=made[0]))(request, before)

    with receiving(answer, tls=True) as server:
        made.append(str(server.port))
        with pytest.raises(Refused):
            await getter(inside="10.0.0.1")(server.url(NAME, scheme="https"), MOST)
        assert len(server.got) == 1
    assert connections == [PUBLIC]


async def test_redirects_are_followed_a_few_times(connections: list[str]) -> None:
    with receiving(leads("/b", "c?d=e#f", f"/{'x' * 20}"), tls=True) as server:
        assert await getter()(server.url(NAME, "/a/", "https"), MOST) == PNG
        assert [got.path for got in server.got] == ["/a/", "/b", "/c?d=e", f"/{'x' * 20}"]
    with receiving(leads(*["/again"] * 20), tls=True) as server:
        with pytest.raises(Refused, match="leads on"):
            await getter()(server.url(NAME, scheme="https"), MOST)
        assert len(server.got) == MOST_REDIRECTS + 1


@pytest.mark.parametrize(
    "answer, why",
    [
        (sends(bytes(MOST + 1)), "larger than"),
        (floods, "larger than"),
        (sends(PNG, content_length=str(len(PNG) + 5), connection="close"), "broken answer|timeout"),
        (sends(PNG, content_encoding="gzip"), "encoding"),
        (bomb("gzip"), "encoding"),
        (bomb("identity", "gzip"), "encoding"),
        (status(404), "status 404"),
        (status(302), "status 302"),
        (drips, "timeout"),
        (drips_headers, "timeout|broken answer"),
        (leads_slowly, "timeout"),
    ],
    ids=["large", "endless", "short", "packed", "bomb", "bomb twice", "missing", "nowhere", "slow", "slow head", "slow redirects"],
)
async def test_answers_that_are_no_picture(answer: Answer, why: str, connections: list[str]) -> None:
    with receiving(answer, tls=True) as server:
        began = time.monotonic()
        with pytest.raises(Unreachable, match=why):
            await getter(timeout_s=1.0)(server.url(NAME, scheme="https"), MOST)
        assert time.monotonic() - began < 5


async def test_as_much_as_may_be_is_taken(connections: list[str]) -> None:
    with receiving(sends(bytes(MOST)), tls=True) as server:
        assert await getter()(server.url(NAME, scheme="https"), MOST) == bytes(MOST)


@contextmanager
def gateway(redis_url: str, folder: Path, **settings: str) -> Iterator[Live]:
    with running(redis_url, folder, card(), max_picture_bytes=MOST, **settings) as live:
        yield live


def asked(live: Live, url: str, **more: object) -> dict[str, object]:
    return {"prompt": "a boat", "image": url, "seed": 1} | more


def test_a_job_begins_with_what_lies_there(redis_url: str, tmp_path: Path) -> None:
    """`any`: http and this machine, for networks whose clients are all trusted."""
    with receiving(leads("/picture")) as server, gateway(redis_url, tmp_path, picture_urls="any") as live:
        tried = live.http.post("/generate?dry_run=true", json=asked(live, server.url()))
        assert tried.status_code == 200 and not list(live.settings.image_dir.rglob("in-*"))
        job = live.post(asked(live, server.url()))
        assert job.status_code == 202, job.text
        key = job.json()["params"]["image"]
        assert np.array_equal(shown(live.http.get(f"/uploads/{key}").content), PIXELS)
        assert key == live.http.post("/uploads", files={"file": PNG}).json()["key"], "as if it had been uploaded"
        assert str(server.port) not in live.http.get(f"/jobs/{job.json()['id']}").text


@pytest.mark.parametrize("name", ["a bomb of pixels", "a png that is a zip too", "svg", "a jpeg cut", "a png that moves"])
def test_what_lies_there_is_looked_at_as_an_upload_is(name: str, redis_url: str, tmp_path: Path) -> None:
    code, make = HOSTILE[name]
    data = make()
    with receiving(sends(data)) as server, running(redis_url, tmp_path, card(), picture_urls="any") as live:
        assert_error(live.post(asked(live, server.url())), 400, code, "image")
        assert_error(live.post(asked(live, as_key(live), mask=server.url())), 400, code, "mask")
    assert depth(redis_url)["queued"] == 0


def as_key(live: Live) -> str:
    return str(live.http.post("/uploads", files={"file": PNG}).json()["key"])


def test_the_settings_say_whether_anything_is_fetched(redis_url: str, tmp_path: Path) -> None:
    with receiving(sends(PNG)) as server:
        with gateway(redis_url, tmp_path) as live:
            assert_error(live.post(asked(live, "https://hooks.example.com/x.png")), 400, "not_supported", "image")
        with gateway(redis_url, tmp_path, picture_urls="public") as live:
            for url in (server.url(), server.url(scheme="HTTP"), f"https://127.0.0.1:{server.port}/", "https://metadata.internal/"):
                assert_error(live.post(asked(live, url)), 400, "picture_url_refused", "image")
        assert server.got == []
    assert depth(redis_url)["queued"] == 0


def test_nothing_is_fetched_for_whom_rate_or_quota_refuse(redis_url: str, tmp_path: Path) -> None:
    bounds = {"rate_limited": {"rate_per_s": 0.001, "burst": 1}, "quota_spent": {"per_day": 1}}
    keys = {code: make_key(redis_url, code, **bound) for code, bound in bounds.items()}
    with receiving(sends(PNG)) as server, gateway(redis_url, tmp_path, picture_urls="any", keys="required") as live:
        for fetched, (code, key) in enumerate(keys.items(), 1):
            with asking(live, key) as http:
                first = http.post("/generate", json=asked(live, server.url()), headers={"Idempotency-Key": "one"})
                assert first.status_code == 202, first.text
                for more in ({}, {"image": as_url(PIXELS), "mask": server.url()}):
                    refused = http.post("/generate", json=asked(live, server.url()) | more)
                    assert (refused.status_code, refused.json()["error"]["code"]) == (429, code)
                assert len(server.got) == 2 * fetched - 1
                again = http.post("/generate", json=asked(live, server.url()), headers={"Idempotency-Key": "one"})
                assert (again.status_code, again.json()["id"]) == (202, first.json()["id"])


def test_a_url_that_answers_nothing_is_told_and_a_batch_names_none(redis_url: str, tmp_path: Path) -> None:
    with receiving(status(404)) as server, gateway(redis_url, tmp_path, picture_urls="any") as live:
        message = assert_error(live.post(asked(live, server.url())), 400, "picture_url_failed", "image")
        assert "status 404" in message and str(server.port) not in message
        answer = live.http.post("/batches", json=[asked(live, server.url())])
        assert answer.status_code == 400 and answer.json()["lines"][0]["error"]["code"] == "not_supported"
        assert len(server.got) == 1
