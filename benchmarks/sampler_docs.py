"""The table of samplers in docs/samplers.md, made from the registry: `python -m benchmarks.sampler_docs` writes it anew."""

from __future__ import annotations

import inspect
import re
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
from scipy.integrate import solve_ivp

from pipelines import names, samplers
from pipelines.card import OptionInfo, SamplerInfo
from pipelines.ladder import Ladder
from pipelines.sampler_list import SAMPLERS
from pipelines.samplers import compile_table
from pipelines.step_table import STATE, StepTable

PAGE = Path(__file__).parent.parent / "docs" / "samplers.md"
COMMAND = "python -m benchmarks.sampler_docs"
LADDER = Ladder.from_config({"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"})
COLUMNS = (
    "id", "A1111", "ComfyUI", "diffusers, others", "evaluations of n steps", "order", "noise", "keeps",
    "options: default (range)", "rule",
)  # fmt: skip
HEAD = f"| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|\n"


def section(page: str, command: str, made: str) -> str:
    """The page with what a command made between its two marks."""
    begin, end = f"<!-- made by `{command}` -->\n", f"<!-- end of `{command}` -->\n"
    before, _, rest = page.partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        raise ValueError(f"the page has no place for what `{command}` makes")
    return before + begin + made + end + after


def table() -> str:
    return HEAD + "".join(f"| {' | '.join(_cells(info))} |\n" for info in samplers.catalog(LADDER))


def written() -> str:
    """The page with the table that the registry makes."""
    return section(PAGE.read_text(), COMMAND, table())


def _cells(info: SamplerInfo) -> list[str]:
    known = names.names_of("sampler", info.id)
    others = (*known.get("diffusers", ()), *known.get("sdcpp", ()), *known.get("others", ()))
    steps = min(12, info.max_steps)
    one = compile_table(LADDER, info.id, "auto", steps)
    return [
        f"`{info.id}`",
        *(", ".join(f"`{name}`" for name in some) for some in (known.get("a1111", ()), known.get("comfyui", ()), others)),
        _evaluations(info),
        _order(info),
        _noise(info, one, steps),
        ", ".join(_kept(one)) or "–",
        ", ".join(f"`{name}` {_option(option)}" for name, option in info.options.items()),
        _rule(info.id),
    ]


def _evaluations(info: SamplerInfo) -> str:
    many = "n" if info.evals_per_step == 1 else f"{info.evals_per_step}n"
    offset = f" {'+' if info.evals_offset > 0 else '−'} {abs(info.evals_offset)}" if info.evals_offset else ""
    few = f" ({', '.join(map(str, info.evals_first))} for few)" if info.evals_first else ""
    return many + offset + few + ("" if info.max_steps > 100 else f", n ≤ {info.max_steps}")


def _noise(info: SamplerInfo, one: StepTable, steps: int) -> str:
    """Draws of a step in the middle, with the defaults; or when there are some."""
    per_step = int(one.noisy[one.step == steps // 2].sum())
    if per_step:
        return f"{per_step} a step"
    if info.stochastic:
        return "1 a restart"  # from 20 steps on
    return next((f"{name} > 0" for name in ("eta", "s_churn") if name in info.options), "none")


def _kept(one: StepTable) -> list[str]:
    """Registers beside x that a row reads from an earlier one: what an image in flight is."""
    return [STATE[i] for i in sorted({i for row in range(1, len(one)) for i in one.live(row)} - {0})]


def _option(option: OptionInfo) -> str:
    return " or ".join(option.choices) if option.choices else f"{option.default:g} ({option.minimum:g} to {option.maximum:g})"


def _rule(id: str) -> str:
    """The first sentence of the function that makes the rows, with its paper as a link."""
    said = " ".join((inspect.getdoc(SAMPLERS[id].rows) or "").split("\n\n")[0].split())
    return re.sub(r"arXiv (\d{4}\.\d{5})", r"[\1](https://arxiv.org/abs/\1)", said).replace("|", "\\|")


# --- order -------------------------------------------------------------------------------------------------------------

STEPS = (40, 80, 160)
PEAKS, WIDTH = np.array([[-1.0], [0.7]]), 0.4  # a mixture of two Gaussians on a line


def _denoised(x: np.ndarray, ratio: float) -> np.ndarray:
    """E[x0 | x0 + ratio * noise = x] under the mixture."""
    variance = WIDTH**2 + ratio**2
    weight = np.exp(-((x - PEAKS) ** 2) / (2 * variance))  # [2, n]
    means = PEAKS + WIDTH**2 / variance * (x - PEAKS)
    return np.asarray((weight * means).sum(0) / weight.sum(0))


@cache
def _exact() -> tuple[np.ndarray, np.ndarray]:
    """Points at the ladder's end, sigma/alpha, and where dx/dsigma = (x - D) / sigma carries them by its beginning (2206.00364, eq. 1)."""
    high, low = float(LADDER.ratios[-1]), float(LADDER.ratios[0])
    start = high * np.linspace(-1.5, 1.5, 7)
    found = solve_ivp(lambda s, x: (x - _denoised(x, s)) / s, (high, low), start, method="DOP853", rtol=1e-12, atol=1e-12)
    return start, found.y[:, -1]


def _order(info: SamplerInfo) -> str:
    """Slope of the error at the lowest level against steps of equal size in logSNR; of a stochastic sampler, with its noise off."""
    quiet = {name: 0.0 for name in ("eta", "tau") if name in info.options}
    ends_low = info.id == "dpm_fast"  # it stops at the lowest level; the others go on to zero
    tables = [compile_table(LADDER, info.id, "exponential", n + (not ends_low), quiet) for n in STEPS if n < info.max_steps]
    if len(tables) < len(STEPS) or any(one.noisy.any() for one in tables):
        return "–"
    slope = -np.polyfit(np.log(STEPS), np.log([_error(one, ends_low) for one in tables]), 1)[0]
    return f"{slope:.1f}{f' ({next(iter(quiet))} 0)' if quiet and info.stochastic else ''}"


def _error(one: StepTable, ends_low: bool) -> float:
    """At the lowest level: the end, or the row that begins the last step, which goes to zero and is of first order in every sampler."""
    start, exact = _exact()
    one = replace(one, init=1.0)
    state = {name: np.zeros_like(start) for name in STATE}
    state["x"] = one.alpha[0] * start
    last = len(one) if ends_low else int(np.flatnonzero(one.step == one.step[-1])[0])
    for row in range(last):
        denoised = _denoised(state["x"] / one.alpha[row], one.sigma[row] / one.alpha[row])
        fresh = {"denoised": denoised, "denoised_uncond": denoised, "noise": np.zeros_like(start)}
        state = one.advance(row, state | fresh)
    return float(np.abs(state["x"] / (1.0 if ends_low else one.alpha[last]) - exact).max())


if __name__ == "__main__":
    PAGE.write_text(written())
