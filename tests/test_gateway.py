"""The gateway's own behaviour over HTTP: submit, wait, cancel, erase, idempotency, catalogues, health. The test is the worker."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path

import pytest
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from cards import card
from jobs.image_store import LocalImageStore, image_key
from jobs.job import ImageRef, Job, JobError
from jobs.job_queue import JobQueue
from jobs.registry import Registry, WorkerInfo
from live_gateway import Live, assert_error, depth, running

PROMPT = {"prompt": "a red apple"}
MODEL = "celadon-test"
SECRET = "sesame"
UNSAID = {
    "image": "", "mask": "", "mask_feather": 0, "mask_padding": None, "mask_content": "original", "outpaint": {},
    "strength": 1.0, "start": 0.0, "end": 1.0, "prompt_syntax": "plain",
    "size_conditioning": {}, "upscale": {}, "clip_skip": 1, "loras": [], "cache_interval": 1,
    "controlnet": {}, "embeddings": [],
}  # fmt: skip
UNDISTURBED = {"pag_scale": 0.0, "seg_scale": 0.0}


@pytest.fixture
def gateway(redis_url: str, tmp_path: Path) -> Iterator[Live]:
    with running(redis_url, tmp_path, card(), max_wait_s=5) as live:
        yield live


async def draw(queue: JobQueue, live: Live) -> Job:
    """Play the worker for one job: every image of it is stored and the job finished."""
    (job,) = await queue.claim("w1", [MODEL], 1)
    store = LocalImageStore(live.settings.image_dir)
    images = []
    for index in range(job.params.num_images):
        key = image_key(job.id, job.attempt, index, "png")
        await store.put(key, f"picture {index}".encode())
        images.append(ImageRef(key, job.params.width, job.params.height, job.params.image_seed(index), "image/png"))
    assert await queue.finish("w1", job.attempt, job.id, images)
    return job


async def in_thread(call, *args, **kwargs):  # type: ignore[no-untyped-def]
    return await asyncio.to_thread(call, *args, **kwargs)


def test_a_job_is_accepted_with_every_default_filled_in(gateway: Live) -> None:
    answer = gateway.post(PROMPT)
    assert answer.status_code == 202
    job = answer.json()
    assert answer.headers["location"] == f"{gateway.url}/jobs/{job['id']}" == job["links"]["self"]
    assert job["links"]["events"] == f"{gateway.url}/jobs/{job['id']}/events"
    assert job["status"] == "queued"
    assert job["progress"] == {"steps_done": 0, "steps_total": 20}
    assert job["images"] == [] and job["error"] is None and job["warnings"] == []
    assert job["position"] == 0
    assert job["started_at"] is None and job["finished_at"] is None
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", job["created_at"])
    assert datetime.fromisoformat(job["created_at"]).utcoffset() is not None
    params = dict(job["params"])
    assert 0 <= params.pop("seed") < 2**32
    assert params == {
        "prompt": "a red apple",
        "negative_prompt": "",
        "model": MODEL,
        "width": 64,
        "height": 64,
        "steps": 20,
        "guidance": 5.0,
        "guidance_options": {"variant": "cfg", "rescale": 0.7, "start": 0.0, "end": 1.0, "curve": "constant"} | UNDISTURBED,
        "sampler": "dpmpp_2m",
        "sampler_options": {"solver": "midpoint", "order": 2},
        "schedule": "auto",
        "schedule_options": {},
        "num_images": 1,
        "output_format": "png",
        "output_quality": None,
        "preview": False,
        "kind": "text_to_image",
        **UNSAID,
    }
    assert gateway.http.get(f"/jobs/{job['id']}").json() == job


def test_every_field_is_honoured_and_names_may_be_aliases(gateway: Live) -> None:
    body = {
        "prompt": "a blue car",
        "negative_prompt": "red",
        "width": 128,
        "height": 64,
        "steps": 9,
        "guidance": 3,
        "guidance_options": {"variant": "Adaptive_Projected_Guidance", "momentum": -0.5, "curve": "linear", "start": 0.25},
        "sampler": "K_Euler_A",
        "sampler_options": {"eta": 0.5},
        "schedule": "KARRAS",
        "schedule_options": {"rho": 5},
        "seed": 4_294_967_295,
        "num_images": 3,
        "model": MODEL,
        "output_format": "webp",
        "output_quality": 60,
        "preview": True,
    }
    job = gateway.post(body).json()
    resolved = {"guidance": 3.0, "sampler": "euler_a", "schedule": "karras", "kind": "text_to_image"} | UNSAID
    options = {
        "sampler_options": {"eta": 0.5, "s_noise": 1.0},
        "schedule_options": {"rho": 5.0},
        "guidance_options": {
            "variant": "apg",
            "eta": 0.0,
            "norm_threshold": 0.0,
            "momentum": -0.5,
            "rescale": 0.7,
            "start": 0.25,
            "end": 1.0,
            "curve": "linear",
            "final": 1.0,
            **UNDISTURBED,
        },
    }
    assert job["params"] == body | resolved | options
    assert job["progress"]["steps_total"] == 27
    assert [w["code"] for w in job["warnings"]] == ["beyond_trained_size"]


def test_steps_total_counts_unet_evaluations_of_all_images(gateway: Live) -> None:
    job = gateway.post(PROMPT | {"sampler": "heun", "steps": 10, "num_images": 2}).json()
    assert job["progress"]["steps_total"] == (2 * 10 - 1) * 2


def test_null_means_the_default(gateway: Live) -> None:
    nulls = dict.fromkeys(("width", "height", "steps", "guidance", "sampler", "schedule", "seed", "model"))
    assert gateway.post(PROMPT | nulls).json()["params"]["steps"] == 20


def test_two_jobs_without_a_seed_have_two_seeds(gateway: Live) -> None:
    seeds = {gateway.post(PROMPT).json()["params"]["seed"] for _ in range(4)}
    assert len(seeds) == 4


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"prompt": "a green zebra"}, "unknown_words"),
        ({"prompt": "a red apple", "negative_prompt": "zebra"}, "unknown_words"),
        ({"prompt": "a red apple", "negative_prompt": "blue", "guidance": 1}, "negative_prompt_unused"),
        ({"prompt": "a red apple", "width": 72}, "beyond_trained_size"),
    ],
)
def test_what_runs_but_may_surprise_is_a_warning(gateway: Live, body: dict[str, object], code: str) -> None:
    job = gateway.post(body).json()
    assert [w["code"] for w in job["warnings"]] == [code]
    assert gateway.http.get(f"/jobs/{job['id']}").json()["warnings"] == job["warnings"]


def test_unknown_words_are_named(gateway: Live) -> None:
    (warning,) = gateway.post({"prompt": "A red zebra, a RED ocelot"}).json()["warnings"]
    assert warning["message"].endswith("zebra, ocelot.")


async def test_a_finished_job_tells_its_images(gateway: Live, queue: JobQueue) -> None:
    submitted = (await in_thread(gateway.post, PROMPT | {"num_images": 3, "seed": 4_294_967_295})).json()
    await draw(queue, gateway)
    job = (await in_thread(gateway.http.get, f"/jobs/{submitted['id']}")).json()
    assert job["status"] == "succeeded" and job["position"] is None
    assert [image["seed"] for image in job["images"]] == [4_294_967_295, 0, 1]
    for index, image in enumerate(job["images"]):
        assert set(image) == {"url", "key", "seed", "width", "height", "media_type"}
        assert image["url"].startswith(f"{gateway.url}/images/{image['key']}?")
        assert (await in_thread(gateway.http.get, image["url"])).content == f"picture {index}".encode()
    assert job["started_at"] >= job["created_at"] and job["finished_at"] >= job["started_at"]


async def test_a_failed_job_says_why(gateway: Live, queue: JobQueue) -> None:
    submitted = (await in_thread(gateway.post, PROMPT)).json()
    (job,) = await queue.claim("w1", [MODEL], 1)
    await queue.fail("w1", job.attempt, job.id, JobError("out_of_memory", "The picture does not fit.", True))
    told = (await in_thread(gateway.http.get, f"/jobs/{submitted['id']}")).json()
    assert told["status"] == "failed"
    assert told["error"] == {"code": "out_of_memory", "message": "The picture does not fit.", "retryable": True}


async def test_prefer_wait_answers_200_when_the_job_is_done(gateway: Live, queue: JobQueue) -> None:
    waiting = asyncio.create_task(in_thread(gateway.post, PROMPT, Prefer="wait=5"))
    while await queue.depth() != {"queued": 1, "running": 0}:
        await asyncio.sleep(0)
    await draw(queue, gateway)
    answer = await waiting
    assert answer.status_code == 200
    assert answer.json()["status"] == "succeeded" and len(answer.json()["images"]) == 1
    assert answer.headers["preference-applied"] == "wait=5"


def test_prefer_wait_answers_202_when_time_is_over(gateway: Live) -> None:
    answer = gateway.post(PROMPT, Prefer="respond-async, wait=1; strict=no")
    assert answer.status_code == 202 and answer.json()["status"] == "queued"
    assert answer.headers["preference-applied"] == "wait=1"


def test_prefer_wait_is_bounded_and_other_preferences_are_left_alone(redis_url: str, tmp_path: Path) -> None:
    with running(redis_url, tmp_path, card(), max_wait_s=0) as live:
        assert live.post(PROMPT, Prefer="wait=30").headers["preference-applied"] == "wait=0"
        assert live.post(PROMPT, Prefer="wait").headers["preference-applied"] == "wait=0"
        assert "preference-applied" not in live.post(PROMPT, Prefer="return=minimal, respond-async").headers


def test_one_idempotency_key_is_one_job(gateway: Live, redis_url: str) -> None:
    first = gateway.post({"prompt": "a red apple", "steps": 5}, Idempotency_Key="k-1")
    again = gateway.post({"steps": 5, "prompt": "a red apple"}, Idempotency_Key="k-1")
    assert first.status_code == again.status_code == 202
    assert first.json()["id"] == again.json()["id"]
    assert first.json()["params"] == again.json()["params"]
    assert "idempotency-replayed" not in first.headers and again.headers["idempotency-replayed"] == "true"
    assert_error(gateway.post(PROMPT, Idempotency_Key="k-1"), 409, "idempotency_key_reused", "Idempotency-Key")
    assert depth(redis_url)["queued"] == 1


def test_one_key_sent_sixteen_times_at_once_is_one_job(gateway: Live, redis_url: str) -> None:
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: gateway.post(PROMPT, Idempotency_Key="same"), range(16)))
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert sum("idempotency-replayed" not in answer.headers for answer in answers) == 1
    assert depth(redis_url)["queued"] == 1


async def test_a_replay_of_a_finished_job_is_200(gateway: Live, queue: JobQueue) -> None:
    await in_thread(gateway.post, PROMPT, Idempotency_Key="k")
    await draw(queue, gateway)
    again = await in_thread(gateway.post, PROMPT, Idempotency_Key="k")
    assert again.status_code == 200 and len(again.json()["images"]) == 1


def test_a_queued_job_is_canceled_at_once(gateway: Live, redis_url: str) -> None:
    job = gateway.post(PROMPT).json()
    canceled = gateway.http.delete(f"/jobs/{job['id']}").json()
    assert canceled["status"] == "canceled" and canceled["finished_at"]
    assert depth(redis_url)["queued"] == 0
    assert gateway.http.delete(f"/jobs/{job['id']}").json() == canceled


async def test_canceling_a_running_job_is_a_wish_that_its_worker_hears(gateway: Live, queue: JobQueue) -> None:
    submitted = (await in_thread(gateway.post, PROMPT)).json()
    (job,) = await queue.claim("w1", [MODEL], 1)
    told = (await in_thread(gateway.http.delete, f"/jobs/{submitted['id']}")).json()
    assert told["status"] == "running" and told["cancel_requested"] is True
    assert job.id in (await queue.renew("w1", {job.id: job.attempt})).canceled


async def test_deleting_a_finished_job_returns_it_unchanged(gateway: Live, queue: JobQueue) -> None:
    submitted = (await in_thread(gateway.post, PROMPT)).json()
    await draw(queue, gateway)
    told = (await in_thread(gateway.http.delete, f"/jobs/{submitted['id']}")).json()
    assert told["status"] == "succeeded" and told["cancel_requested"] is False and len(told["images"]) == 1


async def test_erased_images_are_gone_for_good(gateway: Live, queue: JobQueue) -> None:
    submitted = (await in_thread(gateway.post, PROMPT | {"num_images": 2})).json()
    path = f"/jobs/{submitted['id']}"
    assert_error(await in_thread(gateway.http.delete, f"{path}/images"), 409, "job_not_finished")
    await draw(queue, gateway)
    urls = [image["url"] for image in (await in_thread(gateway.http.get, path)).json()["images"]]
    erased = (await in_thread(gateway.http.delete, f"{path}/images")).json()
    assert erased["status"] == "succeeded" and erased["images"] == []
    assert (await in_thread(gateway.http.get, path)).json()["images"] == []
    for url in urls:
        assert_error(await in_thread(gateway.http.get, url), 410, "image_erased")
    assert [p for p in gateway.settings.image_dir.rglob("*") if p.is_file()] == []


def test_a_full_queue_is_429_and_says_when_to_come_back(redis_url: str, tmp_path: Path) -> None:
    with running(redis_url, tmp_path, card(), max_queued=2) as live:
        assert [live.post(PROMPT).status_code for _ in range(2)] == [202, 202]
        answer = live.post(PROMPT)
        assert_error(answer, 429, "queue_full")
        assert int(answer.headers["retry-after"]) >= 1
        assert depth(redis_url)["queued"] == 2


def test_without_any_model_nothing_is_accepted(redis_url: str, tmp_path: Path) -> None:
    with running(redis_url, tmp_path) as live:
        answer = live.post(PROMPT)
        assert_error(answer, 503, "no_model")
        assert int(answer.headers["retry-after"]) >= 1
        assert "model" in assert_error(live.http.get("/readyz"), 503, "not_ready")
        assert live.http.get("/models").json() == []
        assert live.http.get("/healthz").json() == {"status": "ok"}


async def test_a_model_announced_later_is_seen_at_once(redis_url: str, tmp_path: Path, redis: Redis) -> None:
    with running(redis_url, tmp_path) as live:
        assert (await in_thread(live.post, PROMPT)).status_code == 503
        await Registry(redis).announce(card())
        assert (await in_thread(live.post, PROMPT)).status_code == 202


def test_the_default_model_is_the_setting_or_the_first_by_name(redis_url: str, tmp_path: Path) -> None:
    cards = [card(id="zeta"), card(id="alpha", samplers=card().samplers[:1], defaults=card().defaults)]
    with running(redis_url, tmp_path, *cards, default_model="zeta") as live:
        assert live.post(PROMPT).json()["params"]["model"] == "zeta"
        assert [m["id"] for m in live.http.get("/models").json()] == ["zeta", "alpha"]
        assert len(live.http.get("/samplers").json()) == 5
        assert [s["id"] for s in live.http.get("/samplers", params={"model": "alpha"}).json()] == ["ddim"]
        assert_error(live.http.get("/samplers?model=beta"), 400, "unknown_model", "model")
    with running(redis_url, tmp_path) as live:
        assert live.http.get("/models").json()[0]["id"] == "alpha"
    with running(redis_url, tmp_path, default_model="omega") as live:
        assert_error(live.post(PROMPT), 503, "no_model")
        assert_error(live.http.get("/readyz"), 503, "not_ready")
        assert not any(m["default"] for m in live.http.get("/models").json())
        assert live.post(PROMPT | {"model": "alpha", "sampler": "ddim"}).status_code == 202


async def test_the_catalogues_tell_what_can_be_chosen(gateway: Live, redis: Redis) -> None:
    (model,) = (await in_thread(gateway.http.get, "/models")).json()
    assert model["id"] == MODEL and model["default"] is True and model["ready"] is False
    worker = WorkerInfo(id="w1", models=(MODEL,), device="cpu", backend="torch", slots=8, busy=3, version="1", started_at=1.0, ready=True)
    await Registry(redis).beat(worker)
    assert (await in_thread(gateway.http.get, "/models")).json()[0]["ready"] is True
    (told,) = (await in_thread(gateway.http.get, "/workers")).json()
    assert told["id"] == "w1" and told["models"] == [MODEL] and told["busy"] == 3
    samplers = {s["id"]: s for s in (await in_thread(gateway.http.get, "/samplers")).json()}
    assert samplers["heun"]["evals_per_step"] == 2 and samplers["heun"]["min_steps"] == 2
    assert samplers["euler_a"]["options"]["eta"]["maximum"] == 1.0
    schedules = {s["id"]: s for s in (await in_thread(gateway.http.get, "/schedules")).json()}
    assert schedules["linspace"]["aliases"] == ["normal", "uniform"]


async def test_metrics_count_what_happens(gateway: Live, queue: JobQueue, redis: Redis) -> None:
    await in_thread(gateway.post, PROMPT)
    await in_thread(gateway.post, {"prompt": 1})
    await in_thread(gateway.http.get, "/no/such/address")
    worker = WorkerInfo(id="w", models=(), device="cpu", backend="x", slots=8, busy=3, version="1", started_at=1.0, ready=True)
    await Registry(redis).beat(worker)
    lines = (await in_thread(gateway.http.get, "/metrics")).text.splitlines()
    for line in (
        'celadon_http_requests_total{method="POST",route="/generate",status="202"} 1.0',
        'celadon_http_requests_total{method="POST",route="/generate",status="400"} 1.0',
        'celadon_http_requests_total{method="GET",route="none",status="404"} 1.0',
        'celadon_jobs_submitted_total{model="celadon-test"} 1.0',
        'celadon_jobs{state="queued"} 1.0',
        'celadon_workers{state="ready"} 1.0',
        'celadon_slots{state="free"} 5.0',
        "celadon_redis_up 1.0",
    ):
        assert line in lines
    assert any(line.startswith("celadon_http_request_seconds_bucket") for line in lines)


def test_request_ids_come_back_and_headers_protect(gateway: Live) -> None:
    answer = gateway.http.get("/healthz", headers={"X-Request-Id": "trace-7.a_B"})
    assert answer.headers["x-request-id"] == "trace-7.a_B"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "no-store"
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert "server" not in answer.headers
    for harmful in ("x" * 65, "a b", "<script>", "-x"):
        given = gateway.http.get("/healthz", headers={"X-Request-Id": harmful}).headers["x-request-id"]
        assert re.fullmatch("[0-9a-f]{32}", given)


def test_urls_are_made_from_the_public_url_when_there_is_one(redis_url: str, tmp_path: Path) -> None:
    with running(redis_url, tmp_path, card(), public_url="https://pictures.example/celadon/", keys="none") as live:
        answer = live.post(PROMPT, Host="pictures.example")
        assert answer.headers["location"].startswith("https://pictures.example/celadon/jobs/")


@pytest.mark.parametrize("host", ["a b", "[::1", "evil/path?q#f", "a@b", "<script>"])
def test_a_host_that_is_none_gets_into_no_url(gateway: Live, host: str) -> None:
    assert gateway.post(PROMPT, Host=host).headers["location"].startswith(f"{gateway.url}/jobs/")


@pytest.mark.parametrize(
    "fault", [RuntimeError(SECRET), ResponseError(SECRET), ExceptionGroup(SECRET, [KeyError(SECRET)]), OSError(SECRET)]
)
def test_a_fault_of_ours_is_a_500_that_tells_nothing(gateway: Live, monkeypatch: pytest.MonkeyPatch, fault: Exception) -> None:
    async def broken(*_: object, **__: object) -> None:
        raise fault

    monkeypatch.setattr(JobQueue, "get", broken)
    answer = gateway.http.get("/jobs/abc")
    assert_error(answer, 500, "internal_error")
    assert SECRET not in answer.text
    assert gateway.http.get("/healthz").status_code == 200


def test_urls_are_made_from_the_host_header_otherwise(gateway: Live) -> None:
    assert gateway.post(PROMPT, Host="studio:81").headers["location"].startswith("http://studio:81/jobs/")
