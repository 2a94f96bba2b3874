"""POST /batches and what follows, over real HTTP: lines good and bad, bounds, results, zip, kill -9 in the middle."""

from __future__ import annotations

import asyncio
import io
import json
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from redis.asyncio import Redis
from redis.client import Redis as BlockingRedis

from cards import card
from jobs.batches import Batches, Line, line_id
from jobs.image_store import LocalImageStore
from jobs.job_queue import JobQueue
from live_gateway import Live, assert_error, depth, running
from service.zip_stream import zipped
from tests.fleet import Fleet
from tests.job_samples import Clock, sample_image, sample_job

pytestmark = pytest.mark.timeout(300)  # whole services start here, on machines that may be busy

JSONL = "application/x-ndjson"


@pytest.fixture
def gateway(redis_url: str, tmp_path: Path) -> Iterator[Live]:
    with running(redis_url, tmp_path, card()) as live:
        yield live


def lines(*said: Any) -> bytes:
    return "\n".join(json.dumps(one) for one in said).encode()


def post(live: Live, body: Any, *, media_type: str = "application/json", query: str = "", **headers: str) -> httpx2.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()} | {"Content-Type": media_type}
    return live.http.post(f"/batches{query}", content=content, headers=named)


def results(live: Live, batch: dict[str, Any], **query: Any) -> list[dict[str, Any]]:
    answer = live.http.get(f"/batches/{batch['id']}/results", params=query)
    assert answer.status_code == 200 and answer.headers["content-type"].startswith(JSONL), answer.text
    return [json.loads(line) for line in answer.text.splitlines()]


@pytest.mark.parametrize(("body", "media_type"), [
    (["a cat", {"prompt": "a dog", "seed": 5}, {"prompt": "a cow", "steps": 7}], "application/json"),
    ({"defaults": {"steps": 9, "seed": 5}, "lines": ["a cat", "a dog", {"prompt": "a cow", "steps": 7}]}, "application/json"),
    (lines({"defaults": {"steps": 9, "seed": 5}}, "a cat", {"prompt": "a dog"}, {"prompt": "a cow", "steps": 7}), JSONL),
    (lines("a cat", {"prompt": "a dog", "seed": 5}) + b"\r\n\n" + lines({"prompt": "a cow", "steps": 7}) + b"\n", "application/jsonl"),
])  # fmt: skip
def test_a_batch_is_a_list_or_an_object_or_lines(gateway: Live, redis_url: str, body: Any, media_type: str) -> None:
    answer = post(gateway, body, media_type=media_type)
    batch = answer.json()
    assert answer.status_code == 202 and answer.headers["location"] == batch["links"]["self"], answer.text
    assert (batch["status"], batch["counts"]["queued"], batch["refused"], depth(redis_url)["queued"]) == ("open", 3, [], 3)
    found = results(gateway, batch)
    assert [line["status"] for line in found] == ["queued"] * 3
    jobs = [gateway.http.get(f"/jobs/{line['id']}").json() for line in found]
    assert [job["params"]["prompt"] for job in jobs] == ["a cat", "a dog", "a cow"]
    assert jobs[1]["params"]["seed"] == 5 and jobs[2]["params"]["steps"] == 7
    assert {(job["batch"], job["service_class"]) for job in jobs} == {(batch["id"], "batch")}
    assert gateway.http.get("/batches").json()["batches"][0]["id"] == batch["id"]


def form(file: bytes, *, kind: str = "application/octet-stream", **texts: str) -> dict[str, Any]:
    return {"file": ("prompts.jsonl", file, kind)} | {name: (None, text) for name, text in texts.items()}


def test_a_file_of_a_form_is_a_batch_and_its_repeat_the_same(gateway: Live, redis_url: str) -> None:
    said, key = lines({"defaults": {"steps": 7}}, "a cat", {"prompt": "a dog", "seed": 5}), {"Idempotency-Key": "form-1"}
    files = form(said, defaults='{"steps": 3, "width": 128}')
    first, again = [gateway.http.post("/batches", files=files, headers=key) for _ in range(2)]  # each with a boundary of its own
    assert first.status_code == 202, first.text
    assert again.json()["id"] == first.json()["id"] and again.headers["idempotency-replayed"] == "true"
    params = [gateway.http.get(f"/jobs/{line['id']}").json()["params"] for line in results(gateway, first.json())]
    assert [(p["prompt"], p["steps"], p["width"]) for p in params] == [("a cat", 7, 128), ("a dog", 7, 128)]
    other = gateway.http.post("/batches", files=form(said, defaults='{"steps": 3}'), headers=key)
    assert_error(other, 409, "idempotency_key_reused")
    as_json = gateway.http.post("/batches", files=form(b'["a cow", "a bee"]', kind="application/json"))
    assert as_json.json()["counts"]["queued"] == 2


