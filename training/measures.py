"""Measures of pictures and of sets of pictures, in numpy: each is a formula of its paper, and a test holds it to a closed form."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Z = 1.959964  # of the normal distribution at 97.5 %


def psnr(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratio of each pair of pictures [n, h, w, 3] uint8, in dB. Raises ValueError for equal ones."""
    error = np.square(a.astype(np.float64) - b.astype(np.float64)).reshape(len(a), -1).mean(1)
    if not error.all():
        raise ValueError("equal pictures have no finite PSNR")
    return 10 * np.log10(255**2 / error)


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    """|mean difference|^2 + tr(A + B - 2 (A B)^1/2) of the normal distributions fitted to two sets of features [n, d], [m, d].

    Dowson and Landau 1982, equation 16. The last trace is the nuclear norm of the product of square roots of the covariances, which
    stays exact where fewer pictures than features leave these singular.
    """
    roots = [np.linalg.qr((x - x.mean(0)) / np.sqrt(len(x) - 1), mode="r") for x in (a.astype(np.float64), b.astype(np.float64))]
    mixed = np.linalg.svd(roots[0] @ roots[1].T, compute_uv=False).sum()
    shift = np.square(a.mean(0, dtype=np.float64) - b.mean(0, dtype=np.float64)).sum()
    return float(shift + sum(np.square(root).sum() for root in roots) - 2 * mixed)


def distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Euclidean distances [n, m] of the rows of two arrays."""
    a, b = a.astype(np.float32), b.astype(np.float32)
    squares = np.square(a).sum(1)[:, None] + np.square(b).sum(1)[None] - 2 * a @ b.T
    return np.sqrt(np.maximum(squares, 0))


def covered(points: np.ndarray, cloud: np.ndarray, k: int = 3) -> float:
    """The share of points that lie within the k-th neighbour's distance of some point of the cloud: equation 1 below."""
    inside = distances(cloud, cloud)
    np.fill_diagonal(inside, 0)  # exactly: the subtraction above leaves some rounding
    radius = np.sort(inside, axis=1)[:, k]  # column 0 is the point itself
    return float((distances(points, cloud) <= radius[None]).any(1).mean())


def precision_recall(real: np.ndarray, drawn: np.ndarray, k: int = 3) -> tuple[float, float]:
    """Improved precision (drawn pictures that look real) and recall (real ones that could be drawn).

    Kynkaanniemi et al. 2019, arXiv 1904.06991, equation 2, on features [n, d] and [m, d].
    """
    return covered(drawn, real, k), covered(real, drawn, k)


def nearest(points: np.ndarray, cloud: np.ndarray, chunk: int = 2000) -> tuple[np.ndarray, np.ndarray]:
    """Distance of each point [n, d] to the nearest of a large cloud [m, d], and that one's row."""
    best, row = np.full(len(points), np.inf, np.float32), np.zeros(len(points), np.int64)
    for start in range(0, len(cloud), chunk):
        found = distances(points, cloud[start : start + chunk])
        at = found.argmin(1)
        value = found[np.arange(len(points)), at]
        row = np.where(value < best, start + at, row)
        best = np.minimum(best, value)
    return best, row


def interval(correct: np.ndarray) -> tuple[float, float, float]:
    """Share and 95 % interval of right answers [scenes, seeds] of 0 and 1.

    Wilson's score interval (1927) with the effective number of answers of Korn and Graubard (1998): those of one scene resemble each
    other, so the number is p (1 - p) divided by the variance of the scenes' means, at least one a scene and at most one a picture.
    """
    scenes, p = len(correct), float(correct.mean())
    between = correct.mean(1).var(ddof=1) / scenes if scenes > 1 else 0.0
    n = float(np.clip(p * (1 - p) / between, scenes, correct.size)) if between > 0 else float(scenes)
    middle, half = p + Z**2 / (2 * n), Z * np.sqrt(p * (1 - p) / n + Z**2 / (4 * n**2))
    low, high = ((middle + sign * half) / (1 + Z**2 / n) for sign in (-1, 1))
    return p, min(p, max(0.0, float(low))), max(p, min(1.0, float(high)))  # rounding may leave them a hair outside


def equal_weights(shares: Sequence[Sequence[float]]) -> tuple[float, float, float]:
    """Mean and 95 % interval of independent shares (share, low, high), each as heavy as any other.

    The distances to the bounds add up as standard errors do: Zou, Huang and Zhang 2009, a linear function of binomial proportions.
    """
    p, low, high = np.asarray(shares, dtype=np.float64).T
    mean = float(p.mean())
    return mean, mean - float(np.linalg.norm(p - low)) / len(p), mean + float(np.linalg.norm(high - p)) / len(p)


def mean_interval(values: np.ndarray) -> tuple[float, float, float]:
    """Mean and 95 % interval of independent figures [n], by the normal distribution."""
    half = Z * float(values.std(ddof=1)) / np.sqrt(len(values))
    return float(values.mean()), float(values.mean() - half), float(values.mean() + half)
