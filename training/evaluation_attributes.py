"""Does a picture show what was asked? Shares of right answers with intervals, between the floor and the ceiling of the judge."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from training.compositor import Compositor, Scene
from training.judge import Answers, Judge, answers, count_of
from training.measures import interval
from training.scene_sets import plain_wording, renders

ASKED = ("thing", "thing in top 5", "style", "count", "count by components", "background", "colour")
SEED, NEXT = 1000, 100_000  # of the first picture, and how far the seeds of the repetitions lie apart
RENDERS, TRUSTED = 5_000_011, 5_000_012  # seeds of fresh renders


class Draws(Protocol):
    """Pictures [n, h, w, 3] uint8 of prompts; picture i has seed `seed + i`."""

    def draw(self, prompts: list[str], seed: int) -> np.ndarray: ...


def trusted(compositor: Compositor, scenes: Sequence[Scene]) -> np.ndarray:
    """Where a render of the scene is counted right by components [n]: some things are of several parts, or white on white."""
    pictures = renders(compositor, list(scenes), TRUSTED)
    return np.array([count_of(picture) == scene.count for picture, scene in zip(pictures, scenes, strict=True)])


def shares(found: Sequence[Answers]) -> dict[str, object]:
    """Each question's [share, low, high] over the answers of several seeds."""
    out: dict[str, object] = {"scenes": len(found[0]["thing"]), "pictures": sum(len(f["thing"]) for f in found)}
    for name in ASKED:
        table = np.stack([f[name] for f in found], 1)  # [scenes, seeds]
        asked = table[~np.isnan(table).any(1)]
        if len(asked):
            out[name] = list(interval(asked))
    return out


def attributes(studio: Draws, compositor: Compositor, judge: Judge, sets: dict[str, list[Scene]], seeds: int) -> dict[str, object]:
    """Shares of every set; of those that training showed together, and of those held out.

    "ceiling" is fresh renders of all scenes, "floor" the drawn pictures against each other's prompts.
    """
    rng = np.random.default_rng(0)
    everything = [scene for scenes in sets.values() for scene in scenes]
    pictures = []
    for k in range(seeds):
        drawn = [studio.draw([plain_wording(s) for s in scenes], SEED + k * NEXT) for scenes in sets.values()]
        pictures.append(np.concatenate(drawn))
    fit = trusted(compositor, everything)

    def judged(shown: np.ndarray, scenes: list[Scene], countable: np.ndarray) -> Answers:
        found = answers(judge, shown, scenes)
        found["count by components"][~countable] = np.nan
        return found

    found = [judged(shown, everything, fit) for shown in pictures]
    fresh = judged(renders(compositor, everything, RENDERS), everything, fit)
    order = rng.permutation(len(everything))
    shuffled = judged(pictures[0], [everything[i] for i in order], fit[order])
    ends = np.cumsum([len(scenes) for scenes in sets.values()])
    rows = {name: np.arange(end - len(sets[name]), end) for name, end in zip(sets, ends, strict=True)}
    held_out = np.array(["held out" in name for name in sets]).repeat([len(scenes) for scenes in sets.values()])
    rows |= {"*all that training showed*": np.flatnonzero(~held_out), "*all held out*": np.flatnonzero(held_out)}
    rows = {name: row for name, row in rows.items() if len(row)}
    return {
        "seeds": seeds,
        "sets": {name: shares([{k: v[row] for k, v in f.items()} for f in found]) for name, row in rows.items()},
        "ceiling of each set": {name: shares([{k: v[row] for k, v in fresh.items()}]) for name, row in rows.items()},
        "ceiling": shares([fresh]),
        "floor": shares([shuffled]),
    }
