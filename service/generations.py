"""The one door behind every dialect: submit, get, cancel, erase, wait, events."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from redis.exceptions import RedisError

from jobs.entrance import Entrance
from jobs.events import Event, EventLog
from jobs.followers import Followers
from jobs.image_store import ImageStore
from jobs.job import TERMINAL, Job, JobStatus
from jobs.job_queue import (
    Admission,
    DeadlineUnmeetable,
    Forecast,
    IdempotencyConflict,
    JobGone,
    JobQueue,
    Page,
    QueueFull,
    QuotaSpent,
    RateLimited,
    Submitted,
)
from jobs.tracing import Tracing
from pipelines.card import ModelCard
from service.brought import Brought
from service.catalog import Catalog
from service.drafts import Draft
from service.errors import JobExpired, JobNotDead, JobNotFinished, JobNotFound, StorageUnavailable, TooManyStreams
from service.inputs import Inputs, Pictures, comes_along, is_url
from service.keyring import Keyring
from service.plain_pictures import PlainPictures
from service.refusals import deadline_unmeetable, refused
from service.request_ids import CURRENT
from service.resolver import Resolver
from service.settings import Settings
from service.steps import even_parts
from service.terms import Terms, check, reuse_fingerprint

SLICE_S = 1.0  # of waiting for an event, after which is seen whether the process is asked to end
RECORD_S = 15.0  # between two looks at the record of a job that is followed: its stream may have been lost in a failover
START = "0-0"  # before the first event


class Generations:
    """Jobs of one gateway. Every method may raise RedisError.

    A job is its client's alone: whoever names the id of another's hears JobNotFound, as of one that never was. Methods that
    take a `Job` leave that to those who told it.
    """

    def __init__(
        self,
        queue: JobQueue,
        events: EventLog,
        catalog: Catalog,
        store: ImageStore,
        keyring: Keyring,
        settings: Settings,
        tracing: Tracing,
        followers: Followers,
        entrance: Entrance,
        brought: Brought,
    ) -> None:
        self._queue, self._events, self._catalog, self._store = queue, events, catalog, store
        self._keyring, self._settings, self._tracing = keyring, settings, tracing
        self._resolver = Resolver(settings)
        self.inputs = Inputs(store, self.get, PlainPictures(settings))
        self._followers, self._entrance, self._brought = followers, entrance, brought
        self._streams = 0
        self.draining = asyncio.Event()  # set when the process is asked to end: nobody is kept waiting

    async def submit(
        self, draft: Draft, terms: Terms, *, client: str, idempotency_key: str | None = None, fingerprint: str = "", previews: int = 0
    ) -> Submitted:
        """Queue what the draft asks for, with so many previews at even parts of the way. Raises BadRequest and its kin before
        anything is queued; PictureNotFound, StorageUnavailable, ClassNotAllowed, DeadlineUnmeetable, QueueIsFull, ClientQueueFull,
        RateLimited, QuotaSpent, TooManyUploads, KeyReused, JobExpired (of the key), NoModel."""
        may = await self._keyring.admission(client)
        said: dict[str, Any] = {"idempotency_key": idempotency_key, "fingerprint": fingerprint}
        try:
            await self._knock(draft, terms, client, may, said)
            job, card, pictures = await self._job(draft, terms, client, previews)
            said["reuse_fingerprint"] = reuse_fingerprint(job.params, card) if job.reuse else ""
            if not pictures.brought or await self._entrance.ask(job, may, **said):
                return await self._queue.submit(job, deadline_s=terms.deadline_s, admission=may, **said)
            async with self._brought.stored(client, pictures.brought):
                return await self._queue.submit(job, deadline_s=terms.deadline_s, admission=may, **said)
        except JobGone:
            raise JobExpired() from None
        except (QueueFull, RateLimited, QuotaSpent, DeadlineUnmeetable, IdempotencyConflict) as refusal:
            raise refused(refusal, terms, may, self._settings) from refusal

    async def _knock(self, draft: Draft, terms: Terms, client: str, may: Admission, said: Mapping[str, Any]) -> None:
        """Before pictures are fetched or decoded. Whether a job with `reuse` costs any of the day's is seen when they are here."""
        given = (draft.image, draft.mask, draft.controlnet.get("image"))
        fetched = self._settings.picture_urls != "none" and any(map(is_url, given))
        if fetched or any(map(comes_along, given)):
            bounds = replace(may, per_day=0) if terms.reuse else may
            await self._entrance.knock(client, bounds, pictures=min(draft.num_images, self._settings.max_images), **said)

    async def prepared(self, draft: Draft, terms: Terms, client: str) -> tuple[Job, str, Mapping[str, bytes]]:
        """The job that submit would queue, what stands for its pictures, and those it begins with that are to be stored, by their
        keys. Raises BadRequest and its kin, PictureNotFound, StorageUnavailable, NoModel."""
        job, card, pictures = await self._job(draft, terms, client, fetch=False)
        return job, reuse_fingerprint(job.params, card) if job.reuse else "", pictures.brought

    async def forecast(self, draft: Draft, terms: Terms, *, client: str) -> tuple[Job, Forecast]:
        """What would become of it if it were submitted now; nothing is written. Raises what submit raises but for bounds."""
        job, card, _ = await self._job(draft, terms, client)
        equal = reuse_fingerprint(job.params, card)
        forecast = await self._queue.forecast(job, deadline_s=terms.deadline_s, reuse_fingerprint=equal)
        if terms.deadline_s is not None and forecast.eta_s > terms.deadline_s:
            raise deadline_unmeetable(forecast.eta_s, terms)
        return job, forecast

    async def _job(
        self, draft: Draft, terms: Terms, client: str, previews: int = 0, *, fetch: bool = True
    ) -> tuple[Job, ModelCard, Pictures]:
        card = await self._catalog.card(draft.model)
        given = await self.inputs.look(draft.image, draft.mask, client, control=draft.controlnet.get("image"), fetch=fetch)
        resolved = self._resolver.resolve(draft, card, given)
        check(terms, draft, self._settings)
        job = Job(
            id=self._queue.new_id(client),
            client=client,
            params=resolved.params,
            steps_total=resolved.steps_total,
            warnings=resolved.warnings,
            priority=terms.priority,
            service_class=await self._keyring.class_of(client, terms.service_class),
            webhook=terms.webhook,
            reuse=terms.reuse,
            preview_steps=even_parts(resolved.steps_total // resolved.params.num_images, previews),
            request_id=CURRENT.get(),
            traceparent=self._tracing.current(),
        )
        return job, card, given

    async def get(self, job_id: str, client: str) -> Job:
        """Raises JobNotFound, JobExpired."""
        return await self._found(job_id, client, await self._queue.get(job_id))

    async def list_jobs(self, client: str, status: str | None, limit: int, cursor: str) -> Page:
        """The client's own jobs, the newest first; of status `dead`, its dead letters."""
        if status == "dead":
            return Page(tuple(await self._queue.dead(limit, client)), "")
        return await self._queue.list_jobs(client, JobStatus(status) if status else None, limit, cursor)

    async def open_jobs(self, client: str) -> list[Job]:
        """The client's jobs that wait or run, the oldest first; a hundred of each at most."""
        found = [await self._queue.list_jobs(client, status, 100, "") for status in (JobStatus.RUNNING, JobStatus.QUEUED)]
        return [job for page in found for job in reversed(page.jobs)]

    async def preview(self, job: Job) -> str | None:
        """What forms, as a data URL; None where nothing was told yet, or no more."""
        return await self._events.preview(job.id)

    async def retry(self, job_id: str, client: str) -> Job:
        """Queue a dead letter again, within the client's bounds. Raises JobNotFound, JobExpired, JobNotDead, QueueIsFull,
        ClientQueueFull, RateLimited, QuotaSpent."""
        await self.get(job_id, client)  # a job never changes its client, so that looking first is enough
        may = await self._keyring.admission(client)
        try:
            job = await self._queue.retry(job_id, admission=may)
        except JobGone:
            raise JobExpired() from None
        except (QueueFull, RateLimited, QuotaSpent) as refusal:
            raise refused(refusal, Terms(), may, self._settings) from refusal
        if job is None:
            raise JobNotDead()
        return job

    async def outlook(self, job: Job) -> Forecast | None:
        """What lies before a queued job; None for others."""
        return await self._queue.outlook(job.id) if job.status == JobStatus.QUEUED else None

    async def cancel(self, job_id: str, client: str) -> Job:
        """A queued job ends at once, a running one at its next step, a finished one is unchanged. Raises JobNotFound, JobExpired."""
        await self.get(job_id, client)
        return await self._found(job_id, client, await self._queue.cancel(job_id))

    async def erase(self, job_id: str, client: str) -> Job:
        """Delete a finished job's images for good. Raises JobNotFound, JobExpired, JobNotFinished, StorageUnavailable."""
        job = await self.get(job_id, client)
        if not job.done:
            raise JobNotFinished()
        for image in job.images:  # bytes first: if this is cut short, the record still names what is left
            try:
                await self._store.delete(image.key)
            except OSError as error:
                raise StorageUnavailable() from error
        return await self._found(job_id, client, await self._queue.erase_images(job_id))

    async def wait(self, job: Job, seconds: float) -> Job:
        """The job when it is done, or as it is after `seconds`. Raises JobNotFound, JobExpired, TooManyStreams."""
        with self.stream():
            async for _ in self._follow(job, START, time.monotonic() + seconds):
                pass
        return await self.get(job.id, job.client)

    async def events(self, job: Job, after: str = START) -> AsyncIterator[Event]:
        """Every event of the job after the id `after`, as they come, the terminal one last and always. To be read within `stream`.

        It ends early when this process is asked to end, or Redis goes away: the reader comes back with the last id it saw.
        """
        try:
            async for event in self._follow(job, after, None):
                yield event
        except (RedisError, JobNotFound, JobExpired):
            return

    @property
    def has_room(self) -> bool:
        """Whether one more stream may be opened."""
        return self._streams < self._settings.max_streams

    @contextmanager
    def stream(self) -> Iterator[None]:
        """The place of one who follows a job. Raises TooManyStreams."""
        if not self.has_room:
            raise TooManyStreams()
        self._streams += 1
        try:
            yield
        finally:
            self._streams -= 1

    async def _found(self, job_id: str, client: str, job: Job | None) -> Job:
        """The job. Raises JobExpired where the client had one of that id, JobNotFound where it never had."""
        if job is None:
            raise JobExpired() if await self._queue.was_here(job_id, client) else JobNotFound()
        if job.client != client:
            raise JobNotFound()
        return job

    async def _follow(self, job: Job, after: str, until: float | None) -> AsyncIterator[Event]:
        """The stream is replayable, so reading it from `after` misses nothing that happened before we came."""
        looked_at = float("-inf")
        while not self.draining.is_set():
            for event in await self._events.read(job.id, after):
                yield event
                after = event.id
                if event.type in TERMINAL:
                    return
            if time.monotonic() - looked_at >= RECORD_S:
                job, looked_at = await self.get(job.id, job.client), time.monotonic()
                if job.done and not await self._events.read(job.id, after, count=1):
                    yield _final(job, after)  # the reader has seen it before, or the stream was cut: say it again
                    return
            if not await self._news(job.id, after, until, looked_at + RECORD_S):
                return

    async def _news(self, job_id: str, after: str, until: float | None, look_at: float) -> bool:
        """Wait until there is an event behind `after`, or the record is to be looked at; False when the time is over (monotonic)."""
        while not self.draining.is_set():
            now = time.monotonic()
            left = SLICE_S if until is None else min(until - now, SLICE_S)
            if left <= 0:
                return False
            if await self._followers.wait(job_id, after, left) or now + left >= look_at:
                return True
        return False


def _final(job: Job, event_id: str) -> Event:
    """The terminal event as the record tells it."""
    data: dict[str, object] = {"steps_done": job.steps_done, "steps_total": job.steps_total}
    if job.error is not None:
        data["error"] = {"code": job.error.code, "message": job.error.message, "retryable": job.error.retryable}
    return Event(event_id, job.status.value, data)
