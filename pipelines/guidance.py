"""Guidance: from the raw outputs of a row to one raw output, for a whole batch at once; docs/guidance.md has the formulas.

It combines raw model outputs, before they become `denoised`, as diffusers does; APG alone works on the denoised estimates,
as its paper does, and gives the raw output that leads there. Scale 1 is off. One short function per variant, over those
rows of the batch that ask for it. Sums over a picture go by halves (`_dot`), so that a row's bits depend on no neighbour.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from types import ModuleType
from typing import Any

from pipelines.guidance_plan import COLUMNS

Array = Any  # numpy or torch, through the array API

TINY = 1e-30  # in place of a zero that would be divided by
FLAT = 1e-12  # the same of sums of squares of a whole latent, which divided by TINY might be no float32


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """What guidance knows of S rows. D numbers make one latent."""

    cond: Array  # [S, D] raw output
    uncond: Array  # [S, D] raw output; `cond` again where the row is not guided
    perturbed: Array | None  # [S, D] raw output, `cond` again where the row has none; None where no row has one
    x: Array  # [S, D]
    c_skip: Array  # [S, 1]
    c_out: Array  # [S, 1]
    columns: Array  # [S, 6], those of a Plan
    average: Array | None  # [S, D], what APG's momentum keeps of earlier rows; None where no row has momentum

    def column(self, name: str) -> Array:
        """[S, 1]"""
        i = COLUMNS.index(name)
        return self.columns[:, i : i + 1]

    def take(self, xp: ModuleType, index: Array) -> Rows:
        """Some of the rows, copied."""
        all = (getattr(self, field.name) for field in fields(self))
        return Rows(*(None if a is None else xp.take(a, index, axis=0) for a in all))


def combine(
    xp: ModuleType, rows: Rows, variants: Sequence[str], *, unguided: bool = True, pulled: bool = True
) -> tuple[Array, Array | None]:
    """The guided raw output [S, D], and the next average. `variants` names that of each row.

    Whether any row may be unguided (scale 1), and whether any may be rescaled, its caller knows without asking the device.
    """
    if rows.average is not None:
        rows = replace(rows, average=remembered(xp, rows))
    guided = cfg(xp, rows, unguided=unguided)
    for variant in sorted(set(variants) - {"cfg"}):
        index = xp.asarray([i for i, v in enumerate(variants) if v == variant], dtype=xp.int64, device=rows.x.device)
        guided[index] = VARIANTS[variant](xp, rows.take(xp, index))
    guided = away(xp, guided, rows)
    return rescaled(xp, guided, rows) if pulled else guided, rows.average


def cfg(xp: ModuleType, rows: Rows, *, unguided: bool = True) -> Array:
    """u + s (c - u): arXiv 2207.12598, equation 6."""
    scale = rows.column("scale")
    guided = rows.cond - rows.uncond
    guided *= scale
    guided += rows.uncond
    return xp.where(scale == 1, rows.cond, guided) if unguided else guided  # exactly off, without rounding


def zero_star(xp: ModuleType, rows: Rows) -> Array:
    """CFG-Zero*, arXiv 2503.18886, equation 8: u is scaled to lie as near to c as it can, a u with a = <c, u> / <u, u>."""
    best = _dot(xp, rows.cond, rows.uncond) / (_dot(xp, rows.uncond, rows.uncond) + 1e-8)
    return cfg(xp, replace(rows, uncond=best * rows.uncond))


def zero(xp: ModuleType, rows: Rows) -> Array:
    """The first steps of CFG-Zero*, section 4.2 of the same paper: the model is not listened to yet."""
    return xp.zeros_like(rows.cond)


def tcfg(xp: ModuleType, rows: Rows) -> Array:
    """Tangential CFG, arXiv 2503.18137, algorithm 1: u keeps its part along the first right singular vector of [c, u].

    That vector is p c + q u, where (p, q) is the first eigenvector of the 2 x 2 matrix of their products.
    """
    c, u = rows.cond, rows.uncond
    cc, cu, uu = _dot(xp, c, c), _dot(xp, c, u), _dot(xp, u, u)  # [S, 1]
    half = (cc - uu) / 2
    root = xp.sqrt(half * half + cu * cu)
    p = xp.where(half >= 0, half + root, cu)
    q = xp.where(half >= 0, cu, root - half)
    axis = p * c + q * u
    along = _dot(xp, u, axis) / xp.where(root > 0, _dot(xp, axis, axis), 1)  # two equal singular values name no first one
    return cfg(xp, replace(rows, uncond=xp.where(root > 0, along * axis, u)))


def remembered(xp: ModuleType, rows: Rows) -> Array:
    """The average of D_c - D_u over the rows so far, where there is momentum: arXiv 2410.02416, equation 9."""
    momentum = rows.column("momentum")
    return xp.where(momentum != 0, _difference(rows) + momentum * rows.average, rows.average)


def apg(xp: ModuleType, rows: Rows) -> Array:
    """Adaptive projected guidance, arXiv 2410.02416, algorithm 1, in denoised space.

    D_c + (s - 1) (across + eta along), where the shortened D_c - D_u is split by the direction of D_c.
    """
    delta = _difference(rows)
    if rows.average is not None:
        delta = xp.where(rows.column("momentum") != 0, rows.average, delta)
    threshold = rows.column("norm_threshold")
    shorter = threshold / xp.sqrt(_dot(xp, delta, delta) + TINY)
    delta = xp.where((threshold > 0) & (shorter < 1), shorter * delta, delta)
    clean = rows.c_skip * rows.x + rows.c_out * rows.cond
    along = _dot(xp, delta, clean) / (_dot(xp, clean, clean) + TINY) * clean
    update = (delta - along) + rows.column("eta") * along
    return rows.cond + (rows.column("scale") - 1) * update / rows.c_out


def away(xp: ModuleType, guided: Array, rows: Rows) -> Array:
    """w (c - p) more, where p is the disturbed output: arXiv 2403.17377, equation 15; arXiv 2408.00760."""
    if rows.perturbed is None:
        return guided
    weight = rows.column("perturbed")
    return xp.where(weight != 0, guided + weight * (rows.cond - rows.perturbed), guided)


def rescaled(xp: ModuleType, guided: Array, rows: Rows) -> Array:
    """The standard deviation pulled back to that of the conditional output, as far as `rescale` says: arXiv 2305.08891, section 3.4."""
    width, rescale = guided.shape[1], rows.column("rescale")  # [S, 1]
    both = xp.concat([guided, rows.cond], axis=0)  # [2 S, D]
    both -= xp.sum(both, axis=1, keepdims=True) / width
    both *= both
    spread = xp.sum(both, axis=1, keepdims=True)  # [2 S, 1], of which only the ratio matters
    half = spread.shape[0] // 2
    ratio = (spread[half:] / (spread[:half] + FLAT)) ** 0.5  # [S, 1], finite where a row of variant `zero` has no deviation
    return guided * (1 + rescale * (ratio - 1))


VARIANTS: Mapping[str, Callable[[ModuleType, Rows], Array]] = {"apg": apg, "cfg_zero_star": zero_star, "tcfg": tcfg, "zero": zero}


def _difference(rows: Rows) -> Array:
    """D_c - D_u."""
    return rows.c_out * (rows.cond - rows.uncond)


def _dot(xp: ModuleType, a: Array, b: Array) -> Array:
    """Row sums of a b [S, 1], by halves: the same additions for a row, in whatever batch and on whatever device."""
    terms = a * b
    while (width := terms.shape[1]) > 1:
        half = width // 2
        folded = terms[:, :half] + terms[:, half : 2 * half]
        terms = folded if width % 2 == 0 else xp.concat([folded, terms[:, -1:]], axis=1)
    return terms
