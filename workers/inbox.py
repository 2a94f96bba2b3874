"""What the worker's shell hears: reports of the drawing thread, and failures of its own errands."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine

from workers.messages import Crashed, Report


class Inbox:
    """Reports in the order in which they came. Made in the event loop; `put` may be called from any thread."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._reports: asyncio.Queue[Report] = asyncio.Queue()

    def put(self, report: Report) -> None:
        self._loop.call_soon_threadsafe(self._reports.put_nowait, report)

    async def get(self) -> Report:
        return await self._reports.get()


class Errands:
    """Work beside the loops. One that fails in a way nobody foresaw is a crash: the lease expires, another worker draws."""

    def __init__(self, inbox: Inbox) -> None:
        self._inbox = inbox
        self._running: set[asyncio.Task[object]] = set()

    def send(self, work: Coroutine[None, None, object]) -> None:
        task = asyncio.create_task(work)
        self._running.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[object]) -> None:
        self._running.discard(task)
        if not task.cancelled() and (error := task.exception()):
            self._inbox.put(Crashed(error))
