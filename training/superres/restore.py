"""A variant at work: small pictures to large ones, in any number of steps, one sample or the mean of several."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from pipelines.superres import draw
from training.machine import CPU, Machine
from training.superres.train import Restorer, as_numbers

Turn = tuple[int, bool]  # quarters of a circle, and whether mirrored

BLOCK = 500  # pictures at once
TURNS: tuple[Turn, ...] = tuple((quarters, mirrored) for mirrored in (False, True) for quarters in range(4))


def pixels(pictures: torch.Tensor) -> np.ndarray:
    """[n, 3, h, w] in 0..1 -> [n, h, w, 3] uint8."""
    return (pictures.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).contiguous().numpy()


def sampled(model: Restorer, low: torch.Tensor, steps: int, rng: np.random.Generator, machine: Machine = CPU) -> torch.Tensor:
    """One picture for each small one, [n, 3, 2h, 2w] in 0..1."""
    variant, shape = model.variant, (len(low), 12, *low.shape[2:])

    def fresh() -> torch.Tensor:
        return machine.on(torch.from_numpy(rng.standard_normal(shape, dtype=np.float32)))

    with torch.no_grad(), machine.autocast():
        first = model.first(low)
        found = draw(model.raw, low, fresh(), steps, variant.schedule, variant.ladder, fresh if variant.fresh else None)
    return model.picture(low, first + found)


def turned(pictures: torch.Tensor, turn: Turn) -> torch.Tensor:
    """[..., h, w] by quarters of a circle, then mirrored or not."""
    quarters, mirrored = turn
    found = torch.rot90(pictures, quarters, (-2, -1))
    return found.flip(-1) if mirrored else found


def turned_back(pictures: torch.Tensor, turn: Turn) -> torch.Tensor:
    quarters, mirrored = turn
    return torch.rot90(pictures.flip(-1) if mirrored else pictures, -quarters, (-2, -1))


def restored(
    model: Restorer, low: np.ndarray, steps: int, turns: Sequence[Turn] = TURNS, seed: int = 0, machine: Machine = CPU
) -> tuple[np.ndarray, np.ndarray]:
    """The first sample and the mean of all for small pictures [n, h, w, 3]: two of [n, 2h, 2w, 3] uint8.

    Every sample is of the picture turned in another way, and turned back (self-ensemble: arXiv 1511.02228, section 3.4).
    """
    singles, means = [], []
    for start in range(0, len(low), BLOCK):
        rng = np.random.default_rng((seed, start))
        block = machine.on(as_numbers(low[start : start + BLOCK]))
        drawn = [turned_back(sampled(model, turned(block, turn), steps, rng, machine), turn).cpu() for turn in turns]
        singles.append(pixels(drawn[0]))
        means.append(pixels(sum(drawn[1:], drawn[0]) / len(drawn)))
    return np.concatenate(singles), np.concatenate(means)