@pytest.mark.parametrize(("files", "status", "code", "param"), [
    ({"defaults": (None, "{}")}, 400, "missing_field", "file"),
    ({"file": (None, '"a cat"')}, 400, "missing_field", "file"),
    (form(b'"a"', colour="red"), 400, "unknown_field", "colour"),
    (form(b'"a"', defaults="[]"), 400, "invalid_value", "defaults"),
    (form(b'"a"', defaults="{"), 400, "invalid_value", "defaults"),
    (form(b'"a"', defaults='{"frames": 1}'), 400, "unknown_field", "defaults.frames"),
    (form(b""), 400, "invalid_value", "lines"),
    (form(b'"a"' + b"\n" * 300_000), 413, "body_too_large", None),
])  # fmt: skip
def test_forms_that_are_none_are_refused(redis_url: str, tmp_path: Path, files: Any, status: int, code: str, param: str | None) -> None:
    with running(redis_url, tmp_path, card(), max_batch_bytes=200_000) as live:
        assert_error(live.http.post("/batches", files=files), status, code, param)
    assert depth(redis_url)["queued"] == 0


def test_bad_lines_are_told_by_number_and_good_ones_are_queued(gateway: Live, redis_url: str) -> None:
    said = lines("a cat", {"prompt": "a dog", "sampler": "nope"}, 5, {"prompt": "a", "deadline_s": 0}, {"prompt": "x", "frames": 2})
    batch = post(gateway, said + b"\n{oops\n" + lines("a cow", {}), media_type=JSONL).json()
    told = [(one["line"], one["error"]["code"], one["error"]["param"]) for one in batch["refused"]]
    assert told == [
        (2, "unknown_sampler", "sampler"), (3, "invalid_value", None), (4, "invalid_value", "deadline_s"),
        (5, "unknown_field", "frames"), (6, "invalid_json", None), (8, "missing_field", "prompt"),
    ]  # fmt: skip
    assert batch["counts"] | {"queued": 2, "refused": 6} == batch["counts"] and depth(redis_url)["queued"] == 2
    found = results(gateway, batch)
    assert [(line["line"], line["status"]) for line in found] == [
        (n, "queued" if n in (1, 7) else "refused") for n in range(1, 9)
    ]  # fmt: skip
    assert found[1]["error"]["code"] == "unknown_sampler" and found[1]["id"] is None
    assert [line["line"] for line in results(gateway, batch, first=3, limit=2)] == [3, 4]


@pytest.mark.parametrize(("body", "query", "code", "param"), [
    (["a cat", 5], "?strict=true", "invalid_batch", "lines"),
    ([5, {}], "", "invalid_batch", "lines"),
    ([], "", "invalid_value", "lines"),
    ("a cat", "", "invalid_value", "lines"),
    ({"lines": ["a"], "options": {}}, "", "unknown_field", "options"),
    ({"lines": ["a"], "defaults": {"frames": 2}}, "", "unknown_field", "defaults.frames"),
    ({"lines": ["a"], "defaults": {"steps": "many"}}, "", "invalid_value", "defaults.steps"),
    ({"lines": ["a"], "defaults": []}, "", "invalid_value", "defaults"),
    (["a"], "?strict=maybe", "invalid_value", "strict"),
    (["a"], "?strict=true&strict=false", "invalid_value", "strict"),
    (["a"], "?stric=true", "unknown_field", "stric"),
    (b"[", "", "invalid_json", None),
])  # fmt: skip
def test_what_is_wrong_as_a_whole_queues_nothing(gateway: Live, redis_url: str, body: Any, query: str, code: str, param: Any) -> None:
    answer = post(gateway, body, query=query)
    faults = answer.json().pop("lines", None)
    assert (answer.status_code, answer.json()["error"]["code"], answer.json()["error"]["param"]) == (400, code, param), answer.text
    assert (code == "invalid_batch") == bool(faults)
    assert depth(redis_url)["queued"] == 0 and gateway.http.get("/batches").json() == {"batches": []}


