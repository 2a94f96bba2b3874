"""How a job leaves its worker: with a recorded end, handed on to the next one, or lost to somebody else."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import structlog

from jobs.image_store import ImageStore
from jobs.job import JobError
from jobs.job_queue import JobQueue
from workers.drawing import DrawingThread
from workers.held import Held, Holdings
from workers.inbox import Errands
from workers.insist import insist
from workers.log import of
from workers.messages import Drop
from workers.metrics import WorkerMetrics

log = structlog.get_logger("worker")


class Ends:
    """Every way out. Pictures that nobody will publish are deleted on each of them."""

    def __init__(
        self,
        worker: str,
        queue: JobQueue,
        store: ImageStore,
        holdings: Holdings,
        drawing: DrawingThread,
        errands: Errands,
        metrics: WorkerMetrics | None = None,
    ) -> None:
        self._worker, self._queue, self._store = worker, queue, store
        self._holdings, self._drawing, self._errands = holdings, drawing, errands
        self._metrics = metrics or WorkerMetrics()

    def drop(self, held: Held) -> None:
        """Nothing more of it is drawn."""
        self._drawing.put(Drop(held.job))

    async def record(self, held: Held, write: Callable[..., Awaitable[bool]], *what: object) -> bool:
        """Write a job's end down, however long Redis is away; False where the job is someone else's by now."""
        held.settling = True
        won = await insist(write, self._worker, held.job.attempt, held.job.id, *what)
        self._note(held, "recorded" if won else "superseded")
        self._holdings.forget(held)
        return won

    async def fail(self, held: Held, error: JobError) -> None:
        """Write the failure down. Pictures that were drawn before it are nobody's."""
        won = await self.record(held, self._queue.fail, error)
        await self.discard(held, all_of_them=won)

    async def discard(self, held: Held, *, all_of_them: bool = False) -> None:
        """Delete pictures that nobody will publish. Those of a checkpoint belong to the job, not to this attempt.

        The record has the last word: an answer may have been lost, and the job may have ended with these very pictures.
        """
        record = await insist(self._queue.get, held.job.id)
        if record and held.undone(record, self._worker):
            return
        kept = {image.key for image in (record.images if record else ())} | (set() if all_of_them else held.saved)
        for image in held.images.values():
            if image.key not in kept:
                try:
                    await self._store.delete(image.key)
                except OSError as error:  # the gateways' sweep will
                    log.warning("not_deleted", **of(held.job), error=type(error).__name__)

    async def let_go(self, held: Held, *, wished: bool) -> None:
        """Stop drawing a job whose client wishes to cancel, or whose lease belongs to someone else."""
        if not self._holdings.has(held) or held.settling:
            return
        self.drop(held)
        self._holdings.forget(held)
        won = wished and await insist(self._queue.cancel_running, self._worker, held.job.attempt, held.job.id)
        self._note(held, "canceled" if won else "lost")
        # beside the loop that asks, since storage may be slow; an equal job may go on with the checkpoint
        self._errands.send(self.discard(held, all_of_them=won and not held.job.reuse))

    async def hand_on(self, held: Held) -> None:
        """Back to the front of the queue; its checkpoint, if there is one, goes along."""
        self.drop(held)
        await insist(self._release, held)
        self._holdings.forget(held)
        await self.discard(held)
        self._note(held, held.leaving or "released")

    async def abandon(self, held: Held) -> None:
        """Back to the queue as it was saved last, if Redis answers at once. Raises RedisError, OSError."""
        self.drop(held)
        await self._release(held)
        self._holdings.forget(held)
        await self.discard(held)
        self._note(held, held.leaving or "released")

    def _note(self, held: Held, outcome: str) -> None:
        log.info(outcome, **of(held.job), attempt=held.job.attempt)
        self._metrics.left(outcome)

    async def _release(self, held: Held) -> bool:
        return await self._queue.release(self._worker, held.job.attempt, held.job.id, reason=held.leaving or "released")
