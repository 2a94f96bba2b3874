"""The registry of schedules: ids, names, options and their ranges."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

from pipelines import ratio_schedules as ratios
from pipelines import schedule_tables as tables
from pipelines import timestep_schedules as timesteps
from pipelines.card import OptionInfo
from pipelines.gamma import gamma_cosine, gamma_sigmoid, gamma_simple_linear
from pipelines.ladder import Float, Ladder
from pipelines.level import Convention
from pipelines.points import Builder, Points


@dataclass(frozen=True)
class Schedule:
    """`about` is its rule in one line, for the documents."""

    name: str
    about: str
    build: Builder  # (ladder, convention, steps, **options)
    aliases: tuple[str, ...] = ()
    options: Mapping[str, OptionInfo] = field(default_factory=dict)
    most: int | None = None  # steps, where fewer than the ladder gives
    ends_open: bool = False  # the last step lands above zero
    for_flow: bool = False  # only rectified-flow models have it


def _number(default: float, minimum: float, maximum: float) -> OptionInfo:
    return OptionInfo(default=default, minimum=minimum, maximum=maximum)


# Ranges in which every combination has distinct levels at any number of steps: what the gateway accepts can be drawn.
_RHO = {"rho": _number(7.0, 0.5, 100.0)}
_BETA = {"alpha": _number(0.6, 0.5, 5.0), "beta": _number(0.6, 0.5, 5.0)}
_VP = {"beta_d": _number(19.9, 1.0, 100.0), "beta_min": _number(0.1, 0.01, 10.0), "eps": _number(1e-3, 1e-5, 1e-2)}
_LAPLACE = {"mu": _number(0.0, -1.0, 1.0), "beta": _number(0.5, 0.2, 1.0)}
_SCALE = {"input_scale": _number(1.0, 0.1, 2.0)}
_COSINE = {"start": _number(0.0, 0.0, 0.6), "end": _number(1.0, 0.8, 1.0), "tau": _number(1.0, 0.3, 3.0)}
_SIGMOID = {"start": _number(-3.0, -6.0, 0.0), "end": _number(3.0, 1.0, 6.0), "tau": _number(1.0, 0.3, 3.0)}
_SIGMAS = {"sigmas": OptionInfo(default=(), minimum=0.0, falling=True)}
_TABLE = {"table": OptionInfo(default="sd", choices=("sd", "sdxl"))}


def _tables(sd: tuple[float, ...], sdxl: tuple[float, ...], *, ends_at_zero: bool = False) -> Builder:
    def build(ladder: Ladder, convention: Convention, steps: int, *, table: str) -> Points:
        return ratios.tabulated(ladder, convention, steps, table=sd if table == "sd" else sdxl, ends_at_zero=ends_at_zero)

    return build


def _of_gamma(name: str, about: str, gamma: Callable[..., Float], options: Mapping[str, OptionInfo]) -> Schedule:
    return Schedule(name, about, partial(ratios.of_gamma, gamma=gamma), options={**options, **_SCALE})


SCHEDULES: Mapping[str, Schedule] = {
    "auto": Schedule(
        "Automatic",
        "the spacing that the checkpoint names, else that of the sampler's class in diffusers; `lcm` and `tcd` take their own timesteps",
        timesteps.spaced,
    ),
    "leading": Schedule("Leading", "t = i · (T // n) + offset (diffusers)", partial(timesteps.spaced, spacing="leading")),
    "trailing": Schedule("Trailing", "t = round(T − i · T/n) − 1 (diffusers)", partial(timesteps.spaced, spacing="trailing")),
    "linspace": Schedule(
        "Linspace", "t evenly from T − 1 to 0 (diffusers)", partial(timesteps.spaced, spacing="linspace"), ("normal", "uniform")
    ),
    "sgm_uniform": Schedule(
        "SGM Uniform", "t evenly from T − 1 to 0, n + 1 of them without the last (ComfyUI, A1111)", timesteps.sgm_uniform
    ),
    "simple": Schedule("Simple", "every (T/n)-th level from the top (ComfyUI, A1111)", timesteps.simple),
    "ddim_uniform": Schedule(
        "DDIM Uniform", "t = 1 + i · (T // n) (ComfyUI; A1111's DDIM); of more than n such, the n lowest", timesteps.ddim_uniform
    ),
    "karras": Schedule("Karras", "equal steps in σ^(1/rho), [2206.00364](https://arxiv.org/abs/2206.00364) eq. 5", ratios.karras, (), _RHO),
    "exponential": Schedule("Exponential", "equal steps in ln σ, so in logSNR", ratios.exponential),
    "polyexponential": Schedule(
        "Polyexponential", "steps in ln σ by a power rho; 1 is `exponential` (k-diffusion)", ratios.polyexponential, (),
        {"rho": _number(1.0, 0.3, 3.0)},
    ),
    "vp": Schedule(
        "VP", "σ² = exp(beta_d t²/2 + beta_min t) − 1, t from 1, or where that meets the ladder, to eps (k-diffusion)",
        ratios.vp, (), _VP,
    ),
    "laplace": Schedule(
        "Laplace", "quantiles of a Laplace density of ln σ, [2407.03297](https://arxiv.org/abs/2407.03297) (ComfyUI)",
        ratios.laplace, (), _LAPLACE, ends_open=True,
    ),
    "beta": Schedule(
        "Beta", "timesteps at quantiles of a beta distribution, [2407.12173](https://arxiv.org/abs/2407.12173) (ComfyUI)",
        timesteps.beta, (), _BETA,
    ),
    "beta_sigma": Schedule("Beta (sigma)", "sigmas at quantiles of a beta distribution (A1111, diffusers)", ratios.beta_sigma, (), _BETA),
    "kl_optimal": Schedule(
        "KL Optimal", "equal steps in atan σ to the lowest level, then zero (ComfyUI, stable-diffusion.cpp)", ratios.kl_optimal
    ),
    "kl_optimal_open": Schedule(
        "KL Optimal (open)", "equal steps in atan σ, the last of them to the lowest level (A1111)", ratios.kl_optimal_open, ends_open=True
    ),
    "linear_quadratic": Schedule(
        "Linear Quadratic", "half of the steps lower σ evenly by `threshold`, the others quadratically (Mochi, ComfyUI)",
        ratios.linear_quadratic, (), {"threshold": _number(0.025, 0.001, 0.3)},
    ),
    "align_your_steps": Schedule(
        "Align Your Steps", "a table of 11, [2404.14507](https://arxiv.org/abs/2404.14507), zero for its last (ComfyUI, diffusers)",
        _tables(tables.ALIGN_YOUR_STEPS_SD, tables.ALIGN_YOUR_STEPS_SDXL, ends_at_zero=True), (), _TABLE,
    ),
    "align_your_steps_11": Schedule(
        "Align Your Steps 11", "the same table, zero after its last entry (A1111, Forge)",
        _tables(tables.ALIGN_YOUR_STEPS_SD, tables.ALIGN_YOUR_STEPS_SDXL), (), _TABLE,
    ),
    "align_your_steps_32": Schedule(
        "Align Your Steps 32", "a table of 32 that goes down to 0.015 (Forge)",
        _tables(tables.ALIGN_YOUR_STEPS_32_SD, tables.ALIGN_YOUR_STEPS_32_SDXL), (), _TABLE,
    ),
    "gits": Schedule(
        "GITS", "a table of 11, [2405.11326](https://arxiv.org/abs/2405.11326) (Forge)",
        _tables(tables.GITS_SD, tables.GITS_SDXL), (), _TABLE,
    ),
    "smoothstep": Schedule("Smoothstep", "t = u² (3 − 2u) (T − 1), u = 1 − i/n (stable-diffusion.cpp)", timesteps.smoothstep),
    "lcm": Schedule("LCM", "n of the 50 timesteps of latent consistency distillation", timesteps.consistency, most=50),
    "turbo": Schedule("Turbo", "t = round(k · T/n − 1), k = n … 1 (Forge)", timesteps.turbo),
    "sd_turbo": Schedule("SD Turbo", "the first n of ten such timesteps (ComfyUI); beyond ten steps as `turbo`", timesteps.sd_turbo),
    "bong_tangent": Schedule("Bong Tangent", "two arcs of arctan in σ (stable-diffusion.cpp)", ratios.bong_tangent),
    "simple_linear": _of_gamma("Simple linear", "gamma(t) = 1 − t", gamma_simple_linear, {}),
    "cosine": _of_gamma("Cosine", "gamma(t) from cos(u π/2)^(2 tau), u from `start` to `end`", gamma_cosine, _COSINE),
    "sigmoid": _of_gamma("Sigmoid", "gamma(t) from the logistic function of u / tau, u from `start` to `end`", gamma_sigmoid, _SIGMOID),
    "flow": Schedule(
        "Flow", "t evenly from 1, shifted as the checkpoint says: σ = s t / (1 + (s − 1) t) (diffusers); flow models only",
        ratios.flow, (), {"shift": _number(1.0, 0.1, 20.0)}, for_flow=True,
    ),
    "flux": Schedule(
        "FLUX", "t evenly from 1 to 1/n, σ = 1 / (1 + e^−mu (1/t − 1)); flow models only", ratios.flux, (),
        {"mu": _number(1.15, 0.0, 3.0)}, for_flow=True,
    ),
    "custom": Schedule("Custom", "the `sigmas` that you give, falling; n + 1 of them for n steps", ratios.custom, (), _SIGMAS),
}  # fmt: skip
