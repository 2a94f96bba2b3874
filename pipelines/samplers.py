"""`catalog` of the samplers, and `compile_table`: sampler + schedule + steps on a model's ladder -> StepTable."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import cast

import numpy as np

from pipelines import names
from pipelines.card import SamplerInfo
from pipelines.churn import churned, with_churn
from pipelines.ladder import Float, Ladder
from pipelines.options import Option, Options, checked_options
from pipelines.params import kept_steps
from pipelines.prediction import preconditioning
from pipelines.rows import Row, Terms
from pipelines.sampler_list import samplers_of
from pipelines.schedule_list import SCHEDULES
from pipelines.schedules import automatic, levels
from pipelines.step_table import BASIS, MEMORIES, STATE, StepTable


def catalog(ladder: Ladder) -> tuple[SamplerInfo, ...]:
    """Every sampler that the model can run."""
    return tuple(
        SamplerInfo(
            id=id,
            name=sampler.name,
            aliases=names.aliases("sampler", id, sampler.name, sampler.aliases),
            max_steps=sampler.most or len(ladder) - 2,
            evals_per_step=sampler.evals_per_step,
            evals_offset=sampler.evals_offset,
            evals_first=sampler.evals_first,
            evals_open=sampler.evals_open,
            options=sampler.options,
            stochastic=sampler.stochastic,
            auto=automatic(ladder, sampler.convention),
            guidance=sampler.guidance,
        )
        for id, sampler in samplers_of(ladder.space).items()
    )


def compile_table(
    ladder: Ladder,
    sampler: str,
    schedule: str,
    steps: int,
    sampler_options: Options | None = None,
    schedule_options: Options | None = None,
    *,
    strength: float = 1.0,
    start: float = 0.0,
    end: float = 1.0,
) -> StepTable:
    """The table of one sampler on one schedule; equal requests share one table, so it is read-only.

    `strength`, `start` and `end` take a part of the schedule's levels (`params.kept_steps`); the rows are those of the levels
    that are left, so history begins anew. A picture x0 enters at x = alpha[0] * x0 + sigma[0] * noise.
    Raises ValueError with one sentence for unknown names and options and for combinations that have no table.
    """
    known = samplers_of(ladder.space)
    if sampler not in known:
        raise ValueError(f"unknown sampler {sampler!r}: it is one of {', '.join(known)}")
    if schedule not in SCHEDULES:
        raise ValueError(f"unknown schedule {schedule!r}: it is one of {', '.join(SCHEDULES)}")
    of_sampler = checked_options("sampler", sampler, sampler_options or {}, known[sampler].options)
    of_schedule = checked_options("schedule", schedule, schedule_options or {}, SCHEDULES[schedule].options)
    kept = kept_steps(steps, strength=strength, start=start, end=end)
    return _compiled(ladder, sampler, schedule, steps, tuple(of_sampler.items()), tuple(of_schedule.items()), kept)


Frozen = tuple[tuple[str, Option], ...]


@lru_cache(maxsize=512)
def _compiled(
    ladder: Ladder, sampler: str, schedule: str, steps: int, of_sampler: Frozen, of_schedule: Frozen, kept: tuple[int, int]
) -> StepTable:
    entry = samplers_of(ladder.space)[sampler]
    chosen = levels(ladder, entry.convention, schedule, steps, dict(of_schedule)).part(*kept)
    own = dict(of_sampler)
    if not entry.churns:
        return assembled(ladder, chosen.init, entry.rows(chosen, **own))
    s_churn, s_tmin, s_tmax, s_noise = (cast(float, own.pop(name)) for name in ("s_churn", "s_tmin", "s_tmax", "s_noise"))
    lifted = churned(chosen, s_churn, s_tmin, s_tmax)
    return assembled(ladder, lifted.init, with_churn(entry.rows(lifted, **own), lifted, s_noise))


def assembled(ladder: Ladder, init: float, made: Sequence[Row]) -> StepTable:
    """Rows in the names of BASIS -> the arrays of a table, read-only."""
    at = np.array([row.at for row in made], dtype=np.float64)  # [R, 3]
    c_in, c_skip, c_out = np.array([preconditioning(ladder, row.at) for row in made]).T
    columns = (at[:, 0], at[:, 1], ladder.told(at[:, 2], at[:, 1]), c_in, c_skip, c_out, _update(made))
    table = StepTable(init, *columns, np.array([row.noisy for row in made]), np.array([row.step for row in made], dtype=np.int64))
    for column in (*columns, table.noisy, table.step):
        column.flags.writeable = False
    return table


def _update(made: Sequence[Row]) -> Float:
    """[R, 8, 11]. Memories that no row reads are not kept."""
    every = [(row.x, row.anchor, row.push, *(row.memories or {}).values()) for row in made]
    read = {name for row in every for terms in row for name in (terms or ())}
    deepest = max((int(name[1:]) for name in read if name.startswith("m")), default=0)
    update = np.zeros((len(made), len(STATE), len(BASIS)))
    for matrix, row in zip(update, made, strict=True):
        keeps: list[Terms] = [{f"m{k}": 1.0} for k in range(1, MEMORIES + 1)]
        memories = [row.push, *keeps] if row.push is not None else [(row.memories or {}).get(name, keep) for keep in keeps for name in keep]
        for target, terms in zip(STATE, (row.x, row.anchor or {"anchor": 1.0}, *memories[:deepest]), strict=False):
            for name, value in terms.items():
                matrix[STATE.index(target), BASIS.index(name)] += value
    return update
