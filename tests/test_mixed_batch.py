"""All samplers on all schedules in one batch: each picture equals its solo run, bit for bit. Newcomers join by themselves."""

from __future__ import annotations

import numpy as np
import pytest

from pipelines import samplers, schedules
from pipelines.engine import update
from pipelines.engine.engine import Engine
from pipelines.engine.events import Finished
from pipelines.engine.sample import Sample
from pipelines.ladder import Ladder
from pipelines.sampler_list import SAMPLERS
from pipelines.samplers import compile_table
from pipelines.step_table import BASIS, STATE
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
    """`moves` of a table against the meaning of a table: run it with every entry, and with those of `moves` alone."""
    table = compile_table(LADDER, sampler, "karras", 6)
    rng = np.random.default_rng(5)
    whole = partial = np.vstack([rng.standard_normal((1, 8)), np.zeros((len(STATE) - 1, 8))])  # as a slot starts
    for row, move in enumerate(table.moves()):
        fresh = {"denoised": rng.standard_normal(8), "denoised_uncond": rng.standard_normal(8), "noise": rng.standard_normal(8)}
        whole = table.update[row] @ np.stack([fresh[b] if b in fresh else whole[STATE.index(b)] for b in BASIS])
        basis = {i: (fresh[b] if b in fresh else partial[STATE.index(b)])[None] for i, b in enumerate(BASIS)}
        made = update.combine(move, table.update[row][None], basis)
        partial = np.stack([made[i][0] if i in made else partial[i] for i in range(len(STATE))])
        live = list(table.live(row + 1))
        np.testing.assert_allclose(partial[live], whole[live], rtol=1e-12, atol=1e-12)
        assert 0 in made and set(made) <= set(live)
