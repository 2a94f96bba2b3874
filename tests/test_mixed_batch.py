"""All samplers on all schedules in one batch: each picture equals its solo run, bit for bit. Newcomers join by themselves."""

from __future__ import annotations

import array_api_compat.numpy
import numpy as np
import pytest

from pipelines import samplers, schedules
from pipelines.engine import update
from pipelines.engine.engine import Engine
from pipelines.engine.events import Finished
from pipelines.engine.sample import Sample
from pipelines.engine.slots import PLANES, SlotPool
from pipelines.ladder import Ladder
from pipelines.sampler_list import SAMPLERS
from pipelines.samplers import compile_table
from pipelines.step_table import STATE
from tests.fakes import RowwiseDenoiser, schedule_options, sd_ladder_config

LADDER = Ladder.from_config(sd_ladder_config())
SHAPE = (2, 4, 4)
STEPS = 3
PAIRS = [(sampler.id, schedule.id) for sampler in samplers.catalog(LADDER) for schedule in schedules.catalog(LADDER)]


def sample(index: int) -> Sample:
    """One pair; length, guidance and seed differ from neighbour to neighbour."""
    sampler, schedule = PAIRS[index]
    steps = STEPS + index % 3
    return Sample(
        id=str(index),
        table=compile_table(LADDER, sampler, schedule, steps, {}, schedule_options(schedule, steps)),
        shape=SHAPE,
        seed=index,
        cond=np.full((1, 2), 0.01 * (index % 97), np.float32),
        uncond=np.full((1, 2), -0.3, np.float32),
        guidance=(1.0, 4.0, 7.5)[index % 3],
        guidance_rescale=0.7 * (index % 2),
    )


def run(engine: Engine, *waiting: Sample) -> dict[str, np.ndarray]:
    """Let one third of the samples in at each of the first ticks, and tick until nothing is in flight."""
    latents: dict[str, np.ndarray] = {}
    late = [list(waiting[k::3]) for k in range(3)]
    while late or engine.busy:
        for newcomer in late.pop(0) if late else ():
            engine.add(newcomer)
        latents |= {e.sample_id: e.latents for e in engine.step(0.0) if isinstance(e, Finished)}
    return latents


def test_every_pair_in_one_batch_equals_its_solo_run() -> None:
    everyone = [sample(i) for i in range(len(PAIRS))]
    together = run(Engine(RowwiseDenoiser(), slots=len(PAIRS), max_rows=2 * len(PAIRS)), *everyone)
    assert len(together) == len(PAIRS), "a pair failed"
    broken = [
        PAIRS[i] for i, one in enumerate(everyone) if not np.array_equal(together[str(i)], run(Engine(RowwiseDenoiser()), one)[str(i)])
    ]
    assert not broken


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_update_reads_and_writes_what_the_table_needs_and_no_more(sampler: str) -> None:
    """The engine's sums against the slow twin, which takes every entry of the table: the same bits in what is read again."""
    table = compile_table(LADDER, sampler, "karras", 6)
    rng = np.random.default_rng(5)
    pool = SlotPool(array_api_compat.numpy, "cpu", (1, 2, 4))
    pool.take(np.zeros((1, 2, 4), np.float32))
    slot = pool.take(first := rng.standard_normal((1, 2, 4), np.float32))
    whole = dict.fromkeys(STATE, np.zeros((1, 8), np.float32)) | {"x": first.reshape(1, 8)}
    for row, sums in enumerate(update.sums_of(table)):
        fresh = {name: rng.standard_normal((1, 8), np.float32) for name in ("denoised", "denoised_uncond", "noise")}
        for name, values in fresh.items():
            pool.write(PLANES.index(name), [slot], values)
        for places, lines in list(update.combine(array_api_compat.numpy, pool, [slot], [sums])):
            pool.scatter(places, lines)
        whole = table.advance(row, whole | fresh)
        live = table.live(row + 1)
        for register in live:
            np.testing.assert_array_equal(pool.read(register, [slot]), whole[STATE[register]])
        assert {0} <= set(sums.planes[0].tolist()) <= set(live)


def test_the_operations_of_an_update_do_not_grow_with_the_samplers_in_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch of every sampler takes as many operations as that one of them whose sums are the longest."""
    taken: list[int] = []
    gather = SlotPool.gather
    monkeypatch.setattr(SlotPool, "gather", lambda pool, places: taken.append(len(places)) or gather(pool, places))

    def operations(*some: str) -> list[int]:
        engine, counts = Engine(RowwiseDenoiser(), slots=len(SAMPLERS), max_rows=len(SAMPLERS)), []
        for i, sampler in enumerate(some):
            table = compile_table(LADDER, sampler, "karras", 9)
            engine.add(Sample(id=str(i), table=table, shape=SHAPE, seed=i, cond=np.zeros((1, 2), np.float32)))
        for _ in range(8):
            taken.clear()
            engine.step(0.0)
            counts.append(len(taken))
        return counts

    alone = [operations(sampler) for sampler in SAMPLERS]
    assert operations(*SAMPLERS) == [max(counts) for counts in zip(*alone, strict=True)]
