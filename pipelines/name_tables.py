"""What other programs call our samplers and schedules. Standard library only; `names` reads it.

One row a name; a row without an id says why that name cannot run here. Sources: A1111 (with Forge, reForge and
Forge-classic), ComfyUI, stable-diffusion.cpp and diffusers 0.42, as of 2026-08. Read by `names.find` and its like.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

Value = float | int | str


@dataclass(frozen=True, slots=True, eq=False)
class Name:
    """A name of one dialect. `auto` is the schedule that the dialect takes for it if none is asked for."""

    name: str
    id: str = ""
    options: Mapping[str, Value] = field(default_factory=dict)
    also: tuple[str, ...] = ()
    auto: str = ""
    differs: str = ""  # how its picture there differs from ours
    refused: str = ""  # why it cannot run here


_PENULTIMATE = "there, the next-to-last level of the schedule is left out"
_BROWNIAN = "there, noise comes from a Brownian tree over sigma; here each picture draws from its own generator, in order"
_OWN_STEPS = "there, every (T/n)-th timestep from 1 is taken whatever the schedule; here the schedule is heeded"
_OWN_LEVELS = "there, its levels are equal in logSNR whatever the schedule, as with exponential; here the schedule is heeded"
_ALWAYS_KARRAS = "there, from 20 steps on levels are karras whatever the schedule; here the schedule is heeded"
_ADAPTIVE = "it chooses its steps while it runs, and a table of rows has a fixed number of them; dpmpp_2m is the nearest"
_FLOW = "it is made for rectified-flow models"
_OTHER = "its formula is none of ours"
_GITS = "its tables for every coefficient and number of steps are not here; our gits is Forge's one table"
_SA: Mapping[str, Value] = {"predictor_order": 3, "corrector_order": 4, "second_order": "exact"}
_SLIPS: Mapping[str, Value] = {"weights": "published"}
_BH1: Mapping[str, Value] = {"solver_type": "bh1", "order": 3}
_BH2: Mapping[str, Value] = {"solver_type": "bh2", "order": 3}

# What some ids need, for models that lack it.
_EDM = "it is Euler's rule for models of EDM's space; on others euler with karras is the same"
NEEDS: Mapping[str, str] = {"flow": _FLOW, "flux": _FLOW, "edm_euler": _EDM}
_ACTS = "it acts on a list of levels: send the list that it makes as the sigmas of custom"

A1111_SAMPLERS = (
    Name("DPM++ 2M", "dpmpp_2m", also=("k_dpmpp_2m",), auto="karras"),
    Name("DPM++ SDE", "dpmpp_sde", also=("k_dpmpp_sde",), auto="karras", differs=_BROWNIAN),
    Name("DPM++ 2M SDE", "dpmpp_2m_sde", also=("k_dpmpp_2m_sde",), auto="exponential", differs=_BROWNIAN),
    Name("DPM++ 2M SDE Heun", "dpmpp_2m_sde_heun", also=("k_dpmpp_2m_sde_heun",), auto="exponential", differs=_BROWNIAN),
    Name("DPM++ 2S a", "dpmpp_2s_a", also=("k_dpmpp_2s_a",), auto="karras"),
    Name("DPM++ 3M SDE", "dpmpp_3m_sde", also=("k_dpmpp_3m_sde",), auto="exponential", differs=f"{_PENULTIMATE}; {_BROWNIAN}"),
    Name("Euler a", "euler_a", also=("k_euler_a", "k_euler_ancestral")),
    Name("Euler", "euler", also=("k_euler",)),
    Name("LMS", "lms", also=("k_lms",)),
    Name("Heun", "heun", also=("k_heun",)),
    Name("DPM2", "dpm2", also=("k_dpm_2",), auto="karras", differs=_PENULTIMATE),
    Name("DPM2 a", "dpm2_a", also=("k_dpm_2_a", "k_dpm_2_ancestral"), auto="karras", differs=_PENULTIMATE),
    Name("DPM fast", "dpm_fast", also=("k_dpm_fast",), auto="exponential", differs=_OWN_LEVELS),
    Name("DPM adaptive", also=("k_dpm_ad", "k_dpm_adaptive"), refused=_ADAPTIVE),
    Name("Restart", "restart", also=("k_restart",), auto="karras", differs=_ALWAYS_KARRAS),
    Name("HeunPP2", "heunpp2", also=("k_heunpp2",)),
    Name("IPNDM", "ipndm", also=("k_ipndm",)),
    Name("IPNDM_V", "ipndm_v", _SLIPS, also=("k_ipndm_v",)),
    Name("DEIS", "deis", {"order": 3}, also=("k_deis",)),
    Name("DDIM", "ddim", also=("k_ddim",), auto="ddim_uniform", differs=_OWN_STEPS),
    Name("DDIM CFG++", "euler_cfgpp", also=("ddim_cfgpp",), auto="ddim_uniform", differs=_OWN_STEPS),
    Name("PLMS", "pndm", also=("k_plms",), auto="ddim_uniform", differs=_OWN_STEPS),
    Name("UniPC", "unipc", _BH1, also=("k_unipc",), auto="ddim_uniform", differs=_OWN_STEPS),
    Name("LCM", "lcm", also=("k_lcm",)),
    Name("DDPM", "ddpm", also=("k_ddpm",)),
    Name("TCD", "tcd", also=("k_tcd",)),
    Name("ER SDE", "er_sde", also=("k_er_sde",)),
    Name("Res Multistep", "res_multistep", also=("k_res_multistep",)),
    Name("Kohaku LoNyu Yog", refused=_OTHER),
    Name("DPM++ 2s a RF", refused=_FLOW),
)

COMFY_SAMPLERS = (
    Name("euler", "euler"),
    Name("euler_cfg_pp", "euler_cfgpp"),
    Name("euler_ancestral", "euler_a"),
    Name("euler_ancestral_cfg_pp", "euler_a_cfgpp"),
    Name("heun", "heun"),
    Name("heunpp2", "heunpp2"),
    Name("exp_heun_2_x0", "exp_heun_2_x0"),
    Name("exp_heun_2_x0_sde", "exp_heun_2_x0_sde", differs=_BROWNIAN),
    Name("dpm_2", "dpm2", differs=_PENULTIMATE),
    Name("dpm_2_ancestral", "dpm2_a", differs=_PENULTIMATE),
    Name("lms", "lms"),
    Name("dpm_fast", "dpm_fast", differs=_OWN_LEVELS),
    Name("dpm_adaptive", refused=_ADAPTIVE),
    Name("dpmpp_2s_ancestral", "dpmpp_2s_a"),
    Name("dpmpp_2s_ancestral_cfg_pp", "dpmpp_2s_a_cfgpp"),
    Name("dpmpp_sde", "dpmpp_sde", also=("dpmpp_sde_gpu",), differs=_BROWNIAN),
    Name("dpmpp_2m", "dpmpp_2m"),
    Name("dpmpp_2m_cfg_pp", "dpmpp_2m_cfgpp"),
    Name("dpmpp_2m_sde", "dpmpp_2m_sde", also=("dpmpp_2m_sde_gpu",), differs=_BROWNIAN),
    Name("dpmpp_2m_sde_heun", "dpmpp_2m_sde_heun", also=("dpmpp_2m_sde_heun_gpu",), differs=_BROWNIAN),
    Name("dpmpp_3m_sde", "dpmpp_3m_sde", also=("dpmpp_3m_sde_gpu",), differs=_BROWNIAN),
    Name("ddpm", "ddpm"),
    Name("lcm", "lcm"),
    Name("ipndm", "ipndm"),
    Name("ipndm_v", "ipndm_v", _SLIPS),
    Name("deis", "deis", {"order": 3}),
    Name("cfgpp_ud10_ab", refused="its weights of older outputs are tuned numbers of one model family; euler_cfgpp is the nearest"),
    Name("res_multistep", "res_multistep"),
    Name("res_multistep_cfg_pp", "res_multistep_cfgpp"),
    Name("res_multistep_ancestral", "res_multistep_ancestral"),
    Name("res_multistep_ancestral_cfg_pp", "res_multistep_ancestral_cfgpp"),
    Name("gradient_estimation", "gradient_estimation"),
    Name("gradient_estimation_cfg_pp", "gradient_estimation_cfgpp"),
    Name("er_sde", "er_sde"),
    Name("seeds_2", "seeds_2", differs=_BROWNIAN),
    Name("seeds_3", "seeds_3", differs=_BROWNIAN),
    Name("sa_solver", "sa_solver", _SA, differs=_BROWNIAN),
    Name("sa_solver_pece", "sa_solver_pece", _SA, differs=_BROWNIAN),
    Name("ddim", "euler"),
    Name("uni_pc", "unipc", _BH1, differs=_PENULTIMATE),
    Name("uni_pc_bh2", "unipc", _BH2, differs=_PENULTIMATE),
)

SDCPP_SAMPLERS = (
    Name("euler", "euler"),
    Name("euler_a", "euler_a"),
    Name("heun", "heun"),
    Name("dpm2", "dpm2"),
    Name("dpm++2s_a", "dpmpp_2s_a", also=("dpmpp2s_a",)),
    Name("dpm++2m", "dpmpp_2m", also=("dpmpp2m",)),
    Name("dpm++2mv2", also=("dpmpp2mv2",), refused="its step-size rule is its own; dpmpp_2m is the nearest"),
    Name("ipndm", "ipndm"),
    Name("ipndm_v", "ipndm_v", _SLIPS),
    Name("lcm", "lcm"),
    Name("ddim_trailing", "ddim", auto="trailing"),
    Name("tcd", "tcd"),
    Name("res_multistep", "res_multistep"),
    Name("res_2s", refused="a two-stage form of res_multistep that is none of ours; seeds_2 with eta 0 is the nearest"),
    Name("er_sde", "er_sde"),
    Name("euler_cfg_pp", "euler_cfgpp"),
    Name("euler_a_cfg_pp", "euler_a_cfgpp"),
    Name("euler_ge", "gradient_estimation"),
    Name("dpm++2m_sde", "dpmpp_2m_sde", also=("dpmpp2m_sde",)),
    Name("dpm++2m_sde_bt", "dpmpp_2m_sde", also=("dpmpp2m_sde_bt",), differs=_BROWNIAN),
    Name("lms", "lms"),
)

# SD.Next's further names.
OTHER_SAMPLERS = (
    Name("DPM++ 1S", "dpmpp_1s"),
    Name("DPM++ 2S", "dpmpp_2s"),
    Name("DPM++ 3M", "dpmpp_3m"),
    Name("SA Solver", "sa_solver"),
    Name("LMSD", "lms"),
    Name("KDPM2", "dpm2"),
    Name("KDPM2 a", "dpm2_a"),
    Name("PNDM", "pndm"),
    Name("Euler EDM", "edm_euler"),
    Name("DPM++ 2M EDM", also=("dpmpp_2m_edm",), refused="it is dpmpp_2m in EDM's space: ask a model of that space for it"),
    Name("DPM++ Cosine", also=("Cosine DPM",), refused="it belongs to one model of sounds"),
    Name("DPM++ Inverse", also=("DDIM Inverse", "DPM++ 2M Inverse"), refused="it turns pictures into noise"),
    Name("Flash FlowMatch", refused=_FLOW),
    Name("DC Solver", refused=_OTHER),
    Name("TDD", refused=_OTHER),
    Name("PeRFlow", refused="it belongs to models that were distilled with it"),
    Name("UFOGen", refused="it belongs to models that were distilled with it"),
    Name("CMSI", refused="it belongs to consistency models"),
    Name("VDM Solver", also=("VDM",), refused=_OTHER),
    Name("BDIA DDIM", refused=_OTHER),
    Name("RES", also=("RES 2M", "RES 3M"), refused="res_multistep is its rule of two steps; its other members are none of ours"),
)

# First words of SD.Next's many samplers of Res4Lyf, such as "Lobatto 3S", and why they cannot run here.
FAMILIES: Mapping[str, str] = dict.fromkeys(
    ("ABNorsett", "Lawson", "ETD-RK", "ETDRK", "PEC", "Lobatto", "Radau IIA", "Gauss-Legendre", "RK", "RK4", "RK5", "RK6", "RK7"),
    "it is one of the many Runge-Kutta and exponential rules of Res4Lyf, whose formulas are none of ours",
)

A1111_SCHEDULES = (
    Name("Uniform", "linspace"),
    Name("Karras", "karras"),
    Name("Exponential", "exponential"),
    Name("Polyexponential", "polyexponential"),
    Name("SGM Uniform", "sgm_uniform", also=("SGMUniform",)),
    Name("KL Optimal", "kl_optimal_open"),
    Name("Align Your Steps", "align_your_steps_11", also=("Align Your Steps 11",)),
    Name("Simple", "simple"),
    Name("Normal", "linspace"),
    Name("DDIM", "ddim_uniform"),
    Name("Beta", "beta_sigma"),
    Name("Karras Exponential", refused=f"an extension's blend of two schedules: {_OTHER}"),
    Name("Turbo", "turbo"),
    Name("SD Turbo", "linspace"),
    Name("Align Your Steps GITS", "gits"),
    Name("Align Your Steps 32", "align_your_steps_32"),
    Name("Variance Preserving", refused=f"Forge-classic's: {_OTHER} (our vp is that of k-diffusion)"),
    Name("Laplace", refused="reForge's goes on to zero; our laplace, ComfyUI's, ends above it"),
    Name("Sinusoidal SF", refused=_OTHER),
    Name("Invcosinusoidal SF", refused=_OTHER),
    Name("React Cosinusoidal DynSF", refused=_OTHER),
    Name("AYS Custom", refused="its levels are settings of that program; send them as the schedule's own levels"),
    Name("Cosine", refused=f"reForge's: {_OTHER} (our cosine is that of arXiv 2301.10972)"),
    Name("Cosine-exponential Blend", refused=_OTHER),
    Name("Phi", refused=_OTHER),
    Name("Karras Dynamic", refused=_OTHER),
)

COMFY_SCHEDULES = (
    Name("simple", "simple"),
    Name("sgm_uniform", "sgm_uniform"),
    Name("karras", "karras"),
    Name("exponential", "exponential"),
    Name("ddim_uniform", "ddim_uniform"),
    Name("beta", "beta", also=("BetaSampling",)),
    Name("normal", "linspace"),
    Name("linear_quadratic", "linear_quadratic"),
    Name("kl_optimal", "kl_optimal"),
    Name("Polyexponential", "polyexponential"),
    Name("Laplace", "laplace"),
    Name("VP", "vp"),
    Name("SDTurbo", "sd_turbo"),
    Name("AlignYourSteps", "align_your_steps"),
    Name("GITS", refused=_GITS),
    Name("OptimalSteps", refused=_FLOW),
    Name("SplitSigmas", also=("Split",), refused=_ACTS),
    Name("SetFirstSigma", also=("SetFirst",), refused=_ACTS),
    Name("FlipSigmas", also=("Flip",), refused="rising levels turn pictures into noise"),
    Name("SplitSigmasDenoise", also=("SplitDenoise",), refused=_ACTS),
    Name("ExtendIntermediateSigmas", also=("ExtendIntermediate",), refused=_ACTS),
)

SDCPP_SCHEDULES = (
    Name("discrete", "linspace"),
    Name("karras", "karras"),
    Name("exponential", "exponential"),
    Name("ays", "align_your_steps"),
    Name("gits", refused=_GITS),
    Name("sgm_uniform", "sgm_uniform"),
    Name("simple", "simple"),
    Name("smoothstep", "smoothstep"),
    Name("kl_optimal", "kl_optimal"),
    Name("lcm", "lcm"),
    Name("bong_tangent", "bong_tangent"),
    Name("beta", "beta"),
    Name("ltx2", refused=_FLOW),
    Name("logit_normal", refused=_FLOW),
    Name("flux", "flux"),
    Name("flux2", refused=_FLOW),
    Name("custom_sigmas", "custom"),
)
