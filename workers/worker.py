"""Worker: the thin shell between queue and engine. Redis and storage here (asyncio), pictures in the drawing thread.

Loops, each small: claim (jobs in), reports (pictures out), progress (at most 4 a second and job), renew (leases kept, cancels
read), checkpoints, the watch, beat (the fleet sees this worker), reap (everybody clears away the dead), webhooks. Redis may go and
come back: every loop waits and goes on, and what cannot be recorded in time belongs to someone else by then, which the fence decides.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace

import structlog
from redis.exceptions import RedisError

from jobs.hooks import HookQueue
from jobs.image_store import ImageStore
from jobs.job import Job, JobError
from jobs.job_queue import JobQueue
from jobs.registry import Registry, WorkerInfo
from jobs.tracing import Tracing
from pipelines.engine.sample import Saved
from workers import encode, inputs
from workers.checkpoints import Checkpoints
from workers.drawing import DrawingThread
from workers.ends import Ends
from workers.held import Held, Holdings
from workers.inbox import Errands, Inbox
from workers.insist import insist
from workers.leases import Leases
from workers.log import of, where
from workers.messages import Advanced, Broken, Crashed, Draw, Drawn, Exported, Measured, Previewed, Report, Save, Spent, Warned
from workers.metrics import WorkerMetrics
from workers.pictures import Pictures
from workers.previews import Previews
from workers.resume import resume
from workers.safety import UNCHECKED, Safety
from workers.settings import WorkerSettings
from workers.shelf import Shelf
from workers.watch import Watch
from workers.webhooks import HookSettings, deliver

log = structlog.get_logger("worker")

RETRYABLE = frozenset({"out_of_memory", "engine_error"})
PREVIEW_SCALE = 4
BEAT_S = 5.0
LOOK_S = 1.0  # between two looks at what waits for models that are not here
TICK_S = 60.0  # after which a tick that a drain waits for is given up
LEAVE_S = 0.5  # for what is on its way to Redis when a worker goes: one that is silent must not keep it
LAST_S = 0.2  # for handing back what could not be saved


@dataclass(frozen=True, slots=True)
class Doors:
    """What the worker talks to."""

    queue: JobQueue
    registry: Registry
    store: ImageStore
    hooks: HookQueue
    safety: Safety = UNCHECKED


class Worker:
    """Runs until `stop` is set, then drains. Raises what killed the drawing thread, so that the process ends with it.

    `drawing` reports to `inbox`.
    """

    def __init__(
        self,
        info: WorkerInfo,
        shelf: Shelf,
        settings: WorkerSettings,
        doors: Doors,
        drawing: DrawingThread,
        inbox: Inbox,
        metrics: WorkerMetrics | None = None,
        tracing: Tracing | None = None,
    ) -> None:
        self._metrics, self._tracing = metrics or WorkerMetrics(), tracing or Tracing()
        self._info, self._shelf, self._settings = info, shelf, settings
        self._claiming = asyncio.Lock()  # what is claimed finds its model here
        self._queue, self._registry, self._store, self._hooks = doors.queue, doors.registry, doors.store, doors.hooks
        self._drawing, self._inbox = drawing, inbox
        self._errands, held = Errands(inbox), Holdings()
        self._held, self.traceparent = held, held.traceparent
        self._metrics.has_slots(settings.slots, lambda: held.open_images)
        self._ends = Ends(info.id, self._queue, self._store, held, drawing, self._errands, self._metrics)
        self._previews = Previews(info.id, self._queue)
        parts = (self._queue, self._store, held, self._ends, self._previews, self._metrics, self._tracing, doors.safety)
        self._pictures = Pictures(shelf.cards, info.version, settings.store_s, *parts)
        self._checkpoints = Checkpoints(info.id, settings.checkpoint_s, self._queue, held, drawing, self._ends)
        self._watch = Watch(lambda: drawing.piece, settings.stall_s)
        self._leases = Leases(info.id, settings, self._queue, held, drawing, self._ends)

    async def run(self, stop: asyncio.Event) -> None:
        """Claim and draw until `stop`, then finish what can be finished within `drain_s` and release the rest."""
        self._drawing.start()
        serving = asyncio.create_task(self._serve())
        claiming = asyncio.create_task(self._claim())
        stopping = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait({serving, claiming, stopping}, return_when=asyncio.FIRST_COMPLETED)
            until = time.monotonic() + self._settings.drain_s
            claiming.cancel()
            await asyncio.wait({claiming})
            if not serving.done():
                await self._drain(serving, until)
        finally:
            for task in (serving, claiming, stopping):
                task.cancel()
            await asyncio.wait({serving, claiming, stopping})
        for task in (serving, claiming):
            if not task.cancelled() and (error := task.exception()):
                raise error
        self._drawing.stop()

    async def _serve(self) -> None:
        loops = (self._take_reports, self._leases.tell_progress, self._leases.renew, self._checkpoints.ask, self._swap)
        async with asyncio.TaskGroup() as group:
            for loop in (*loops, self._watch.run, self._beat, self._reap, self._deliver):
                group.create_task(loop())

    # jobs in

    async def _claim(self) -> None:
        while True:
            self._held.changed.clear()
            if self._held.open_images >= self._settings.slots:
                await self._held.changed.wait()
                continue
            # one job a claim: how many images it brings, and so how many slots are left, is known only afterwards
            jobs = await self._claim_one()
            if not jobs:
                await insist(self._queue.wait_for_work, self._shelf.claimable or list(self._shelf.cards))

    async def _claim_one(self) -> list[Job]:
        """A claim that has been sent is seen through, also when the worker stops: nobody else would know of it."""
        claim = asyncio.create_task(self._claim_and_start())
        try:
            return await asyncio.shield(claim)
        except asyncio.CancelledError:
            await asyncio.wait({claim}, timeout=LEAVE_S)
            claim.cancel()
            raise

    async def _claim_and_start(self) -> list[Job]:
        async with self._claiming:
            began, models = time.monotonic(), self._shelf.claimable
            if not models:
                return []
            jobs = await insist(self._queue.claim, self._info.id, models, 1, [held.job for held in self._held])
            self._metrics.claimed(time.monotonic() - began, jobs)
            for job in jobs:
                self._tracing.record(
                    "claim", job.traceparent, began, time.monotonic(), job=job.id, attempt=job.attempt, worker=self._info.id
                )
                await self._start(job)
            return jobs

    async def _start(self, job: Job) -> None:
        """Draw a claimed job, from its checkpoint if an earlier attempt left one."""
        if earlier := self._held.jobs.get(job.id):  # our own lease ran out, and we are the next attempt too
            self._ends.drop(earlier)
            self._held.forget(earlier)
        held, saved = Held.of(job), dict[int, Saved]()
        if (job.attempt > 1 or job.steps_done) and (found := await insist(self._queue.load_checkpoint, job.id)):
            saved = await resume(held, found, self._store)
        log.info("claimed", **of(job), attempt=job.attempt, sampler=job.params.sampler, steps=job.params.steps, resumed=held.began_with)
        self._held.add(held)
        if held.complete:  # the earlier attempt was lost between its last picture and the record
            self._errands.send(self._pictures.finish(held))
        elif job.params.image or job.params.controlnet:
            self._errands.send(self._fetch(held, saved))
        else:
            self._drawing.put(Draw(job, saved, frozenset(held.images)))

    async def _swap(self) -> None:
        """Models come and go where they do not all fit."""
        while not self._shelf.whole:
            await asyncio.sleep(LOOK_S)
            waiting = await insist(self._registry.waiting)
            async with self._claiming:
                wanted = await self._shelf.make_room(waiting, {held.job.params.model for held in self._held}, self._drawing.put)
            if wanted:
                await self._shelf.fetch(wanted, self._drawing.put)
                await self._announce()

    async def _fetch(self, held: Held, saved: dict[int, Saved]) -> None:
        """Draw a job that begins with a picture, once that is here."""
        try:
            params = held.job.params
            loaded, control = await inputs.load(params, self._store), await inputs.load_control(params, self._store)
        except inputs.NoInputs as refusal:
            log.warning("no_inputs", **of(held.job), code=refusal.error.code)
            await self._ends.fail(held, refusal.error)
            return
        if not self._held.has(held) or held.settling:
            return  # lost or cancelled meanwhile
        self._drawing.put(Draw(held.job, saved, frozenset(held.images), loaded, control))
        if held.leaving:  # the thread was asked where it stands before it knew the job
            self._drawing.put(Save(held.job))

    # reports in, pictures out

    async def _take_reports(self) -> None:
        while True:
            message = await self._inbox.get()
            if isinstance(message, Crashed):
                raise message.cause
            if isinstance(message, Measured):
                self._errands.send(insist(self._queue.report_cost, message.model, message.width, message.height, message.seconds))
                continue
            held = self._held.jobs.get(message.job.id)
            if held and held.job is message.job:  # else it was lost or cancelled while the thread was still drawing
                self._take(held, message)

    def _take(self, held: Held, message: Report) -> None:
        match message:
            case Advanced():
                held.done[message.index] = message.done
                held.dirty = True
            case Previewed():
                self._show(held, message)
            case Exported():
                held.exported = True
                self._held.changed.set()
                self._errands.send(self._checkpoints.keep(held, message))
            case Spent():
                about: dict[str, str | int] = {
                    "job": held.job.id,
                    "attempt": held.job.attempt,
                    "image": message.index,
                    "worker": self._info.id,
                }
                self._tracing.record(message.what, held.job.traceparent, message.began, message.ended, **about)
            case Warned():
                if message.warning not in held.warnings:  # of several pictures, once
                    held.warnings.append(message.warning)
            case Drawn():
                self._errands.send(self._pictures.publish(held, message))
            case Broken():
                log.warning("broken", **of(held.job), code=message.code, error=where(message.cause))
                error = JobError(message.code, message.message, message.code in RETRYABLE)
                self._errands.send(self._ends.fail(held, error))

    def _show(self, held: Held, message: Previewed) -> None:
        """At a step that the job names it is told at once; others wait for their turn."""
        picture = encode.data_url(message.pixels, PREVIEW_SCALE)
        if message.index == 0 and message.at in held.job.preview_steps:
            held.previews.append((message.at, picture))
            self._errands.send(self._previews.tell(held))
        else:
            held.preview, held.dirty = picture, True

    # presence, and what everybody does

    async def _beat(self) -> None:
        await self._announce()
        while True:
            info = replace(self._info, models=tuple(self._shelf.cards), busy=self._held.open_images, ready=True)
            await insist(self._registry.beat, info)
            await asyncio.sleep(BEAT_S)

    async def _announce(self) -> None:
        for card in self._shelf.cards.values():
            await insist(self._registry.announce, card)

    async def _reap(self) -> None:
        while True:
            await asyncio.sleep(1.0)
            await insist(self._queue.reap)

    async def _deliver(self) -> None:
        settings = HookSettings(allow_private=self._settings.webhook_allow_private)
        await deliver(self._hooks, self._hooks.secrets.lately, settings, self._info.id, count=self._metrics.posted)

    # the end

    async def _drain(self, serving: asyncio.Task[None], until: float) -> None:
        """Finish what runs `until` then; save the rest, which takes a tick, and hand it back. Redis gets less than a second for that."""
        log.info("draining", jobs=len(self._held), seconds=self._settings.drain_s)
        await self._wait(self._empty, until - time.monotonic(), serving)
        for held in self._held:
            if not held.settling:
                held.leaving, held.exported = "released", False
                self._drawing.put(Save(held.job))
        await self._wait(lambda: all(h.exported or h.settling for h in self._held), TICK_S, serving)
        await self._wait(self._empty, LEAVE_S, serving)
        try:
            async with asyncio.timeout(LAST_S):
                await asyncio.gather(*(self._ends.abandon(h) for h in self._held if not h.settling))
                await self._registry.leave(self._info.id)
        except (RedisError, OSError) as error:  # TimeoutError is one
            log.warning("not_released", jobs=len(self._held), error=type(error).__name__)  # their leases will expire

    def _empty(self) -> bool:
        return not self._held

    async def _wait(self, enough: Callable[[], bool], seconds: float, serving: asyncio.Task[None]) -> None:
        """Until it is enough, at most so long."""
        deadline = time.monotonic() + seconds
        while not enough() and not serving.done() and (left := deadline - time.monotonic()) > 0:
            self._held.changed.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._held.changed.wait(), timeout=min(left, 0.5))
