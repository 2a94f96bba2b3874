"""`make bench-queue`: the queue's promises in figures, written to benchmarks/QUEUE.md, one section for each kind, with date and machine.

`--only NAME` makes one section anew and leaves the others as they are. All of them take about half an hour, most of which
goes into queueing a million jobs, twice.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import re
from collections.abc import Awaitable, Callable
from pathlib import Path

from rich.console import Console

from benchmarks import depth, drain, eta, failover, fairness
from benchmarks.stamp import commit, machine

RESULTS = Path(__file__).parent / "QUEUE.md"
TITLE = "# The queue in figures\n"
SECTIONS: dict[str, tuple[str, Callable[[], Awaitable[list[str]]]]] = {
    "fairness": ("Waits and shares, simulated", fairness.report),
    "depth": ("Cost of a call by depth of the queue", depth.report),
    "rings": ("Cost of a call where clients wait everywhere", depth.report_rings),
    "eta": ("Error of the time that is told", eta.report),
    "drain": ("How long a worker takes to go", drain.report),
    "failover": ("Failover under Sentinel and in a Cluster", failover.report),
}
console = Console()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=list(SECTIONS))
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    known = sections(options.out.read_text() if options.out.exists() else "")
    for name in [options.only] if options.only else SECTIONS:
        title, report = SECTIONS[name]
        console.print(f"{name} ...")
        today = datetime.date.today().isoformat()
        made = f"Made by `python -m benchmarks.queue --only {name}` on {today}, commit {commit()}, {machine()}."
        lines = asyncio.run(report())
        known[title] = "\n".join([f"## {title}", "", made, "", *lines, ""])
        console.print(known[title], markup=False)
        titles = [title for title, _ in SECTIONS.values()]
        options.out.write_text("\n".join([TITLE, *(known[title] for title in titles if title in known)]))


def sections(text: str) -> dict[str, str]:
    """Title -> text of each section of the page."""
    parts = re.split(r"^(?=## )", text, flags=re.MULTILINE)[1:]
    return {part.split("\n", 1)[0].removeprefix("## "): part.rstrip("\n") + "\n" for part in parts}


if __name__ == "__main__":
    main()
