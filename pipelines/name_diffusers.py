"""diffusers' classes and their options -> our samplers and schedules. Standard library only; `names` reads it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pipelines.name_tables import Value

SUFFIX = "Scheduler"


@dataclass(frozen=True, slots=True)
class Case:
    """For these values of the class's own options it is this sampler with these options, or refused."""

    when: Mapping[str, object]
    id: str = ""
    options: Mapping[str, Value] | None = None
    refused: str = ""


@dataclass(frozen=True, slots=True)
class Class:
    """A class that has a sampler here. The first case that fits counts; `defaults` are those of the class."""

    cases: tuple[Case, ...]
    defaults: Mapping[str, object]
    schedule: str = ""  # of a class that cannot choose the spacing of its timesteps


def _one(id: str, **defaults: object) -> Class:
    return Class((Case(defaults, id),), defaults)


_NOISE = "DPM-Solver on predicted noise has no table here; DPM++ (algorithm_type dpmsolver++) is its successor"
_ODE = {"algorithm_type": "dpmsolver++"}
_SDE = {"algorithm_type": "sde-dpmsolver++"}
_MULTISTEP = (
    Case(_ODE | {"solver_order": 1}, "dpmpp_1s"),
    Case(_ODE | {"solver_order": 2, "solver_type": "midpoint"}, "dpmpp_2m"),
    Case(_ODE | {"solver_order": 2, "solver_type": "heun"}, "dpmpp_2m", {"solver_type": "heun"}),
    Case(_ODE | {"solver_order": 3}, "dpmpp_3m"),
    Case(_SDE | {"solver_order": 2, "solver_type": "midpoint"}, "dpmpp_2m_sde"),
    Case(_SDE | {"solver_order": 2, "solver_type": "heun"}, "dpmpp_2m_sde_heun"),
    Case(_SDE | {"solver_order": 3}, "dpmpp_3m_sde"),
    Case(_SDE, refused="in first order it is ddim with eta 1"),
    Case({"algorithm_type": "dpmsolver"}, refused=_NOISE),
    Case({"algorithm_type": "sde-dpmsolver"}, refused=_NOISE),
)

CLASSES: Mapping[str, Class] = {
    "DDIM": _one("ddim"),
    "DDIMParallel": _one("ddim"),
    "DDPM": _one("ddpm"),
    "DDPMParallel": _one("ddpm"),
    "PNDM": _one("pndm", skip_prk_steps=True),
    "LMSDiscrete": _one("lms"),
    "EulerDiscrete": _one("euler"),
    "EulerAncestralDiscrete": _one("euler_a"),
    "HeunDiscrete": _one("heun"),
    "KDPM2Discrete": _one("dpm2"),
    "KDPM2AncestralDiscrete": _one("dpm2_a"),
    "DPMSolverMultistep": Class(_MULTISTEP, {"algorithm_type": "dpmsolver++", "solver_order": 2, "solver_type": "midpoint"}),
    "DPMSolverSinglestep": Class(
        (
            Case(_ODE | {"solver_order": 1}, "dpmpp_1s"),
            *(
                Case(_ODE | {"solver_order": order, "solver_type": kind}, f"dpmpp_{order}s", {"solver_type": kind})
                for order in (2, 3)
                for kind in ("midpoint", "heun")
            ),
            Case({"algorithm_type": "dpmsolver"}, refused=_NOISE),
            Case({"algorithm_type": "sde-dpmsolver++"}, refused="its stochastic form has no table; DPM++ 2M SDE has"),
        ),
        {"algorithm_type": "dpmsolver++", "solver_order": 2, "solver_type": "midpoint"},
        "linspace",
    ),
    "DPMSolverSDE": _one("dpmpp_sde"),
    "DEISMultistep": Class(
        tuple(Case({"solver_order": order}, "deis", {"order": order}) for order in (1, 2, 3)),
        {"solver_order": 2, "algorithm_type": "deis", "solver_type": "logrho"},
    ),
    "UniPCMultistep": Class(
        tuple(
            Case({"solver_order": order, "solver_type": kind}, "unipc", {"order": order, "solver_type": kind})
            for order in (1, 2, 3)
            for kind in ("bh1", "bh2")
        ),
        {"solver_order": 2, "solver_type": "bh2", "predict_x0": True},
    ),
    "SASolver": Class(
        tuple(
            Case({"predictor_order": p, "corrector_order": c}, "sa_solver", {"predictor_order": p, "corrector_order": c})
            for p in (1, 2, 3, 4)
            for c in (1, 2, 3, 4)
        ),
        {"predictor_order": 2, "corrector_order": 2, "algorithm_type": "data_prediction"},
    ),
    "LCM": _one("lcm", original_inference_steps=50),
    "TCD": _one("tcd", original_inference_steps=50),
    "IPNDM": _one("ipndm"),
    "EDMEuler": _one("edm_euler"),
    "FlowMatchEulerDiscrete": Class((Case({}, "euler"),), {}, "flow"),
    "FlowMatchHeunDiscrete": Class((Case({}, "heun"),), {}, "flow"),
}

