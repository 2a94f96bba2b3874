"""ControlNets (arXiv 2302.05543): what the one of an image is shown, and at which of its rows. What they are is in `control_files`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.params import GenerationParams, controlled_steps
from pipelines.step_table import StepTable

Array = Any


@dataclass(frozen=True, slots=True, eq=False)
class Control:
    """Of one image."""

    name: str
    picture: NDArray[np.float32]  # [3, H, W] in 0..1, of the size that is drawn
    scale: float
    rows: NDArray[np.bool_]  # [R] of its table, whether it acts


@dataclass(frozen=True, slots=True, eq=False)
class Shown:
    """Of a call of the model: one ControlNet and a picture for each of R rows."""

    name: str
    pictures: Array  # [R, 3, H, W]
    scales: Array  # [R]


def control_for(params: GenerationParams, pixels: NDArray[np.uint8], table: StepTable) -> Control:
    """From a picture [H, W, 3] of the size that these parameters draw."""
    asked, steps = params.controlnet, int(table.step[-1]) + 1
    acts = np.isin(table.step, controlled_steps(steps, asked["start"], asked["end"]))
    picture = np.ascontiguousarray((pixels.astype(np.float32) / np.float32(255)).transpose(2, 0, 1))
    return Control(asked["name"], picture, float(asked["scale"]), acts)


def shown(controls: Sequence[Control | None], xp: Any, device: Any) -> Shown | None:
    """Rows of a call have the same ControlNet, or none."""
    found = [control for control in controls if control is not None]
    if not found:
        return None
    assert len(found) == len(controls) and len({control.name for control in found}) == 1, "other rows go in a call of their own"
    scales = np.array([control.scale for control in found], np.float32)
    return Shown(found[0].name, xp.asarray(np.stack([c.picture for c in found]), device=device), xp.asarray(scales, device=device))
