"""Batches at the door: every line is checked before any is queued, the good ones come in together or not at all."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import Any, TypeVar

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from jobs.batches import BadLine, Batch, Batches, Line, Stopped, line_id
from jobs.entrance import Entrance
from jobs.image_store import ImageStore, NotFound
from jobs.job import Job, JobStatus
from jobs.job_queue import Admission, IdempotencyConflict, JobGone, QueueFull, QuotaSpent, RateLimited
from service import errors
from service.batch_lines import Upload
from service.brought import Brought
from service.generations import Generations
from service.keyring import Keyring
from service.picture_errors import PictureNotFound
from service.refusals import refused
from service.settings import Settings
from service.terms import Terms
from service.zip_stream import File

MAX_BAD = 1000  # lines; beyond that the whole is refused
MESSAGE_CHARS = 400  # of what is said of a line
AT_ONCE = 50  # jobs of one look, or put, or cancel
TURN_S = 0.005  # of work, after which others get a turn
TAKEN_AT_ONCE = 2  # batches that one gateway checks and queues; the next ones wait
BACK_OFF_S = (0.1, 0.5, 2.0)

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Accepted:
    """A batch that came in, now or before; `queued` jobs by this very request."""

    batch: Batch
    bad: Sequence[BadLine]
    new: bool
    queued: int


class Batching:
    """Batches of one gateway. Methods may raise RedisError. A batch is its client's alone."""

    def __init__(
        self,
        batches: Batches,
        generations: Generations,
        store: ImageStore,
        keyring: Keyring,
        settings: Settings,
        entrance: Entrance,
        brought: Brought,
    ) -> None:
        self._batches, self._generations, self._store = batches, generations, store
        self._keyring, self._settings = keyring, settings
        self._entrance, self._brought = entrance, brought
        self._turns = asyncio.Semaphore(TAKEN_AT_ONCE)

    async def submit(self, upload: Upload, *, client: str, strict: bool, idempotency_key: str | None, fingerprint: str) -> Accepted:
        """Queue every line that can be drawn, or with `strict` all or none. A repeat with the same key completes what was cut short.

        Raises InvalidBatch, InvalidValue, NoModel, QueueIsFull, ClientQueueFull, RateLimited, QuotaSpent, TooManyUploads, KeyReused,
        BatchExpired; nothing is queued then, and no picture of it stays.
        """
        async with self._turns:
            good, bad, brought = await self._checked(upload, client)
            may = await self._keyring.admission(client)
            self._refuse(good, bad, len(brought), strict, may)
            batch, new = await self._open(client, good, bad, brought, may, idempotency_key, fingerprint)
            queued = await self._fill(batch, good) if batch.left else 0
        return Accepted(await self.get(batch.id, client), bad if new else await self._batches.bad_lines(batch.id), new, queued)

    async def _open(
        self,
        client: str,
        good: Sequence[Line],
        bad: Sequence[BadLine],
        brought: Mapping[str, bytes],
        may: Admission,
        key: str | None,
        fingerprint: str,
    ) -> tuple[Batch, bool]:
        lines, first = [line.number for line in good], good[0].job
        said: dict[str, Any] = {"idempotency_key": key, "fingerprint": fingerprint}
        said["pictures"] = sum(line.job.params.num_images for line in good)
        try:
            if not brought or await self._entrance.ask(replace(first, reuse=False), may, count=len(lines), **said):
                return await self._batches.open(client, lines, first, bad, admission=may, **said)
            async with self._brought.stored(client, brought):
                return await self._batches.open(client, lines, first, bad, admission=may, **said)
        except JobGone:
            raise errors.BatchExpired() from None
        except (QueueFull, RateLimited, QuotaSpent, IdempotencyConflict) as refusal:
            raise refused(refusal, Terms(), may, self._settings) from refusal

    async def get(self, batch_id: str, client: str) -> Batch:
        """Raises BatchNotFound, BatchExpired."""
        batch = await self._batches.get(batch_id)
        if batch is None and await self._batches.was_here(batch_id, client):
            raise errors.BatchExpired()
        if batch is None or batch.client != client:
            raise errors.BatchNotFound()
        return batch

    async def newest(self, client: str, limit: int) -> list[Batch]:
        """The client's own, the newest first."""
        return await self._batches.of_client(client, limit)

    async def cancel(self, batch_id: str, client: str) -> Batch:
        """Queued jobs end at once, running ones at their next step, what ended stays. Raises BatchNotFound, BatchExpired."""
        batch = await self.get(batch_id, client)
        for lines in _pieces(chain(*batch.lines)):
            await self._batches.cancel(batch, lines)
        return await self.get(batch_id, client)

    async def results(
        self, batch: Batch, first: int = 1, limit: int | None = None
    ) -> AsyncIterator[tuple[int, str, Job | None, BadLine | None]]:
        """(line, its job's id, the job if it is kept, why it was refused) in order, from line `first` on."""
        bad = {one.line: one for one in await self._batches.bad_lines(batch.id)}
        lines = (line for line in sorted(chain(bad, *batch.lines)) if line >= first)
        for piece in _pieces(islice(lines, limit)):
            jobs = await self._batches.jobs(batch, piece)
            for line, job in zip(piece, jobs, strict=True):
                yield line, line_id(batch.id, line), job, None if job else bad.get(line)

    async def ended(self, batch: Batch, line: int) -> bool:
        """Whether the line had a job that ended and is no longer kept."""
        return await self._batches.ended(batch, line)

    async def pictures(self, batch: Batch) -> AsyncIterator[File]:
        """Those that are there now, named by line; one after the other from the store. Raises OSError."""
        async for line, _, job, _ in self.results(batch):
            if job is None or job.status is not JobStatus.SUCCEEDED:
                continue
            for index, image in enumerate(job.images, 1):
                try:
                    content = await self._store.read(image.key)
                except NotFound:  # erased meanwhile
                    continue
                number = f"-{index}" if job.params.num_images > 1 else ""
                yield f"{line:05d}{number}.{image.key.rpartition('.')[2]}", job.finished_at or job.created_at, content

    async def _checked(self, upload: Upload, client: str) -> tuple[list[Line], list[BadLine], dict[str, bytes]]:
        """Thousands of lines take seconds; others get their turn between them. The last are the pictures that came along."""
        good, bad, brought, since = list[Line](), list[BadLine](), dict[str, bytes](), time.perf_counter()
        for line, said in upload.lines:
            try:
                request = upload.request(said)
                job, reuse, pictures = await self._generations.prepared(request.to_draft(), request.to_terms(), client)
                brought.update(pictures)
                good.append(Line(line, job, reuse, request.deadline_s))
            except (errors.BadRequest, errors.ClassNotAllowed, PictureNotFound) as error:
                bad.append(BadLine(line, error.code, error.message[:MESSAGE_CHARS], error.param))
            if len(bad) > MAX_BAD or len(good) > self._settings.max_batch_lines or len(brought) > self._settings.max_uploads:
                break
            if time.perf_counter() - since > TURN_S:
                await asyncio.sleep(0)
                since = time.perf_counter()
        return good, bad, brought

    def _refuse(self, good: Sequence[Line], bad: Sequence[BadLine], brought: int, strict: bool, may: Admission) -> None:
        if brought > self._settings.max_uploads:
            raise errors.InvalidBatch(f"A batch brings at most {self._settings.max_uploads} pictures here. Nothing was queued.")
        most = min(self._settings.max_batch_lines, self._settings.max_queued, may.max_queued)
        if len(good) > most:
            raise errors.InvalidValue(f"A batch has at most {most} jobs here.", param="lines")
        if not (good or bad):
            raise errors.InvalidValue("A batch has at least one line.", param="lines")
        if bad and (strict or not good or len(bad) > MAX_BAD):
            said = f"Line {bad[0].line}: {bad[0].message} {_others(len(bad) - 1)}Nothing was queued."
            raise errors.InvalidBatch(said, lines=[told(one) for one in bad[:MAX_BAD]])

    async def _fill(self, batch: Batch, good: Iterable[Line]) -> int:
        queued, let_in = 0, set(chain(*batch.lines))
        try:
            for piece in _pieces(one for one in good if one.number in let_in):  # a repeat may judge otherwise than the first try
                queued += await self._put(batch, piece)
        except Stopped:
            pass  # canceled while it came in: what has not come does not
        await self._batches.seal(batch.id)
        return queued

    async def _put(self, batch: Batch, piece: Sequence[Line]) -> int:
        """A failover in the middle of a batch is waited for: its client could not tell how far it came."""
        for seconds in BACK_OFF_S:
            try:
                return await self._batches.put(batch, piece)
            except (RedisConnectionError, RedisTimeoutError):
                await asyncio.sleep(seconds)
        return await self._batches.put(batch, piece)


def told(bad: BadLine) -> dict[str, object]:
    """As an answer tells it."""
    return {"line": bad.line, "error": {"code": bad.code, "message": bad.message, "param": bad.param}}


def _others(count: int) -> str:
    return f"And {'more than ' * (count >= MAX_BAD)}{count} more. " if count else ""


def _pieces(items: Iterable[Item]) -> Iterator[list[Item]]:
    rest = iter(items)
    while piece := list(islice(rest, AT_ONCE)):
        yield piece
