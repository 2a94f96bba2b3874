"""The Python client where the way to the service is bad: streams that break, proxies that answer, services that go away."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx2
import pytest

from celadon.client import ApiError, Client, Unreachable

Handler = Callable[[httpx2.Request], httpx2.Response]


def body(status: str, steps_done: int) -> dict[str, Any]:
    image = {"url": "http://elsewhere/images/a.png?sig=1", "seed": 3, "width": 8, "height": 8, "media_type": "image/png"}
    return {
        "id": "j",
        "status": status,
        "progress": {"steps_done": steps_done, "steps_total": 4},
        "images": [image | {"new": "field"}] if status == "succeeded" else [],
        "error": None,
        "warnings": [{"code": "c", "message": "large"}],
        "params": {"prompt": "p"},
    }


def event(id_: str, kind: str, steps_done: int) -> str:
    return f"id: {id_}\nevent: {kind}\ndata: {json.dumps({'steps_done': steps_done, 'steps_total': 4})}\n\n"


def stream(*events: str) -> httpx2.Response:
    return httpx2.Response(200, text="".join(events), headers={"content-type": "text/event-stream"})


@pytest.fixture
def client_of(monkeypatch: pytest.MonkeyPatch) -> Callable[[Handler], Client]:
    """A client whose service is the handler."""
    monkeypatch.setattr("celadon.client.POLL_S", 0.0)

    def make(handler: Handler) -> Client:
        client = Client("http://service")
        client._http = httpx2.Client(transport=httpx2.MockTransport(handler), base_url="http://service")
        return client

    return make


def test_a_broken_stream_is_taken_up_where_it_broke(client_of: Callable[[Handler], Client]) -> None:
    asked: list[str | None] = []

    def handle(request: httpx2.Request) -> httpx2.Response:
        if request.url.path == "/jobs/j":
            return httpx2.Response(200, json=body("succeeded", 4) if len(asked) == 2 else body("running", 0))
        asked.append(request.headers.get("Last-Event-ID"))
        return stream(event("1-0", "queued", 0), event("2-0", "progress", 1)) if len(asked) == 1 else stream(event("3-0", "succeeded", 4))

    seen: list[tuple[int, int]] = []
    with client_of(handle) as client:
        job = client.wait("j", on_progress=lambda done, total: seen.append((done, total)))
    assert asked == [None, "2-0"]
    assert seen == [(0, 4), (1, 4), (0, 4), (4, 4)]
    assert (job.status, job.images[0].seed, job.warnings) == ("succeeded", 3, ("large",))


def test_without_events_the_record_is_asked(client_of: Callable[[Handler], Client]) -> None:
    looks: list[int] = []

    def handle(request: httpx2.Request) -> httpx2.Response:
        if request.url.path != "/jobs/j":
            return httpx2.Response(404)
        looks.append(len(looks))
        return httpx2.Response(200, json=body("succeeded" if len(looks) == 4 else "running", len(looks)))

    seen: list[int] = []
    with client_of(handle) as client:
        assert client.wait("j", on_progress=lambda done, total: seen.append(done)).done
    assert seen == [1, 2, 3, 4]


def test_an_answer_that_is_not_the_services_own(client_of: Callable[[Handler], Client]) -> None:
    with client_of(lambda request: httpx2.Response(502, text="<html>bad gateway")) as client, pytest.raises(ApiError) as error:
        client.get("j")
    assert (error.value.status, error.value.code) == (502, "http_error")


def test_a_service_that_goes_away(client_of: Callable[[Handler], Client]) -> None:
    def handle(request: httpx2.Request) -> httpx2.Response:
        raise httpx2.ReadError("reset", request=request)

    with client_of(handle) as client, pytest.raises(Unreachable, match="http://service"):
        client.submit("p")


def test_a_picture_is_fetched_by_the_way_we_know(client_of: Callable[[Handler], Client]) -> None:
    """The URL in the answer names the public host, which may not be reachable from inside."""
    paths: list[str] = []

    def handle(request: httpx2.Request) -> httpx2.Response:
        paths.append(str(request.url))
        return httpx2.Response(200, json=body("succeeded", 4)) if request.url.path == "/jobs/j" else httpx2.Response(200, content=b"png")

    with client_of(handle) as client:
        assert client.download(client.get("j").images[0]) == b"png"
    assert paths[1] == "http://service/images/a.png?sig=1"


def test_what_is_not_said_is_not_sent(client_of: Callable[[Handler], Client]) -> None:
    sent: list[Any] = []

    def handle(request: httpx2.Request) -> httpx2.Response:
        sent.append((json.loads(request.content), request.headers.get("Idempotency-Key")))
        return httpx2.Response(202, json=body("queued", 0))

    with client_of(handle) as client:
        client.submit("p", steps=None, seed=0, idempotency_key="k")
    assert sent == [({"prompt": "p", "seed": 0}, "k")]


def test_events_go_on_where_the_stream_broke(client_of: Callable[[Handler], Client]) -> None:
    asked: list[str | None] = []

    def handle(request: httpx2.Request) -> httpx2.Response:
        asked.append(request.headers.get("Last-Event-ID"))
        if len(asked) == 2:
            raise httpx2.ReadError("gone for a moment")
        return stream(event("1-0", "queued", 0), event("2-0", "progress", 1)) if len(asked) == 1 else stream(event("3-0", "succeeded", 4))

    found = [(e.id, e.kind, e.steps_done) for e in client_of(handle).events("j")]
    assert found == [("1-0", "queued", 0), ("2-0", "progress", 1), ("3-0", "succeeded", 4)]
    assert asked == [None, "2-0", "2-0"]
    with pytest.raises(Unreachable):
        list(client_of(gone).events("j"))


def gone(request: httpx2.Request) -> httpx2.Response:
    raise httpx2.ConnectError("nobody there")
