"""The table of samplers in the documents is what the registry makes."""

from __future__ import annotations

import re

import pytest

from benchmarks import sampler_docs
from pipelines.sampler_list import SAMPLERS

ORDER = sampler_docs.COLUMNS.index("order")


def rows(page: str) -> dict[str, list[str]]:
    """Id -> the cells of its row, in the made section."""
    made = page.partition(f"<!-- made by `{sampler_docs.COMMAND}`")[2].partition("<!-- end")[0]
    found = [re.split(r"(?<!\\) \| ", line[2:-2]) for line in made.splitlines() if line.startswith("| `")]
    return {cells[0].strip("`"): cells for cells in found}


def test_the_table_of_samplers_is_that_of_the_registry() -> None:
    """The order, which is measured, may differ in its last digit from machine to machine."""
    told, made = rows(sampler_docs.PAGE.read_text()), rows(sampler_docs.written())
    assert list(told) == list(made) == list(SAMPLERS), f"run `{sampler_docs.COMMAND}`"
    for id, cells in made.items():
        assert [c for i, c in enumerate(told[id]) if i != ORDER] == [c for i, c in enumerate(cells) if i != ORDER], (
            f"run `{sampler_docs.COMMAND}`"
        )
        (old, was), (new, is_) = (re.match(r"([\d.]*)(.*)", one[ORDER]).groups() for one in (told[id], cells))
        assert was == is_ and float(old or 0) == pytest.approx(float(new or 0), abs=0.11), id


def test_a_section_is_replaced_and_the_rest_is_kept() -> None:
    page = "before\n<!-- made by `x` -->\nold\n<!-- end of `x` -->\nafter\n"
    assert sampler_docs.section(page, "x", "new\n") == page.replace("old", "new")
    with pytest.raises(ValueError, match="no place"):
        sampler_docs.section(page, "y", "new\n")
