"""POST /generate goes two ways, and nobody can tell which: a query sends it the long way, through the framework."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import service.app
from cards import card
from jobs.tracing import Tracing
from keyed import asking, make_key
from live_gateway import Live, depth, running
from service import fast_lane

LONG_WAY = "?dry_run=false"
OWN = ("id", "created_at", "links", "position", "eta_s", "deadline_at")  # of each job
OWN_HEADERS = ("date", "x-request-id", "location", "content-length", "idempotency-replayed")

BODIES: list[Any] = [
    {"prompt": "a red apple", "seed": 1},
    {"prompt": "", "seed": 2, "negative_prompt": "blurred", "guidance": 1},
    {"prompt": "a zebra", "seed": 4294967295, "width": 128, "height": 64, "steps": 3, "num_images": 4, "model": "celadon-test"},
    {"prompt": "é 日本 \U0001f34e", "seed": 3, "sampler": "Euler a", "schedule": "Karras", "sampler_options": {"eta": 0.5}},
    {"prompt": "a", "seed": 3, "output_format": "webp", "output_quality": 50, "preview": True, "priority": 7, "service_class": "batch"},
    {"prompt": "a", "seed": 3, "deadline_s": 90000, "webhook": {"url": "https://example.com/h", "events": ["failed"]}, "reuse": True},
    {"prompt": "a", "image": "", "mask": None, "kind": "text_to_image", "outpaint": {}, "seed": 1, "strength": 1.0},
    {"prompt": "a", "outpaint": {"left": 0}},
    {"prompt": "a", "sampler": "nothing"},
    {"prompt": "a", "steps": 100_000},
    {"prompt": "a", "steps": "5"},
    {"prompt": "a", "colour": "red"},
    {"prompt": "a", "seed": True},
    {"prompt": "a\u0000"},
    {"prompt": "a" * 3000},
    {"prompt": "a", "mask": "data:image/png;base64,AAAA"},
    {"prompt": "a", "image": "nobody/1-0.png"},
    {"prompt": "a", "reuse": True},
    {"prompt": "a", "webhook": {"url": "http://10.0.0.1/"}},
    {"prompt": "a", "deadline_s": 0.001},
    {"seed": 1},
    ["a red apple"],
    None,
    "a red apple",
]
RAW = [b"", b"{", b"\xff\xfe", b'{"prompt": "a", "prompt": "b"}', b'{"prompt": NaN}', b"[" * 3000, b'{"prompt": "\\ud800"}', b'"' * 300_000]
HEADERS = [
    {"Content-Type": "text/plain"},
    {"Content-Type": "application/json; charset=latin-1"},
    {"Content-Type": "application/json; charset=utf-8"},
    {"Content-Type": ""},
    {"Idempotency-Key": "with space"},
    {"Idempotency-Key": "k" * 256},
    {"Prefer": "wait=0"},
    {"Prefer": "wait=soon"},
    {"Host": "example.com"},
    {"X-Request-Id": "mine"},
]


@pytest.fixture(scope="module")
def gateway(valkey: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with running(valkey, tmp_path_factory.mktemp("gateway"), card(), max_queued_per_client=100) as live:
        yield live


@pytest.fixture
def short_ways(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The statuses of those that went the short way."""
    taken: list[int] = []
    submit = fast_lane._submit

    async def watched(*args: Any) -> Any:
        taken.append(202)
        return await submit(*args)

    monkeypatch.setattr(fast_lane, "_submit", watched)
    return taken


def told(answer: httpx2.Response) -> tuple[int, dict[str, str], Any]:
    """What must be alike."""
    body = answer.json()
    headers = {name: value for name, value in answer.headers.items() if name not in OWN_HEADERS}
    if "error" in body and set(body) == {"error"}:
        assert body["error"].pop("request_id") == answer.headers["x-request-id"]
    return answer.status_code, headers, {name: value for name, value in body.items() if name not in OWN}


def both(gateway: Live, content: bytes, headers: dict[str, str]) -> httpx2.Response:
    """The short way's answer, having seen that the long way's says the same."""
    short, long = (gateway.http.post(f"/generate{way}", content=content, headers=headers) for way in ("", LONG_WAY))
    assert told(short) == told(long)
    return short


@pytest.mark.parametrize("body", BODIES, ids=lambda body: json.dumps(body)[:60])
def test_both_ways_say_the_same(body: Any, gateway: Live, short_ways: list[int]) -> None:
    answer = both(gateway, json.dumps(body).encode(), {"Content-Type": "application/json"})
    if answer.status_code == 202:
        assert short_ways == [202]
        assert answer.headers["location"] == answer.json()["links"]["self"] == f"{gateway.url}/jobs/{answer.json()['id']}"
        kept = gateway.http.get(f"/jobs/{answer.json()['id']}").json()
        moves = ("position", "eta_s")
        assert {**kept, **dict.fromkeys(moves)} == {**answer.json(), **dict.fromkeys(moves)}


