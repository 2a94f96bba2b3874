"""Drawn pixels become stored pictures; the last one of a job finishes it."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Mapping

import structlog

from jobs.image_store import ImageStore, image_key
from jobs.job import ImageRef, JobError
from jobs.job_queue import JobQueue
from jobs.tracing import Tracing
from pipelines.card import ModelCard
from pipelines.params import EXTENSIONS, MEDIA_TYPES
from workers import encode
from workers.ends import Ends
from workers.held import Held, Holdings
from workers.insist import BACK_OFF_S
from workers.log import of, where
from workers.messages import Drawn
from workers.metrics import WorkerMetrics
from workers.previews import Previews
from workers.safety import UNJUDGED, UNMARKED, WITHHELD, Safety, Unjudged, Unmarked, Withheld

log = structlog.get_logger("worker")

REFUSED = {Withheld: ("withheld", WITHHELD), Unjudged: ("unjudged", UNJUDGED), Unmarked: ("unmarked", UNMARKED)}
NOT_STORED = JobError("storage_unavailable", "The picture was drawn but could not be stored.", retryable=True)
NOT_ENCODED = JobError("encode_failed", "The picture was drawn but could not be written in that format.")


class Pictures:
    """Publishes what the drawing thread has finished."""

    def __init__(
        self,
        cards: Mapping[str, ModelCard],
        version: str,
        store_s: float,
        queue: JobQueue,
        store: ImageStore,
        holdings: Holdings,
        ends: Ends,
        previews: Previews,
        metrics: WorkerMetrics,
        tracing: Tracing,
        safety: Safety,
    ) -> None:
        self._cards, self._version, self._store_s = cards, version, store_s
        self._queue, self._store, self._holdings, self._ends, self._previews = queue, store, holdings, ends, previews
        self._metrics, self._tracing, self._safety = metrics, tracing, safety

    async def publish(self, held: Held, drawn: Drawn) -> None:
        """Encode and store one picture; the last one of a job finishes it."""
        job, params = held.job, held.job.params
        height, width, _ = drawn.pixels.shape
        key = image_key(job.id, job.attempt, drawn.index, EXTENSIONS[params.output_format])
        began = time.monotonic()
        try:
            async with asyncio.timeout(self._store_s):
                await asyncio.to_thread(self._safety.check, drawn.pixels)
                data = await asyncio.to_thread(self._file, held, drawn)
            await self._keep(held, key, data)
        except (Withheld, Unjudged, Unmarked) as refusal:
            event, error = REFUSED[type(refusal)]
            cause = {"error": where(refusal.__cause__)} if refusal.__cause__ else {}
            log.warning(event, **of(job), **cause)
            self._ends.drop(held)
            await self._ends.fail(held, error)
            return
        except Exception as error:  # whatever it is, it is this job's failure and nobody else's
            log.error("not_stored", **of(job), error=where(error))
            self._ends.drop(held)
            await self._ends.fail(held, _reason(error))
            return
        now = time.monotonic()
        self._metrics.stored(now - began)
        self._tracing.record("store", job.traceparent, began, now, job=job.id, attempt=job.attempt, image=drawn.index, bytes=len(data))
        seed = params.image_seed(drawn.index)
        held.seconds = drawn.seconds
        held.images[drawn.index] = ImageRef(key, width, height, seed, MEDIA_TYPES[params.output_format])
        self._holdings.changed.set()
        if not self._holdings.has(held):
            await self._ends.discard(held)  # lost, cancelled or released while it was written
        elif held.complete:
            await self.finish(held)

    def _file(self, held: Held, drawn: Drawn) -> bytes:
        """Raises Unmarked."""
        params, card = held.job.params, self._cards[held.job.params.model]
        return self._safety.file(drawn.pixels, lambda pixels: encode.encode(pixels, params, drawn.index, card, self._version))

    async def _keep(self, held: Held, key: str, data: bytes) -> None:
        """Storage may be away for a while, so a write is tried again, for `store_s` altogether. Raises OSError. Nothing is kept of a job
        that is no longer ours."""
        tries = 0
        async with asyncio.timeout(self._store_s):
            while self._holdings.has(held):
                try:
                    return await self._store.put(key, data)
                except OSError as error:
                    if tries == 0:
                        log.warning("store_unavailable", **of(held.job), error=type(error).__name__)
                await asyncio.sleep(BACK_OFF_S[min(tries, len(BACK_OFF_S) - 1)])
                tries += 1

    async def finish(self, held: Held) -> None:
        """Every picture is stored: succeeded, or somebody else's by now."""
        await self._previews.tell(held)  # nothing is heard of a job behind its end
        seconds = None if held.began_with else held.seconds  # of a resumed job only a part is known
        finish = functools.partial(self._queue.finish, seconds=seconds)
        if not await self._ends.record(held, finish, held.ordered(), held.warnings):
            await self._ends.discard(held)


def _reason(error: Exception) -> JobError:
    """What took too long, as a disk that hangs does, may go well another time: TimeoutError is an OSError."""
    return NOT_STORED if isinstance(error, OSError) else NOT_ENCODED
