"""Two clients cannot see each other's things: every route of the OpenAPI document stands in the table below, with what the second
client gets there. A route that is new fails until somebody has said what that is."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
from redis.client import Redis as BlockingRedis

from cards import card
from jobs.connection import connect
from jobs.hooks import HookQueue
from jobs.image_store import LocalImageStore, image_key
from jobs.job import ImageRef
from jobs.job_queue import JobQueue
from keyed import asking, make_key
from live_gateway import Live, run_apart, running
from picture_samples import as_file, as_url, sample_picture

pytestmark = pytest.mark.timeout(300)  # whole services start here, on machines that may be busy

MODEL = card().id
MARK = "zanzibar"  # in every prompt of ada's
BODY: dict[str, Any] = {"prompt": f"a red apple of {MARK}", "seed": 1}
BATCH = [BODY["prompt"], f"a blue car of {MARK}"]
UNKNOWN = "0" * 32
PICTURE = as_file(sample_picture())


@dataclass(frozen=True)
class World:
    """A gateway with keys; what ada has there by name; bob, who looks, and eve, who asks for the same."""

    live: Live
    ada: httpx2.Client
    bob: httpx2.Client
    eve: httpx2.Client
    jobs: dict[str, str]
    delivery: str
    batch: str
    upload: str

    def state(self) -> Any:
        """Of everything that is ada's; without what is made anew for each answer."""
        told = [self.ada.get(f"/jobs/{job_id}").json() for job_id in self.jobs.values()]
        kept = [{k: job.get(k) for k in ("id", "status", "cancel_requested", "steps_done", "finished_at")} for job in told]
        pictures = [[image["key"] for image in job.get("images", ())] for job in told]
        dead = [job["id"] for job in self.ada.get("/jobs?status=dead").json()["jobs"]]
        batch, listed = self.ada.get(f"/batches/{self.batch}").json(), self.ada.get("/jobs?limit=100").json()["jobs"]
        upload = self.ada.get(f"/uploads/{self.upload}").content
        return (
            upload,
            kept,
            pictures,
            dead,
            self.ada.get("/webhooks/deliveries").json(),
            len(listed),
            batch["counts"],
            batch["cancel_requested"],
        )