REFUSED: Mapping[str, str] = {
    **dict.fromkeys(
        ("FlowMatchLCM", "FlowMapEulerDiscrete", "LTXEulerAncestralRF", "Piflow"), "it belongs to rectified-flow models of one kind"
    ),
    **dict.fromkeys(("Helios", "HeliosDMD", "MiniMaxH3", "CogVideoXDDIM", "CogVideoXDPM"), "it belongs to a video model"),
    **dict.fromkeys(("DDIMInverse", "DPMSolverMultistepInverse"), "it turns pictures into noise"),
    **dict.fromkeys(("KarrasVe", "ScoreSdeVe", "ScoreSdeVp", "EDMDPMSolverMultistep"), "it runs on variance-exploding models"),
    **dict.fromkeys(("CMStochasticIterative", "ConsistencyDecoder", "SCM"), "it runs on consistency models of another space"),
    **dict.fromkeys(
        ("UnCLIP", "DDPMWuerstchen", "Amused", "VQDiffusion", "RFD4Proteina", "CosineDPMSolverMultistep"), "it belongs to one model"
    ),
    **dict.fromkeys(("BlockRefinement", "DiscreteDDIM", "EntropyBound"), "it draws tokens, not latents"),
    "RePaint": "it goes up and down between levels of a masked picture",
}

LU = "use_lu_lambdas"
LU_DIFFERS = "there, the timesteps of these levels are rounded; here they are cut down as with use_exponential_sigmas"

# Options that choose the schedule, in the order in which diffusers asks for them.
FLAGS: Mapping[str, str] = {
    "use_karras_sigmas": "karras",
    LU: "exponential",
    "use_exponential_sigmas": "exponential",
    "use_beta_sigmas": "beta_sigma",
    "use_flow_sigmas": "flow",
}
SPACING = "timestep_spacing"  # linspace, leading, trailing: ids of ours

# Options that have one value here; another one is refused.
FIXED: Mapping[str, object] = {
    "thresholding": False,
    "clip_sample": False,
    "final_sigmas_type": "zero",
    "lower_order_final": True,
    "euler_at_final": False,
    "interpolation_type": "linear",
    "timestep_type": "discrete",
    "use_dynamic_shifting": False,
    "timestep_scaling": 10.0,
}
OF_THE_MODEL = frozenset(
    {
        "num_train_timesteps",
        "beta_start",
        "beta_end",
        "beta_schedule",
        "trained_betas",
        "prediction_type",
        "rescale_betas_zero_snr",
        "set_alpha_to_one",
        "steps_offset",
        "sigma_min",
        "sigma_max",
        "sigma_data",
        "shift",
        "flow_shift",
    }
)
