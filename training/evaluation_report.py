"""What an evaluation shows: a bar with the time left while it runs, and afterwards a page of tables and a sheet of pairs."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from training.artist import Artist
from training.checkpoint import save_grid
from training.evaluation_attributes import ASKED

DRAWN, SEEN, RECONSTRUCTED = 1.0, 0.08, 0.6  # work of one picture: drawing it, its features, the autoencoder and LPIPS
FOUND = {  # when copies of training pictures were put in the place of drawn ones
    "features": "It does not find copies that went through the autoencoder (0.7 % of them in a trial with v0); that in pixels does.",
    "pixels": "It finds copies, exact ones and those that went through the autoencoder (100 % of both in that trial).",
}
HEADS = {"thing": "thing, top 1", "thing in top 5": "top 5", "count by components": "by components"}


class Bar:
    """Work done and time left; on a terminal as a bar, in a log as a line every half minute."""

    def __init__(self, title: str, drawn: int, seen: int = 0, reconstructed: int = 0) -> None:
        self.total = DRAWN * drawn + SEEN * seen + RECONSTRUCTED * reconstructed
        self.done, self.new, self.started = 0.0, 0.0, time.monotonic()
        self.printed, self.title, self.console = self.started, title, Console()
        columns = (TextColumn(title), BarColumn(), TaskProgressColumn(), TimeRemainingColumn(elapsed_when_finished=True))
        self.bar = Progress(*columns, console=self.console, disable=not self.console.is_terminal)
        self.task = self.bar.add_task(title, total=self.total)

    def __enter__(self) -> Bar:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def advance(self, pictures: int, work: float = DRAWN) -> None:
        self.done, self.new = self.done + work * pictures, self.new + work * pictures
        self.bar.update(self.task, completed=self.done)
        now = time.monotonic()
        if not self.console.is_terminal and now - self.printed > 30:
            self.printed = now
            left = (self.total - self.done) * (now - self.started) / max(self.new, 1e-6) / 60
            print(f"{self.title} {self.done / self.total:.0%}  eta {left:.1f} min", flush=True)

    @property
    def share(self) -> float:
        """Of the work that is done."""
        return self.done / self.total

    def skip(self, work: float) -> None:
        """It was done before, which says nothing about the speed."""
        self.done += work
        self.bar.update(self.task, completed=self.done)


def about(model: Path, artist: Artist, size: int) -> dict[str, object]:
    """What figures must be read with."""
    git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent, check=False)
    cpuinfo = Path("/proc/cpuinfo")
    names = (
        [x.partition(":")[2].strip() for x in cpuinfo.read_text().splitlines() if x.startswith("model name")] if cpuinfo.exists() else []
    )
    return {
        "model": model.name, "weights": artist.weights, "defaults": artist.defaults, "pixels": size, "device": artist.device,
        "date": datetime.now(UTC).date().isoformat(), "commit": git.stdout.strip() or "unknown",
        "machine": f"{os.cpu_count()} x {names[0] if names else platform.processor()}",
    }  # fmt: skip


def share(value: float) -> str:
    """.97 and 1.00."""
    return f"{value:.2f}".removeprefix("0")


def cell(figure: Sequence[float] | None) -> str:
    """ ".97 (.94-.99)"; empty where the question does not apply."""
    return f"{share(figure[0])} ({share(figure[1])}–{share(figure[2])})" if figure else ""


def attribute_table(figures: dict) -> list[str]:
    """One line a set of scenes, between ceiling and floor."""
    rows = {
        "*fresh renders, not drawn: the ceiling*": figures["ceiling"], **figures["sets"],
        "*drawn, against shuffled prompts: the floor*": figures["floor"],
    }  # fmt: skip
    heads = [HEADS.get(name, name) for name in ASKED]
    lines = [f"| asked for | scenes | {' | '.join(heads)} |", "|---" * (len(heads) + 2) + "|"]
    for name, row in rows.items():
        lines.append(f"| {name} | {row['scenes']} | {' | '.join(cell(row.get(question)) for question in ASKED)} |")
    return lines


def measure_lines(figures: dict) -> list[str]:
    """Everything that is no share of right answers, one line a measure."""
    lines, d, m = [], figures["distribution"], figures["memorisation"]
    for style, row in figures["autoencoder"].items():
        (psnr, *p), (lpips, *q) = row["psnr"], row["lpips"]
        lines.append(
            f"* Autoencoder, {row['pictures']} fresh renders in {style} style: PSNR {psnr:.1f} dB ({p[0]:.1f}–{p[1]:.1f}), "
            f"LPIPS (AlexNet) {lpips:.3f} ({q[0]:.3f}–{q[1]:.3f})."
        )
    lines += [
        f"* Frechet distance in features of EfficientNet-Lite0 (not FID), {d['pictures']} pictures: {d['frechet']:.1f}; renders against "
        f"renders {d['frechet floor']:.1f}; ratio {d['frechet'] / d['frechet floor']:.1f} at n = {d['pictures']} pictures. The ratio grows "
        "with n, so only ratios of equal n can be compared.",
        f"* Improved precision {d['precision']:.2f} (renders {d['precision of renders']:.2f}), recall {d['recall']:.2f} "
        f"(renders {d['recall of renders']:.2f}), k = 3, same features and pictures.",
    ]
    for space in ("features", "pixels"):
        r = m[space]
        lines.append(
            f"* Distance to the nearest of {m['training pictures']} of {m['of']} training pictures in {space}, in units of the median of "
            f"fresh renders: median {r['median']:.2f}, 1 % quantile {r['1 %']:.2f} (renders {r['1 % of renders']:.2f}); nearer than the "
            f"renders' 1 % quantile: {r['nearer than 1 % of renders']:.1%} of the pictures. {FOUND[space]}"
        )
    return lines


def sweep_table(rows: list[dict]) -> list[str]:
    """One line a setting; the card's is marked."""
    lines = ["| steps | guidance | rescale | right answers | certainty of the thing |", "|---|---|---|---|---|"]
    for r in sorted(rows, key=lambda row: (row["steps"], row["guidance"], row["guidance_rescale"])):
        mark = "**" if r["default"] else ""
        lines.append(
            f"| {mark}{r['steps']}{mark} | {mark}{r['guidance']:g}{mark} | {mark}{r['guidance_rescale']:g}{mark} | "
            f"{cell(r['right'])} | {share(r['certainty'])} |"
        )
    return lines