def test_other_media_types_and_batches_of_nobody(gateway: Live) -> None:
    assert_error(post(gateway, b"a cat", media_type="text/plain"), 415, "unsupported_media_type")
    for path in ("0" * 32, "nonsense", f"{'0' * 32}/results", f"{'0' * 32}/images.zip"):
        assert_error(gateway.http.get(f"/batches/{path}"), 404, "batch_not_found")
    assert_error(gateway.http.delete(f"/batches/{'0' * 32}"), 404, "batch_not_found")


def test_bounds_hold_for_the_batch_as_a_whole(redis_url: str, tmp_path: Path) -> None:
    limits = {"max_queued_per_client": 4, "max_batch_lines": 5, "max_batch_bytes": 2000, "max_body_bytes": 1024}
    with running(redis_url, tmp_path, card(), **limits) as live:
        assert post(live, ["a", "b"]).status_code == 202
        answer = post(live, ["c"] * 3)
        assert_error(answer, 429, "client_queue_full")
        assert int(answer.headers["retry-after"]) >= 1 and answer.headers["ratelimit-policy"] == '"queued";q=4'
        assert depth(redis_url)["queued"] == 2
        assert_error(post(live, ["c"] * 5), 400, "invalid_value", "lines")  # never: it is no use to come again
        assert_error(post(live, ["c" * 3000]), 413, "body_too_large")
        assert post(live, ["c" * 1500, "d"]).status_code == 202, "the bound of other bodies is another"


async def test_a_key_makes_repeats_safe_and_completes_what_was_cut_short(gateway: Live, redis: Redis) -> None:
    first = post(gateway, ["a", "b", 5, "c"], Idempotency_Key="k").json()
    again = post(gateway, ["a", "b", 5, "c"], Idempotency_Key="k")
    assert again.headers["idempotency-replayed"] == "true" and again.json()["id"] == first["id"] and again.json()["refused"]
    assert_error(post(gateway, ["a", "b", 5], Idempotency_Key="k"), 409, "idempotency_key_reused", "Idempotency-Key")
    await redis.delete(f"{{q0}}:b:{first['id']}")
    await redis.set(f"{{q0}}:bt:{first['id']}", "default")
    assert_error(gateway.http.get(f"/batches/{first['id']}"), 410, "batch_expired")
    assert_error(post(gateway, ["a", "b", 5, "c"], Idempotency_Key="k"), 410, "batch_expired")


async def test_a_batch_that_was_cut_short_says_so(gateway: Live, redis: Redis, clock: Clock) -> None:
    batches = Batches(redis)
    batch, _ = await batches.open("default", [1, 2], sample_job())
    await batches.put(batch, [Line(1, sample_job("default"))])
    assert gateway.http.get(f"/batches/{batch.id}").json()["status"] == "open"
    await clock.advance(61)
    found = gateway.http.get(f"/batches/{batch.id}").json()
    assert (found["status"], found["counts"]["coming"], found["counts"]["queued"]) == ("incomplete", 1, 1)
    assert [line["status"] for line in results(gateway, found)] == ["queued", "missing"]


async def test_another_clients_batch_is_one_that_never_was(gateway: Live, redis: Redis) -> None:
    batch = post(gateway, ["a"]).json()
    await redis.hset(f"{{q0}}:b:{batch['id']}", "client", "bob")
    for path in ("", "/results", "/images.zip"):
        assert_error(gateway.http.get(f"/batches/{batch['id']}{path}"), 404, "batch_not_found")
    assert_error(gateway.http.delete(f"/batches/{batch['id']}"), 404, "batch_not_found")