@pytest.mark.parametrize("content", RAW, ids=lambda content: repr(content[:20]))
def test_both_refuse_the_same_bytes(content: bytes, gateway: Live, short_ways: list[int]) -> None:
    assert both(gateway, content, {"Content-Type": "application/json"}).status_code in (400, 413)
    assert short_ways == []


@pytest.mark.parametrize("headers", HEADERS, ids=str)
def test_both_heed_the_same_headers(headers: dict[str, str], gateway: Live) -> None:
    both(gateway, json.dumps({"prompt": "a", "seed": 1}).encode(), {"Content-Type": "application/json", **headers})


def test_a_key_of_one_way_is_known_on_the_other(gateway: Live, short_ways: list[int]) -> None:
    before, headers = depth(gateway.settings.redis_url), {"Idempotency-Key": "one-of-both"}
    answers = [gateway.http.post(f"/generate{way}", json={"prompt": "a"}, headers=headers) for way in ("", LONG_WAY, "", LONG_WAY)]
    assert short_ways == [202, 202] and len({answer.json()["id"] for answer in answers}) == 1
    assert [answer.headers.get("idempotency-replayed") for answer in answers] == [None, "true", "true", "true"]
    assert depth(gateway.settings.redis_url)["queued"] == before["queued"] + 1
    for way in ("", LONG_WAY):
        other = gateway.http.post(f"/generate{way}", json={"prompt": "b"}, headers=headers)
        assert other.status_code == 409 and other.json()["error"]["code"] == "idempotency_key_reused"


def test_the_metrics_know_it_by_its_route(gateway: Live, short_ways: list[int]) -> None:
    gateway.post({"prompt": "a"})
    assert short_ways == [202]
    text = gateway.http.get("/metrics").text
    assert 'celadon_http_requests_total{method="POST",route="/generate",status="202"}' in text
    assert 'celadon_http_request_seconds_count{method="POST",route="/generate"}' in text


def test_both_have_the_same_spans(redis_url: str, tmp_path: Path, short_ways: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """With traces on, too, the short way is taken; a trace tells the request by its route, and the calls of Redis behind it."""
    spans = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(spans))
    monkeypatch.setattr(service.app, "open_tracing", lambda *_: (Tracing(provider), ""))
    told: list[set[Any]] = []
    with running(redis_url, tmp_path, card()) as live:
        for way in ("", LONG_WAY):
            for body, status in (({"prompt": "a red apple", "seed": 1}, 202), ({"prompt": "a", "sampler": "nothing"}, 400)):
                spans.clear()
                answer = live.http.post(f"/generate{way}", json=body, headers={"X-Request-Id": "one"})
                assert answer.status_code == status
                (request,) = (span for span in spans.get_finished_spans() if span.name == "POST /generate")
                behind = [span for span in spans.get_finished_spans() if span.parent and span.parent.span_id == request.context.span_id]
                assert ("redis submit" in {span.name for span in behind}) == (status == 202)
                own = {name: value for name, value in request.attributes.items() if name not in ("url.query", "client.port")}
                assert own["http.route"] == "/generate" and own["celadon.request_id"] == "one"
                told.append({*own.items(), request.status.status_code, request.kind})
    assert told[:2] == told[2:] and len(short_ways) == 2


def test_bounds_and_keys_hold_on_both(redis_url: str, tmp_path: Path) -> None:
    with running(redis_url, tmp_path, card(), keys="required", public_url="https://pictures.example") as live:
        key = make_key(redis_url, "ann", rate_per_s=0.001, burst=2, service_class="batch")
        for way in ("", LONG_WAY):
            assert live.http.post(f"/generate{way}", json={"prompt": "a"}).status_code == 401
        with asking(live, key) as http:
            for way in ("", LONG_WAY):
                answer = http.post(f"/generate{way}", json={"prompt": "a"})
                assert answer.status_code == 202 and answer.json()["service_class"] == "batch"
                assert answer.headers["location"].startswith("https://pictures.example/jobs/")
            for way in ("", LONG_WAY):
                refused = http.post(f"/generate{way}", json={"prompt": "a"})
                assert refused.status_code == 429 and refused.json()["error"]["code"] == "rate_limited" and refused.headers["ratelimit"]