def page(figures: dict) -> str:
    """The page of tables, from all figures there are."""
    a = figures["about"]
    d = a["defaults"]
    lines = [
        f"# Evaluation of {a['model']}", "",
        f"Made by `python -m training.evaluate` on {a['date']}, commit {a['commit']}, on {a['machine']} ({a['device']}). "
        f"Weights {a['weights'][:12]}, {a['pixels']} x {a['pixels']} pixels, drawn by diffusers with {d['sampler']}, {d['steps']} steps, "
        f"guidance {d['guidance']:g}, rescale {d['guidance_rescale']:g}, without selection.",
    ]  # fmt: skip
    if "sets" in figures:
        lines += [
            "",
            f"Shares of right answers over {figures['seeds']} pictures of each scene, with 95 % intervals. Thing, style and count are "
            "named by a network trained on renders of all pairs with another seed; background, colour and count by components are pixel "
            "rules. Held out: pairs of style or colour and thing that training never showed. By components are counted the scenes whose "
            "own render this rule counts right. Relations are not asked for: in this model's world nothing stands beside, on or under "
            "another thing.",
            "", *attribute_table(figures), "", *measure_lines(figures),
        ]  # fmt: skip
    if "sweep" in figures:
        lines += [
            "", "## Other settings", "",
            f"`python -m training.evaluate --sweep`: one picture of each of {figures['sweep'][0]['scenes']} scenes of all sets. "
            "Bold is what the card says.",
            "", *sweep_table(figures["sweep"]),
        ]  # fmt: skip
    return "\n".join(lines) + "\n"


def sheet_of_pairs(path: Path, pairs: list[tuple[np.ndarray, np.ndarray]]) -> None:
    """Above, the drawn pictures nearest to a training picture; below, that one."""
    drawn, known = zip(*pairs, strict=True)
    save_grid(path, np.stack([*drawn, *known]), len(pairs))
