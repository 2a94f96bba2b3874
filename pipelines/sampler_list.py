"""The registry of samplers: for each id its rows, convention, names, options and evaluations."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from pipelines import rows
from pipelines.card import OptionInfo
from pipelines.level import Convention
from pipelines.rows import Row

_EULER = Convention(scaled_init=True)
_DDIM = Convention(spacing="leading", whole=True, exact=True, full_range=True, strided=True)
_DDPM = Convention(spacing="leading", whole=True, exact=True, full_range=True)
_DPM = Convention(whole=True, drops_last=True, full_range=True, karras_time="nearest", floors_squared_cosine=True, exponential_time="floor")
_UNIPC = Convention(whole=True, drops_last=True, full_range=True, karras_time="nearest", exponential_time="floor")
_DPM2 = Convention(scaled_init=True, karras_time="nearest")
_LCM = Convention(exact=True, full_range=True, auto="lcm")


@dataclass(frozen=True)
class Sampler:
    """`rows` takes the levels and every option by name; evaluations as in SamplerInfo."""

    name: str
    rows: Callable[..., Sequence[Row]]
    convention: Convention
    aliases: tuple[str, ...] = ()
    options: Mapping[str, OptionInfo] = field(default_factory=dict)
    evals_per_step: int = 1
    evals_offset: int = 0
    evals_first: tuple[int, ...] = ()
    evals_open: int = 0
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
    "heun": Sampler("Heun", rows.heun, _EULER, ("k_heun", "HeunDiscreteScheduler"), evals_per_step=2, evals_offset=-1, evals_open=1),
    "dpm2": Sampler(
        "DPM2", rows.dpm2, _DPM2, ("dpm_2", "k_dpm_2", "KDPM2DiscreteScheduler"), evals_per_step=2, evals_offset=-1, evals_open=1
    ),
    "dpmpp_2m": Sampler("DPM++ 2M", rows.dpmpp_2m, _DPM, ("k_dpmpp_2m", "DPMSolverMultistepScheduler")),
    "dpmpp_2m_sde": Sampler("DPM++ 2M SDE", rows.dpmpp_2m_sde, _DPM, ("dpmpp_2m_sde_gpu", "k_dpmpp_2m_sde"), _SDE, stochastic=True),
    "unipc": Sampler("UniPC", rows.unipc, _UNIPC, ("uni_pc", "uni_pc_bh2", "k_unipc", "UniPCMultistepScheduler"), _UNIPC_OPTIONS),
    "lcm": Sampler("LCM", rows.lcm, _LCM, ("k_lcm", "LCMScheduler"), most=50, stochastic=True),
}