@pytest.fixture(scope="module")
def world(valkey: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("isolation")
    with BlockingRedis.from_url(valkey) as redis:
        redis.flushall()
    keys = [make_key(valkey, name) for name in ("ada", "bob", "eve")]
    with running(valkey, folder, card(), keys="required", door_wait_s=1) as live, ExitStack() as stack:
        ada, bob, eve = (stack.enter_context(asking(live, key)) for key in keys)
        jobs = {}

        def submit(name: str, **more: Any) -> str:
            jobs[name] = ada.post("/generate", json=BODY | more, headers={"Idempotency-Key": name}).json()["id"]
            return str(jobs[name])

        for name in ("dead", "succeeded", "canceled", "expired", "running", "queued"):
            submit(name, **({"webhook": {"url": "https://hooks.example.com/"}} if name == "canceled" else {}))
            run_apart(lambda made=name: bring(valkey, folder, jobs[made], made))
            if name in ("canceled", "expired"):
                ada.delete(f"/jobs/{jobs[name]}")
        delivery = run_apart(lambda: give_up(valkey))
        with BlockingRedis.from_url(valkey) as redis:
            redis.delete(f"{{q0}}:j:{jobs['expired']}")
        batch = ada.post("/batches", json=BATCH, headers={"Idempotency-Key": "batch"}).json()["id"]
        upload = ada.post("/uploads", files={"file": PICTURE}).json()["key"]
        yield World(live, ada, bob, eve, jobs, delivery, batch, upload)


async def bring(redis_url: str, folder: Path, job_id: str, name: str) -> None:
    """The newest job of ada's into that state, as workers do."""
    redis = connect(redis_url)
    queue = JobQueue(redis, lease_s=0.001 if name == "dead" else 3600)
    attempt = 0
    while name == "dead" and not (await queue.get(job_id)).done:  # type: ignore[union-attr]
        attempt += 1
        await queue.claim(f"w{attempt}", [MODEL], 1)
        await queue.reap()
    if name in ("succeeded", "running"):
        (job,) = await queue.claim("w", [MODEL], 1)
        await queue.progress("w", job.attempt, job.id, 3, preview="data:image/jpeg;base64,QUJD")
    if name == "succeeded":
        key = image_key(job.id, job.attempt, 0, "png")
        await LocalImageStore(folder / "images").put(key, b"\x89PNG of ada's")
        assert await queue.finish("w", job.attempt, job.id, [ImageRef(key, 64, 64, 1, "image/png")])
    await redis.aclose()


async def give_up(redis_url: str) -> str:
    redis = connect(redis_url)
    hooks = HookQueue(redis)
    (delivery,) = await hooks.due("w", 10)
    assert await hooks.failed("w", delivery.id, "500", retry_in_s=None)
    await redis.aclose()
    return delivery.id


Check = Callable[[World, str, str], None]


def said(answer: httpx2.Response) -> tuple[int, Any]:
    """Status and body, without the id of the request."""
    try:
        body = answer.json()
    except ValueError:
        return answer.status_code, answer.text
    if isinstance(body, dict) and isinstance(body.get("error"), dict):
        body["error"].pop("request_id")
    return answer.status_code, body


def hidden(world: World, method: str, path: str) -> None:
    """Whatever ada has, to bob it is as what never was."""
    never = said(world.bob.request(method, path.format(id=UNKNOWN)))
    assert never[0] == 404
    for name, job_id in world.jobs.items():
        assert said(world.bob.request(method, path.format(id=job_id))) == never, name
        mine = world.ada.get(f"/jobs/{job_id}")
        assert mine.status_code == (410 if name == "expired" else 200)  # it is there, for her


def hidden_delivery(world: World, method: str, path: str) -> None:
    never = said(world.bob.request(method, path.format(id=f"{UNKNOWN}.canceled")))
    assert never[0] == 404 and said(world.bob.request(method, path.format(id=world.delivery))) == never
    assert [one["id"] for one in world.ada.get("/webhooks/deliveries").json()] == [world.delivery]


def hidden_batch(world: World, method: str, path: str) -> None:
    never = said(world.bob.request(method, path.format(id=UNKNOWN)))
    assert never[0] == 404 and said(world.bob.request(method, path.format(id=world.batch))) == never
    if method == "get":
        assert world.ada.get(path.format(id=world.batch)).status_code == 200


def no_batches(world: World, method: str, path: str) -> None:
    assert said(world.bob.get(path)) == (200, {"batches": []})
    assert [batch["id"] for batch in world.ada.get(path).json()["batches"]] == [world.batch]


def batch_apart(world: World, method: str, path: str) -> None:
    """The same lines under the same key, of another client."""
    answer = world.eve.post(path, json=BATCH, headers={"Idempotency-Key": "batch"})
    assert answer.status_code == 202 and answer.json()["id"] != world.batch and "idempotency-replayed" not in answer.headers
    assert not {line["id"] for line in map(json.loads, world.eve.get(f"{path}/{answer.json()['id']}/results").text.splitlines())} & ids_of(
        world.ada
    )


def picture(world: World, method: str, path: str) -> None:
    """Only its URL opens it; bob's key does not."""
    (image,) = world.ada.get(f"/jobs/{world.jobs['succeeded']}").json()["images"]
    never = world.bob.request(method, f"/images/{UNKNOWN}/1-0.png")
    answer = world.bob.request(method, f"/images/{image['key']}")
    assert (answer.status_code, answer.headers.get("content-type")) == (403, never.headers.get("content-type")) and never.status_code == 403
    assert world.live.http.request(method, image["url"]).status_code == 200  # without any key


def no_jobs(world: World, method: str, path: str) -> None:
    for query in ("", "?status=queued", "?status=running", "?status=succeeded", "?status=canceled", "?status=dead"):
        assert said(world.bob.get(path + query)) == (200, {"jobs": [], "cursor": None})
    assert len(world.ada.get(path).json()["jobs"]) == len(world.jobs) - 1 + len(BATCH)


def nothing(world: World, method: str, path: str) -> None:
    assert said(world.bob.get(path)) == (200, [])
    assert world.ada.get(path).json()


def idle(world: World, method: str, path: str) -> None:
    told = world.bob.get(path).json()
    assert (told["progress"], told["state"]["job_count"], told["current_image"]) == (0, 0, None)
    hers = world.ada.get(path).json()
    assert hers["state"]["job_count"] >= 1 and hers["current_image"]


def harmless(world: World, method: str, path: str) -> None:
    """It is about jobs of one's own; state() shows that ada's go on."""
    assert said(world.bob.post(path)) == (200, {})


def apart(body: dict[str, Any], picture: str = "", **headers: str) -> Check:
    """The same request of another client is another job, whatever key or fingerprint it comes under; with `picture`, a form with a file."""
    sent: dict[str, Any] = {"data": body, "files": {picture: ("a.png", PICTURE, "image/png")}} if picture else {"json": body}

    def check(world: World, method: str, path: str) -> None:
        before = ids_of(world.eve)
        answer = world.eve.post(path, **sent, headers={name.replace("_", "-"): value for name, value in headers.items()})
        assert answer.status_code in (202, 504) and "idempotency-replayed" not in answer.headers  # nobody draws here
        (new,) = ids_of(world.eve) - before
        assert new not in world.jobs.values() and new not in ids_of(world.ada)

    return check


def upload_apart(world: World, method: str, path: str) -> None:
    """The very same picture gets another key, and hers stays."""
    theirs = world.eve.post(path, files={"file": PICTURE}).json()["key"]
    assert theirs != world.upload and world.eve.get(f"/uploads/{theirs}").status_code == 200


def hidden_upload(world: World, method: str, path: str) -> None:
    for client in (world.bob, world.eve):
        answer, never = (client.request(method, f"/uploads/{key}") for key in (world.upload, f"in-{'0' * 40}/0.png"))
        assert answer.status_code == never.status_code == 404
        assert answer.json()["error"]["code"] == never.json()["error"]["code"] == "picture_not_found"


def ids_of(client: httpx2.Client) -> set[str]:
    return {job["id"] for job in client.get("/jobs?limit=100").json()["jobs"]}


def shared(at: str = "", **options: Any) -> Check:
    """The same for all."""

    def check(world: World, method: str, path: str) -> None:
        hers = said(world.ada.request(method, at or path, **options))
        assert said(world.bob.request(method, at or path, **options)) == hers and hers[0] < 500

    return check


def numbers(world: World, method: str, path: str) -> None:
    """Sums over all clients, and no client's name."""
    told = world.bob.get(path).text
    assert "celadon_jobs{" in told and not any(f'"{name}"' in told for name in ("ada", "bob", "eve"))


REUSED = BODY | {"reuse": True}
A1111: dict[str, Any] = {"prompt": BODY["prompt"], "seed": 1, "width": 64, "height": 64, "steps": 4}

TABLE: dict[tuple[str, str], Check] = {
    ("post", "/generate"): apart(REUSED, Idempotency_Key="queued"),
    ("get", "/jobs"): no_jobs,
    ("get", "/jobs/{id}"): hidden,
    ("delete", "/jobs/{id}"): hidden,
    ("post", "/jobs/{id}/retry"): hidden,
    ("delete", "/jobs/{id}/images"): hidden,
    ("get", "/jobs/{id}/events"): hidden,
    ("post", "/batches"): batch_apart,
    ("get", "/batches"): no_batches,
    ("get", "/batches/{id}"): hidden_batch,
    ("delete", "/batches/{id}"): hidden_batch,
    ("get", "/batches/{id}/results"): hidden_batch,
    ("get", "/batches/{id}/images.zip"): hidden_batch,
    ("get", "/webhooks/deliveries"): nothing,
    ("post", "/webhooks/deliveries/{id}/redeliver"): hidden_delivery,
    ("get", "/images/{key}"): picture,
    ("head", "/images/{key}"): picture,
    ("post", "/uploads"): upload_apart,
    ("get", "/uploads/{key}"): hidden_upload,
    ("delete", "/uploads/{key}"): hidden_upload,
    ("get", "/models"): shared(),
    ("get", "/samplers"): shared(),
    ("get", "/schedules"): shared(),
    ("get", "/schedules/{id}.svg"): shared("/schedules/karras.svg"),
    ("get", "/guidances"): shared(),
    ("get", "/workers"): shared(),
    ("get", "/healthz"): shared(),
    ("get", "/readyz"): shared(),
    ("get", "/metrics"): numbers,
    ("get", "/v1/models"): shared(),
    ("get", "/v1/models/{model}"): shared(f"/v1/models/{MODEL}"),
    ("post", "/v1/images/generations"): apart({"prompt": BODY["prompt"]}, x_stainless_retry_count="1"),
    ("post", "/v1/images/edits"): apart({"prompt": BODY["prompt"]}, "image", x_stainless_retry_count="1"),
    ("post", "/v1/images/variations"): apart({}, "image", x_stainless_retry_count="1"),
    ("post", "/sdapi/v1/txt2img"): apart(A1111),
    ("post", "/sdapi/v1/img2img"): apart(A1111 | {"init_images": [as_url(sample_picture())]}),
    ("get", "/sdapi/v1/progress"): idle,
    ("post", "/sdapi/v1/interrupt"): harmless,
    ("post", "/sdapi/v1/skip"): harmless,
    ("get", "/sdapi/v1/options"): shared(),
    ("post", "/sdapi/v1/options"): shared(json={"samples_format": "jpg"}),
    ("get", "/sdapi/v1/samplers"): shared(),
    ("get", "/sdapi/v1/schedulers"): shared(),
    ("get", "/sdapi/v1/sd-models"): shared(),
    ("post", "/sdapi/v1/png-info"): shared(json={"image": "!"}),
    ("get", "/sdapi/v1/memory"): shared(),
    ("get", "/sdapi/v1/cmd-flags"): shared(),
    ("get", "/sdapi/v1/scripts"): shared(),
    ("get", "/sdapi/v1/embeddings"): shared(),
    ("get", "/sdapi/v1/loras"): shared("/sdapi/v1/loras"),
    ("get", "/sdapi/v1/upscalers"): shared(),
    ("get", "/sdapi/v1/latent-upscale-modes"): shared(),
    ("get", "/sdapi/v1/{what}"): shared("/sdapi/v1/sd-vae"),
}


# in the very words of ada
ASKED_BY_EVE = {route for route, check in TABLE.items() if check.__qualname__.startswith(("apart", "batch_apart"))}


def test_every_route_stands_in_the_table(world: World) -> None:
    paths = world.live.http.get("/openapi.json").json()["paths"]
    assert {(method, path) for path, methods in paths.items() for method in methods} == set(TABLE)


@pytest.mark.parametrize("route", TABLE, ids=" ".join)
def test_another_client_sees_and_changes_nothing(world: World, route: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[str] = []
    for client in (world.bob, world.eve):
        monkeypatch.setattr(client, "send", listening(client.send, heard))
    before = world.state()
    TABLE[route](world, *route)
    assert world.state() == before
    of_ada = ("hooks.example.com", '"ada"', world.batch, world.upload, *world.jobs.values(), *([] if route in ASKED_BY_EVE else [MARK]))
    assert heard and not [(secret, answer) for secret in of_ada for answer in heard if secret in answer]


def listening(send: Callable[..., httpx2.Response], heard: list[str]) -> Callable[..., httpx2.Response]:
    """The same, but every answer is written down too."""

    def told(*args: Any, **options: Any) -> httpx2.Response:
        answer = send(*args, **options)
        heard.append(str(answer.headers) + answer.text)
        return answer

    return told


def test_the_work_of_two_clients_is_not_shared(world: World) -> None:
    """The queue knows whose each job is; of nobody is none."""

    async def owners() -> set[str]:
        redis = connect(world.live.settings.redis_url)
        try:
            ids = [*world.jobs.values(), *ids_of(world.eve)]
            return {job.client for job in await asyncio.gather(*map(JobQueue(redis).get, ids)) if job}
        finally:
            await redis.aclose()

    assert world.eve.post("/generate", json=BODY).status_code == 202
    assert run_apart(owners) == {"ada", "eve"}
