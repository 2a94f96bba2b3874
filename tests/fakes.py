"""Fakes with closed forms: a denoiser that is a function of its own row alone, so that every equality can be exact."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import array_api_compat.numpy
import numpy as np
from numpy.typing import NDArray


class RowwiseDenoiser:
    """out = tanh(0.3 x + mean(context) + t / 1000), element by element; records the size of every call."""

    xp: ModuleType = array_api_compat.numpy
    device: Any = "cpu"

    def __init__(self) -> None:
        self.calls: list[int] = []

    def __call__(self, x: NDArray[Any], timestep: NDArray[Any], context: NDArray[Any]) -> NDArray[Any]:
        self.calls.append(len(x))
        shift = context.mean(axis=(1, 2)) + timestep / np.float32(1000)  # [R]
        return np.tanh(np.float32(0.3) * x + shift[:, None, None, None])


class Poisoned(RowwiseDenoiser):
    """Raises `error` whenever a row of the batch has a context whose first number is 666."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def __call__(self, x: NDArray[Any], timestep: NDArray[Any], context: NDArray[Any]) -> NDArray[Any]:
        if (context[:, 0, 0] == 666).any():
            raise self.error
        return super().__call__(x, timestep, context)


class NotFinite(RowwiseDenoiser):
    """Returns NaN for rows whose context starts with 666."""

    def __call__(self, x: NDArray[Any], timestep: NDArray[Any], context: NDArray[Any]) -> NDArray[Any]:
        out = super().__call__(x, timestep, context)
        return np.where((context[:, 0, 0] == 666)[:, None, None, None], np.float32(np.nan), out)


def sd_ladder_config(**changes: Any) -> dict[str, Any]:
    """The scheduler_config.json of Stable Diffusion 1.5, with changes."""
    return {
        "_class_name": "PNDMScheduler",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "num_train_timesteps": 1000,
        "prediction_type": "epsilon",
        "set_alpha_to_one": False,
        "steps_offset": 1,
        "timestep_spacing": "leading",
    } | changes


def schedule_options(schedule: str, steps: int) -> dict[str, list[float]]:
    """What a schedule must be given: `custom` its sigmas, each 0.7 of the one before, or more where there are many, then zero."""
    ratio = max(0.7, 0.001 ** (1.0 / steps))
    return {"sigmas": [14.0 * ratio**i for i in range(steps)] + [0.0]} if schedule == "custom" else {}
