"""Both Python clients where a real gateway goes away, or is heard by and its answers are lost."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest

from celadon.async_client import AsyncClient
from celadon.client import Client, JobFailed, Unreachable
from live_gateway import depth, running
from picture_samples import as_file, sample_picture
from tests.cards import card

NOBODY = "http://127.0.0.1:9"


class Way(httpx2.HTTPTransport):
    """Loses the next `lost` answers, and tells when nobody heard a question about a job."""

    lost = 0

    def __init__(self) -> None:
        super().__init__()
        self.missed = threading.Event()

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        try:
            response = super().handle_request(request)
        except httpx2.ConnectError:
            if not request.url.path.endswith("/events"):
                self.missed.set()
            raise
        if self.lost:
            self.lost -= 1
            response.read()
            raise httpx2.ReadError("dropped after it was heard")
        return response


class AsyncWay(httpx2.AsyncHTTPTransport):
    """The same for asyncio."""

    lost = 0

    def __init__(self) -> None:
        super().__init__()
        self.missed = asyncio.Event()

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        try:
            response = await super().handle_async_request(request)
        except httpx2.ConnectError:
            if not request.url.path.endswith("/events"):
                self.missed.set()
            raise
        if self.lost:
            self.lost -= 1
            await response.aread()
            raise httpx2.ReadError("dropped after it was heard")
        return response


@pytest.mark.parametrize("timeout_s", [60.0, None])
def test_a_wait_outlives_a_gateway_that_is_started_again(redis_url: str, tmp_path: Path, timeout_s: float | None) -> None:
    way = Way()
    with ThreadPoolExecutor(1) as pool:
        with running(redis_url, tmp_path, card()) as live:
            client = Client(live.url)
            client._http = httpx2.Client(base_url=live.url, transport=way)
            job = client.submit("a cat")
            waiting = pool.submit(client.wait, job.id, timeout_s=timeout_s)
        assert way.missed.wait(30)
        with running(redis_url, tmp_path, card(), port=live.port) as again:
            assert again.http.delete(f"/jobs/{job.id}").status_code == 200
            with pytest.raises(JobFailed, match="canceled"):
                waiting.result(60)
    client.close()


@pytest.mark.parametrize("timeout_s", [60.0, None])
async def test_a_wait_of_asyncio_does_so_too(redis_url: str, tmp_path: Path, timeout_s: float | None) -> None:
    way = AsyncWay()
    with running(redis_url, tmp_path, card()) as live:
        celadon = AsyncClient(live.url)
        celadon._http = httpx2.AsyncClient(base_url=live.url, transport=way)
        job = await celadon.submit("a cat")
        waiting = asyncio.create_task(celadon.wait(job.id, timeout_s=timeout_s))
    async with asyncio.timeout(30):
        await way.missed.wait()
    with running(redis_url, tmp_path, card(), port=live.port) as again:
        assert again.http.delete(f"/jobs/{job.id}").status_code == 200
        with pytest.raises(JobFailed, match="canceled"):
            await waiting
    await celadon.aclose()


async def test_a_wait_ends_in_time_though_nobody_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("celadon.client", "celadon.async_client"):
        monkeypatch.setattr(f"{module}.GONE_S", 0.1)
    with Client(NOBODY) as client:
        with pytest.raises(TimeoutError):
            client.wait("j", timeout_s=0.1)
        with pytest.raises(Unreachable):
            client.wait("j")
    async with AsyncClient(NOBODY) as celadon:
        with pytest.raises(TimeoutError):
            await celadon.wait("j", timeout_s=0.1)
        with pytest.raises(Unreachable):
            await celadon.wait("j")


async def test_what_does_no_harm_is_sent_again(redis_url: str, tmp_path: Path) -> None:
    way, other = Way(), AsyncWay()
    picture = as_file(sample_picture())
    with running(redis_url, tmp_path, card()) as live, Client(live.url) as client:
        client._http = httpx2.Client(base_url=live.url, transport=way)
        way.lost = 2
        batch = client.submit_batch(b'"a cat"\n')
        way.lost = 2
        assert client.batch(batch["id"])["counts"]["queued"] == 1 == depth(redis_url)["queued"]
        way.lost = 2
        upload = client.upload(picture)
        async with AsyncClient(live.url) as celadon:
            celadon._http = httpx2.AsyncClient(base_url=live.url, transport=other)
            other.lost = 2
            batch = await celadon.submit_batch(b'"a dog"\n')
            other.lost = 2
            assert (await celadon.batch(batch["id"]))["counts"]["queued"] == 1 and depth(redis_url)["queued"] == 2
            other.lost = 2
            assert (await celadon.upload(picture))["key"] == upload["key"]
