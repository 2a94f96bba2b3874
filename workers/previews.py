"""Previews at the steps that a job names: each is told, and kept, however fast the model is."""

from __future__ import annotations

from redis.exceptions import RedisError

from jobs.job_queue import JobQueue
from workers.held import Held


class Previews:
    """Tells them to the queue, apart from what is told a few times a second."""

    def __init__(self, worker: str, queue: JobQueue) -> None:
        self._worker, self._queue = worker, queue

    async def tell(self, held: Held) -> None:
        """All that wait, in their order. Those that Redis does not take are left out: the picture itself is what counts."""
        async with held.telling:
            while held.previews:
                at, picture = held.previews.pop(0)
                try:
                    await self._queue.progress(self._worker, held.job.attempt, held.job.id, at, preview=picture, preview_at=at)
                except (RedisError, OSError):
                    return
