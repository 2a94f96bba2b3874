"""What a worker tells Redis of the jobs that it holds, and what it hears in answer: lost, canceled, or somebody urgent waits."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from redis.exceptions import RedisError

from jobs.connection import heed_cancel
from jobs.job_queue import JobQueue, Standing
from workers.drawing import DrawingThread
from workers.ends import Ends
from workers.held import Holdings
from workers.insist import insist
from workers.messages import Save
from workers.settings import WorkerSettings


class Leases:
    """Two loops: `renew` keeps the leases, `tell_progress` tells progress, at most four times a second and job."""

    def __init__(
        self, worker: str, settings: WorkerSettings, queue: JobQueue, holdings: Holdings, drawing: DrawingThread, ends: Ends
    ) -> None:
        self._worker, self._settings = worker, settings
        self._queue, self._holdings, self._drawing, self._ends = queue, holdings, drawing, ends

    async def tell_progress(self) -> None:
        every = self._settings.progress_s
        while True:
            await asyncio.sleep(every / 2)
            now = time.monotonic()
            for held in [h for h in self._holdings if h.dirty and not h.settling and now - h.told_at >= every]:
                held.dirty, held.told_at = False, now
                preview, held.preview = held.preview, None
                try:
                    standing = await self._queue.progress(self._worker, held.job.attempt, held.job.id, held.steps_done, preview=preview)
                except (RedisError, OSError):
                    held.dirty = True  # told with the next one
                    continue
                heed_cancel()
                if standing is not Standing.HELD:
                    await self._ends.let_go(held, wished=standing is Standing.CANCEL)

    async def renew(self) -> None:
        while True:
            await asyncio.sleep(self._settings.renew_s)
            if not self._holdings:
                continue
            leases = {h.job.id: h.job.attempt for h in self._holdings}
            renewal = await insist(self._queue.renew, self._worker, leases)
            for held in [h for h in self._holdings if h.job.id in renewal.lost | renewal.canceled]:
                if leases.get(held.job.id) == held.job.attempt:  # not one that was claimed while we asked
                    await self._ends.let_go(held, wished=held.job.id in renewal.canceled)
            self._make_room(renewal.pausable)

    def _make_room(self, pausable: Sequence[str]) -> None:
        """Someone urgent waits: if every slot is taken, the first of these jobs that can go is saved and handed back."""
        staying = {h.job.id: h for h in self._holdings if not (h.leaving or h.settling)}
        if len(staying) < len(self._holdings) or sum(h.open_images for h in staying.values()) < self._settings.slots:
            return  # room is there, or being made
        for held in [staying[i] for i in pausable if i in staying][:1]:
            held.leaving = "paused"
            self._drawing.put(Save(held.job))
