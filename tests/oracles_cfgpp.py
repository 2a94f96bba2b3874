"""CFG++ loops in sigma space, written from arXiv 2406.08070 and from ComfyUI's published formulas.

`denoise(x, sigma)` returns the guided denoised D and the unguided one U.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

from oracles_stages import Draw, split
from pipelines.ladder import Float

Both = Callable[[Float, float], tuple[Float, Float]]


def euler_a_cfgpp(denoise: Both, x: Float, sigmas: Sequence[float], draw: Draw, eta: float = 1.0, s_noise: float = 1.0) -> Float:
    """Tweedie with the guided noise, renoising with the unguided one."""
    for s, t in pairwise(sigmas):
        D, U = denoise(x, s)
        epsilon = (x - U) / s
        down, up = split(s, t, eta)
        x = D + down * epsilon
        if up * s_noise > 0:
            x = x + up * s_noise * draw()
    return x


def euler_cfgpp(denoise: Both, x: Float, sigmas: Sequence[float], draw: Draw) -> Float:
    return euler_a_cfgpp(denoise, x, sigmas, draw, eta=0.0)


def dpmpp_2m_cfgpp(denoise: Both, x: Float, sigmas: Sequence[float], draw: Draw) -> Float:
    """x' = D - e^-h U + [(1 - e^-h) (D - U_old) / 2r] + e^-h x, t = -log sigma."""
    old = None
    for i in range(len(sigmas) - 1):
        D, U = denoise(x, sigmas[i])
        if sigmas[i + 1] == 0:
            return D
        t_last, t, t_next = (-math.log(s) for s in (sigmas[max(i - 1, 0)], sigmas[i], sigmas[i + 1]))
        fade = math.exp(t - t_next)
        mix = -fade * U
        if old is not None:
            mix = mix + (1 - fade) * (D - old) * (t_next - t) / (2 * (t - t_last))
        x = D + mix + fade * x
        old = U
    return x


def dpmpp_2s_a_cfgpp(denoise: Both, x: Float, sigmas: Sequence[float], draw: Draw, eta: float = 1.0, s_noise: float = 1.0) -> Float:
    """The two stages of 2S from the point x + D - U."""
    for s, t in pairwise(sigmas):
        D, U = denoise(x, s)
        down, up = split(s, t, eta)
        if down == 0:
            x = D
        else:
            h = math.log(s) - math.log(down)
            base = x + D - U
            middle = math.exp(math.log(s) - h / 2)
            D2, _ = denoise(middle / s * base - math.expm1(-h / 2) * D, middle)
            x = down / s * base - math.expm1(-h) * D2
        if up * s_noise > 0:
            x = x + up * s_noise * draw()
    return x


def res_multistep_ancestral_cfgpp(
    denoise: Both, x: Float, sigmas: Sequence[float], draw: Draw, eta: float = 1.0, s_noise: float = 1.0
) -> Float:
    """RES over U from the point x + D - U; the first step and the last are Euler's."""
    old = old_down = None
    for i in range(len(sigmas) - 1):
        D, U = denoise(x, sigmas[i])
        down, up = split(sigmas[i], sigmas[i + 1], eta)
        if old is None or down == 0:
            x = D + down * (x - U) / sigmas[i]
        else:
            h = math.log(sigmas[i] / down)
            c2 = math.log(old_down / sigmas[i - 1]) / h
            phi1 = math.expm1(-h) / -h
            phi2 = (phi1 - 1) / -h
            x = math.exp(-h) * (x + D - U) + h * ((phi1 - phi2 / c2) * U + phi2 / c2 * old)
        if up * s_noise > 0:
            x = x + up * s_noise * draw()
        old, old_down = U, down
    return x


def res_multistep_cfgpp(denoise: Both, x: Float, sigmas: Sequence[float], draw: Draw) -> Float:
    return res_multistep_ancestral_cfgpp(denoise, x, sigmas, draw, eta=0.0)


def gradient_estimation_cfgpp(denoise: Both, x: Float, sigmas: Sequence[float], draw: Draw, gamma: float = 2.0) -> Float:
    old = None
    for s, t in pairwise(sigmas):
        D, U = denoise(x, s)
        d = (x - U) / s
        if t == 0:
            return D
        x = D + t * d + (0 if old is None else (t - s) * (gamma - 1) * (d - old))
        old = d
    return x
