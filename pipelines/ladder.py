"""Ladder: the noise levels that a model was trained on, read from a diffusers scheduler_config.json."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.config_bounds import within

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
NORMALIZATIONS = (None, "closed", "measured")
SPACINGS = ("leading", "trailing", "linspace")
ZERO_SNR_CAP = 2.0**-24  # what diffusers writes in place of a terminal alpha-bar of zero

Float = NDArray[np.float64]
Float32 = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Ladder:
    """The levels that a model was trained on, in which space they live, and how the model answers.

    `space` says what x = alpha * x0 + sigma * noise is: "vp" has alpha^2 + sigma^2 = 1, "flow" alpha + sigma = 1 (rectified
    flow), "edm" alpha = 1. In each, a = alphas_cumprod[t] is alpha^2 / (alpha^2 + sigma^2), the share of signal power.
    Equal content compares and hashes equal. Tables are kept in the float32 that diffusers computes with.
    """

    alphas_cumprod: Float  # [T], falling; exactly 0 at the end when zero_snr
    prediction_type: str = "epsilon"
    spacing: str | None = None  # of SPACINGS; None: the checkpoint does not say, each sampler has its own default
    steps_offset: int = 0
    final_alpha_one: bool = True  # DDIM ends at alpha = 1 rather than at the first training level
    zero_snr: bool = False
    squared_cosine: bool = False  # diffusers' DPM-Solver treats fractional timesteps differently on this ladder
    space: str = "vp"
    shift: float = 1.0  # of a flow ladder: sigma = s t / (1 + (s - 1) t)
    sigma_data: float = 1.0  # of an EDM model
    input_scale: float = 1.0  # b of arXiv 2301.10972; alphas_cumprod hold it already, as a shift of logSNR
    normalize: str | None = None  # what the network sees is x (None), x over its known deviation, or over its measured one

    @classmethod
    def from_config(cls, config: Mapping[str, Any], *, input_scale: float = 1.0, normalize: str | None = None) -> Ladder:
        """From a scheduler_config.json; missing entries take the defaults of diffusers' DDIMScheduler.

        `input_scale` and `normalize` are those of training by algorithm 2 of arXiv 2301.10972.
        Raises ValueError for a beta schedule, prediction type or spacing that is not known, and for an epsilon model
        with zero terminal SNR (its first step would divide by alpha = 0).
        """
        kind = str(config.get("_class_name", ""))
        flow = kind.startswith("FlowMatch") or config.get("prediction_type") == "flow_prediction"
        if flow or kind.startswith("EDM"):
            if input_scale != 1.0 or normalize is not None:
                raise ValueError("input_scale and normalize belong to variance-preserving models")
            return _flow(config) if flow else _edm(config)
        if not within(input_scale, 1e-3, 1e3):
            raise ValueError(f"input_scale must be a number from 0.001 to 1000, not {input_scale!r}")
        if normalize not in NORMALIZATIONS:
            raise ValueError(f"normalize must be closed, measured or null, not {normalize!r}")
        alphas_cumprod = _scaled(_alphas_cumprod(config).astype(np.float64), input_scale)
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
            alphas_cumprod=alphas_cumprod,
            prediction_type=prediction_type,
            spacing=spacing,
            steps_offset=int(config.get("steps_offset", 0)),
            final_alpha_one=bool(config.get("set_alpha_to_one", True)),
            zero_snr=zero_snr,
            squared_cosine=config.get("beta_schedule") == "squaredcos_cap_v2",
            input_scale=float(input_scale),
            normalize=normalize,
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
        if self.space != "vp" or self.input_scale != 1.0:
            return np.asarray(np.sqrt((1.0 - self.capped) / self.capped), dtype=np.float64)
        a = self.capped.astype(np.float32)  # in diffusers' precision; in the others, 1 - a is too small for it
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

    def alpha_sigma(self, gamma: Float) -> tuple[Float, Float]:
        """alpha and sigma of this space at a share of signal power."""
        alpha, sigma = np.sqrt(gamma), np.sqrt(1.0 - gamma)
        scale = {"vp": np.ones_like(alpha), "flow": alpha + sigma, "edm": alpha}[self.space]
        return alpha / scale, sigma / scale

    def unit(self, sigma: float) -> float:
        """The deviation of x at a level, for x0 of unit variance: 1 where it is preserved, as diffusers has it elsewhere."""
        return math.sqrt(1.0 + sigma**2) if self.space == "edm" else 1.0

    def told(self, timestep: Float, sigma: Float) -> Float:
        """What the model is told of levels at these positions on the ladder: the position, T sigma, or ln(sigma) / 4."""
        if self.space == "flow":
            return len(self) * sigma
        return 0.25 * np.log(sigma) if self.space == "edm" else timestep

    @cached_property
    def _key(self) -> tuple[object, ...]:
        return tuple(value.tobytes() if isinstance(value := getattr(self, f.name), np.ndarray) else value for f in fields(self))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Ladder) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)


def _scaled(a: Float, b: float) -> Float:
    """logSNR + 2 ln b: x = sqrt(a) b x0 + sqrt(1 - a) noise over its deviation (arXiv 2301.10972, section 2.2)."""
    return a if b == 1.0 else b * b * a / ((b * b - 1.0) * a + 1.0)


def _flow(config: Mapping[str, Any]) -> Ladder:
    """Rectified flow, arXiv 2209.03003, as FlowMatchEulerDiscreteScheduler trains and shifts it: sigma = t, told as T t."""
    if config.get("use_dynamic_shifting") or config.get("invert_sigmas"):
        raise ValueError("a flow model whose levels depend on the picture's size, or run backwards, cannot run here")
    total, shift = int(config.get("num_train_timesteps", 1000)), config.get("shift", config.get("flow_shift", 1.0)) or 1.0
    if not within(shift, 1e-3, 1e3):
        raise ValueError(f"shift must be a number from 0.001 to 1000, not {shift!r}")
    t = np.arange(1, total + 1) / total
    sigma = shift * t / (1.0 + (shift - 1.0) * t)
    return Ladder((1.0 - sigma) ** 2 / ((1.0 - sigma) ** 2 + sigma**2), "flow", zero_snr=True, space="flow", shift=float(shift))


def _edm(config: Mapping[str, Any]) -> Ladder:
    """arXiv 2206.00364, table 1: any sigma between two ends, here in even steps of ln(sigma), told as ln(sigma) / 4."""
    prediction_type = config.get("prediction_type", "epsilon")
    if prediction_type not in ("epsilon", "v_prediction"):
        raise ValueError(f"an EDM model predicts epsilon or v_prediction, not {prediction_type!r}")
    low, high, data = config.get("sigma_min", 0.002), config.get("sigma_max", 80.0), config.get("sigma_data", 0.5)
    if not all(within(sigma, 1e-5, 1e5) for sigma in (low, high, data)) or low >= high:
        raise ValueError(f"sigma_min {low!r}, sigma_max {high!r} and sigma_data {data!r} are no two ends and a deviation from 1e-5 to 1e5")
    ratio = np.exp(np.linspace(np.log(low), np.log(high), int(config.get("num_train_timesteps", 1000))))
    return Ladder(1.0 / (1.0 + ratio**2), prediction_type, space="edm", sigma_data=float(data))


def _alphas_cumprod(config: Mapping[str, Any]) -> Float32:
    betas = _betas(config)
    found = _cumprod(np.float32(1.0) - betas)
    if not (found[0] < 1.0 and (np.diff(found) < 0.0).all()):
        raise ValueError("the betas are so small or so large that levels are equal, or have no noise")
    return _cumprod(np.float32(1.0) - _rescaled_to_zero_snr(betas)) if config.get("rescale_betas_zero_snr") else found


def _betas(config: Mapping[str, Any]) -> Float32:
    schedule, steps = config.get("beta_schedule", "linear"), int(config.get("num_train_timesteps", 1000))
    start, end, trained = config.get("beta_start", 0.0001), config.get("beta_end", 0.02), config.get("trained_betas")
    for beta in (start, end, *(trained or ())):
        if not within(beta, 0.0, 1.0):
            raise ValueError(f"a beta is a number from 0 to 1, not {beta!r}")
    if trained is not None:
        if len(trained) < 2:
            raise ValueError("one trained beta makes no ladder")
        return np.asarray(trained, dtype=np.float32)
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
