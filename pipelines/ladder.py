"""Ladder: the noise levels that a model was trained on, read from a diffusers scheduler_config.json."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
SPACINGS = ("leading", "trailing", "linspace")
ZERO_SNR_CAP = 2.0**-24  # what diffusers writes in place of a terminal alpha-bar of zero

Float = NDArray[np.float64]
Float32 = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Ladder:
    """The training levels x = sqrt(a) * x0 + sqrt(1 - a) * noise, a = alphas_cumprod[t], and how the model answers.

    Equal content compares and hashes equal. Tables are kept in the float32 that diffusers computes with.
    """

    alphas_cumprod: Float  # [T], falling; exactly 0 at the end when zero_snr
    prediction_type: str = "epsilon"
    spacing: str | None = None  # of SPACINGS; None: the checkpoint does not say, each sampler has its own default
    steps_offset: int = 0
    final_alpha_one: bool = True  # DDIM ends at alpha = 1 rather than at the first training level
    zero_snr: bool = False
    squared_cosine: bool = False  # diffusers' DPM-Solver treats fractional timesteps differently on this ladder

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Ladder:
        """From a scheduler_config.json; missing entries take the defaults of diffusers' DDIMScheduler.

        Raises ValueError for a beta schedule, prediction type or spacing that is not known, and for an epsilon model
        with zero terminal SNR (its first step would divide by alpha = 0).
        """
        alphas_cumprod = _alphas_cumprod(config)
        zero_snr = bool(alphas_cumprod[-1] == 0.0)
        prediction_type = config.get("prediction_type") or "epsilon"
        spacing = config.get("timestep_spacing")
        if prediction_type not in PREDICTION_TYPES:
            raise ValueError(f"prediction_type {prediction_type!r} is not one of {', '.join(PREDICTION_TYPES)}")
        if spacing is not None and spacing not in SPACINGS:
            raise ValueError(f"timestep_spacing {spacing!r} is not one of {', '.join(SPACINGS)}")
        if zero_snr and prediction_type == "epsilon":
            raise ValueError("a model that predicts epsilon cannot have zero terminal SNR: at alpha = 0 noise says nothing of the picture")
        return cls(
            alphas_cumprod=alphas_cumprod.astype(np.float64),
            prediction_type=prediction_type,
            spacing=spacing,
            steps_offset=int(config.get("steps_offset", 0)),
            final_alpha_one=bool(config.get("set_alpha_to_one", True)),
            zero_snr=zero_snr,
            squared_cosine=config.get("beta_schedule") == "squaredcos_cap_v2",
        )

    def __len__(self) -> int:
        """Training timesteps."""
        return len(self.alphas_cumprod)

    @cached_property
    def capped(self) -> Float:
        """[T] alphas_cumprod without its zero, for samplers that divide by alpha."""
        return np.asarray(np.where(self.alphas_cumprod == 0.0, ZERO_SNR_CAP, self.alphas_cumprod), dtype=np.float64)

    @cached_property
    def ratios(self) -> Float:
        """[T] sigma/alpha, rising; the sigma of k-diffusion and of diffusers' Euler family. Finite."""
        a = self.capped.astype(np.float32)
        return np.asarray(np.sqrt((np.float32(1.0) - a) / a), dtype=np.float64)

    @cached_property
    def _log_ratios(self) -> Float:
        # float32 logarithms, because diffusers cuts some timesteps down to whole numbers: a last digit can decide
        return np.log(self.ratios.astype(np.float32)).astype(np.float64)

    def ratio_at(self, timestep: Float) -> Float:
        """sigma/alpha at fractional timesteps, linear between training levels as in diffusers."""
        return np.asarray(np.interp(timestep, np.arange(len(self)), self.ratios), dtype=np.float64)

    def timestep_at(self, ratio: Float) -> Float:
        """Fractional timesteps of these sigma/alpha: linear in logSNR between training levels, kept within the ladder."""
        logs, x = self._log_ratios, np.log(ratio)
        low = np.clip(np.searchsorted(logs, x, side="right") - 1, 0, len(self) - 2)
        weight = np.clip((logs[low] - x) / (logs[low] - logs[low + 1]), 0.0, 1.0)
        return np.asarray((1 - weight) * low + weight * (low + 1), dtype=np.float64)

    @cached_property
    def _key(self) -> tuple[object, ...]:
        rest = (self.prediction_type, self.spacing, self.steps_offset, self.final_alpha_one, self.zero_snr, self.squared_cosine)
        return (self.alphas_cumprod.tobytes(), *rest)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Ladder) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)


def _alphas_cumprod(config: Mapping[str, Any]) -> Float32:
    betas = _betas(config)
    if config.get("rescale_betas_zero_snr"):
        betas = _rescaled_to_zero_snr(betas)
    return _cumprod(np.float32(1.0) - betas)


def _betas(config: Mapping[str, Any]) -> Float32:
    schedule, steps = config.get("beta_schedule", "linear"), int(config.get("num_train_timesteps", 1000))
    start, end = float(config.get("beta_start", 0.0001)), float(config.get("beta_end", 0.02))
    if config.get("trained_betas") is not None:
        return np.asarray(config["trained_betas"], dtype=np.float32)
    if schedule == "linear":
        return _linspace(start, end, steps)
    if schedule == "scaled_linear":
        return np.square(_linspace(start**0.5, end**0.5, steps))
    if schedule == "squaredcos_cap_v2":
        bar = [math.cos((i / steps + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(steps + 1)]
        return np.array([min(1 - b / a, 0.999) for a, b in pairwise(bar)], dtype=np.float32)
    raise ValueError(f"beta_schedule {schedule!r} is not one of linear, scaled_linear, squaredcos_cap_v2")


def _rescaled_to_zero_snr(betas: Float32) -> Float32:
    """Algorithm 1 of arXiv 2305.08891: sqrt(alpha-bar) is shifted to end at 0 and scaled to start where it did."""
    root = np.sqrt(_cumprod(np.float32(1.0) - betas))
    scale = root[0] / (root[0] - root[-1])
    bar = np.square((root - root[-1]) * scale)
    return np.asarray(np.float32(1.0) - np.concatenate([bar[:1], bar[1:] / bar[:-1]]), dtype=np.float32)


def _cumprod(alphas: Float32) -> Float32:
    return np.cumprod(alphas.astype(np.float64)).astype(np.float32)  # torch accumulates in double, stores float32


def _linspace(start: float, end: float, steps: int) -> Float32:
    """torch.linspace in float32: from both ends to the middle, each product and sum rounded once (fused)."""
    first, last = np.float32(start), np.float32(end)
    step = np.float64((last - first) / np.float32(steps - 1))
    i = np.arange(steps, dtype=np.float64)
    return np.where(i < steps // 2, first + step * i, last - step * (steps - 1 - i)).astype(np.float32)
