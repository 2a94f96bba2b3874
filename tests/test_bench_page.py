"""What `make bench` writes beside the drawing: gateway, queue by depth, and where the rest is."""

from __future__ import annotations

import re

from benchmarks.__main__ import DEPTHS, RESULTS, around
from benchmarks.depth import SHOWN, Site, table
from benchmarks.serving import Gateway, Memory, Start


class Measured(Site):
    """A site of which each call took so many microseconds."""

    def __init__(self, us: int) -> None:
        self.times_us = {name: [us, us] for name in SHOWN}
        self.cpu_us, self.bytes_per_job = [float(us)], 1000.0


def test_the_page_has_gateway_queue_and_the_way_to_the_rest() -> None:
    gateway = Gateway(start_s=0.9, rss_mb=86.0, jobs=3000, jobs_per_core_s=940.0)
    start = Start(first_s=3.3, again_s=2.0, alone=Memory(381.0, 281.0), crowd=Memory(681.0, 481.0))
    queue = table({depth: Measured(depth // 10) for depth in DEPTHS})
    page = "\n".join(around(gateway, start, queue))
    assert "accepted jobs per second of its own CPU time | 940 |" in page
    assert "| claim | 100, 100 | 1000, 1000 | 10.00 |" in page
    for name in re.findall(r"\]\(([^)]*)\)", page):
        assert (RESULTS.parent / name).exists(), name
