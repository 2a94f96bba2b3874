"""gamma(t) of arXiv 2301.10972 (T. Chen, "On the Importance of Noise Scheduling for Diffusion Models"), its training side:
logSNR, the forward process with input scale b, and its variance normalisation.

gamma is the share of signal power: x_t = sqrt(gamma) * x0 + sqrt(1 - gamma) * noise.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pipelines.ladder import Float

CLIP_MIN = 1e-9  # algorithm 1


def gamma_simple_linear(t: Float, *, clip_min: float = CLIP_MIN) -> Float:
    """gamma = 1 - t, t in [0, 1] (arXiv 2301.10972, algorithm 1)."""
    return np.clip(1.0 - np.asarray(t, np.float64), clip_min, 1.0)


def gamma_cosine(t: Float, start: float = 0.0, end: float = 1.0, tau: float = 1.0, *, clip_min: float = CLIP_MIN) -> Float:
    """The piece from start to end of cos(u pi/2)^(2 tau), stretched to fall from 1 to 0 (algorithm 1)."""

    def v(u: Float) -> Float:
        return np.asarray(np.maximum(np.cos(u * np.pi / 2), 0.0) ** (2 * tau))

    return _stretched(v, np.asarray(t, np.float64), start, end, clip_min)


def gamma_sigmoid(t: Float, start: float = -3.0, end: float = 3.0, tau: float = 1.0, *, clip_min: float = CLIP_MIN) -> Float:
    """The piece from start to end of the logistic function of u / tau, stretched to fall from 1 to 0 (algorithm 1)."""

    def v(u: Float) -> Float:
        return np.asarray(1.0 / (1.0 + np.exp(u / tau)))  # mirrored, so that it falls; the stretch is the same

    return _stretched(v, np.asarray(t, np.float64), start, end, clip_min)


def _stretched(v: Callable[[Float], Float], t: Float, start: float, end: float, clip_min: float) -> Float:
    first, last = v(np.array(start)), v(np.array(end))
    return np.clip((v(t * (end - start) + start) - last) / (first - last), clip_min, 1.0)


def logsnr(gamma: Float) -> Float:
    """ln(gamma / (1 - gamma)); infinite at 0 and 1."""
    gamma = np.asarray(gamma, np.float64)
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(gamma) - np.log1p(-gamma))


def deviation(gamma: Float, b: float = 1.0) -> Float:
    """Standard deviation of x_t for x0 of unit variance: sqrt(b^2 gamma + 1 - gamma) = sqrt((b^2 - 1) gamma + 1)."""
    return np.sqrt((b * b - 1.0) * np.asarray(gamma) + 1.0)


def forward_process(x0: Float, noise: Float, gamma: Float, b: float = 1.0, *, normalize: bool = False) -> Float:
    """x_t = sqrt(gamma) * b * x0 + sqrt(1 - gamma) * noise (algorithm 2); gamma broadcasts against x0.

    normalize divides by `deviation`, so that the network sees unit variance whatever b is. Then b is a shift of
    logSNR by 2 ln(b), exactly.
    """
    gamma = np.asarray(gamma)
    x_t = np.sqrt(gamma) * b * x0 + np.sqrt(1.0 - gamma) * noise
    return np.asarray(x_t / deviation(gamma, b) if normalize else x_t)
