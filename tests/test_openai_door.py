"""The OpenAI door, spoken to by the openai package: sync, async, streaming, its errors and its retries."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from PIL import Image

from fleet import Fleet
from jobs.image_store import LocalImageStore
from jobs.job_queue import JobQueue
from keyed import asking, make_key
from live_gateway import Live, depth, running
from picture_samples import as_file, sample_picture
from service.api.openai import with_pings
from service.steps import even_parts
from tests.cards import card
from tests.job_samples import Clock, sample_image

pytestmark = pytest.mark.timeout(300)  # whole services start here, on machines that may be busy


@pytest.fixture
def sdk(fleet: Fleet) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{fleet.url}/v1", api_key="none", max_retries=2) as client:
        yield client


def size(data: str) -> tuple[int, int]:
    return Image.open(io.BytesIO(base64.b64decode(data))).size


def test_a_picture_comes_as_url_and_as_base64(sdk: openai.OpenAI, fleet: Fleet) -> None:
    found = sdk.images.generate(prompt="a red apple", size="128x128")
    assert found.data and found.created > 1_700_000_000 and found.size == "128x128" and found.output_format == "png"
    (picture,) = found.data
    assert picture.b64_json and picture.url and size(picture.b64_json) == (128, 128)
    assert httpx2.get(picture.url).content == base64.b64decode(picture.b64_json)
    assert fleet.client.get(f"/jobs/{found.model_extra['id']}").json()["status"] == "succeeded"


@pytest.mark.parametrize(("wanted", "has"), [("url", (True, False)), ("b64_json", (False, True))])
def test_who_names_a_format_gets_that(sdk: openai.OpenAI, wanted: Any, has: tuple[bool, bool]) -> None:
    found = sdk.images.generate(prompt="a cat", n=2, response_format=wanted, quality="low", extra_body={"output_format": "webp"})
    assert len(found.data) == 2 and found.quality == "low"
    assert all((bool(p.url), bool(p.b64_json)) == has for p in found.data)
    assert len({p.model_extra["seed"] for p in found.data}) == 2


def test_compression_makes_smaller_files(sdk: openai.OpenAI) -> None:
    def weight(compression: int) -> int:
        found = sdk.images.generate(prompt="a cat", output_format="jpeg", output_compression=compression, response_format="b64_json")
        data = base64.b64decode(found.data[0].b64_json)
        assert data.startswith(b"\xff\xd8")
        return len(data)

    assert weight(5) < weight(100) / 2


async def test_the_async_client_and_models(fleet: Fleet) -> None:
    async with openai.AsyncOpenAI(base_url=f"{fleet.url}/v1", api_key="none") as sdk:
        models = [model.id async for model in await sdk.models.list()]
        assert models == ["toy"] and (await sdk.models.retrieve("toy")).object == "model"
        found = await asyncio.gather(*(sdk.images.generate(prompt=f"{n} cats", model="toy", response_format="b64_json") for n in range(3)))
        assert all(size(answer.data[0].b64_json) == (128, 128) for answer in found)
        with pytest.raises(openai.NotFoundError) as refused:
            await sdk.models.retrieve("dall-e-9")
        assert refused.value.code == "model_not_found"


@pytest.mark.parametrize("partials", [1, 2, 3])
def test_a_stream_tells_every_partial_picture_and_ends_with_the_whole_one(sdk: openai.OpenAI, fleet: Fleet, partials: int) -> None:
    """Also of a model that is done in a moment; each was drawn after its own part of the evaluations."""
    events = list(sdk.images.generate(prompt="a castle", stream=True, partial_images=partials))
    *partial, last = events
    assert last.type == "image_generation.completed" and size(last.b64_json) == (128, 128) and last.size == "128x128"
    assert [p.partial_image_index for p in partial] == list(range(partials))
    assert all(p.type == "image_generation.partial_image" and size(p.b64_json) == (64, 64) for p in partial)
    assert len({p.b64_json for p in events}) == partials + 1
    assert last.usage.total_tokens == 0
    job = fleet.client.get("/jobs?limit=1").json()["jobs"][0]
    total = job["progress"]["steps_total"]
    told = [data["preview_at"] for _, kind, data in fleet.events(job["id"]) if "preview_at" in data]
    assert told == [round(k * total / (partials + 1)) for k in range(1, partials + 1)]


def test_who_asks_for_no_partial_picture_gets_none(sdk: openai.OpenAI) -> None:
    assert [e.type for e in sdk.images.generate(prompt="a boat", stream=True, partial_images=0)] == ["image_generation.completed"]


@pytest.mark.parametrize(("asked", "error", "code", "param"), [
    ({"model": "gpt-image-9"}, openai.NotFoundError, "model_not_found", "model"),
    ({"size": "huge"}, openai.BadRequestError, "invalid_value", "size"),
    ({"size": "1000000x2"}, openai.BadRequestError, "invalid_value", "size"),
    ({"size": "4096x4096"}, openai.BadRequestError, "invalid_size", "size"),
    ({"background": "transparent"}, openai.BadRequestError, "not_supported", "background"),
    ({"output_compression": 50}, openai.BadRequestError, "invalid_value", "output_compression"),
    ({"partial_images": 1}, openai.BadRequestError, "invalid_value", "partial_images"),
    ({"stream": True, "n": 2}, openai.BadRequestError, "not_supported", "n"),
    ({"n": 11}, openai.BadRequestError, "invalid_value", "n"),
    ({"output_format": "gif"}, openai.BadRequestError, "invalid_value", "output_format"),
    ({"extra_body": {"frame_count": 3}}, openai.BadRequestError, "unknown_field", "frame_count"),
])  # fmt: skip
def test_what_cannot_be_honoured_is_refused_once(sdk: openai.OpenAI, asked: Any, error: type[Exception], code: str, param: str) -> None:
    with pytest.raises(error) as refused:
        sdk.images.generate(**{"prompt": "a cat"} | asked)
    assert (refused.value.code, refused.value.param, refused.value.type) == (code, param, "invalid_request_error")
    assert refused.value.response.headers["x-should-retry"] == "false" and refused.value.body["request_id"]


def test_fields_that_change_nothing_say_so(sdk: openai.OpenAI) -> None:
    found = sdk.images.generate(prompt="a zebra", moderation="low", style="vivid", user="u-1", response_format="url")
    assert [w.split(":")[0] for w in found.model_extra["warnings"]][-2:] == ["moderation", "style"]


def test_a_repeat_after_a_lost_answer_gets_the_original_pictures(fleet: Fleet) -> None:
    answers = [
        fleet.client.post("/v1/images/generations", json={"prompt": "a lost cat"}, headers={"x-stainless-retry-count": str(n)}).json()
        for n in (0, 1, 2, 0)
    ]
    assert len({a["id"] for a in answers[:3]}) == 1 and len({a["data"][0]["b64_json"] for a in answers[:3]}) == 1
    assert answers[3]["id"] != answers[0]["id"] and answers[3]["data"][0]["seed"] != answers[0]["data"][0]["seed"]


# Retries, against a gateway whose worker is this test


@pytest.fixture
def gateway(redis_url: str, tmp_path: Path) -> Iterator[Live]:
    with running(redis_url, tmp_path, card(), openai_models={"dall-e-3": card().id}, door_wait_s=1) as live:
        yield live


def ask(live: Live, *, retry: int = 0, body: dict[str, Any] | None = None, **headers: str) -> httpx2.Response:
    said = {"prompt": "a cat"} | (body or {})
    return live.http.post("/v1/images/generations", json=said, headers={"x-stainless-retry-count": str(retry)} | headers)


def test_a_repeat_joins_the_job_of_its_first_try(gateway: Live, redis_url: str) -> None:
    first = ask(gateway)
    assert first.status_code == 504 and first.headers["x-should-retry"] == "true" and first.json()["error"]["code"] == "still_running"
    assert ask(gateway, retry=1).status_code == 504 and ask(gateway, retry=2).status_code == 504
    assert sum(depth(redis_url).values()) == 1
    ask(gateway)  # a first try again: the user wants another picture
    assert sum(depth(redis_url).values()) == 2
    ask(gateway, retry=1, body={"prompt": "a dog"})  # its first try never arrived
    assert sum(depth(redis_url).values()) == 3


def test_a_key_of_the_client_wins(gateway: Live, redis_url: str) -> None:
    for _ in range(2):
        ask(gateway, **{"Idempotency-Key": "mine"})
    assert sum(depth(redis_url).values()) == 1
    refused = ask(gateway, body={"prompt": "other"}, **{"Idempotency-Key": "mine"})
    assert refused.status_code == 409 and refused.headers["x-should-retry"] == "false"


async def test_what_passes_only_later_is_not_repeated(redis_url: str, tmp_path: Path, clock: Clock) -> None:
    """The clock stands at 13:46:40 UTC: the day's pictures come much later."""
    daily, often = make_key(redis_url, "daily", per_day=1), make_key(redis_url, "often", max_queued=1)
    with running(redis_url, tmp_path, card(), keys="required", door_wait_s=1, max_uploads=1) as live:
        with asking(live, daily) as http:
            spent = [http.post("/v1/images/generations", json={"prompt": "a cat"}) for _ in range(2)]
        with asking(live, often) as http:
            http.post("/uploads", files={"file": as_file(sample_picture(seed=1))})
            full = http.post("/v1/images/edits", files={"image": as_file(sample_picture(seed=2))}, data={"prompt": "a hat"})
            soon = [http.post("/v1/images/generations", json={"prompt": "a cat"}) for _ in range(2)]
    told = [(answer.json()["error"]["code"], answer.headers["x-should-retry"]) for answer in (*spent, full, *soon)]
    assert told == [("still_running", "true"), ("quota_spent", "false"), ("too_many_uploads", "false"),
                    ("still_running", "true"), ("client_queue_full", "true")]  # fmt: skip


