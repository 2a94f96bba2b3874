"""`celadon explain`: a StepTable in words."""

from __future__ import annotations

import json
from math import log
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from celadon.pairs import ratio

if TYPE_CHECKING:
    from celadon.pairs import Pair
    from pipelines.step_table import StepTable


def run(pair: Pair, console: Console, *, as_json: bool) -> None:
    """Print the table of a pair."""
    rows = described(pair.table)
    if as_json:
        head: dict[str, Any] = {"sampler": pair.sampler, "sampler_options": pair.sampler_options, "schedule": pair.schedule}
        head |= {"schedule_options": pair.schedule_options, "steps": pair.steps, "evaluations": len(rows), "init": pair.table.init}
        head |= pair.part
        print(json.dumps(head | {"rows": rows}, indent=1))
        return
    said = ", ".join(f"{name} {_told(value)}" for name, value in {**pair.sampler_options, **pair.schedule_options, **pair.part}.items())
    console.print(
        f"[bold]{pair.sampler}[/] on [bold]{pair.schedule}[/], {_count(pair.steps, 'step')}{escape(f' ({said})') if said else ''}"
    )
    console.print(f"{_count(len(rows), 'U-Net evaluation')}. {_first(pair)}")
    table = Table("row", "step", "sigma/alpha", "timestep", "x becomes", "and", "noise", box=box.SIMPLE_HEAD)
    for row in rows:
        rest = ", ".join(f"{name} = {_sum(terms)}" for name, terms in row["next"].items() if name != "x")
        sigma, x = f"{ratio(row['alpha'], row['sigma']):.5g}", _sum(row["next"]["x"])
        table.add_row(str(row["row"]), str(row["step"]), sigma, f"{row['timestep']:.6g}", x, rest, "drawn" if row["noise"] else "")
    console.width = max(console.width, console.measure(table, options=console.options.update(width=1000)).maximum)
    console.print(table)  # one line a row, however narrow the terminal


def _first(pair: Pair) -> str:
    if "strength" in pair.part:
        return f"The first x is {pair.table.alpha[0]:.6g} * picture + {pair.table.sigma[0]:.6g} * noise."
    return f"The first x is {pair.table.init:.6g} * noise." if not pair.part.get("start") else "The first x is that of the step before."


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _told(value: object) -> str:
    return f"[{', '.join(f'{one:g}' for one in value)}]" if isinstance(value, tuple) else str(value)


def described(table: StepTable) -> list[dict[str, Any]]:
    """One record a row: where the model is asked, how its output becomes denoised, and the registers that change, by names."""
    from pipelines.step_table import BASIS, STATE

    rows: list[dict[str, Any]] = []
    for i in range(len(table)):
        changes: dict[str, dict[str, float]] = {}
        for name, coefficients in zip(STATE, table.update[i].tolist(), strict=True):
            terms = {source: value for source, value in zip(BASIS, coefficients, strict=True) if value}
            if terms != {name: 1.0} and (terms or name == "x"):
                changes[name] = terms
        alpha, sigma = float(table.alpha[i]), float(table.sigma[i])
        places = {"row": i + 1, "step": int(table.step[i]) + 1, "timestep": float(table.timestep[i])}
        level = {"alpha": alpha, "sigma": sigma, "logsnr": 2 * (log(alpha) - log(sigma)) if alpha > 0 else None}
        scales = {name: float(getattr(table, name)[i]) for name in ("c_in", "c_skip", "c_out")}
        rows.append(places | level | scales | {"noise": bool(table.noisy[i]), "next": changes})
    return rows


def _sum(terms: dict[str, float]) -> str:
    """ "0.93 x - 0.07 denoised"."""
    text = " ".join(f"{'-' if value < 0 else '+'} {_factor(abs(value))}{name}" for name, value in terms.items()) or "0"
    return f"-{text[2:]}" if text.startswith("- ") else text.removeprefix("+ ")


def _factor(value: float) -> str:
    return "" if value == 1.0 else f"{value:.5g} "
