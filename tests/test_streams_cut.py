"""Redis goes away while somebody follows: a server of the test's own is stopped in the middle of real streams, over HTTP."""

from __future__ import annotations

import base64
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest

import jobs.valkey
from cards import card
from jobs.connection import connect
from jobs.image_store import LocalImageStore, image_key
from jobs.job import ImageRef, Job
from jobs.job_queue import JobQueue
from live_gateway import Live, assert_error, run_apart, running
from picture_samples import as_file, sample_picture

MODEL = card().id
PNG = "data:image/png;base64,aaaa"


@dataclass
class Site:
    """A gateway, its own Valkey, and the one worker, whom the test plays."""

    live: Live
    folder: Path
    valkey: subprocess.Popen[bytes]

    @property
    def redis_url(self) -> str:
        return jobs.valkey.url(self.folder)

    def stop(self) -> None:
        self.valkey.kill()
        self.valkey.wait()

    def start(self) -> None:
        self.valkey = jobs.valkey.start(self.folder)

    def claim(self) -> Job:
        """Its first preview is told, and its second not yet."""

        async def work() -> Job:
            redis = connect(self.redis_url)
            queue = JobQueue(redis)
            while not (found := await queue.claim("w1", [MODEL], 1)):
                await queue.wait_for_work([MODEL], timeout_s=0.5)
            (job,) = found
            if job.preview_steps:
                await queue.progress("w1", job.attempt, job.id, job.preview_steps[0], preview=PNG, preview_at=job.preview_steps[0])
            await redis.aclose()
            return job

        return run_apart(work)

    def finish(self, job: Job) -> None:
        async def work() -> None:
            redis, key = connect(self.redis_url), image_key(job.id, job.attempt, 0, "png")
            await LocalImageStore(self.live.settings.image_dir).put(key, b"png")
            image = ImageRef(key, job.params.width, job.params.height, job.params.seed, "image/png")
            assert await JobQueue(redis).finish("w1", job.attempt, job.id, [image])
            await redis.aclose()

        run_apart(work)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    folder = tmp_path / "valkey"
    valkey = jobs.valkey.start(folder)
    made: list[Site] = []
    try:
        with running(jobs.valkey.url(folder), tmp_path / "data", card(), max_streams=1, door_wait_s=20) as live:
            made.append(Site(live, folder, valkey))
            yield made[0]
    finally:
        last = made[0].valkey if made else valkey
        last.kill()
        last.wait()


@pytest.mark.parametrize("door", ["generations", "edits"])
def test_a_stream_of_openai_ends_with_its_error_and_the_job_is_still_there(site: Site, door: str) -> None:
    """The SDK raises what the event tells, and a repeat with the same key hears of the same job once Redis is back."""
    with ThreadPoolExecutor(1) as pool, openai.OpenAI(base_url=f"{site.live.url}/v1", api_key="x", max_retries=0, timeout=30) as sdk:
        asked: dict[str, Any] = {"prompt": "a boat", "stream": True, "partial_images": 2, "extra_headers": {"Idempotency-Key": "one"}}
        if door == "edits":
            asked["image"] = ("a.png", as_file(sample_picture()), "image/png")
        draw = sdk.images.edit if door == "edits" else sdk.images.generate
        claimed = pool.submit(site.claim)
        stream = iter(draw(**asked))
        first = next(stream)
        assert first.type.endswith(".partial_image") and first.partial_image_index == 0
        site.stop()
        with pytest.raises(openai.APIError) as cut:
            list(stream)
        body: Any = cut.value.body
        assert (body["code"], body["type"], cut.value.code) == ("queue_unavailable", "server_error", "queue_unavailable")
        assert body["request_id"] and "redis" not in cut.value.message.lower() and "/" not in body["message"]
        site.start()
        finished = pool.submit(site.finish, claimed.result())
        *_, last = draw(**asked)
        finished.result()
        assert last.type.endswith(".completed") and base64.b64decode(last.b64_json) == b"png"
        assert [job["id"] for job in site.live.http.get("/jobs").json()["jobs"]] == [claimed.result().id]


def test_events_end_and_go_on_behind_the_last_one(site: Site) -> None:
    """Nothing is told that did not happen: the answer ends, and who comes back with the last id misses nothing."""
    http, ids, kinds = site.live.http, list[str](), list[str]()

    def follow(last: str) -> None:
        with http.stream("GET", f"/jobs/{made['id']}/events", headers={"Last-Event-ID": last} if last else {}) as answer:
            assert answer.status_code == 200
            for line in answer.iter_lines():
                name, _, value = line.partition(": ")
                if name == "id":
                    ids.append(value)
                elif name == "event":
                    kinds.append(value)
                elif name == "data" and kinds[-1] == "started":
                    site.stop()

    made = http.post("/generate", json={"prompt": "a boat"}).json()
    job = site.claim()
    follow("")
    assert kinds == ["queued", "started"]
    assert_error(http.get(f"/jobs/{made['id']}/events", headers={"Last-Event-ID": ids[-1]}), 503, "queue_unavailable")
    site.start()
    site.finish(job)
    follow(ids[-1])
    assert kinds == ["queued", "started", "succeeded"] and len(set(ids)) == 3


@pytest.mark.parametrize("door", ["sdapi", "openai", "wait"])
def test_who_waits_for_a_picture_hears_503_in_the_words_of_the_door(site: Site, door: str) -> None:
    """/sdapi streams nothing: it is a wait like the others."""
    path, more = {
        "sdapi": ("/sdapi/v1/txt2img", {"width": 64, "height": 64}),
        "openai": ("/v1/images/generations", {}),
        "wait": ("/generate", {}),
    }[door]
    with ThreadPoolExecutor(1) as pool:
        headers = {"Prefer": "wait=20"} if door == "wait" else {}
        asked = pool.submit(site.live.http.post, path, json={"prompt": "a boat", **more}, headers=headers)
        site.claim()
        site.stop()
        answer = asked.result()
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "queue_unavailable")
    assert int(answer.headers["retry-after"]) > 0
    assert (answer.headers.get("x-should-retry") == "true") == (door == "openai") and ("detail" in answer.json()) == (door == "sdapi")
    assert site.live.server.config.app.state.gateway.generations.has_room, "its place is free again"
