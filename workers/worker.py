"""Worker: the thin shell between queue and engine. Redis and storage here (asyncio), pictures in the drawing thread.

Loops, each small: claim (jobs in), reports (pictures out), progress (at most 4 a second and job), renew (leases kept, cancels
read), beat (the fleet sees this worker), reap (everybody clears away the dead). Redis may go and come back: every loop waits
and goes on, and what cannot be recorded in time belongs to someone else by then, which the fence decides.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import structlog
from redis.exceptions import RedisError

from jobs.connection import heed_cancel
from jobs.hooks import HookQueue
from jobs.image_store import LocalImageStore, image_key
from jobs.job import ImageRef, Job, JobError
from jobs.job_queue import CheckpointTooLarge, JobQueue, Standing
from jobs.registry import Registry, WorkerInfo
from pipelines.card import ModelCard
from pipelines.engine import checkpoint
from pipelines.engine.sample import Saved
from pipelines.params import EXTENSIONS, MEDIA_TYPES
from workers import encode
from workers.drawing import DrawingThread
from workers.held import Held
from workers.insist import insist
from workers.log import where
from workers.messages import Advanced, Broken, Crashed, Draw, Drawn, Drop, Exported, Measured, Previewed, Report, Save, Warned
from workers.resume import resume
from workers.settings import WorkerSettings
from workers.webhooks import HookSettings, deliver

log = structlog.get_logger("worker")

NOT_STORED = JobError("storage_unavailable", "The picture was drawn but could not be stored.", retryable=True)
NOT_ENCODED = JobError("encode_failed", "The picture was drawn but could not be written in that format.")
RETRYABLE = frozenset({"out_of_memory", "engine_error"})
PREVIEW_SCALE = 4
BEAT_S = 5.0
TICK_S = 60.0  # after which a tick that a drain waits for is given up
LEAVE_S = 0.5  # for what is on its way to Redis when a worker goes: one that is silent must not keep it
LAST_S = 0.2  # for handing back what could not be saved


@dataclass(frozen=True, slots=True)
class Doors:
    """What the worker talks to."""

    queue: JobQueue
    registry: Registry
    store: LocalImageStore
    hooks: HookQueue


class Worker:
    """Runs until `stop` is set, then drains. Raises what killed the drawing thread, so that the process ends with it."""

    def __init__(self, info: WorkerInfo, card: ModelCard, settings: WorkerSettings, doors: Doors) -> None:
        self._info, self._card, self._settings = info, card, settings
        self._queue, self._registry, self._store, self._hooks = doors.queue, doors.registry, doors.store, doors.hooks
        self._held: dict[str, Held] = {}
        self._reports: asyncio.Queue[Report] = asyncio.Queue()
        self._publishing: set[asyncio.Task[object]] = set()
        self._room = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._drawing: DrawingThread | None = None

    def report(self, message: Report) -> None:
        """The drawing thread's way out; any thread may call it."""
        self._loop.call_soon_threadsafe(self._reports.put_nowait, message)

    async def run(self, drawing: DrawingThread, stop: asyncio.Event) -> None:
        """Claim and draw until `stop`, then finish what can be finished within `drain_s` and release the rest."""
        self._drawing = drawing
        drawing.start()
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
        drawing.stop()

    async def _serve(self) -> None:
        async with asyncio.TaskGroup() as group:
            for loop in (self._take_reports, self._tell_progress, self._save, self._renew, self._beat, self._reap, self._deliver):
                group.create_task(loop())

    # jobs in

    async def _claim(self) -> None:
        while True:
            self._room.clear()
            if sum(h.open_images for h in self._held.values()) >= self._settings.slots:
                await self._room.wait()
                continue
            # one job a claim: how many images it brings, and so how many slots are left, is known only afterwards
            jobs = await self._claim_one()
            if not jobs:
                await insist(self._queue.wait_for_work, [self._card.id])

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
        jobs = await insist(self._queue.claim, self._info.id, [self._card.id], 1, [held.job for held in self._held.values()])
        for job in jobs:
            await self._start(job)
        return jobs

    async def _start(self, job: Job) -> None:
        """Draw a claimed job, from its checkpoint if an earlier attempt left one."""
        if earlier := self._held.get(job.id):  # our own lease ran out, and we are the next attempt too
            self._thread.put(Drop(earlier.job))
            self._forget(earlier)
        held, saved = Held.of(job), dict[int, Saved]()
        if (job.attempt > 1 or job.steps_done) and (found := await insist(self._queue.load_checkpoint, job.id)):
            saved = await resume(held, found, self._store)
        log.info("claimed", job=job.id, attempt=job.attempt, sampler=job.params.sampler, steps=job.params.steps, resumed=held.began_with)
        self._held[job.id] = held
        if held.complete:  # the earlier attempt was lost between its last picture and the record
            self._spawn(self._finish(held))
        else:
            self._thread.put(Draw(job, saved, frozenset(held.images)))

    # pictures out

    async def _take_reports(self) -> None:
        while True:
            message = await self._reports.get()
            if isinstance(message, Crashed):
                raise message.cause
            if isinstance(message, Measured):
                self._spawn(insist(self._queue.report_cost, self._card.id, message.width, message.height, message.seconds))
                continue
            held = self._held.get(message.job.id)
            if held is None or held.job is not message.job:
                continue  # lost or cancelled while the thread was still drawing
            match message:
                case Advanced():
                    held.done[message.index] = message.done
                    held.dirty = True
                case Previewed():
                    held.preview = encode.data_url(message.pixels, PREVIEW_SCALE)
                    held.dirty = True
                case Exported():
                    held.exported = True
                    self._room.set()
                    self._spawn(self._keep(held, message))
                case Warned():
                    held.warnings.append(message.warning)
                case Drawn():
                    self._spawn(self._publish(held, message))
                case Broken():
                    log.warning("broken", job=held.job.id, code=message.code, error=where(message.cause))
                    error = JobError(message.code, message.message, message.code in RETRYABLE)
                    self._spawn(self._record(held, self._queue.fail, error))

    async def _publish(self, held: Held, drawn: Drawn) -> None:
        """Encode and store one picture; the last one of a job finishes it."""
        job, params = held.job, held.job.params
        height, width, _ = drawn.pixels.shape
        key = image_key(job.id, job.attempt, drawn.index, EXTENSIONS[params.output_format])
        try:
            data = await asyncio.to_thread(encode.encode, drawn.pixels, params, drawn.index, self._card, self._info.version)
            await self._store.put(key, data)
        except Exception as error:  # whatever it is, it is this job's failure and nobody else's
            log.error("not_stored", job=job.id, error=where(error))
            self._thread.put(Drop(job))
            await self._record(held, self._queue.fail, NOT_STORED if isinstance(error, OSError) else NOT_ENCODED)
            return
        seed = params.image_seed(drawn.index)
        held.seconds = drawn.seconds
        held.images[drawn.index] = ImageRef(key, width, height, seed, MEDIA_TYPES[params.output_format])
        self._room.set()
        if self._held.get(job.id) is not held:
            await self._discard(held)  # lost, cancelled or released while it was written
        elif held.complete:
            await self._finish(held)

    async def _finish(self, held: Held) -> None:
        seconds = None if held.began_with else held.seconds  # of a resumed job only a part is known
        finish = functools.partial(self._queue.finish, seconds=seconds)
        if not await self._record(held, finish, held.ordered(), held.warnings):
            await self._discard(held)

    async def _record(self, held: Held, write: Callable[..., Awaitable[bool]], *what: object) -> bool:
        """Write a job's end down, however long Redis is away; False where the job is someone else's by now."""
        held.settling = True
        won = await insist(write, self._info.id, held.job.attempt, held.job.id, *what)
        log.info("recorded" if won else "superseded", job=held.job.id, attempt=held.job.attempt)
        self._forget(held)
        return won

    async def _discard(self, held: Held, *, all_of_them: bool = False) -> None:
        """Delete pictures that nobody will publish. Those of a checkpoint belong to the job, not to this attempt.

        The record has the last word: an answer may have been lost, and the job may have ended with these very pictures.
        """
        record = await insist(self._queue.get, held.job.id)
        if record and held.undone(record, self._info.id):
            return
        kept = {image.key for image in (record.images if record else ())} | (set() if all_of_them else held.saved)
        for image in held.images.values():
            if image.key not in kept:
                await self._store.delete(image.key)

    # checkpoints

    async def _save(self) -> None:
        """Ask for a checkpoint of every job whose rest is worth it."""
        while True:
            await asyncio.sleep(self._settings.checkpoint_s / 4)
            now = time.monotonic()
            for held in self._held.values():
                if not held.settling and held.worth_saving(now, self._settings.checkpoint_s):
                    held.saved_at = now
                    self._thread.put(Save(held.job))

    async def _keep(self, held: Held, exported: Exported) -> None:
        """Write a checkpoint down; a job that leaves is handed on with it, or without if it cannot be kept."""
        if not await self._kept(held, exported):
            await self._let_go(held, wished=False)
        elif held.leaving and self._held.get(held.job.id) is held and not held.settling:
            await self._hand_on(held)

    async def _kept(self, held: Held, exported: Exported) -> bool:
        """False where the job is someone else's by now. What cannot be kept is not: the next checkpoint comes soon."""
        job, images = held.job, dict(held.images)
        done = len(images) * held.evaluations_per_image + sum(s.row for i, s in exported.images.items() if i not in images)
        if not done:
            return True
        refs = [images[i] for i in sorted(images)]
        data = await asyncio.to_thread(checkpoint.dump, exported.images)
        try:
            kept = await self._queue.checkpoint(self._info.id, job.attempt, job.id, data, refs, steps_done=done)
        except (CheckpointTooLarge, RedisError, OSError) as error:
            log.warning("checkpoint_not_kept", job=job.id, bytes=len(data), error=type(error).__name__)
            return True
        held.saved, held.saved_done = frozenset(image.key for image in refs), done
        return kept

    async def _hand_on(self, held: Held) -> None:
        """Back to the front of the queue; its checkpoint, if there is one, goes along."""
        self._thread.put(Drop(held.job))
        await insist(self._release, held)
        self._forget(held)
        await self._discard(held)
        log.info(held.leaving or "released", job=held.job.id, attempt=held.job.attempt)

    async def _release(self, held: Held) -> bool:
        return await self._queue.release(self._info.id, held.job.attempt, held.job.id, reason=held.leaving or "released")

    # leases, progress, presence

    async def _tell_progress(self) -> None:
        while True:
            await asyncio.sleep(self._settings.progress_s / 2)
            now = time.monotonic()
            for held in [h for h in self._held.values() if h.dirty and not h.settling and now - h.told_at >= self._settings.progress_s]:
                held.dirty, held.told_at = False, now
                preview, held.preview = held.preview, None
                try:
                    standing = await self._queue.progress(self._info.id, held.job.attempt, held.job.id, held.steps_done, preview=preview)
                except (RedisError, OSError):
                    held.dirty = True  # told with the next one
                    continue
                heed_cancel()
                if standing is not Standing.HELD:
                    await self._let_go(held, wished=standing is Standing.CANCEL)

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(self._settings.renew_s)
            if not self._held:
                continue
            leases = {h.job.id: h.job.attempt for h in self._held.values()}
            renewal = await insist(self._queue.renew, self._info.id, leases)
            for held in [h for h in self._held.values() if h.job.id in renewal.lost | renewal.canceled]:
                if leases.get(held.job.id) == held.job.attempt:  # not one that was claimed while we asked
                    await self._let_go(held, wished=held.job.id in renewal.canceled)
            self._make_room(renewal.pausable)

    def _make_room(self, pausable: Sequence[str]) -> None:
        """Someone urgent waits: if every slot is taken, the first of these jobs that can go is saved and handed back."""
        staying = {i: h for i, h in self._held.items() if not (h.leaving or h.settling)}
        if len(staying) < len(self._held) or sum(h.open_images for h in staying.values()) < self._settings.slots:
            return  # room is there, or being made
        for held in [staying[i] for i in pausable if i in staying][:1]:
            held.leaving = "paused"
            self._thread.put(Save(held.job))

    async def _let_go(self, held: Held, *, wished: bool) -> None:
        """Stop drawing a job whose client wishes to cancel, or whose lease belongs to someone else."""
        if self._held.get(held.job.id) is not held or held.settling:
            return
        self._thread.put(Drop(held.job))
        self._forget(held)
        won = wished and await insist(self._queue.cancel_running, self._info.id, held.job.attempt, held.job.id)
        log.info("canceled" if won else "lost", job=held.job.id, attempt=held.job.attempt)
        await self._discard(held, all_of_them=won and not held.job.reuse)  # an equal job may go on with the checkpoint

    async def _beat(self) -> None:
        await insist(self._registry.announce, self._card)
        while True:
            info = replace(self._info, busy=sum(h.open_images for h in self._held.values()), ready=True)
            await insist(self._registry.beat, info)
            await asyncio.sleep(BEAT_S)

    async def _reap(self) -> None:
        while True:
            await asyncio.sleep(1.0)
            await insist(self._queue.reap)

    async def _deliver(self) -> None:
        secret = await insist(self._registry.webhook_secret)
        await deliver(self._hooks, secret, HookSettings(allow_private=self._settings.webhook_allow_private), self._info.id)

    # the end

    async def _drain(self, serving: asyncio.Task[None], until: float) -> None:
        """Finish what runs `until` then; save the rest, which takes a tick, and hand it back. Redis gets less than a second for that."""
        log.info("draining", jobs=len(self._held), seconds=self._settings.drain_s)
        await self._wait(self._empty, until - time.monotonic(), serving)
        for held in self._held.values():
            if not held.settling:
                held.leaving, held.exported = "released", False
                self._thread.put(Save(held.job))
        await self._wait(lambda: all(h.exported or h.settling for h in self._held.values()), TICK_S, serving)
        await self._wait(self._empty, LEAVE_S, serving)
        try:
            async with asyncio.timeout(LAST_S):
                await asyncio.gather(*(self._abandon(h) for h in self._held.values() if not h.settling))
                await self._registry.leave(self._info.id)
        except (RedisError, OSError) as error:  # TimeoutError is one
            log.warning("not_released", jobs=len(self._held), error=type(error).__name__)  # their leases will expire

    async def _abandon(self, held: Held) -> None:
        """Back to the queue as it was saved last."""
        self._thread.put(Drop(held.job))
        await self._release(held)
        self._forget(held)
        await self._discard(held)

    def _empty(self) -> bool:
        return not self._held

    async def _wait(self, enough: Callable[[], bool], seconds: float, serving: asyncio.Task[None]) -> None:
        """Until it is enough, at most so long."""
        deadline = time.monotonic() + seconds
        while not enough() and not serving.done() and (left := deadline - time.monotonic()) > 0:
            self._room.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._room.wait(), timeout=min(left, 0.5))

    def _forget(self, held: Held) -> None:
        if self._held.get(held.job.id) is held:
            del self._held[held.job.id]
        self._room.set()

    def _spawn(self, work: Coroutine[None, None, object]) -> None:
        task = asyncio.create_task(work)
        self._publishing.add(task)
        task.add_done_callback(self._settled)

    def _settled(self, task: asyncio.Task[object]) -> None:
        self._publishing.discard(task)
        if not task.cancelled() and (error := task.exception()):
            self._reports.put_nowait(Crashed(error))  # unforeseen: end loudly, the lease expires, another worker draws

    @property
    def _thread(self) -> DrawingThread:
        assert self._drawing is not None, "run() sets the drawing thread before any loop starts"
        return self._drawing
