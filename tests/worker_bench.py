"""One worker on real Valkey and storage, with a drawing thread that does what the test says."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from redis.asyncio import Redis

from jobs.hooks import HookQueue
from jobs.image_store import ImageStore, LocalImageStore
from jobs.job import Job
from jobs.job_queue import JobQueue
from jobs.registry import Registry, WorkerInfo
from tests.cards import card
from tests.job_samples import sample_job
from workers.inbox import Inbox
from workers.messages import Command, Draw, Drawn, Exported, Report, Save
from workers.safety import UNCHECKED, Safety
from workers.settings import WorkerSettings
from workers.shelf import Shelf
from workers.worker import Doors, Worker

CARD = card()
PIXELS = np.zeros((8, 8, 3), np.uint8)
TIMEOUT_S = 20


class Puppet:
    """Takes commands as the drawing thread does; `react` answers them."""

    def __init__(self, react: Callable[[Command], list[Report]]) -> None:
        self._react, self.commands = react, list[Command]()
        self.report: Callable[[Report], None] = lambda report: None

    piece = None  # never at anything

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def put(self, command: Command) -> None:
        self.commands.append(command)
        if isinstance(command, Save):
            self.report(Exported(command.job, {}))
        for report in self._react(command):
            self.report(report)


def draw_at_once(command: Command) -> list[Report]:
    return [Drawn(command.job, 0, PIXELS, 0.1)] if isinstance(command, Draw) else []


def job(name: str, **fields: Any) -> Job:
    return sample_job(id=name, model=CARD.id, size=8, **fields)


class Bench:
    """One worker on real Valkey, running in this test's event loop."""

    def __init__(
        self,
        queue: JobQueue,
        redis: Redis,
        folder: Path,
        react: Callable[[Command], list[Report]],
        store: ImageStore | None = None,
        safety: Safety = UNCHECKED,
        **told: Any,
    ) -> None:
        info = WorkerInfo(
            id="w", models=(CARD.id,), device="cpu", backend="none", slots=4, busy=0, version="1", started_at=0.0, ready=False
        )
        told = {"renew_s": 0.05, "progress_s": 0.05, "drain_s": 0} | told
        settings = WorkerSettings(redis_url="unix:///unused", data_dir=folder, **told)
        self.queue, self.folder, self.puppet, self._stop = queue, folder, Puppet(react), asyncio.Event()
        store = store or LocalImageStore(folder, timeout_s=settings.store_s)
        doors, inbox = Doors(queue, Registry(redis), store, HookQueue(redis), safety), Inbox()
        self.puppet.report = inbox.put
        self._worker = Worker(info, Shelf.of(CARD), settings, doors, self.puppet, inbox)  # type: ignore[arg-type]
        self._running = asyncio.create_task(self._worker.run(self._stop))

    async def ended(self, job_id: str) -> Job:
        async def poll() -> Job:
            while True:
                if self._running.done():
                    self._running.result()
                found = await self.queue.get(job_id)
                if found and found.done:
                    return found
                await asyncio.sleep(0.01)

        return await asyncio.wait_for(poll(), TIMEOUT_S)

    async def settled(self) -> None:
        """Returns once the worker is at nothing: a job may have ended while a picture of it was still being written, to be deleted."""
        while at_work := self._worker._errands._running:
            await asyncio.wait(set(at_work), timeout=TIMEOUT_S)

    async def stop(self) -> None:
        self._stop.set()
        await asyncio.wait_for(self._running, TIMEOUT_S)

    def files(self) -> set[str]:
        return {path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*.png")}
