"""The asyncio client before a real gateway, and where the way to it is bad."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx2
import pytest
from redis.asyncio import Redis

from celadon.async_client import AsyncClient
from celadon.client import ApiError, Client, JobFailed, Unreachable
from jobs.job import JobError
from jobs.job_queue import JobQueue
from live_gateway import Live, running
from tests.cards import card
from tests.job_samples import sample_image


@pytest.fixture
def live(redis_url: str, tmp_path: Path) -> Iterator[Live]:
    with running(redis_url, tmp_path, card()) as gateway:
        yield gateway


@pytest.fixture
async def celadon(live: Live) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(live.url) as client:
        yield client


async def test_a_job_is_followed_to_its_picture(celadon: AsyncClient, live: Live, redis: Redis) -> None:
    queue = JobQueue(redis)
    job = await celadon.submit("a red apple", steps=4, seed=7)
    seen: list[tuple[int, int]] = []
    waiting = asyncio.create_task(celadon.wait(job.id, on_progress=lambda *steps: seen.append(steps), timeout_s=30))
    kinds = asyncio.create_task(_kinds(celadon, job.id))
    [claimed] = await queue.claim("w", [card().id], 1)
    await queue.progress("w", 1, job.id, 2)
    image = sample_image(claimed)
    path = live.settings.image_dir / image.key
    path.parent.mkdir(parents=True)
    path.write_bytes(b"drawn")
    assert await queue.finish("w", 1, job.id, [image])
    done = await waiting
    assert done.status == "succeeded" and done.params["seed"] == 7 and seen[-1] == (4, 4)
    assert await kinds == ["queued", "started", "progress", "succeeded"]
    assert await celadon.download(done.images[0], path.with_suffix(".copy")) == b"drawn" == path.with_suffix(".copy").read_bytes()
    assert (await anext(celadon.events(job.id, after="0-0"))).steps_total == 4
    assert await celadon.ready()


async def _kinds(celadon: AsyncClient, job_id: str) -> list[str]:
    return [event.kind async for event in celadon.events(job_id)]


async def test_what_the_service_refuses_and_what_fails_is_raised(celadon: AsyncClient, redis: Redis) -> None:
    with pytest.raises(ApiError) as refused:
        await celadon.submit("a cat", steps=0)
    assert (refused.value.status, refused.value.param) == (400, "steps")
    with pytest.raises(ApiError) as unknown:
        await anext(celadon.events("nothing"))
    assert unknown.value.code == "job_not_found"
    job = await celadon.submit("a cat")
    with pytest.raises(TimeoutError):
        await celadon.wait(job.id, timeout_s=0.1)
    await JobQueue(redis).claim("w", [card().id], 1)
    await JobQueue(redis).fail("w", 1, job.id, JobError("broken", "It broke.", retryable=False))
    with pytest.raises(JobFailed, match="It broke"):
        await celadon.wait(job.id)
    other = await celadon.submit("a dog")
    assert (await celadon.cancel(other.id)).status == "canceled"


async def test_a_batch_is_sent_looked_at_and_canceled(celadon: AsyncClient) -> None:
    batch = await celadon.submit_batch(b'{"prompt": "a cat"}\n{"prompt": "a dog"}\n', idempotency_key="two")
    assert (await celadon.batch(batch["id"]))["counts"]["queued"] == 2
    assert [line["line"] for line in await celadon.batch_results(batch["id"])] == [1, 2]
    assert (await celadon.cancel_batch(batch["id"]))["counts"]["canceled"] == 2


def test_whatever_one_client_can_the_other_can() -> None:
    def names(kind: type) -> set[str]:
        return {name for name in vars(kind) if not name.startswith("_")}

    assert names(AsyncClient) - {"aclose"} == names(Client) - {"close", "local"}


class LosesAnswers(httpx2.AsyncHTTPTransport):
    """The service hears the first two submits and the answers are lost."""

    lost = 2

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        response = await super().handle_async_request(request)
        if request.method == "POST" and self.lost:
            self.lost -= 1
            await response.aread()
            raise httpx2.ReadError("dropped after it was heard")
        return response


async def test_a_submit_whose_answer_is_lost_is_repeated_and_stays_one_job(live: Live, redis: Redis) -> None:
    async with AsyncClient(live.url) as celadon:
        celadon._http = httpx2.AsyncClient(base_url=live.url, transport=LosesAnswers())
        job = await celadon.submit("a cat")
        assert (await celadon.get(job.id)).status == "queued"
    assert (await JobQueue(redis).depth())["queued"] == 1


async def test_a_service_that_is_not_there() -> None:
    async with AsyncClient("http://127.0.0.1:9") as celadon:
        assert not await celadon.ready()
        with pytest.raises(Unreachable):
            await celadon.submit("a cat")
    with Client("http://127.0.0.1:9") as blocking, pytest.raises(Unreachable):
        blocking.submit("a cat")
