"""A small typed client of the HTTP API.

    from celadon import Client

    with Client("http://127.0.0.1:7860") as celadon:  # api_key="cel_…" where the service wants one
        job = celadon.submit("a red apple", steps=20, seed=7)
        job = celadon.wait(job.id, on_progress=lambda done, total: print(done, "of", total))
        celadon.download(job.images[0], "apple.png")

What does no harm when it is heard twice (reads, submits, batches, uploads) is sent up to four times where no answer comes.

Errors, all of them `CeladonError`:

    CeladonError
    ├── ApiError      the service answered with an error: status, code, message, param, request_id
    ├── JobFailed     a job that was waited for ended as failed or canceled: job
    └── Unreachable   no service answered at that address
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import quote, urlsplit

import httpx2

TERMINAL = frozenset({"succeeded", "failed", "canceled"})
LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
POLL_S = 0.5  # between two looks at a job, where events cannot be had
TRIES = 4  # of what may be sent again, where no answer comes
PAUSE_S = 0.2  # before the second try; doubled before each further one
GONE_S = 60.0  # that a wait without a limit of its own asks for its job while nobody answers: a gateway that starts again is there by then
BATCH_S = 600.0  # for thousands of lines to be taken, or canceled
SILENCE_S = 5.0  # of an event stream, after which the record is asked

OnProgress = Callable[[int, int], None]


class CeladonError(Exception):
    """The root of what this client raises."""


class ApiError(CeladonError):
    """The service answered with an error. `param` names the field at fault, where there is one."""

    retry_after_s: float | None = None  # seconds after which a repeat may do better

    def __init__(self, status: int, code: str, message: str, param: str | None = None, request_id: str | None = None) -> None:
        super().__init__(f"{message} ({code})")
        self.status, self.code, self.message, self.param, self.request_id = status, code, message, param, request_id


class JobFailed(CeladonError):
    """The job ended without pictures; `job.error` says why."""

    def __init__(self, job: Generation) -> None:
        super().__init__(job.error or f"job {job.id} was {job.status}")
        self.job = job


class Unreachable(CeladonError):
    """Nothing answers at the address, or the connection broke and could not be made again."""


@dataclass(frozen=True, slots=True)
class Image:
    """One finished picture; width and height in pixels. The URL is signed and expires: ask for the job again to renew it."""

    url: str
    seed: int
    width: int
    height: int
    media_type: str


@dataclass(frozen=True, slots=True)
class Generation:
    """A job as the service tells it. Steps are U-Net evaluations of all its images."""

    id: str
    status: str
    steps_done: int
    steps_total: int
    images: tuple[Image, ...]
    error: str | None
    warnings: tuple[str, ...]
    params: Mapping[str, Any]

    @property
    def done(self) -> bool:
        return self.status in TERMINAL

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Generation:
        """From the body of `POST /generate` or `GET /jobs/{id}`; fields this client does not know are left out."""
        error = data.get("error")
        return cls(
            id=data["id"],
            status=data["status"],
            steps_done=data["progress"]["steps_done"],
            steps_total=data["progress"]["steps_total"],
            images=tuple(Image(**{name: image[name] for name in Image.__slots__}) for image in data["images"]),
            error=error["message"] if error else None,
            warnings=tuple(warning["message"] for warning in data.get("warnings", ())),
            params=data["params"],
        )


@dataclass(frozen=True, slots=True)
class Event:
    """What became of a job, as its stream tells it: `queued`, `started`, `progress`, `requeued`, or how it ended."""

    id: str
    kind: str
    steps_done: int
    steps_total: int
    preview: str | None = None  # a data URL, of progress

    @classmethod
    def from_sse(cls, id_: str | None, kind: str, data: str) -> Event:
        told = json.loads(data)
        return cls(id_ or "", kind, told["steps_done"], told["steps_total"], told.get("preview"))


def connection(url: str, api_key: str, timeout_s: float) -> dict[str, Any]:
    """How an HTTP client reaches the service. A proxy from the environment is never the way to this machine itself."""
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    trust_env = urlsplit(url).hostname not in LOOPBACK
    return {"base_url": url, "headers": headers, "timeout": timeout_s, "trust_env": trust_env, "follow_redirects": True}


class Client:
    """Talks to one Celadon service. Not to be shared between threads."""

    def __init__(self, url: str = "http://127.0.0.1:7860", *, api_key: str = "", timeout_s: float = 30.0) -> None:
        self.url = url.rstrip("/")
        self._http = httpx2.Client(**connection(self.url, api_key, timeout_s))

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def submit(self, prompt: str, *, idempotency_key: str | None = None, **params: Any) -> Generation:
        """Queue a job. `params` are the fields of `POST /generate`; those left out or None take the model's defaults.

        It is sent up to four times where no answer comes, always with one idempotency key, so it stays one job.
        Raises ApiError (a bad value, a full queue), Unreachable.
        """
        body = {"prompt": prompt} | {name: value for name, value in params.items() if value is not None}
        headers = {"Idempotency-Key": idempotency_key or str(uuid.uuid4())}
        return Generation.from_json(self._repeated("POST", "/generate", json=body, headers=headers).json())

    def get(self, job_id: str) -> Generation:
        """The job as it is now. Raises ApiError (`not_found` and others), Unreachable."""
        return Generation.from_json(self._repeated("GET", f"/jobs/{quote(job_id, safe='')}").json())

    def cancel(self, job_id: str) -> Generation:
        """Wish the job's end. A running one stops at its next step; a finished one is returned unchanged."""
        return Generation.from_json(self._request("DELETE", f"/jobs/{quote(job_id, safe='')}").json())

    def retry(self, job_id: str) -> Generation:
        """Queue a dead letter again, as a new job, which is returned. Raises ApiError (`job_not_dead` for any other job), Unreachable."""
        return Generation.from_json(self._request("POST", f"/jobs/{quote(job_id, safe='')}/retry").json())

    def submit_batch(self, lines: bytes, *, idempotency_key: str | None = None, strict: bool = False) -> Mapping[str, Any]:
        """Queue the JSON lines of a batch (docs/batches.md) and say how it stands. It is sent up to four times where no
        answer comes, always with one idempotency key: the same key is the same batch, and completes it. Raises ApiError, Unreachable."""
        headers = {"Content-Type": "application/x-ndjson", "Idempotency-Key": idempotency_key or str(uuid.uuid4())}
        path = f"/batches?strict={'true' if strict else 'false'}"
        batch: Mapping[str, Any] = self._repeated("POST", path, content=lines, headers=headers, timeout=BATCH_S).json()
        return batch

    def batch(self, batch_id: str) -> Mapping[str, Any]:
        """The batch as it is now. Raises ApiError (`batch_not_found` and others), Unreachable."""
        batch: Mapping[str, Any] = self._repeated("GET", f"/batches/{quote(batch_id, safe='')}").json()
        return batch

    def batch_results(self, batch_id: str, first: int = 1, limit: int = 1000) -> list[Mapping[str, Any]]:
        """What became of its lines from `first` on, in their order. Raises as `batch` does."""
        text = self._repeated("GET", f"/batches/{quote(batch_id, safe='')}/results?first={first}&limit={limit}").text
        return [json.loads(line) for line in text.splitlines()]

    def cancel_batch(self, batch_id: str) -> Mapping[str, Any]:
        """Cancel those of its jobs that have not ended. Raises as `batch` does."""
        batch: Mapping[str, Any] = self._request("DELETE", f"/batches/{quote(batch_id, safe='')}", timeout=BATCH_S).json()
        return batch

    def upload(self, picture: bytes | str | Path) -> Mapping[str, Any]:
        """Leave a PNG, JPEG or WebP, bytes or a file, for jobs to come; its `key` goes into their `image` or `mask`. The same picture
        is the same upload, and is sent up to four times where no answer comes.

        Raises ApiError (`invalid_picture` and others), Unreachable, OSError.
        """
        data = picture if isinstance(picture, bytes) else Path(picture).read_bytes()
        told: Mapping[str, Any] = self._repeated("POST", "/uploads", files={"file": ("picture", data, "application/octet-stream")}).json()
        return told

    def delete_upload(self, key: str) -> None:
        """Raises ApiError (`picture_not_found`), Unreachable."""
        self._request("DELETE", f"/uploads/{quote(key)}")

    def events(self, job_id: str, *, after: str = "") -> Iterator[Event]:
        """Every event of the job after the one of id `after`, as they come, to the last. A stream that breaks is taken up where it broke.

        Raises ApiError where the service refuses, Unreachable where it is gone for longer than four tries.
        """
        missed = 0
        while True:
            try:
                with self._http.sse(f"/jobs/{quote(job_id, safe='')}/events", headers={"Last-Event-ID": after} if after else {}) as source:
                    if source.response.is_error:
                        source.response.read()
                        raise api_error(source.response)
                    for found in source:
                        event, missed = Event.from_sse(found.id, found.event, found.data), 0
                        after = event.id or after
                        yield event
                        if event.kind in TERMINAL:
                            return
            except httpx2.TransportError as error:
                missed += 1
                if missed == TRIES:
                    raise Unreachable(f"no events from {self.url}: {error}") from error
            time.sleep(POLL_S)

    def wait(self, job_id: str, *, on_progress: OnProgress | None = None, timeout_s: float | None = None) -> Generation:
        """Follow the job to its end and return it, with its images.

        Listens to the job's events, and asks again and again where they cannot be had. `on_progress(steps_done,
        steps_total)` is called as they come. Raises JobFailed, TimeoutError after `timeout_s`, whether the service is there or
        not, ApiError; without a limit Unreachable, when nobody has answered for a minute.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        last_event = ""
        while True:
            job = self._look(job_id, deadline)
            if on_progress:
                on_progress(job.steps_done, job.steps_total)
            if job.done:
                break
            if deadline is not None and time.monotonic() > deadline:
                raise TimeoutError(f"job {job_id} is still {job.status} after {timeout_s:g} s")
            last_event = self._listen(job_id, last_event, on_progress, deadline)
        if job.status != "succeeded":
            raise JobFailed(job)
        return job

    def download(self, image: Image, path: str | Path | None = None) -> bytes:
        """The picture's bytes, written to `path` too if one is given. Raises ApiError (expired, erased), Unreachable, OSError."""
        data = self._repeated("GET", self.local(image.url)).content
        if path is not None:
            Path(path).write_bytes(data)
        return data

    def local(self, url: str) -> str:
        """The path and query of one of the service's own URLs: its public host may not be reachable from here."""
        parts = urlsplit(url)
        return f"{parts.path}?{parts.query}" if parts.query else parts.path

    def read(self, path: str) -> Any:
        """The JSON of any GET, for example `/models`, `/samplers`, `/workers`."""
        return self._repeated("GET", path).json()

    def ready(self) -> bool:
        """Whether the service would take a job now: storage, Redis and at least one model are there."""
        try:
            return self._http.get("/readyz").status_code == 200
        except httpx2.TransportError:
            return False

    def _listen(self, job_id: str, last_event: str, on_progress: OnProgress | None, deadline: float | None) -> str:
        """Read events until the last one, a broken stream, a silence or the deadline; return the id to go on from."""
        headers = {"Last-Event-ID": last_event} if last_event else {}
        silence_s = SILENCE_S if deadline is None else min(SILENCE_S, max(0.05, deadline - time.monotonic()))
        try:
            with self._http.sse(f"/jobs/{quote(job_id, safe='')}/events", headers=headers, timeout=silence_s) as source:
                source.response.raise_for_status()
                for event in source:
                    last_event = event.id or last_event
                    if event.event in TERMINAL:
                        return last_event
                    if event.event == "progress" and on_progress:
                        data: Any = event.json()
                        on_progress(data["steps_done"], data["steps_total"])
        except httpx2.ReadTimeout:
            return last_event
        except (httpx2.TransportError, httpx2.HTTPStatusError):
            pass  # the stream is a comfort; the record, read next, is the truth
        time.sleep(POLL_S)
        return last_event

    def _look(self, job_id: str, deadline: float | None) -> Generation:
        """The job as it is now, asked for again and again where nobody answers: until the deadline, or for `GONE_S`."""
        limit = time.monotonic() + GONE_S if deadline is None else deadline
        while True:
            try:
                return Generation.from_json(self._request("GET", f"/jobs/{quote(job_id, safe='')}").json())
            except Unreachable as error:
                if time.monotonic() > limit and deadline is not None:
                    raise TimeoutError(f"job {job_id} was not heard of in time: {error}") from error
                if time.monotonic() > limit:
                    raise
            time.sleep(POLL_S)

    def _repeated(self, method: str, path: str, **options: Any) -> httpx2.Response:
        """The answer to what does no harm when it is heard twice; sent up to four times where none comes."""
        for attempt in range(TRIES - 1):
            try:
                return self._request(method, path, **options)
            except Unreachable:
                time.sleep(PAUSE_S * 2**attempt)
        return self._request(method, path, **options)

    def _request(self, method: str, path: str, **options: Any) -> httpx2.Response:
        try:
            response = self._http.request(method, path, **options)
        except httpx2.TransportError as error:
            raise Unreachable(f"no answer from {self.url}: {error}") from error
        if response.is_error:
            raise api_error(response)
        return response


def api_error(response: httpx2.Response) -> ApiError:
    status, after = response.status_code, response.headers.get("retry-after", "")
    try:
        error = response.json()["error"]
        told = ApiError(status, error["code"], error["message"], error.get("param"), error.get("request_id"))
    except (ValueError, KeyError, TypeError):  # something between us and the service answered
        told = ApiError(status, "http_error", f"{status} {response.reason_phrase}")
    told.retry_after_s = float(after) if after.isdigit() else None
    return told
