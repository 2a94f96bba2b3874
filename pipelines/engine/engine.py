"""Engine: continuous batching of samples that share nothing but a latent shape.

Synchronous, one thread, no I/O, time passed in. At every tick the batcher picks due samples of one shape; one U-Net
pass and one fused update move each of them by one row of its own table, so a forward pass serves any mix of samplers,
schedules, lengths, guidance and ages. The slow twin is `pipelines.text_to_image.generate`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from pipelines import guidance, prediction
from pipelines.denoiser import Denoiser, uploading
from pipelines.engine import update
from pipelines.engine.batcher import Batcher
from pipelines.engine.calls import Calls, Memory
from pipelines.engine.events import Event, Failed, Finished, Preview, Progress, describe
from pipelines.engine.knee import Knee
from pipelines.engine.sample import InFlight, Sample, Saved
from pipelines.engine.slots import AVERAGE, DENOISED, NOISE, UNCONDITIONAL, Shape, SlotPool, X
from pipelines.known import begin
from pipelines.noise import NormalStream

Array = Any


@dataclass(frozen=True, slots=True)
class Pass:
    """What a tick was, by which its time is judged."""

    shape: Shape
    samples: int
    rows: int  # of the U-Net
    alike: bool  # whether all rows cost the same


class Engine:
    """Holds up to `slots` samples and moves them.

    `rows` is None where the denoiser's result for a row does not depend on the size of the batch; otherwise every call
    is cut and padded to exactly `rows` rows, so that a picture never depends on its neighbours.
    """

    def __init__(
        self, denoiser: Denoiser, *, slots: int = 16, max_rows: int = 32, rows: int | None = None, preview_interval_s: float = 0.5
    ) -> None:
        self._denoiser, self._xp, self._upload = denoiser, denoiser.xp, uploading(denoiser)
        self._calls = Calls(denoiser, rows)
        self._slots, self._rows, self._knee = slots, rows, Knee(max_rows)
        self._batcher = Batcher(self._knee.limit)
        self._pass: Pass | None = None  # the last one, until it is told how long it took
        self._preview_interval_s = preview_interval_s
        self._flying: dict[str, InFlight] = {}
        self._pools: dict[Shape, SlotPool] = {}
        self._asked: tuple[list[int], Array] = ([], None)
        self._arrivals = 0
        self._tick = 0

    @property
    def free_slots(self) -> int:
        return self._slots - len(self._flying)

    @property
    def busy(self) -> bool:
        return bool(self._flying)

    def add(self, sample: Sample, saved: Saved | None = None) -> None:
        """Let a sample in, at its first row or where `saved` left it; it moves at the next tick.

        Raises ValueError if the engine is full, the sample known, or `saved` no state of it.
        """
        if self.free_slots < 1:
            raise ValueError(f"no free slot for sample {sample.id}: {self._slots} are taken")
        if sample.id in self._flying:
            raise ValueError(f"sample {sample.id} is already in flight")
        if saved and not (saved.fits(sample) and saved.row < saved.rows):
            raise ValueError(f"the checkpoint is no state of sample {sample.id}")
        pool = self._pools.get(sample.shape) or SlotPool(self._xp, self._denoiser.device, sample.shape, self._upload)
        self._pools[sample.shape] = pool
        noise = NormalStream(sample.seed)
        start = begin(sample.known, sample.table, noise, sample.shape)
        row = saved.row if saved else 0
        for _ in range(int(sample.table.noisy[:row].sum())):
            noise.draw(sample.shape)
        slot = pool.restore(saved.live, saved.registers) if saved else pool.take(start.x)
        self._arrivals += 1
        sums = update.sums_of(sample.table)
        memory = Memory(sample.cache_interval) if sample.cache_interval > 1 else None
        flight = InFlight(sample, slot, self._arrivals, noise, sums, start, row=row, served=self._tick, memory=memory)
        self._flying[sample.id] = flight
        if memory:
            flight.kept = self._saved(flight)

    def export(self, sample_id: str) -> Saved | None:
        """A checkpoint of a sample, which goes on; None if it is not here. Who remembers deep layers stands where they were last asked:
        what they said is not part of it.
        """
        flight = self._flying.get(sample_id)
        return None if flight is None else flight.kept or self._saved(flight)

    def _saved(self, flight: InFlight) -> Saved:
        sample, live = flight.sample, flight.sample.live(flight.row)
        pool = self._pools[sample.shape]
        state = [np.asarray(self._to_host(pool.read(register, [flight.slot]))) for register in live]  # of [1, D]
        registers = np.concatenate(state).reshape(len(live), *sample.shape)
        return Saved(flight.row, len(sample.table), live, registers)

    def cancel(self, sample_id: str) -> bool:
        """Forget a sample at once; False if it is not here."""
        flight = self._flying.get(sample_id)
        if flight is None:
            return False
        self._remove(flight)
        return True

    def step(self, now: float) -> list[Event]:
        """One tick: one U-Net pass over one latent shape. `now` is the caller's clock in seconds, in which deadlines are, too."""
        batch = sorted(self._batcher.choose(self._flying.values(), now), key=lambda flight: flight.slot)
        self._tick += 1
        if not batch:
            self._pass = None
            return []
        alike = not any(flight.memory for flight in batch)  # rows that recall are cheaper, and tell nothing of others
        self._pass = Pass(batch[0].sample.shape, len(batch), sum(flight.rows for flight in batch), alike)
        return self._move(batch, now)

    def begin(self, shape: Shape, rows: int, seconds: float) -> None:
        """What a call of so many rows takes, as measured before any sample came."""
        self._knee.begin(shape, rows, seconds)

    def took(self, seconds: float) -> None:
        """How long the last tick took, from which the size of the next ones follows, and whose turn it is. Who does not tell gets largest
        batches, and shapes that take turns.
        """
        if (last := self._pass) is None:
            return
        if last.alike and self._rows is None:
            self._knee.observe(last.shape, last.rows, seconds)
        alone = self._knee.alone(last.shape) or seconds / last.rows
        self._batcher.took(last.shape, last.samples, seconds, alone * last.rows / last.samples)
        self._pass = None

    def _move(self, batch: list[InFlight], now: float) -> list[Event]:
        """Advance the batch; a model call that raises is halved until the one sample that cannot run stands alone."""
        pool, slots = self._pools[batch[0].sample.shape], [f.slot for f in batch]
        try:
            moved, average = self._update(batch, pool, *self._evaluate(batch))
        except Exception as error:
            if len(batch) == 1:
                return [self._fail(batch[0], error)]
            half = len(batch) // 2
            return self._move(batch[:half], now) + self._move(batch[half:], now)
        for places, lines in moved:
            pool.scatter(places, lines)
        if average is not None:
            pool.write(AVERAGE, slots, average)
        self._keep_known(batch, pool)
        finite = self._xp.all(self._xp.isfinite(pool.read(X, slots)), axis=1)  # [S]
        events: list[Event] = []
        for flight, sound in zip(batch, np.asarray(self._to_host(finite)).tolist(), strict=True):
            flight.advance(self._tick)
            if flight.memory and flight.memory.last(flight.row) == flight.row and not flight.done:
                flight.kept = self._saved(flight)
            events += self._report(flight, sound, now)
        return events

    def _keep_known(self, batch: list[InFlight], pool: SlotPool) -> None:
        """Put the known part of masked images back at the level that they have reached, one image after the other."""
        for flight in batch:
            if (blend := flight.start.blend) is None:
                continue
            known, mask = blend.known_at(flight.sample.table, flight.row), blend.mask
            full = np.broadcast_to(mask, flight.sample.shape).reshape(1, -1)  # [1, D]
            kept = ((np.float32(1) - mask) * known).reshape(1, -1)  # [1, D]
            on_device = [self._upload(a) for a in (np.ascontiguousarray(full), kept)]
            pool.write(X, [flight.slot], on_device[0] * pool.read(X, [flight.slot]) + on_device[1])

    def _evaluate(self, batch: list[InFlight]) -> tuple[Array, Array, Array, Array, Array | None]:
        """x [S, D], scalars [S, 10], and raw conditional, unconditional and disturbed outputs [S, D]."""
        xp = self._xp
        shape = batch[0].sample.shape
        x = self._pools[shape].read(X, [f.slot for f in batch])  # [S, D]
        told = np.array([f.scalars() for f in batch])  # [S, 10]
        scalars = self._upload(told)
        guided = [i for i, f in enumerate(batch) if f.guided]
        marked = [i for i, f in enumerate(batch) if f.mark]
        index = self._places([*range(len(batch)), *guided, *marked])  # [R], cond rows first
        seen = x * scalars[:, 0:1] if told[:, 0].all() else prediction.seen(xp, x, scalars[:, 0:1])  # [S, D]
        rows = seen[index]  # [R, D]
        timestep = scalars[index, 1]  # [R]
        asked = [f.ask("cond") for f in batch] + [batch[i].ask("uncond") for i in guided] + [batch[i].ask("disturbed") for i in marked]
        latents = self._beside(xp.reshape(rows, (-1, *shape)), batch, guided, marked)
        out = self._calls(latents, timestep, asked)  # [R, D]
        cond, rest = out[: len(batch)], out[len(batch) :]  # [S, D]
        uncond = self._among(cond, guided, rest[: len(guided)])
        return x, scalars, cond, uncond, self._among(cond, marked, rest[len(guided) :]) if marked else None

    def _places(self, rows: list[int]) -> Array:
        """[R] on the device, kept while the same rows come again, as they mostly do from tick to tick."""
        if rows != self._asked[0]:
            self._asked = rows, self._upload(np.array(rows, np.int64))
        return self._asked[1]

    def _beside(self, latents: Array, batch: list[InFlight], guided: list[int], marked: list[int]) -> Array:
        """Latents [R, C, h, w] with what an inpainting model sees beside them: all rows have it, or none."""
        if all(f.start.beside is None for f in batch):
            return latents
        seen = [beside for i in (*range(len(batch)), *guided, *marked) if (beside := batch[i].start.beside) is not None]  # of [1 + C, h, w]
        assert len(seen) == len(latents), "an inpainting model draws nothing else"
        return self._xp.concat([latents, self._upload(np.stack(seen))], axis=1)

    def _among(self, cond: Array, places: list[int], out: Array) -> Array:
        """Outputs [S, D] that some rows have; the others keep their conditional one."""
        if not places:
            return cond
        if len(places) == len(cond):
            return out
        full = cond + 0
        full[self._upload(np.array(places, np.int64))] = out
        return full

    def _update(
        self, batch: list[InFlight], pool: SlotPool, x: Array, scalars: Array, cond: Array, uncond: Array, disturbed: Array | None
    ) -> tuple[list[tuple[Array, Array]], Array | None]:
        """The fused update state' = rows . basis: places in the pool and what they become, and the next averages [S, D] if there are any.

        No register is written yet, so a batch that fails here may be tried again in halves.
        """
        slots, sums = [f.slot for f in batch], [f.sums[f.row] for f in batch]
        average = pool.read(AVERAGE, slots) + 0 if any(f.remembers for f in batch) else None  # [S, D]
        for cut in update.cuts(pool, len(batch)):
            perturbed, before = (None if a is None else a[cut] for a in (disturbed, average))
            rows = guidance.Rows(cond[cut], uncond[cut], perturbed, x[cut], scalars[cut, 2:3], scalars[cut, 3:4], scalars[cut, 4:], before)
            after = self._guide(pool, batch[cut], rows)
            if average is not None:
                average[cut] = after
        if noisy := [f for f, s in zip(batch, sums, strict=True) if NOISE in s.reads]:
            pool.write(NOISE, [f.slot for f in noisy], self._noise(noisy))
        return list(update.combine(self._xp, pool, slots, sums)), average

    def _guide(self, pool: SlotPool, batch: list[InFlight], rows: guidance.Rows) -> Array | None:
        """Put what the rows' sums read of the model's answers into the pool; the next averages [s, D]."""
        slots = [f.slot for f in batch]
        variants, unguided, pulled = [f.variant for f in batch], not all(f.guided for f in batch), any(f.rescaled for f in batch)
        raw, average = guidance.combine(self._xp, rows, variants, unguided=unguided, pulled=pulled)  # [s, D]
        denoised = rows.c_skip * rows.x + rows.c_out * raw  # [s, D]
        pool.write(DENOISED, slots, denoised)
        if any(UNCONDITIONAL in f.sums[f.row].reads for f in batch):
            plain = rows.c_skip * rows.x + rows.c_out * rows.uncond  # [s, D]
            pool.write(UNCONDITIONAL, slots, self._xp.where(rows.column("scale") == 1, denoised, plain))
        return average

    def _noise(self, batch: list[InFlight]) -> Array:
        """This row's normals of samples whose rows are noisy: [s, D]."""
        drawn = [noise for f in batch if (noise := f.row_noise()) is not None]  # of [C, h, w]
        assert len(drawn) == len(batch), "a row that reads noise is noisy"
        return self._upload(np.stack(drawn).reshape(len(batch), -1))

    def _report(self, flight: InFlight, finite: bool, now: float) -> list[Event]:
        """Events of one sample after its row; a finished or broken sample leaves."""
        sample = flight.sample
        if not finite:
            self._remove(flight)
            message = "The model returned values that are not finite; try another dtype, sampler or lower guidance."
            return [Failed(sample.id, "not_finite", message)]
        events: list[Event] = [Progress(sample.id, flight.row, len(sample.table))]
        if flight.done:
            latents = self._copy(flight, X)
            self._remove(flight)
            return [*events, Finished(sample.id, latents)]
        passed = sample.preview and now - flight.previewed >= self._preview_interval_s
        if passed or flight.row in sample.previews:
            flight.previewed = now
            events.append(Preview(sample.id, self._copy(flight, DENOISED), flight.row))
        return events

    def _copy(self, flight: InFlight, plane: int) -> Array:
        """[C, h, w]"""
        return self._xp.reshape(self._pools[flight.sample.shape].read(plane, [flight.slot]) + 0, flight.sample.shape)

    def _fail(self, flight: InFlight, error: Exception) -> Failed:
        self._remove(flight)
        return Failed(flight.sample.id, *describe(error, "The model could not evaluate this image."), error)

    def _remove(self, flight: InFlight) -> None:
        del self._flying[flight.sample.id]
        pool = self._pools[flight.sample.shape]
        pool.give_back(flight.slot)
        if pool.idle:  # sizes are many; memory is kept for those in use
            del self._pools[flight.sample.shape]

    def _to_host(self, array: Array) -> Array:
        return array.cpu() if hasattr(array, "cpu") else array
