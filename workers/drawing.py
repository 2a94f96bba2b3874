"""The drawing thread: text encoding, engine ticks and VAE decoding, in one thread that never waits for I/O.

Between two ticks at most one new prompt is encoded and one picture decoded, so that neither stalls the denoising of the
others for longer than one of them takes.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from jobs.job import Job, JobWarning
from pipelines.conditioning import vector
from pipelines.engine.engine import Engine
from pipelines.engine.events import Event, Failed, Finished, Preview, Progress, describe
from pipelines.engine.sample import Sample, Saved
from pipelines.known import Known
from pipelines.masks import latent_mask
from pipelines.planning import Stages, negative_of, on_host, plan_for, preview, scale_for, table_for
from workers.beside import Beside
from workers.inputs import control_of
from workers.messages import (
    Advanced,
    Broken,
    Command,
    Crashed,
    Draw,
    Drawn,
    Drop,
    Exported,
    Forget,
    Hold,
    Inputs,
    Measured,
    Pixels,
    Previewed,
    Report,
    Save,
    Spent,
    Warned,
)
from workers.metrics import WorkerMetrics
from workers.passes import Second, enlarged, gone_on, larger, of_a_pass, of_the_whole, rows_of
from workers.prompts import Prompts
from workers.regions import returned
from workers.sample_ids import sample_id, split_id
from workers.watch import Piece

Array = Any

STOP_S = 0.1  # for the thread to end: it is a daemon, nobody needs what it is at, and it may hang
COSTS_TOLD_S = 1.0  # of ticks of one size, before their mean is told: a first tick alone may be many times slower than the rest


class DrawingThread:
    """Owns the engines, one of each model. `put` is called from any thread; `report` is called from this one."""

    def __init__(self, report: Callable[[Report], None], metrics: WorkerMetrics | None = None) -> None:
        self._report = report
        self._models: dict[str, tuple[Stages, Engine]] = {}
        self._metrics = metrics or WorkerMetrics()
        self._commands: queue.SimpleQueue[Command | None] = queue.SimpleQueue()
        self._waiting: deque[tuple[Job, int, Saved | None]] = deque()  # images without a slot
        self._finished: deque[tuple[Job, int, Array]] = deque()  # latents without a picture
        self._beside = Beside()  # the first of them, once it is being decoded
        self._jobs: dict[str, Job] = {}
        self._images: dict[str, set[int]] = {}  # job id -> indices not yet drawn
        self._prompts = Prompts()
        self._encodings = 0  # of pictures
        self._began: dict[str, float] = {}  # sample id -> when it got its slot
        self._inputs: dict[str, Inputs] = {}  # of jobs that begin with a picture
        self._known: dict[str, Known] = {}  # the same, encoded
        self._controls: dict[str, Pixels] = {}  # what ControlNets are shown, by job
        self._second: dict[str, Second] = {}  # sample id -> its second pass, once it is at it
        self._seconds: dict[str, float] = {}  # job id -> its share of the ticks
        self._costs: dict[tuple[str, int, int], tuple[float, int]] = {}  # model and size -> seconds, evaluations
        self.piece: Piece | None = None  # that it is at; read by the watch
        self._thread = threading.Thread(target=self._run, name="drawing", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def put(self, command: Command) -> None:
        self._commands.put(command)

    def stop(self) -> None:
        """End after the present tick, which is not waited for; what is in flight is forgotten."""
        self._commands.put(None)
        self._thread.join(STOP_S)

    @contextmanager
    def _at(self, what: str, *jobs: str) -> Iterator[None]:
        began = time.monotonic()
        self.piece = Piece(what, jobs, began)
        try:
            yield
        finally:
            self.piece = None
            self._metrics.spent(what, time.monotonic() - began)

    def _run(self) -> None:
        try:
            while self._obey():
                self._admit()
                for _, engine in self._models.values():
                    if engine.busy:
                        self._tick(engine)
                self._decode_one()
        except BaseException as error:  # a thread that dies silently would leave its jobs to expire one by one
            self._report(Crashed(error))

    @property
    def _busy(self) -> bool:
        return any(engine.busy for _, engine in self._models.values())

    def _tick(self, engine: Engine) -> None:
        """Models take turns, a tick each."""
        began = time.monotonic()
        with self._at("tick", *self._jobs):
            events = engine.step(began)
        seconds = time.monotonic() - began
        engine.took(seconds)
        self._measure(events, seconds)
        for event in events:
            self._handle(event)

    def _of(self, job: Job) -> tuple[Stages, Engine]:
        return self._models[job.params.model]

    def _obey(self) -> bool:
        """Take every command that is there, or wait for one if there is nothing to do; False ends the thread."""
        idle = not (self._waiting or self._finished or self._busy)
        while idle or not self._commands.empty():
            began = time.monotonic()
            command = self._commands.get()
            if idle:
                self._metrics.spent("idle", time.monotonic() - began)
            if command is None:
                return False
            match command:
                case Draw():
                    self._take(command)
                case Save():
                    with self._at("export", command.job.id):
                        self._export(command.job)
                case Drop() if self._jobs.get(command.job.id) is command.job:
                    self._drop(command.job)
                case Hold():
                    self._models[command.model] = command.stages, command.engine
                case Forget():
                    self._let_go(command.model)
                    command.gone.set()
                case Drop():
                    pass  # it ended meanwhile, or runs here again as another attempt
            idle = False
        return True

    def _let_go(self, model: str) -> None:
        """What was kept of it goes too."""
        self._models.pop(model, None)
        self._beside.forget()
        self._prompts.forget(model)

    def _take(self, draw: Draw) -> None:
        """Every open image of the job waits for a slot; one that had its last row already waits for its decoding."""
        job = draw.job
        if earlier := self._jobs.get(job.id):
            self._drop(earlier)
        self._jobs[job.id] = job
        self._seconds[job.id] = 0.0
        if draw.inputs:
            self._inputs[job.id] = draw.inputs
        if draw.control is not None:
            self._controls[job.id] = draw.control
        self._images[job.id] = set(range(job.params.num_images)) - draw.drawn
        for index in sorted(self._images[job.id]):
            saved = self._resumed(job, index, draw.saved.get(index))
            if saved and saved.row == saved.rows:
                self._finished.append((job, index, saved.registers[0]))
            else:
                self._waiting.append((job, index, saved))

    def _resumed(self, job: Job, index: int, saved: Saved | None) -> Saved | None:
        """The state within its pass."""
        if saved is None or not job.params.upscale:
            return saved
        stages, _ = self._of(job)
        before, saved = of_a_pass(saved, rows_of(stages, job.params))
        if before:
            self._second[sample_id(job.id, index)] = gone_on(stages, job.params, before)
        return saved

    def _export(self, job: Job) -> None:
        """Tell where every image of the job stands. Latents that wait for decoding are a state too: after the last row."""
        if self._jobs.get(job.id) is not job:
            return  # it ended, or was dropped, since the command was given
        images = {i: saved for waiting, i, saved in self._waiting if waiting is job and saved}
        stages, engine = self._of(job)
        for index in self._images[job.id]:
            if saved := engine.export(sample_id(job.id, index)):
                images[index] = saved
        rows = rows_of(stages, job.params)
        for finished, index, latents in self._finished:
            if finished is job:
                length = rows[sample_id(job.id, index) in self._second]
                images[index] = Saved(length, length, (0,), on_host(latents)[None])
        whole = {i: of_the_whole(saved, self._before(job, i), rows) for i, saved in images.items()}
        for index in self._images[job.id] - whole.keys():
            if (second := self._second.get(sample_id(job.id, index))) and second.latents is not None:
                whole[index] = Saved(second.before, sum(rows), (0,), second.latents[None])
        self._report(Exported(job, whole))

    def _before(self, job: Job, index: int) -> int:
        second = self._second.get(sample_id(job.id, index))
        return second.before if second else 0

    def _drop(self, dropped: Job) -> None:
        for index in self._images.get(dropped.id, ()):
            self._of(dropped)[1].cancel(sample_id(dropped.id, index))
            self._began.pop(sample_id(dropped.id, index), None)
            self._second.pop(sample_id(dropped.id, index), None)
        self._forget(dropped)
        self._waiting = deque(w for w in self._waiting if w[0].id != dropped.id)
        self._finished = deque(f for f in self._finished if f[0].id != dropped.id)

    def _forget(self, job: Job) -> None:
        for records in (self._jobs, self._seconds, self._images, self._inputs, self._known, self._controls):
            records.pop(job.id, None)

    def _admit(self) -> None:
        """Give free slots to waiting images, until one of them has cost a text encoding."""
        while (place := self._next()) is not None:
            job, index, saved = self._waiting[place]
            del self._waiting[place]
            encodings, began = self._encodings + self._prompts.encodings, time.monotonic()
            try:
                with self._at("encode", job.id):
                    self._of(job)[1].add(self._sample(job, index), saved)
                self._began.setdefault(sample_id(job.id, index), time.monotonic())
                self._trace(job, "encode", index, began)
            except ValueError as error:
                self._break(job, "unsupported", str(error), error)
            except Exception as error:
                self._break(job, *describe(error, "Its prompt or its picture could not be encoded."), error)
            if self._encodings + self._prompts.encodings != encodings:
                return

    def _next(self) -> int | None:
        """The first waiting image whose model has a free slot."""
        return next((place for place, (job, *_) in enumerate(self._waiting) if self._of(job)[1].free_slots), None)

    def _sample(self, job: Job, index: int) -> Sample:
        stages, second = self._of(job)[0], self._second.get(sample_id(job.id, index))
        params = job.params.passes[1 if second else 0]
        if index == 0 and not second and params.prompt_syntax == "plain":
            self._warn_of_length(job)
        before = second.before if second else 0
        table = table_for(stages, params)
        guided = plan_for(stages, params, table).ever_guided
        text = self._prompts.encode(stages, params.prompt, params.reading)
        uncond = self._prompts.encode(stages, negative_of(stages, params), params.reading) if guided else None
        return Sample(
            id=sample_id(job.id, index),
            worn=params.worn,
            cache_interval=params.cache_interval,
            control=control_of(params, self._controls.get(job.id), table),
            table=table,
            shape=stages.latent_shape(params.width, params.height),
            seed=params.image_seed(index),
            cond=text.states,
            uncond=uncond.states if uncond else None,
            told=vector(stages.told, params, text),
            uncond_told=vector(stages.told, params, uncond) if uncond else None,
            guidance=scale_for(stages, params),
            guidance_rescale=stages.card.defaults.guidance_rescale,
            guidance_options=params.guidance_options,
            preview=params.preview,
            previews=frozenset(at - before for at in job.preview_steps if at > before) if index == 0 else frozenset(),
            known=second.known if second else self._known_of(job),
            due=time.monotonic() + job.deadline_at - time.time() if job.deadline_at else None,
        )

    def _known_of(self, job: Job) -> Known | None:
        """What the VAE's encoder says of the job's picture, once for all of its images."""
        given, params, stages = self._inputs.get(job.id), job.params, self._of(job)[0]
        if given is None or job.id in self._known:
            return self._known.get(job.id)
        self._encodings += 1
        mask = None
        if given.mask is not None:
            mask = latent_mask(given.mask, stages.latent_shape(params.width, params.height)[1:])
            if not mask.any():
                self._report(Warned(job, JobWarning("mask_empty", "No part of the mask is large enough to be drawn.")))
        begins = params.masked and params.kept[0] == 0
        picture, hidden = stages.encode_picture(given.picture), None
        if stages.unet_channels > len(picture.mean):  # an inpainting model looks at what is known
            hidden = stages.encode_picture(given.picture, given.mask)
        self._known[job.id] = Known(picture, mask, begins, hidden)
        return self._known[job.id]

    def _warn_of_length(self, job: Job) -> None:
        stages, params = self._of(job)[0], job.params
        read = stages.card.max_prompt_tokens
        tokens = max(stages.tokens(text, params.reading) for text in (params.prompt, params.negative_prompt))
        if tokens > read:
            message = f"The model reads {read} tokens; the rest of the {tokens} was left out."
            self._report(Warned(job, JobWarning("prompt_truncated", message)))

    def _measure(self, events: list[Event], seconds: float) -> None:
        """Keep the mean cost of an evaluation by size, and tell it after every second of them. A tick serves one size."""
        moved = [e for e in events if isinstance(e, Progress)]
        if not moved:
            return
        for event in moved:
            self._seconds[split_id(event.sample_id)[0]] += seconds / len(moved)
        params = self._jobs[split_id(moved[0].sample_id)[0]].params.passes[moved[0].sample_id in self._second]
        size = params.model, params.width, params.height
        self._metrics.ticked(params.width, params.height, len(moved), seconds)
        total, count = self._costs.pop(size, (0.0, 0))
        total, count = total + seconds, count + len(moved)
        if total < COSTS_TOLD_S:
            self._costs[size] = total, count
        else:
            self._report(Measured(*size, total / count))

    def _handle(self, event: Event) -> None:
        job_id, index = split_id(event.sample_id)
        job = self._jobs.get(job_id)
        if job is None:
            return  # dropped earlier in this tick, because another image of its job broke
        before = self._before(job, index)
        match event:
            case Progress():
                self._report(Advanced(job, index, before + event.done))
            case Preview():
                with self._at("preview", job.id):
                    self._report(Previewed(job, index, preview(self._of(job)[0], on_host(event.denoised)), before + event.at))
            case Finished():
                self._trace(job, "steps", index, self._began.get(event.sample_id))
                self._finished.append((job, index, event.latents))
            case Failed():
                self._break(job, event.code, event.message, event.cause)

    def _decode_one(self) -> None:
        if not self._finished:
            return
        job, index, latents = first = self._finished[0]
        stages, second = self._of(job)[0], sample_id(job.id, index) in self._second
        try:
            with self._at("decode", job.id):
                if len(job.params.passes) > 1 and not second:
                    self._enlarge(*self._finished.popleft())
                    return
                if not self._beside.ready(first, stages, latents, wait=not self._busy):
                    return
                found, warning = self._beside.take(stages, latents)
                self._finished.popleft()
                if job.params.upscale and not second:
                    found = larger(self._of(job)[0], job.params, found, index)
                pixels = self._finish(job, found)
        except Exception as error:
            self._break(job, *describe(error, "The picture could not be decoded."), error)
            return
        if warning:
            self._report(Warned(job, warning))
        self._trace(job, "decode", index, self._beside.began)
        now = time.monotonic()
        self._second.pop(sample_id(job.id, index), None)
        self._metrics.drew(pixels.shape[1], pixels.shape[0], now - self._began.pop(sample_id(job.id, index), now))
        self._images[job.id].discard(index)
        seconds = self._seconds[job.id]
        if not self._images[job.id]:
            self._forget(job)
        self._report(Drawn(job, index, pixels, seconds))

    def _enlarge(self, job: Job, index: int, latents: Array) -> None:
        stages, _ = self._of(job)
        before, _ = rows_of(stages, job.params)
        self._second[sample_id(job.id, index)] = enlarged(stages, job.params, latents, index, before)
        self._waiting.appendleft((job, index, None))

    def _trace(self, job: Job, what: str, index: int, began: float | None) -> None:
        if job.traceparent and began is not None:
            self._report(Spent(job, what, index, began, time.monotonic()))

    def _finish(self, job: Job, pixels: Pixels) -> Pixels:
        """With the picture's own pixels around the mask."""
        given = self._inputs.get(job.id)
        return returned(pixels, given.around, job.params.mask_feather) if given and given.around else pixels

    def _break(self, job: Job, code: str, message: str, cause: BaseException | None) -> None:
        self._drop(job)
        self._report(Broken(job, code, message, cause))
