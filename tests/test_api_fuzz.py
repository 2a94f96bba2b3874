"""schemathesis over the whole OpenAPI document, and malformed bodies at every route that takes one, against a real gateway over HTTP."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.client import Redis as BlockingRedis

from tests.cards import card
from tests.live_gateway import Live, running
from tests.quick_worker import drawing
from tests.test_docs import ROOT

TOOL = Path(sys.executable).parent / "st"
REFUSALS = range(400, 500)


@pytest.fixture(scope="module")
def gateway(valkey: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with BlockingRedis.from_url(valkey) as client:
        client.flushall()
    folder = tmp_path_factory.mktemp("data")
    with running(valkey, folder, card(), door_wait_s=60, max_wait_s=1) as live, drawing(valkey, folder, card().id):
        yield live


def fuzzed(gateway: Live, *options: str) -> str:
    """What schemathesis says; it ends with 0 where it found nothing."""
    command = [str(TOOL), "--config-file", str(ROOT / "tests" / "api_fuzz.toml"), "run", f"{gateway.url}/openapi.json"]
    told = os.environ | {"SCHEMATHESIS_HOOKS": "tests.api_fuzz_checks"}
    told["PYTHONPATH"] = str(ROOT)
    command += ["--no-color", "--warnings", "off", "--request-timeout", "60", *options]
    run = subprocess.run(command, env=told, cwd=ROOT, capture_output=True, text=True, errors="replace", timeout=550)
    assert run.returncode == 0, run.stdout[-8000:] + run.stderr[-2000:]
    return run.stdout


@pytest.mark.timeout(300)
def test_the_whole_document_is_true(gateway: Live) -> None:
    said = fuzzed(gateway, "--seed", "1", "--max-examples", "6")
    selected, tested = re.search(r"Selected: (\d+)/\1\n", said), re.search(r"Tested: (\d+)", said)
    assert selected and tested and selected[1] == tested[1], said
    operations = sum(map(len, gateway.http.get("/openapi.json").json()["paths"].values()))
    assert int(tested[1]) == operations


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", [2, 3])
def test_the_whole_document_is_true_for_many_more(gateway: Live, seed: int) -> None:
    fuzzed(gateway, "--seed", str(seed), "--max-examples", "80")


def routes_with_bodies(document: Any) -> list[tuple[str, str, tuple[str, ...]]]:
    """Method, address and media types of every route that takes a body."""
    return [
        (method, re.sub(r"\{[^}]*\}", "x", path), tuple(operation["requestBody"]["content"]))
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
        if "requestBody" in operation
    ]


NOT_JSON = [
    b"", b"{", b"}", b"null", b"[", b"[]", b"[[]]", b'"', b'"x"', b"0", b"-", b"NaN", b'{"prompt": NaN}', b'{"prompt": "a"',
    b'{"prompt": "a",}',
    b"{'prompt': 'a'}", b'{"prompt": "a", "prompt": "b"}', b'{"prompt": "\xff"}', b'{"prompt": "\\ud800"}', b"\xef\xbb\xbf{}", b"\x00",
    b"[" * 100_000, b'{"a":' * 5_000, b"1" * 5_000, b'{"prompt": 1e999}', b"<x/>", b"prompt=a",
]  # fmt: skip
B = b"--b"
PART = b'Content-Disposition: form-data; name="file"; filename="x.png"\r\nContent-Type: image/png\r\n\r\n'
BROKEN_PARTS = [
    b"", B, B + b"--", B + b"\r\n", B + b"\r\n\r\n\r\n" + B + b"--\r\n", B + b"\r\n" + PART, B + b"\r\n" + PART + b"\x89PNG",
    B + b"\r\n" + PART + b"x\r\n" + B, B + b"\r\nContent-Disposition: form-data\r\n\r\nx\r\n" + B + b"--\r\n",
    B + b'\r\nContent-Disposition: form-data; name="\xff"\r\n\r\nx\r\n' + B + b"--\r\n",
    B + b"\r\n" + PART.replace(b"x.png", b"../../etc/passwd") + b"x\r\n" + B + b"--\r\n",
    (B + b"\r\n" + PART + b"x\r\n") * 2_000 + B + b"--\r\n", B + b"\r\n" + b"X: y\r\n" * 5_000 + b"\r\nx\r\n" + B + b"--\r\n",
    B + b"\r\n" + PART + b"x\r\n--c--\r\n", b"no boundary at all", b"\r\n" * 1_000 + B + b"--\r\n",
]  # fmt: skip
FORM = "multipart/form-data"
MULTIPART = [f"{FORM}; boundary=b", FORM, f"{FORM}; boundary=", f'{FORM}; boundary="b', f"{FORM}; boundary={'b' * 300}"]
TYPES = [
    "",
    "application/json",
    "application/json; charset=utf-16",
    "text/plain",
    "application/x-ndjson",
    "application/x-www-form-urlencoded",
    "*/*",
]


def refused(gateway: Live, method: str, path: str, body: bytes, content_type: str) -> None:
    """A clean refusal, and the next request is answered."""
    headers = {"Content-Type": content_type} if content_type else {}
    answer = gateway.http.request(method, path, content=body, headers=headers)
    assert answer.status_code in REFUSALS, (method, path, content_type, body[:80], answer.status_code, answer.text[:200])
    error = answer.json()["error"]
    assert error["code"] and error["request_id"] == answer.headers["x-request-id"]
    assert not any(leak in answer.text for leak in ("Traceback", "site-packages", "passwd"))


def test_malformed_bodies_are_refused_everywhere(gateway: Live) -> None:
    routes = routes_with_bodies(gateway.http.get("/openapi.json").json())
    assert {("post", "/generate"), ("post", "/batches"), ("post", "/v1/images/generations")} <= {route[:2] for route in routes}
    for method, path, media_types in routes:
        for body in NOT_JSON:
            for content_type in media_types if any("json" in m for m in media_types) else ["application/json"]:
                if not valid(path, body, content_type):
                    refused(gateway, method, path, body, content_type)
        for content_type in TYPES:
            if content_type not in media_types:
                refused(gateway, method, path, b'{"prompt": "a"}', content_type)
        for content_type in MULTIPART:
            for body in BROKEN_PARTS:
                refused(gateway, method, path, body, content_type)


def valid(path: str, body: bytes, content_type: str) -> bool:
    """Some of them are good at one route: a batch of one prompt; options of which none are set; the same in JSON lines."""
    return (path, body) in {("/batches", b'"x"')} and content_type != "application/json"


CHOPS = st.binary(max_size=40) | st.sampled_from([b"\r\n", b"--b", b"--b--", PART, b"{", b"}", b'"', b",", b"\\u", b"\xed\xa0\x80"])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(chops=st.lists(CHOPS, max_size=12), kind=st.sampled_from(["application/json", "application/x-ndjson", MULTIPART[0]]), data=st.data())
def test_no_bytes_bring_a_gateway_to_an_error_of_its_own(gateway: Live, chops: list[bytes], kind: str, data: st.DataObject) -> None:
    routes = routes_with_bodies(gateway.http.get("/openapi.json").json())
    method, path, _ = data.draw(st.sampled_from(routes))
    answer = gateway.http.request(method, path, content=b"".join(chops), headers={"Content-Type": kind})
    assert answer.status_code < 500, (path, kind, chops, answer.text)
