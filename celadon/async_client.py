"""The client of `celadon.client` for asyncio, with the same answers and errors.

    from celadon import AsyncClient

    async with AsyncClient("http://127.0.0.1:7860") as celadon:
        job = await celadon.submit("a red apple", steps=20, seed=7)
        async for event in celadon.events(job.id):
            print(event.kind, event.steps_done, "of", event.steps_total)
        job = await celadon.wait(job.id)
        await celadon.download(job.images[0], "apple.png")

One client serves any number of tasks of its loop.
"""

from __future__ import annotations

import asyncio
import json
import math
import time
import uuid
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import quote, urlsplit

import httpx2

from celadon.client import (
    BATCH_S,
    GONE_S,
    PAUSE_S,
    POLL_S,
    SILENCE_S,
    TERMINAL,
    TRIES,
    ApiError,
    Event,
    Generation,
    Image,
    JobFailed,
    OnProgress,
    Unreachable,
    api_error,
    connection,
)


class AsyncClient:
    """Talks to one Celadon service, from one event loop."""

    def __init__(self, url: str = "http://127.0.0.1:7860", *, api_key: str = "", timeout_s: float = 30.0) -> None:
        self.url = url.rstrip("/")
        self._http = httpx2.AsyncClient(**connection(self.url, api_key, timeout_s))

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        await self._http.aclose()

    async def submit(self, prompt: str, *, idempotency_key: str | None = None, **params: Any) -> Generation:
        """Queue a job. `params` are the fields of `POST /generate`; those left out or None take the model's defaults.

        It is sent up to four times where no answer comes, always with one idempotency key, so it stays one job.
        Raises ApiError (a bad value, a full queue), Unreachable.
        """
        body = {"prompt": prompt} | {name: value for name, value in params.items() if value is not None}
        headers = {"Idempotency-Key": idempotency_key or str(uuid.uuid4())}
        return Generation.from_json((await self._repeated("POST", "/generate", json=body, headers=headers)).json())

    async def get(self, job_id: str) -> Generation:
        """The job as it is now. Raises ApiError (`job_not_found` and others), Unreachable."""
        return Generation.from_json((await self._repeated("GET", f"/jobs/{quote(job_id, safe='')}")).json())

    async def cancel(self, job_id: str) -> Generation:
        """Wish the job's end. A running one stops at its next step; a finished one is returned unchanged."""
        return Generation.from_json((await self._request("DELETE", f"/jobs/{quote(job_id, safe='')}")).json())

    async def retry(self, job_id: str) -> Generation:
        """Queue a dead letter again, as a new job, which is returned. Raises ApiError (`job_not_dead` for any other job), Unreachable."""
        return Generation.from_json((await self._request("POST", f"/jobs/{quote(job_id, safe='')}/retry")).json())

    async def submit_batch(self, lines: bytes, *, idempotency_key: str | None = None, strict: bool = False) -> Mapping[str, Any]:
        """Queue the JSON lines of a batch (docs/batches.md) and say how it stands. It is sent up to four times where no
        answer comes, always with one idempotency key: the same key is the same batch, and completes it. Raises ApiError, Unreachable."""
        headers = {"Content-Type": "application/x-ndjson", "Idempotency-Key": idempotency_key or str(uuid.uuid4())}
        path = f"/batches?strict={'true' if strict else 'false'}"
        batch: Mapping[str, Any] = (await self._repeated("POST", path, content=lines, headers=headers, timeout=BATCH_S)).json()
        return batch

    async def batch(self, batch_id: str) -> Mapping[str, Any]:
        """The batch as it is now. Raises ApiError (`batch_not_found` and others), Unreachable."""
        batch: Mapping[str, Any] = (await self._repeated("GET", f"/batches/{quote(batch_id, safe='')}")).json()
        return batch

    async def batch_results(self, batch_id: str, first: int = 1, limit: int = 1000) -> list[Mapping[str, Any]]:
        """What became of its lines from `first` on, in their order. Raises as `batch` does."""
        response = await self._repeated("GET", f"/batches/{quote(batch_id, safe='')}/results?first={first}&limit={limit}")
        return [json.loads(line) for line in response.text.splitlines()]

    async def cancel_batch(self, batch_id: str) -> Mapping[str, Any]:
        """Cancel those of its jobs that have not ended. Raises as `batch` does."""
        batch: Mapping[str, Any] = (await self._request("DELETE", f"/batches/{quote(batch_id, safe='')}", timeout=BATCH_S)).json()
        return batch

    async def upload(self, picture: bytes | str | Path) -> Mapping[str, Any]:
        """Leave a PNG, JPEG or WebP, bytes or a file, for jobs to come; its `key` goes into their `image` or `mask`. The same picture
        is the same upload, and is sent up to four times where no answer comes.

        Raises ApiError (`invalid_picture` and others), Unreachable, OSError.
        """
        data = picture if isinstance(picture, bytes) else await asyncio.to_thread(Path(picture).read_bytes)
        files = {"file": ("picture", data, "application/octet-stream")}
        told: Mapping[str, Any] = (await self._repeated("POST", "/uploads", files=files)).json()
        return told

    async def delete_upload(self, key: str) -> None:
        """Raises ApiError (`picture_not_found`), Unreachable."""
        await self._request("DELETE", f"/uploads/{quote(key)}")

    async def events(self, job_id: str, *, after: str = "") -> AsyncIterator[Event]:
        """Every event of the job after the one of id `after`, as they come, to the last. A stream that breaks is taken up where it broke.

        Raises ApiError where the service refuses, Unreachable where it is gone for longer than four tries.
        """
        missed = 0
        while True:
            try:
                async with self._http.sse(f"/jobs/{quote(job_id, safe='')}/events", headers=_after(after)) as source:
                    if source.response.is_error:
                        await source.response.aread()
                        raise api_error(source.response)
                    async for found in source:
                        event, missed = Event.from_sse(found.id, found.event, found.data), 0
                        after = event.id or after
                        yield event
                        if event.kind in TERMINAL:
                            return
            except httpx2.TransportError as error:
                missed += 1
                if missed == TRIES:
                    raise Unreachable(f"no events from {self.url}: {error}") from error
            await asyncio.sleep(POLL_S)

    async def wait(self, job_id: str, *, on_progress: OnProgress | None = None, timeout_s: float | None = None) -> Generation:
        """Follow the job to its end and return it, with its images.

        Listens to the job's events, and asks again and again where they cannot be had. `on_progress(steps_done,
        steps_total)` is called as they come. Raises JobFailed, TimeoutError after `timeout_s`, whether the service is there or
        not, ApiError; without a limit Unreachable, when nobody has answered for a minute.
        """
        async with asyncio.timeout(timeout_s):
            after = ""
            while not (job := await self._look(job_id, GONE_S if timeout_s is None else math.inf)).done:
                if on_progress:
                    on_progress(job.steps_done, job.steps_total)
                after = await self._listen(job_id, after, on_progress)
        if on_progress:
            on_progress(job.steps_done, job.steps_total)
        if job.status != "succeeded":
            raise JobFailed(job)
        return job

    async def _listen(self, job_id: str, after: str, on_progress: OnProgress | None) -> str:
        """To the last event, or to a silence after which the record is asked: the stream is a comfort, the record the truth.
        Returns the id to go on from."""
        stream = self.events(job_id, after=after)
        try:
            while True:
                async with asyncio.timeout(SILENCE_S):  # wait_for of Python 3.11 may swallow a cancel
                    event = await anext(stream)
                after = event.id or after
                if on_progress and event.kind == "progress":
                    on_progress(event.steps_done, event.steps_total)
        except (StopAsyncIteration, TimeoutError):
            pass
        except (ApiError, Unreachable):
            await asyncio.sleep(POLL_S)
        return after

    async def download(self, image: Image, path: str | Path | None = None) -> bytes:
        """The picture's bytes, written to `path` too if one is given. Raises ApiError (expired, erased), Unreachable, OSError."""
        parts = urlsplit(image.url)  # its public host may not be reachable from here
        data = (await self._repeated("GET", f"{parts.path}?{parts.query}")).content
        if path is not None:
            await asyncio.to_thread(Path(path).write_bytes, data)
        return data

    async def read(self, path: str) -> Any:
        """The JSON of any GET, for example `/models`, `/samplers`, `/workers`."""
        return (await self._repeated("GET", path)).json()

    async def ready(self) -> bool:
        """Whether the service would take a job now: storage, Redis and at least one model are there."""
        try:
            return (await self._http.get("/readyz")).status_code == 200
        except httpx2.TransportError:
            return False

    async def _look(self, job_id: str, patience_s: float) -> Generation:
        """The job as it is now, asked for again and again where nobody answers, for at most that long."""
        limit = time.monotonic() + patience_s
        while True:
            try:
                return Generation.from_json((await self._request("GET", f"/jobs/{quote(job_id, safe='')}")).json())
            except Unreachable:
                if time.monotonic() > limit:
                    raise
            await asyncio.sleep(POLL_S)

    async def _repeated(self, method: str, path: str, **options: Any) -> httpx2.Response:
        """The answer to what does no harm when it is heard twice; sent up to four times where none comes."""
        for attempt in range(TRIES - 1):
            try:
                return await self._request(method, path, **options)
            except Unreachable:
                await asyncio.sleep(PAUSE_S * 2**attempt)
        return await self._request(method, path, **options)

    async def _request(self, method: str, path: str, **options: Any) -> httpx2.Response:
        try:
            response = await self._http.request(method, path, **options)
        except httpx2.TransportError as error:
            raise Unreachable(f"no answer from {self.url}: {error}") from error
        if response.is_error:
            raise api_error(response)
        return response


def _after(event_id: str) -> dict[str, str]:
    return {"Last-Event-ID": event_id} if event_id else {}
