"""The page of figures is what the benchmark gives, where that does not depend on the machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import fairness
from benchmarks.queue import RESULTS, SECTIONS, sections

PAGE = sections(RESULTS.read_text("utf-8"))


def test_every_section_is_made_by_its_benchmark_and_says_when_and_where() -> None:
    titles = {title: name for name, (title, _) in SECTIONS.items()}
    assert {"Waits and shares, simulated"} <= PAGE.keys() <= titles.keys()
    for title, text in PAGE.items():
        assert text.split("\n")[2].startswith(f"Made by `python -m benchmarks.queue --only {titles[title]}` on 20")


@pytest.mark.slow
async def test_waits_and_shares_are_simulated_again_to_the_digit(tmp_path: Path) -> None:
    title, _ = SECTIONS["fairness"]
    assert "\n".join(await fairness.report(tmp_path)) + "\n" == PAGE[title].split("\n", 4)[4]
    for picture in ("fairness.svg", "weights.svg"):
        assert (tmp_path / picture).read_bytes() == (fairness.PICTURES / picture).read_bytes()
