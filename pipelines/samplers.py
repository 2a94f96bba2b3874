"""The registry of samplers, and `compile_table`: sampler + schedule + steps on a model's ladder -> StepTable."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from pipelines import rows
from pipelines.card import OptionInfo, SamplerInfo
from pipelines.ladder import Float, Ladder
from pipelines.level import Convention, Level
from pipelines.options import Option, Options, checked_options
from pipelines.rows import Row, Terms
from pipelines.schedules import SCHEDULES, levels
from pipelines.step_table import BASIS, MEMORIES, STATE, StepTable

_EULER = Convention(scaled_init=True)
_DDIM = Convention(spacing="leading", whole=True, exact=True, full_range=True, strided=True)
_DDPM = Convention(spacing="leading", whole=True, exact=True, full_range=True)
_DPM = Convention(whole=True, drops_last=True, full_range=True, karras_time="nearest", floors_squared_cosine=True, exponential_time="floor")
_UNIPC = Convention(whole=True, drops_last=True, full_range=True, karras_time="nearest", exponential_time="floor")
_DPM2 = Convention(scaled_init=True, karras_time="nearest")
_LCM = Convention(exact=True, full_range=True, auto="lcm")


@dataclass(frozen=True)
class Sampler:
    """`rows` takes the levels and every option by name."""

    name: str
    rows: Callable[..., Sequence[Row]]
    convention: Convention
    aliases: tuple[str, ...] = ()
    options: Mapping[str, OptionInfo] = field(default_factory=dict)
    evals_per_step: int = 1
    evals_offset: int = 0
    most: int | None = None  # steps, where fewer than the ladder gives
    stochastic: bool = False


def _unit(default: float, maximum: float = 1.0) -> OptionInfo:
    return OptionInfo(default=default, minimum=0.0, maximum=maximum)


_SDE = {"eta": _unit(1.0), "s_noise": _unit(1.0, 2.0)}
_UNIPC_OPTIONS = {
    "order": OptionInfo(default=2, minimum=1, maximum=3, integer=True),
    "solver_type": OptionInfo(default="bh2", choices=("bh1", "bh2")),
}

SAMPLERS: Mapping[str, Sampler] = {
    "ddim": Sampler("DDIM", rows.ddim, _DDIM, ("k_ddim", "DDIMScheduler"), {"eta": _unit(0.0)}),
    "ddpm": Sampler("DDPM", rows.ddpm, _DDPM, ("k_ddpm", "DDPMScheduler"), stochastic=True),
    "euler": Sampler("Euler", rows.euler, _EULER, ("k_euler", "EulerDiscreteScheduler")),
    "euler_a": Sampler(
        "Euler a",
        rows.euler_a,
        _EULER,
        ("euler_ancestral", "k_euler_a", "k_euler_ancestral", "EulerAncestralDiscreteScheduler"),
        _SDE,
        stochastic=True,
    ),
    "heun": Sampler("Heun", rows.heun, _EULER, ("k_heun", "HeunDiscreteScheduler"), evals_per_step=2, evals_offset=-1),
    "dpm2": Sampler("DPM2", rows.dpm2, _DPM2, ("dpm_2", "k_dpm_2", "KDPM2DiscreteScheduler"), evals_per_step=2, evals_offset=-1),
    "dpmpp_2m": Sampler("DPM++ 2M", rows.dpmpp_2m, _DPM, ("k_dpmpp_2m", "DPMSolverMultistepScheduler")),
    "dpmpp_2m_sde": Sampler("DPM++ 2M SDE", rows.dpmpp_2m_sde, _DPM, ("dpmpp_2m_sde_gpu", "k_dpmpp_2m_sde"), _SDE, stochastic=True),
    "unipc": Sampler("UniPC", rows.unipc, _UNIPC, ("uni_pc", "uni_pc_bh2", "k_unipc", "UniPCMultistepScheduler"), _UNIPC_OPTIONS),
    "lcm": Sampler("LCM", rows.lcm, _LCM, ("k_lcm", "LCMScheduler"), most=50, stochastic=True),
}


def catalog(ladder: Ladder) -> tuple[SamplerInfo, ...]:
    """Every sampler that the model can run."""
    return tuple(
        SamplerInfo(
            id=id,
            name=sampler.name,
            aliases=sampler.aliases,
            max_steps=sampler.most or len(ladder) - 2,
            evals_per_step=sampler.evals_per_step,
            evals_offset=sampler.evals_offset,
            options=sampler.options,
            stochastic=sampler.stochastic,
        )
        for id, sampler in SAMPLERS.items()
    )


def compile_table(
    ladder: Ladder,
    sampler: str,
    schedule: str,
    steps: int,
    sampler_options: Options | None = None,
    schedule_options: Options | None = None,
) -> StepTable:
    """The table of one sampler on one schedule; equal requests share one table, so it is read-only.

    Raises ValueError with one sentence for unknown names and options and for combinations that have no table.
    """
    if sampler not in SAMPLERS:
        raise ValueError(f"unknown sampler {sampler!r}: it is one of {', '.join(SAMPLERS)}")
    if schedule not in SCHEDULES:
        raise ValueError(f"unknown schedule {schedule!r}: it is one of {', '.join(SCHEDULES)}")
    of_sampler = checked_options("sampler", sampler, sampler_options or {}, SAMPLERS[sampler].options)
    of_schedule = checked_options("schedule", schedule, schedule_options or {}, SCHEDULES[schedule].options)
    return _compiled(ladder, sampler, schedule, steps, tuple(of_sampler.items()), tuple(of_schedule.items()))


Frozen = tuple[tuple[str, Option], ...]


@lru_cache(maxsize=512)
def _compiled(ladder: Ladder, sampler: str, schedule: str, steps: int, of_sampler: Frozen, of_schedule: Frozen) -> StepTable:
    entry = SAMPLERS[sampler]
    chosen = levels(ladder, entry.convention, schedule, steps, dict(of_schedule))
    return _assembled(ladder.prediction_type, chosen.init, entry.rows(chosen, **dict(of_sampler)))


def _assembled(prediction_type: str, init: float, made: Sequence[Row]) -> StepTable:
    skip, out = zip(*(_denoising(prediction_type, row.at) for row in made), strict=True)
    at = np.array([row.at for row in made], dtype=np.float64)  # [R, 3]
    columns = (at[:, 0], at[:, 1], at[:, 2], np.ones(len(made)), np.array(skip), np.array(out), _update(made))
    table = StepTable(init, *columns, np.array([row.noisy for row in made]), np.array([row.step for row in made], dtype=np.int64))
    for column in (*columns, table.noisy, table.step):
        column.flags.writeable = False
    return table


def _denoising(prediction_type: str, at: Level) -> tuple[float, float]:
    """c_skip and c_out: denoised = c_skip * x + c_out * output (v: arXiv 2202.00512, appendix D)."""
    if prediction_type == "epsilon":
        return 1.0 / at.alpha, -at.sigma / at.alpha
    return (at.alpha, -at.sigma) if prediction_type == "v_prediction" else (0.0, 1.0)


def _update(made: Sequence[Row]) -> Float:
    """[R, 8, 11]. Memories that no row reads are not kept."""
    read = {name for row in made for terms in (row.x, row.anchor, row.push) for name in (terms or ())}
    deepest = max((int(name[1:]) for name in read if name.startswith("m")), default=0)
    update = np.zeros((len(made), len(STATE), len(BASIS)))
    for matrix, row in zip(update, made, strict=True):
        keeps: list[Terms] = [{f"m{k}": 1.0} for k in range(1, MEMORIES + 1)]
        memories = [row.push, *keeps] if row.push is not None else keeps
        for target, terms in zip(STATE, (row.x, row.anchor or {"anchor": 1.0}, *memories[:deepest]), strict=False):
            for name, value in terms.items():
                matrix[STATE.index(target), BASIS.index(name)] += value
    return update