def test_the_sdk_itself_retries_into_one_job(gateway: Live, redis_url: str) -> None:
    """Its answer is lost twice; the third attempt hears of the same job."""
    sdk = openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=2, timeout=60)
    with sdk, pytest.raises(openai.InternalServerError) as failed:
        sdk.images.generate(prompt="a cat", model="dall-e-3")
    assert failed.value.code == "still_running"
    assert failed.value.response.request.headers["x-stainless-retry-count"] == "2"
    assert sum(depth(redis_url).values()) == 1


def test_nothing_is_queued_where_it_is_refused(gateway: Live, redis_url: str) -> None:
    assert ask(gateway, body={"prompt": 3}).status_code == 400
    assert ask(gateway, body={"background": "transparent"}).status_code == 400
    unknown = gateway.http.post("/v1/images/elsewhere", json={})
    assert unknown.status_code == 404 and unknown.json()["error"]["type"] == "invalid_request_error"
    assert sum(depth(redis_url).values()) == 0


@pytest.mark.parametrize(("partials", "kinds"), [(0, ["completed"]), (2, ["partial_image", "completed"])])
async def test_a_picture_that_nobody_saw_form_is_its_own_partial_picture(
    gateway: Live, queue: JobQueue, tmp_path: Path, partials: int, kinds: list[str]
) -> None:
    async def draw() -> None:
        while not (jobs := await queue.claim("w1", [card().id], 1)):
            await queue.wait_for_work([card().id])
        picture = sample_image(jobs[0])
        await LocalImageStore(tmp_path / "images").put(picture.key, b"the picture")
        assert await queue.finish("w1", 1, jobs[0].id, [picture])

    async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="none") as sdk:
        drawing = asyncio.create_task(draw())
        stream = await sdk.images.generate(prompt="a cat", stream=True, partial_images=partials)
        events = [event async for event in stream]
        await drawing
    assert [e.type.removeprefix("image_generation.") for e in events] == kinds
    assert {base64.b64decode(e.b64_json) for e in events} == {b"the picture"} and {e.output_format for e in events} == {"png"}


# Parts


@pytest.mark.parametrize(("evaluations", "partials", "due"), [
    (20, 3, (5, 10, 15)), (20, 0, ()), (10, 2, (3, 7)), (4, 1, (2,)), (3, 3, (1, 2)), (2, 3, (1,)), (1, 3, ()),
])  # fmt: skip
def test_partials_are_due_at_even_parts_of_the_way(evaluations: int, partials: int, due: tuple[int, ...]) -> None:
    assert even_parts(evaluations, partials) == due


async def test_silence_is_filled_with_comments() -> None:
    late = asyncio.Event()

    async def events() -> Any:
        yield b"one"
        await late.wait()
        yield b"two"

    heard = []
    async for event in with_pings(events(), 0.01):
        heard.append(event)
        if event.startswith(b":"):
            late.set()
    assert heard[0] == b"one" and heard[-1] == b"two" and b": ping\n\n" in heard
    assert json.dumps(heard.count(b"two")) == "1"
