"""The tables of docs/metrics.md, made from what gateway and workers declare: `python -m benchmarks.metrics_docs` writes them anew."""

from __future__ import annotations

from pathlib import Path

from benchmarks.sampler_docs import section
from jobs.measures import table
from service.metrics import OF_THE_QUEUE, OF_THIS_GATEWAY
from workers.metrics import OF_A_WORKER

PAGE = Path(__file__).parent.parent / "docs" / "metrics.md"
COMMAND = "python -m benchmarks.metrics_docs"


def tables() -> str:
    parts = (("", OF_THE_QUEUE), ("\n## Figures of a gateway\n", OF_THIS_GATEWAY), ("\n## Figures of a worker\n", OF_A_WORKER))
    return "\n".join(f"{head}\n{table(measures)}" for head, measures in parts) + "\n\n"


def written() -> str:
    """The page with the tables of today."""
    return section(PAGE.read_text(), COMMAND, tables())


if __name__ == "__main__":
    PAGE.write_text(written())
