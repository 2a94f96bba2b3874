"""What is saved of a job while it runs, so that another worker, or this one after a pause, goes on from there."""

from __future__ import annotations

import asyncio
import time

import structlog
from redis.exceptions import RedisError

from jobs.job_queue import CheckpointTooLarge, JobQueue
from pipelines.engine import checkpoint
from workers.drawing import DrawingThread
from workers.ends import Ends
from workers.held import Held, Holdings
from workers.log import of
from workers.messages import Exported, Save

log = structlog.get_logger("worker")


class Checkpoints:
    """Asks the drawing thread where jobs stand, and writes it down."""

    def __init__(self, worker: str, interval_s: float, queue: JobQueue, holdings: Holdings, drawing: DrawingThread, ends: Ends) -> None:
        self._worker, self._interval_s = worker, interval_s
        self._queue, self._holdings, self._drawing, self._ends = queue, holdings, drawing, ends

    async def ask(self) -> None:
        """A loop: every few seconds, for a checkpoint of every job whose rest is worth it."""
        while True:
            await asyncio.sleep(self._interval_s / 4)
            now = time.monotonic()
            for held in self._holdings:
                if not held.settling and held.worth_saving(now, self._interval_s):
                    held.saved_at = now
                    self._drawing.put(Save(held.job))

    async def keep(self, held: Held, exported: Exported) -> None:
        """Write a checkpoint down; a job that leaves is handed on with it, or without if it cannot be kept."""
        async with held.saving:
            if not await self._kept(held, exported):
                await self._ends.let_go(held, wished=False)
            elif held.leaving and self._holdings.has(held) and not held.settling:
                await self._ends.hand_on(held)

    async def _kept(self, held: Held, exported: Exported) -> bool:
        """False where the job is someone else's by now. What cannot be kept is not: the next checkpoint comes soon."""
        job, images = held.job, dict(held.images)
        done = len(images) * held.evaluations_per_image + sum(s.row for i, s in exported.images.items() if i not in images)
        if not done:
            return True
        refs = [images[i] for i in sorted(images)]
        data = await asyncio.to_thread(checkpoint.dump, exported.images)
        before = held.saved
        held.saved |= {image.key for image in refs}  # before the answer, which may be lost
        try:
            kept = await self._queue.checkpoint(self._worker, job.attempt, job.id, data, refs, steps_done=done)
        except (CheckpointTooLarge, RedisError, OSError) as error:
            log.warning("checkpoint_not_kept", **of(job), bytes=len(data), error=type(error).__name__)
            return True
        if kept:
            held.saved_done = done
        else:
            held.saved = before
        return kept
