"""Addresses that are none, methods that are none, queries that are wrong, bytes that no client sends: refused, and nothing is queued."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from redis.client import Redis as BlockingRedis

from cards import card
from live_gateway import Live, assert_error, running


@pytest.fixture(scope="module")
def gateway(valkey: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """One for the whole file: a bad request leaves nothing behind, and every test here checks just that."""
    with BlockingRedis.from_url(valkey) as client:
        client.flushall()
    with running(valkey, tmp_path_factory.mktemp("data"), card()) as live:
        yield live


@pytest.fixture(autouse=True)
def nothing_queued(gateway: Live, valkey: str) -> Iterator[None]:
    """After each test the server holds the model's card, perhaps the secret of image URLs, and nothing else."""
    yield
    with BlockingRedis.from_url(valkey, decode_responses=True) as client:
        assert set(client.keys("*")) - {"{q0}:cards", "{q0}:layout", "{q0}:secret", "{q0}:shards"} == set()


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/jobs/0123456789abcdef0123456789abcdef"),
        ("DELETE", "/jobs/0123456789abcdef0123456789abcdef"),
        ("DELETE", "/jobs/0123456789abcdef0123456789abcdef/images"),
        ("GET", "/jobs/0123456789abcdef0123456789abcdef/events"),
        ("GET", "/jobs/nobody"),
        ("GET", "/jobs/..%2e"),
        ("GET", "/jobs/a%00b"),
        ("GET", "/jobs/%ff%fe"),
        ("GET", "/jobs/*"),
        ("GET", "/jobs/%7Bq0%7D:cards"),
        ("GET", "/jobs/" + "a" * 4000),
        ("DELETE", "/jobs/a%0d%0aX-Evil:1"),
        ("GET", "/jobs/A%20B/events"),
        ("POST", "/jobs/0123456789abcdef0123456789abcdef/retry"),
        ("POST", "/jobs/..%2e/retry"),
    ],
)
def test_a_job_that_never_was_is_not_found(gateway: Live, method: str, path: str) -> None:
    assert_error(gateway.http.request(method, path), 404, "job_not_found")


@pytest.mark.parametrize(
    "id_", ["abc.failed", "abc", "abc.progress", "..%2e", "%7Bq0%7D:hooksdead", "a%00.failed", "A.failed", "a" * 99 + ".failed"]
)
def test_a_delivery_that_never_was_is_not_found(gateway: Live, id_: str) -> None:
    assert_error(gateway.http.post(f"/webhooks/deliveries/{id_}/redeliver"), 404, "delivery_not_found")


@pytest.mark.parametrize("path", ["/generate/", "/jobs/", "/v2/generate", "/docs", "/%2e%2e/etc/passwd", "/jobs/a/b/c", "/.env"])
def test_an_address_that_is_none_is_not_found(gateway: Live, path: str) -> None:
    answer = gateway.http.get(path, follow_redirects=False)
    assert_error(answer, 404, "not_found")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/generate", "POST"),
        ("PUT", "/generate", "POST"),
        ("OPTIONS", "/generate", "POST"),
        ("PROPFIND", "/generate", "POST"),
        ("POST", "/jobs", "GET"),
        ("POST", "/jobs/abc", "DELETE, GET"),
        ("GET", "/jobs/abc/retry", "POST"),
        ("POST", "/webhooks/deliveries", "GET"),
        ("GET", "/webhooks/deliveries/abc.failed/redeliver", "POST"),
        ("PATCH", "/jobs/abc/images", "DELETE"),
        ("POST", "/jobs/abc/events", "GET"),
        ("POST", "/images/abc/1-0.png", "GET, HEAD"),
        ("DELETE", "/images/abc/1-0.png", "GET, HEAD"),
        ("POST", "/samplers", "GET"),
        ("DELETE", "/metrics", "GET"),
    ],
)
def test_a_method_that_is_none_is_refused_with_those_that_are(gateway: Live, method: str, path: str, allowed: str) -> None:
    answer = gateway.http.request(method, path)
    assert_error(answer, 405, "method_not_allowed")
    assert answer.headers["allow"] == allowed


@pytest.mark.parametrize(
    ("path", "code", "param"),
    [
        ("/samplers?model=nobody", "unknown_model", "model"),
        ("/schedules?model=", "invalid_value", "model"),
        ("/samplers?modle=celadon-test", "unknown_field", "modle"),
        ("/schedules?model=%00", "unknown_model", "model"),
        ("/jobs?status=done", "invalid_value", "status"),
        ("/jobs?status=", "invalid_value", "status"),
        ("/jobs?status=Queued", "invalid_value", "status"),
        ("/jobs?limit=0", "invalid_value", "limit"),
        ("/jobs?limit=101", "invalid_value", "limit"),
        ("/jobs?limit=many", "invalid_value", "limit"),
        ("/jobs?limit=1.5", "invalid_value", "limit"),
        ("/jobs?cursor=", "invalid_value", "cursor"),
        ("/jobs?status=dead&cursor=1", "invalid_value", "cursor"),
        ("/jobs?cursor=../etc", "invalid_value", "cursor"),
        ("/jobs?cursor=%00", "invalid_value", "cursor"),
        ("/jobs?cursor=" + "9" * 400, "invalid_value", "cursor"),
        ("/jobs?client=somebody", "unknown_field", "client"),
        ("/webhooks/deliveries?state=alive", "invalid_value", "state"),
        ("/webhooks/deliveries?state=", "invalid_value", "state"),
        ("/webhooks/deliveries?limit=0", "invalid_value", "limit"),
        ("/webhooks/deliveries?limit=101", "invalid_value", "limit"),
        ("/webhooks/deliveries?limit=x", "invalid_value", "limit"),
        ("/webhooks/deliveries?cursor=1", "unknown_field", "cursor"),
        ("/jobs?offset=1", "unknown_field", "offset"),
    ],
)
def test_a_bad_query_is_refused_by_name(gateway: Live, path: str, code: str, param: str) -> None:
    assert_error(gateway.http.get(path), 400, code, param)


@dataclass(frozen=True)
class Raw:
    """A request as bytes, for what no client library would send."""

    text: bytes
    status: tuple[int, ...]
    why: str = field(default="")


@pytest.mark.parametrize(
    "raw",
    [
        Raw(b"GET\r\n\r\n", (400,), "no target"),
        Raw(b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", (400,), "TLS on a plain port"),
        Raw(b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n", (400,), "negative length"),
        Raw(b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: abc\r\n\r\n", (400,), "length in letters"),
        Raw(b"GET /jobs/a HTTP/1.1\r\nHost: x\r\nX-A: b\x00c\r\n\r\n", (400,), "NUL in a header"),
        Raw(b"GET /jobs/../../etc/passwd HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", (404,), "dots in the path"),
        Raw(b"GET http://elsewhere/jobs/a HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", (404,), "absolute target"),
    ],
    ids=lambda raw: raw.why,
)
def test_bytes_that_no_client_sends_do_no_harm(gateway: Live, raw: Raw) -> None:
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=10) as client:
        client.sendall(raw.text)
        head = client.recv(65536)
    assert int(head.split(b" ", 2)[1]) in raw.status
    assert b"Traceback" not in head and b".py" not in head
    assert gateway.http.get("/healthz").status_code == 200


def test_a_client_that_goes_away_in_the_middle_leaves_nothing(gateway: Live) -> None:
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=10) as client:
        client.sendall(b'POST /generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{"prompt"')
    assert gateway.http.get("/healthz").status_code == 200
