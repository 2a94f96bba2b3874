"""The registry of samplers: for each id its rows, convention, names, options and evaluations."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from pipelines import rows, rows_adams, rows_cfgpp, rows_sde, rows_stages
from pipelines import rows_multistep as multistep
from pipelines import rows_singlestep as singlestep
from pipelines.card import OptionInfo
from pipelines.level import Convention
from pipelines.rows import Row

_EULER = Convention(scaled_init=True)
_FINITE_EULER = Convention(scaled_init=True, finite=True)
_DDIM = Convention(spacing="leading", whole=True, exact=True, full_range=True, strided=True)
_DDPM = Convention(spacing="leading", whole=True, exact=True, full_range=True)
_DPM = Convention(whole=True, drops_last=True, full_range=True, karras_time="nearest", floors_squared_cosine=True, exponential_time="floor")
_UNIPC = Convention(whole=True, drops_last=True, full_range=True, karras_time="nearest", exponential_time="floor")
_DEIS = replace(_UNIPC, ends_low=True)
_PNDM = Convention(spacing="leading", whole=True, full_range=True, strided=True)
_K = Convention(scaled_init=True, full_range=True)  # as user interfaces drive k-diffusion
_DPM2 = Convention(scaled_init=True, karras_time="nearest")
_LCM = Convention(exact=True, full_range=True, auto="lcm")
_TCD = Convention(exact=True, full_range=True, auto="lcm", ends_low=True)
_SA = Convention(whole=True, drops_last=True, full_range=True, karras_time="nearest", exponential_time="floor", ends_low=True)


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
    guidance: float | None = None  # as in SamplerInfo
    churns: bool = False  # its options s_churn, s_tmin, s_tmax and s_noise act on the levels (pipelines.churn)


def _unit(default: float, maximum: float = 1.0) -> OptionInfo:
    return OptionInfo(default=default, minimum=0.0, maximum=maximum)


def _order(default: int, maximum: int) -> OptionInfo:
    return OptionInfo(default=default, minimum=1, maximum=maximum, integer=True)


_SDE = {"eta": _unit(1.0), "s_noise": _unit(1.0, 2.0)}
_CHURN = {
    "s_churn": _unit(0.0, 1000.0),
    "s_tmin": _unit(0.0, 10000.0),
    "s_tmax": _unit(10000.0, 10000.0),
    "s_noise": _unit(1.0, 2.0),
}
_WEIGHTS = OptionInfo(default="exact", choices=("exact", "published"))
_SOLVER = {"solver_type": OptionInfo(default="midpoint", choices=("midpoint", "heun"))}
_UNIPC_OPTIONS = {"order": _order(2, 3), "solver_type": OptionInfo(default="bh2", choices=("bh1", "bh2"))}
_PHI = {"solver_type": OptionInfo(default="phi_2", choices=("phi_1", "phi_2"))}
_GAMMA = {"gamma": OptionInfo(default=2.0, minimum=1.0, maximum=3.0)}
_R = OptionInfo(default=0.5, minimum=0.1, maximum=1.0)
_FOURTH = OptionInfo(default=2, minimum=1, maximum=4, integer=True)


def _adams(predictor: int, corrector: int, second: str) -> Mapping[str, OptionInfo]:
    return {
        "predictor_order": replace(_FOURTH, default=predictor),
        "corrector_order": replace(_FOURTH, default=corrector),
        "tau": _unit(1.0, 2.0),
        "tau_start": _unit(0.2),
        "tau_end": _unit(0.8),
        "second_order": OptionInfo(default=second, choices=("simple", "exact")),
    }


_CFGPP = 0.6  # arXiv 2406.08070 goes from 0 to 1; the scales of other samplers burn its pictures
_two = partial(Sampler, evals_per_step=2, evals_offset=-1, evals_open=1)  # but one where a step ends clean

SAMPLERS: Mapping[str, Sampler] = {
    # one evaluation a step, no history
    "ddim": Sampler("DDIM", rows.ddim, _DDIM, ("k_ddim", "DDIMScheduler"), {"eta": _unit(0.0)}),
    "ddpm": Sampler("DDPM", rows.ddpm, _DDPM, ("k_ddpm", "DDPMScheduler"), stochastic=True),
    "euler": Sampler("Euler", rows.euler, _FINITE_EULER, ("k_euler", "EulerDiscreteScheduler"), _CHURN, churns=True),
    "euler_a": Sampler(
        "Euler a",
        rows.euler_a,
        _EULER,
        ("euler_ancestral", "k_euler_a", "k_euler_ancestral", "EulerAncestralDiscreteScheduler"),
        _SDE,
        stochastic=True,
    ),
    "lcm": Sampler("LCM", rows.lcm, _LCM, ("k_lcm", "LCMScheduler"), most=50, stochastic=True),
    # several evaluations a step
    "heun": _two("Heun", rows.heun, _EULER, ("k_heun", "HeunDiscreteScheduler"), _CHURN, churns=True),
    "dpm2": _two("DPM2", rows.dpm2, _DPM2, ("dpm_2", "k_dpm_2", "KDPM2DiscreteScheduler"), _CHURN, churns=True),
    "dpm_fast": Sampler("DPM fast", singlestep.dpm_fast, _K, ("k_dpm_fast",), {"eta": _unit(0.0), "s_noise": _unit(1.0, 2.0)}),
    "restart": _two("Restart", singlestep.restart, _K, (), {"s_noise": _unit(1.0, 2.0)}, stochastic=True),
    "dpmpp_1s": Sampler("DPM++ 1S", singlestep.dpmpp_1s, _UNIPC),
    "dpmpp_2s": Sampler("DPM++ 2S", singlestep.dpmpp_2s, _UNIPC, ("DPMSolverSinglestepScheduler",), _SOLVER),
    "dpmpp_3s": Sampler("DPM++ 3S", singlestep.dpmpp_3s, _UNIPC, (), _SOLVER),
    # multistep: one evaluation a step, with history
    "dpmpp_2m": Sampler("DPM++ 2M", multistep.dpmpp_2m, _DPM, ("k_dpmpp_2m", "DPMSolverMultistepScheduler"), _SOLVER),
    "dpmpp_3m": Sampler("DPM++ 3M", multistep.dpmpp_3m, _DPM),
    "dpmpp_2m_sde": Sampler("DPM++ 2M SDE", multistep.dpmpp_2m_sde, _DPM, ("dpmpp_2m_sde_gpu", "k_dpmpp_2m_sde"), _SDE, stochastic=True),
    "dpmpp_2m_sde_heun": Sampler(
        "DPM++ 2M SDE Heun",
        multistep.dpmpp_2m_sde_heun,
        _DPM,
        ("dpmpp_2m_sde_heun_gpu", "k_dpmpp_2m_sde_heun"),
        _SDE,
        stochastic=True,
    ),
    "dpmpp_3m_sde": Sampler("DPM++ 3M SDE", multistep.dpmpp_3m_sde, _DPM, ("dpmpp_3m_sde_gpu", "k_dpmpp_3m_sde"), _SDE, stochastic=True),
    "lms": Sampler("LMS", multistep.lms, _EULER, ("k_lms", "LMSDiscreteScheduler"), {"order": _order(4, 4)}),
    "pndm": Sampler("PLMS", multistep.pndm, _PNDM, ("plms", "PNDMScheduler"), evals_offset=1, evals_first=(1,)),
    "ipndm": Sampler("IPNDM", multistep.ipndm, _K, ("IPNDMScheduler",), {"order": _order(4, 4)}),
    "ipndm_v": Sampler("IPNDM_V", multistep.ipndm_v, _K, (), {"order": _order(4, 4), "weights": _WEIGHTS}),
    "deis": Sampler("DEIS", multistep.deis, _DEIS, ("DEISMultistepScheduler",), {"order": _order(2, 3)}),
    "unipc": Sampler("UniPC", multistep.unipc, _UNIPC, ("uni_pc", "uni_pc_bh2", "k_unipc", "UniPCMultistepScheduler"), _UNIPC_OPTIONS),
    # more stages, SDEs and CFG++
    "tcd": Sampler("TCD", rows.tcd, _TCD, ("k_tcd", "TCDScheduler"), {"gamma": _unit(0.3)}, most=50, stochastic=True),
    "heunpp2": Sampler("HeunPP2", rows_stages.heunpp2, _EULER, ("k_heunpp2",), evals_per_step=3, evals_offset=-3, evals_first=(1,)),
    "exp_heun_2_x0": _two("Exponential Heun 2 x0", rows_sde.exp_heun_2_x0, _EULER, (), _PHI),
    "exp_heun_2_x0_sde": _two("Exponential Heun 2 x0 SDE", rows_sde.exp_heun_2_x0_sde, _EULER, (), {**_SDE, **_PHI}, stochastic=True),
    "dpm2_a": _two(
        "DPM2 a",
        rows_stages.dpm2_a,
        _DPM2,
        ("dpm_2_ancestral", "k_dpm_2_a", "k_dpm_2_ancestral", "KDPM2AncestralDiscreteScheduler"),
        _SDE,
        stochastic=True,
    ),
    "dpmpp_sde": _two(
        "DPM++ SDE",
        rows_sde.dpmpp_sde,
        _EULER,
        ("dpmpp_sde_gpu", "k_dpmpp_sde", "DPMSolverSDEScheduler"),
        {**_SDE, "r": _R},
        stochastic=True,
    ),
    "dpmpp_2s_a": _two("DPM++ 2S a", rows_stages.dpmpp_2s_a, _EULER, ("dpmpp_2s_ancestral", "k_dpmpp_2s_a"), _SDE, stochastic=True),
    "sa_solver": Sampler("SA-Solver", rows_adams.sa_solver, _SA, ("SASolverScheduler",), _adams(2, 2, "simple"), stochastic=True),
    "sa_solver_pece": Sampler(
        "SA-Solver PECE", rows_adams.sa_solver_pece, _SA, (), _adams(3, 4, "exact"), evals_per_step=2, evals_offset=-1, stochastic=True
    ),
    "er_sde": Sampler(
        "ER SDE",
        rows_sde.er_sde,
        _EULER,
        (),
        {"stages": OptionInfo(default=3, minimum=1, maximum=3, integer=True), "s_noise": _SDE["s_noise"]},
        stochastic=True,
    ),
    "res_multistep": Sampler("Res Multistep", rows_stages.res_multistep, _EULER),
    "res_multistep_ancestral": Sampler("Res Multistep Ancestral", rows_stages.res_multistep_ancestral, _EULER, (), _SDE, stochastic=True),
    "gradient_estimation": Sampler("Gradient Estimation", rows_stages.gradient_estimation, _EULER, (), _GAMMA),
    "seeds_2": _two(
        "SEEDS-2",
        rows_sde.seeds_2,
        _EULER,
        (),
        {**_SDE, "r": _R, "solver_type": replace(_PHI["solver_type"], default="phi_1")},
        stochastic=True,
    ),
    "seeds_3": Sampler("SEEDS-3", rows_sde.seeds_3, _EULER, (), _SDE, evals_per_step=3, evals_offset=-2, evals_open=2, stochastic=True),
    "euler_cfgpp": Sampler("Euler CFG++", rows_cfgpp.euler_cfgpp, _EULER, ("euler_cfg_pp",), guidance=_CFGPP),
    "euler_a_cfgpp": Sampler(
        "Euler a CFG++", rows_cfgpp.euler_a_cfgpp, _EULER, ("euler_ancestral_cfg_pp",), _SDE, stochastic=True, guidance=_CFGPP
    ),
    "dpmpp_2m_cfgpp": Sampler("DPM++ 2M CFG++", rows_cfgpp.dpmpp_2m_cfgpp, _DPM, ("dpmpp_2m_cfg_pp",), guidance=_CFGPP),
    "dpmpp_2s_a_cfgpp": _two(
        "DPM++ 2S a CFG++", rows_cfgpp.dpmpp_2s_a_cfgpp, _EULER, ("dpmpp_2s_ancestral_cfg_pp",), _SDE, stochastic=True, guidance=_CFGPP
    ),
    "res_multistep_cfgpp": Sampler(
        "Res Multistep CFG++", rows_cfgpp.res_multistep_cfgpp, _EULER, ("res_multistep_cfg_pp",), guidance=_CFGPP
    ),
    "res_multistep_ancestral_cfgpp": Sampler(
        "Res Multistep Ancestral CFG++",
        rows_cfgpp.res_multistep_ancestral_cfgpp,
        _EULER,
        ("res_multistep_ancestral_cfg_pp",),
        _SDE,
        stochastic=True,
        guidance=_CFGPP,
    ),
    "gradient_estimation_cfgpp": Sampler(
        "Gradient Estimation CFG++", rows_cfgpp.gradient_estimation_cfgpp, _EULER, ("gradient_estimation_cfg_pp",), _GAMMA, guidance=_CFGPP
    ),
}

# EDMEulerScheduler is Euler's rule on levels of that space: what an EDM model calls so.
OF_EDM: Mapping[str, Sampler] = {"edm_euler": Sampler("EDM Euler", rows.euler, _FINITE_EULER, ("EDMEulerScheduler",), _CHURN, churns=True)}


def samplers_of(space: str) -> Mapping[str, Sampler]:
    """All that models of this space can run (Ladder.space)."""
    return {**SAMPLERS, **OF_EDM} if space == "edm" else SAMPLERS