async def test_cancel_and_expired_lines(gateway: Live, redis: Redis, queue: JobQueue) -> None:
    batch = post(gateway, [f"{n} cats" for n in range(120)]).json()
    [first] = await queue.claim("w1", [card().id], 1)
    found = gateway.http.delete(f"/batches/{batch['id']}").json()
    assert found["cancel_requested"] and found["counts"]["canceled"] == 119 and found["counts"]["running"] == 1
    assert (await queue.renew("w1", {first.id: 1})).canceled == {first.id} and await queue.cancel_running("w1", 1, first.id)
    assert gateway.http.get(f"/batches/{batch['id']}").json()["status"] == "ended"
    await redis.delete(f"{{q0}}:j:{line_id(batch['id'], 7)}")
    assert [line["status"] for line in results(gateway, batch, first=6, limit=3)] == ["canceled", "expired", "canceled"]


async def test_pictures_come_as_one_zip(gateway: Live, queue: JobQueue, tmp_path: Path) -> None:
    batch = post(gateway, ["a", {"prompt": "b", "num_images": 2, "output_format": "webp"}, "c", "d"]).json()
    store, drawn = LocalImageStore(tmp_path / "images"), {}
    for job in await queue.claim("w1", [card().id], 3):
        pictures = [sample_image(job, index=i) for i in range(job.params.num_images)]
        for picture in pictures:
            drawn[picture.key] = picture.key.encode() * 999
            await store.put(picture.key, drawn[picture.key])
        assert await queue.finish("w1", 1, job.id, pictures)
    gateway.http.delete(f"/jobs/{line_id(batch['id'], 3)}/images")
    answer = gateway.http.get(f"/batches/{batch['id']}/images.zip")
    assert answer.headers["content-type"] == "application/zip" and batch["id"] in answer.headers["content-disposition"]
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == ["00001.png", "00002-1.png", "00002-2.png"]
        assert {archive.read(name) for name in archive.namelist()} <= set(drawn.values())
        assert all(not info.flag_bits & 8 and info.compress_type == zipfile.ZIP_STORED for info in archive.infolist())


async def test_a_zip_holds_one_picture_at_a_time() -> None:
    async def files() -> Any:
        for n in range(200):
            yield f"{n}.png", 1_790_000_000.0, bytes([n]) * 100_000

    pieces = [piece async for piece in zipped(files())]
    assert max(map(len, pieces)) < 120_000 and len(pieces) == 201
    with zipfile.ZipFile(io.BytesIO(b"".join(pieces))) as archive:
        assert archive.testzip() is None and archive.read("7.png") == bytes([7]) * 100_000


def test_a_gateway_killed_in_the_middle_of_a_batch_is_completed_by_a_repeat(redis_url: str, tmp_path: Path) -> None:
    """No line is lost, and none is queued twice."""
    fleet = Fleet(redis_url, tmp_path, tmp_path)  # without workers
    body = [f"{n} red apples" for n in range(3000)]

    def send() -> httpx2.Response:
        with httpx2.Client(base_url=fleet.url, timeout=60) as http:
            return http.post("/batches", json=body, headers={"Idempotency-Key": "k"})

    def send_and_lose() -> None:
        with pytest.raises(httpx2.TransportError):
            send()

    try:
        with running(redis_url, tmp_path, card()), BlockingRedis.from_url(redis_url) as redis:  # whose cards it knows
            fleet.gateway()
            sending = threading.Thread(target=send_and_lose)
            sending.start()
            fleet.until(lambda: int(redis.scard("{q0}:pending")) >= 200)
            fleet.restart_gateway()
            sending.join()
            [id_] = redis.zrange("{q0}:bc:default", 0, -1)
            left = int(redis.hget(f"{{q0}}:b:{id_.decode()}", "left"))
            assert 0 < left < 3000, "it was cut short"
            batch = send().json()
            assert batch["id"] == id_.decode() and batch["status"] == "open" and batch["counts"]["queued"] == 3000
            assert depth(redis_url)["queued"] == 3000 and int(redis.zcard("{q0}:c:default")) == 3000
            assert send().json()["counts"]["queued"] == 3000
    finally:
        fleet.close()


async def test_other_requests_are_answered_while_a_batch_comes_in(gateway: Live) -> None:
    async with httpx2.AsyncClient(base_url=gateway.url, timeout=60) as http:
        sending = asyncio.create_task(http.post("/batches", json=[f"{n} cats" for n in range(500)]))
        answered = 0
        while not sending.done():
            assert (await http.get("/healthz")).status_code == 200
            answered += 1
        assert (await sending).status_code == 202 and answered >= 5
