"""Guidance as data: what is asked of it at each row of a StepTable. The engine carries it out; the slow loop reads it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.guidance_list import OWN, catalog
from pipelines.options import checked_options
from pipelines.params import guided_steps, step_scales

COLUMNS = ("scale", "rescale", "perturbed", "eta", "norm_threshold", "momentum")
KINDS = ("pag", "seg")  # how an output may be disturbed
SCALE, RESCALE, PERTURBED, MOMENTUM = map(COLUMNS.index, ("scale", "rescale", "perturbed", "momentum"))


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """One image's guidance, row by row.

    A row of scale 1 asks the model for no unconditional output; it is plain `cfg`, nothing is rescaled or remembered. On
    rows of variant `zero` the model's output is replaced by zero. Where `perturbed` is not 0, the row asks for one more
    output, disturbed as `mark` says.
    """

    variants: tuple[str, ...]  # [R]
    columns: NDArray[np.float32]  # [R, 6], in the order of COLUMNS
    mark: str = ""  # pag, seg

    def guided(self, row: int) -> bool:
        """Whether the row needs the unconditional output too."""
        return bool(self.columns[row, SCALE] != 1)

    def rescaled(self, row: int) -> bool:
        return bool(self.columns[row, RESCALE])

    def unet_rows(self, row: int) -> int:
        """What the row costs."""
        return 1 + self.guided(row) + bool(self.mark_at(row))

    def mark_at(self, row: int) -> str:
        """How the row's third output is disturbed; empty where it asks for none."""
        return self.mark if self.columns[row, PERTURBED] else ""

    @property
    def ever_guided(self) -> bool:
        return bool((self.columns[:, SCALE] != 1).any())

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
    steps = int(step[-1]) + 1
    scale = np.array(step_scales(guidance, known, steps), dtype=np.float32)[step]  # [R]
    guided, zero = scale != 1, step < int(str(known.get("zero_init", 0)))
    weight, mark = next(((known[f"{kind}_scale"], kind) for kind in KINDS if known[f"{kind}_scale"]), (0.0, ""))
    perturbed = np.where(np.isin(step, guided_steps(known, steps)), weight, 0.0)  # [R]
    columns = np.stack([scale, *(np.where(guided, known.get(name, 0), 0) for name in COLUMNS[1:])], axis=1, dtype=np.float32)
    columns[:, PERTURBED] = perturbed
    columns[:, RESCALE] = np.where(guided | (perturbed > 0), float(str(known["rescale"])), 0.0)
    variants = tuple("zero" if z else variant if g else "cfg" for z, g in zip(zero, guided, strict=True))
    return Plan(variants, columns, mark)
