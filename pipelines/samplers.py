"""Samplers: each is one short function from levels to the rows of a StepTable.

A row is written in the names of BASIS. `move` is the one formula behind most of them: keep the direction of the noise
and go to another level. Formulas in sigma/alpha (k-diffusion's sigma) carry over by x = alpha * x_k.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from math import exp, expm1, inf, sqrt

import numpy as np

from pipelines.card import OptionInfo, SamplerInfo
from pipelines.ladder import Ladder
from pipelines.options import Option, Options, checked_options
from pipelines.schedules import Convention, Level, Levels, levels
from pipelines.step_table import BASIS, MEMORIES, STATE, StepTable

Terms = Mapping[str, float]  # a linear combination, by the names of BASIS
CLEAN = Level(1.0, 0.0, 0.0)


@dataclass(frozen=True, slots=True)
class Row:
    """The model is asked at `at`; then x, and where given the anchor, become these combinations, and `push` enters m1."""

    step: int
    at: Level
    x: Terms
    anchor: Terms | None = None
    push: Terms | None = None
    noisy: bool = False


# --- building blocks --------------------------------------------------------------------------------------------------


def combine(*parts: tuple[float, Terms]) -> dict[str, float]:
    """The sum of weight * combination."""
    total: dict[str, float] = {}
    for weight, terms in parts:
        for name, value in terms.items():
            total[name] = total.get(name, 0.0) + weight * value
    return total


def move(now: Level, to: Level, noise: float = 0.0) -> dict[str, float]:
    """x' = alpha' D + sqrt(sigma'^2 - noise^2) (x - alpha D) / sigma + noise * n: arXiv 2010.02502, equation 12."""
    kept = sqrt(max(to.sigma**2 - noise**2, 0.0)) / now.sigma
    return {"x": kept, "denoised": to.alpha - now.alpha * kept, "noise": noise}


def ancestral_noise(now: Level, to: Level) -> float:
    """Deviation of the posterior q(x' | x, x0) for eta = 1: arXiv 2006.11239, equation 7; variance preserving."""
    return to.sigma / now.sigma * sqrt(max(1.0 - (now.alpha / to.alpha) ** 2, 0.0))


def slope(level: Level) -> dict[str, float]:
    """d = (x_k - D) / sigma_k at a level, the derivative of arXiv 2206.00364."""
    return {"x": 1.0 / level.sigma, "denoised": -1.0 / level.ratio}


# --- samplers ---------------------------------------------------------------------------------------------------------


def ddim(levels: Levels, eta: float) -> list[Row]:
    """DDIM, arXiv 2010.02502, equations 12 and 16. eta = 1 is DDPM."""
    return [_ddim_row(i, levels[i], to, eta * ancestral_noise(levels[i], to)) for i, to in enumerate(levels.landing)]


def _ddim_row(step: int, now: Level, to: Level, noise: float) -> Row:
    return Row(step, now, move(now, to, noise), noisy=noise > 0.0)


def ddpm(levels: Levels) -> list[Row]:
    """DDPM, arXiv 2006.11239, algorithm 2 with the smaller variance."""
    return ddim(levels, 1.0)


def euler(levels: Levels) -> list[Row]:
    """Euler, arXiv 2206.00364, algorithm 1 without its second half; on equal levels the same as DDIM."""
    return [Row(i, levels[i], move(levels[i], to)) for i, to in enumerate(levels.landing)]


def euler_a(levels: Levels, eta: float, s_noise: float) -> list[Row]:
    """Ancestral Euler (k-diffusion): Euler down to sigma_down, then noise sigma_up."""
    rows = []
    for i, to in enumerate(levels.landing):
        now, up = levels[i], min(to.sigma, eta * ancestral_noise(levels[i], to))
        rows.append(Row(i, now, {**move(now, to, up), "noise": up * s_noise}, noisy=up * s_noise > 0.0))
    return rows


def heun(levels: Levels) -> list[Row]:
    """Heun, arXiv 2206.00364, algorithm 1: the anchor holds x after half of the first slope. The last step is Euler's."""
    rows = []
    for i, to in enumerate(levels.landing):
        now = levels[i]
        if to.sigma == 0.0:
            rows.append(Row(i, now, move(now, to)))
            continue
        half = 0.5 * to.alpha * (to.ratio - now.ratio)
        anchor = combine((to.alpha / now.alpha, {"x": 1.0}), (half, slope(now)))
        rows.append(Row(i, now, move(now, to), anchor=anchor))
        rows.append(Row(i, to, combine((1.0, {"anchor": 1.0}), (half, slope(to)))))
    return rows


def dpm2(levels: Levels) -> list[Row]:
    """DPM-Solver-2, arXiv 2206.00927, algorithm 1, in the form of k-diffusion: the slope at the geometric middle."""
    rows = []
    for i, to in enumerate(levels.landing):
        now = levels[i]
        if to.sigma == 0.0:
            rows.append(Row(i, now, move(now, to)))
            continue
        middle, whole = levels.between(now, to), to.alpha * (to.ratio - now.ratio)
        rows.append(Row(i, now, move(now, middle), anchor={"x": 1.0}))
        rows.append(Row(i, middle, combine((to.alpha / now.alpha, {"anchor": 1.0}), (whole, slope(middle)))))
    return rows


def dpmpp_2m(levels: Levels) -> list[Row]:
    """DPM-Solver++(2M), arXiv 2211.01095, algorithm 2; first order at both ends."""
    return dpmpp_2m_sde(levels, eta=0.0, s_noise=0.0)


def dpmpp_2m_sde(levels: Levels, eta: float, s_noise: float) -> list[Row]:
    """SDE-DPM-Solver++(2M), arXiv 2211.01095, appendix; eta = 0 is the ODE. m1 is the last denoised."""
    rows = []
    for i, to in enumerate(levels.landing):
        now = levels[i]
        h = to.half_logsnr - now.half_logsnr
        gain = -to.alpha * expm1(-(1.0 + eta) * h)
        noise = to.sigma * sqrt(-expm1(-2.0 * eta * h)) * s_noise if eta * s_noise > 0.0 else 0.0
        x = {"x": to.sigma / now.sigma * exp(-eta * h) if to.sigma else 0.0, "denoised": gain, "noise": noise}
        if i > 0 and h < inf:
            ratio = (now.half_logsnr - levels[i - 1].half_logsnr) / h
            x = combine((1.0, x), (0.5 * gain / ratio, {"denoised": 1.0, "m1": -1.0}))
        rows.append(Row(i, now, x, push={"denoised": 1.0}, noisy=noise > 0.0))
    return rows


def lcm(levels: Levels) -> list[Row]:
    """Latent consistency, arXiv 2310.04378, algorithm 3: jump to the clean picture, noise it to the next level."""
    rows = []
    for i, to in enumerate(levels.landing):
        now, scaled = levels[i], 10.0 * levels[i].timestep  # timestep scaling 10 and sigma_data 1/2, as distilled
        skip, out = 0.25 / (scaled**2 + 0.25), scaled / sqrt(scaled**2 + 0.25)
        x = {"x": to.alpha * skip, "denoised": to.alpha * out, "noise": to.sigma}
        rows.append(Row(i, now, x, noisy=to.sigma > 0.0))
    return rows


def unipc(levels: Levels, order: int, solver_type: str) -> list[Row]:
    """UniPC, arXiv 2302.04867, algorithms 5 and 6, with data prediction. The anchor is the corrected x of the last step."""
    rows, n = [], len(levels)
    orders = [min(order, n - i, i + 1) for i in range(n)]
    for i in range(n):
        corrected: Terms = {"x": 1.0}
        if i > 0:
            corrected = _unified(levels, i - 1, orders[i - 1], solver_type, corrects=True)
        predicted = _unified(levels, i, orders[i], solver_type, corrects=False)
        now_x = predicted.pop("anchor")
        x = combine((1.0, predicted), (now_x, corrected))
        rows.append(Row(i, levels[i], x, anchor=corrected, push={"denoised": 1.0}))
    return rows


def _unified(levels: Levels, i: int, order: int, solver_type: str, *, corrects: bool) -> dict[str, float]:
    """From level i to i + 1, starting at the anchor.

    Predicting, the outputs at levels i, i - 1 ... are denoised, m1 ...; correcting, one evaluation later, they are
    m1, m2 ..., and denoised is the output at level i + 1.
    """
    now, to = levels[i], levels.landing[i]
    h = to.half_logsnr - now.half_logsnr
    outputs = [f"m{k + 1}" for k in range(order)] if corrects else ["denoised", *(f"m{k}" for k in range(1, order))]
    base = {"anchor": to.sigma / now.sigma, outputs[0]: -to.alpha * expm1(-h)}
    nodes = [(levels[i - k].half_logsnr - now.half_logsnr) / h for k in range(1, order)]
    if corrects:
        nodes, outputs = [*nodes, 1.0], [*outputs, "denoised"]
    if not nodes:
        return base
    scale = -h if solver_type == "bh1" else expm1(-h)
    weights = _unified_weights(np.array(nodes), h, scale)
    terms = ((-to.alpha * scale * w / r, {name: 1.0, outputs[0]: -1.0}) for w, r, name in zip(weights, nodes, outputs[1:], strict=True))
    return combine((1.0, base), *terms)


def _unified_weights(nodes: np.ndarray, h: float, scale: float) -> np.ndarray:
    """rho of equation 3.8, with phi_k(-h) in place of phi_k(h). A single node takes 1/2, as the authors do."""
    if len(nodes) == 1:
        return np.array([0.5])
    phi, factorial, right = expm1(-h) / -h - 1.0, 1.0, []
    for k in range(1, len(nodes) + 1):
        right.append(phi * factorial / scale)
        factorial *= k + 1
        phi = phi / -h - 1.0 / factorial
    return np.linalg.solve(np.vander(nodes, increasing=True).T, np.array(right))


# --- registry ---------------------------------------------------------------------------------------------------------

_EULER = Convention(scaled_init=True)
_DDIM = Convention(spacing="leading", whole=True, exact=True, full_range=True, strided=True)
_DDPM = Convention(spacing="leading", whole=True, exact=True, full_range=True)
_DPM = Convention(
    whole=True, drops_last=True, full_range=True, karras_time="nearest", floors_squared_cosine=True, exponential_time="floor"
)
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
    "ddim": Sampler("DDIM", ddim, _DDIM, ("k_ddim", "DDIMScheduler"), {"eta": _unit(0.0)}),
    "ddpm": Sampler("DDPM", ddpm, _DDPM, ("k_ddpm", "DDPMScheduler"), stochastic=True),
    "euler": Sampler("Euler", euler, _EULER, ("k_euler", "EulerDiscreteScheduler")),
    "euler_a": Sampler(
        "Euler a", euler_a, _EULER, ("euler_ancestral", "k_euler_a", "k_euler_ancestral", "EulerAncestralDiscreteScheduler"), _SDE,
        stochastic=True,
    ),
    "heun": Sampler("Heun", heun, _EULER, ("k_heun", "HeunDiscreteScheduler"), evals_per_step=2, evals_offset=-1),
    "dpm2": Sampler("DPM2", dpm2, _DPM2, ("dpm_2", "k_dpm_2", "KDPM2DiscreteScheduler"), evals_per_step=2, evals_offset=-1),
    "dpmpp_2m": Sampler("DPM++ 2M", dpmpp_2m, _DPM, ("k_dpmpp_2m", "DPMSolverMultistepScheduler")),
    "dpmpp_2m_sde": Sampler(
        "DPM++ 2M SDE", dpmpp_2m_sde, _DPM, ("dpmpp_2m_sde_gpu", "k_dpmpp_2m_sde"), _SDE, stochastic=True
    ),
    "unipc": Sampler("UniPC", unipc, _UNIPC, ("uni_pc", "uni_pc_bh2", "k_unipc", "UniPCMultistepScheduler"), _UNIPC_OPTIONS),
    "lcm": Sampler("LCM", lcm, _LCM, ("k_lcm", "LCMScheduler"), most=50, stochastic=True),
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
    return _compiled(ladder, sampler, schedule, steps, _frozen(sampler_options), _frozen(schedule_options))


def _frozen(options: Options | None) -> tuple[tuple[str, Option], ...]:
    return tuple(sorted((options or {}).items()))


@lru_cache(maxsize=512)
def _compiled(
    ladder: Ladder, sampler: str, schedule: str, steps: int, sampler_options: tuple[tuple[str, Option], ...],
    schedule_options: tuple[tuple[str, Option], ...],
) -> StepTable:
    if sampler not in SAMPLERS:
        raise ValueError(f"unknown sampler {sampler!r}: it is one of {', '.join(SAMPLERS)}")
    entry = SAMPLERS[sampler]
    settings = checked_options("sampler", sampler, dict(sampler_options), entry.options)
    chosen = levels(ladder, entry.convention, schedule, steps, dict(schedule_options))
    return _assembled(ladder.prediction_type, chosen.init, entry.rows(chosen, **settings))


def _assembled(prediction_type: str, init: float, rows: Sequence[Row]) -> StepTable:
    skip, out = zip(*(_denoising(prediction_type, row.at) for row in rows), strict=True)
    at = np.array([row.at for row in rows], dtype=np.float64)  # [R, 3]
    columns = (at[:, 0], at[:, 1], at[:, 2], np.ones(len(rows)), np.array(skip), np.array(out), _update(rows))
    table = StepTable(init, *columns, np.array([row.noisy for row in rows]), np.array([row.step for row in rows], dtype=np.int64))
    for column in (*columns, table.noisy, table.step):
        column.flags.writeable = False
    return table


def _denoising(prediction_type: str, at: Level) -> tuple[float, float]:
    """c_skip and c_out: denoised = c_skip * x + c_out * output (v: arXiv 2202.00512, appendix D)."""
    if prediction_type == "epsilon":
        return 1.0 / at.alpha, -at.sigma / at.alpha
    return (at.alpha, -at.sigma) if prediction_type == "v_prediction" else (0.0, 1.0)


def _update(rows: Sequence[Row]) -> np.ndarray:
    """[R, 8, 11]. Memories that no row reads are not kept."""
    read = {name for row in rows for terms in (row.x, row.anchor, row.push) for name in (terms or ())}
    deepest = max((int(name[1:]) for name in read if name.startswith("m")), default=0)
    update = np.zeros((len(rows), len(STATE), len(BASIS)))
    for matrix, row in zip(update, rows, strict=True):
        keeps: list[Terms] = [{f"m{k}": 1.0} for k in range(1, MEMORIES + 1)]
        memories = [row.push, *keeps] if row.push is not None else keeps
        for target, terms in zip(STATE, (row.x, row.anchor or {"anchor": 1.0}, *memories[:deepest]), strict=False):
            for name, value in terms.items():
                matrix[STATE.index(target), BASIS.index(name)] += value
    return update
