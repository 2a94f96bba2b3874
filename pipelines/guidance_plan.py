"""Guidance as data: what is asked of it at each row of a StepTable. The engine carries it out; the slow loop reads it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.guidance_list import OWN, catalog
from pipelines.options import checked_options
from pipelines.params import step_scales

COLUMNS = ("scale", "rescale", "eta", "norm_threshold", "momentum")
MOMENTUM = COLUMNS.index("momentum")


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """One image's guidance, row by row.

    A row of scale 1 asks the model for no unconditional output; it is plain `cfg`, nothing is rescaled or remembered. On
    rows of variant `zero` the model's output is replaced by zero.
    """

    variants: tuple[str, ...]  # [R]
    columns: NDArray[np.float32]  # [R, 5], in the order of COLUMNS

    def guided(self, row: int) -> bool:
        """Whether the row needs the unconditional output too."""
        return bool(self.columns[row, 0] != 1)

    def unet_rows(self, row: int) -> int:
        """What the row costs."""
        return 2 if self.guided(row) else 1

    @property
    def ever_guided(self) -> bool:
        return bool((self.columns[:, 0] != 1).any())

    def remembers_at(self, row: int) -> bool:
        return bool(self.columns[row, MOMENTUM])

    @property
    def remembers(self) -> bool:
        """Whether an average of earlier rows is kept with the image."""
        return bool(self.columns[:, MOMENTUM].any())


def plan(guidance: float, rescale: float, options: Mapping[str, Any], step: NDArray[np.int64]) -> Plan:
    """The plan of a table whose rows belong to steps `step` [R]. `rescale` holds where the options do not say.

    Raises ValueError with one sentence on options that are unknown, out of range, or contradict each other.
    """
    given = dict(options)
    variant = given.pop("variant", "cfg")
    if variant not in OWN:
        raise ValueError(f"unknown guidance {variant!r}: it is one of {', '.join(OWN)}")
    [known] = [checked_options("guidance", variant, given, info.options) for info in catalog(rescale) if info.id == variant]
    scale = np.array(step_scales(guidance, known, int(step[-1]) + 1), dtype=np.float32)[step]  # [R]
    guided, zero = scale != 1, step < int(str(known.get("zero_init", 0)))
    columns = np.stack([scale, *(np.where(guided, known.get(name, 0), 0) for name in COLUMNS[1:])], axis=1, dtype=np.float32)
    variants = tuple("zero" if z else variant if g else "cfg" for z, g in zip(zero, guided, strict=True))
    return Plan(variants, columns)
