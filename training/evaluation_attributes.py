"""Does a picture show what was asked? Shares of right answers with intervals, between the floor and the ceiling of the judge."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Protocol

import numpy as np

from training.compositor import Compositor, Scene
from training.evaluation_kept import Kept, mark
from training.judge import Answers, Judge, answers, count_of
from training.measures import equal_weights, interval
from training.scene_sets import plain_wording, renders

ASKED = ("thing", "thing in top 5", "style", "count", "count by components", "background", "colour")
QUESTIONS = (*ASKED, "certainty")  # of the judge
SEED, NEXT = 1000, 100_000  # of the first picture, and how far the seeds of the repetitions lie apart
RENDERS, TRUSTED = 5_000_011, 5_000_012  # seeds of fresh renders
JUDGED = 100  # pictures at a time
ALIKE = {"*all that training showed*": False, "*all held out*": True}  # rows of sets together


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


def weighed_equally(rows: dict[str, dict]) -> dict[str, dict]:
    """The means over the sets that training showed, and over those held out, each set as heavy as any other, however many its scenes."""
    found = {}
    for title, new in ALIKE.items():
        some = [row for name, row in rows.items() if name not in ALIKE and ("held out" in name) == new]
        if some:
            out = {part: sum(row[part] for row in some) for part in ("scenes", "pictures")}
            asked = {name: [row[name] for row in some if name in row] for name in ASKED}
            found[f"{title[:-1]}, sets weighed equally*"] = out | {name: list(equal_weights(s)) for name, s in asked.items() if s}
    return found


def judged(judge: Judge, shown: np.ndarray, scenes: list[Scene], countable: np.ndarray, kept: Kept) -> Answers:
    """The judge's answers, kept by part; components are asked for only where they can be counted."""
    of, found = mark(*(value.cpu().numpy() for value in judge.state_dict().values())), []
    for i in range(0, len(scenes), JUDGED):
        some, wanted = shown[i : i + JUDGED], scenes[i : i + JUDGED]
        table = partial(answer_table, judge, some, wanted)
        found.append(kept.array("answers", [of, mark(some), repr(wanted)], 0, table))
    out = dict(zip(QUESTIONS, np.concatenate(found, axis=1), strict=True))
    out["count by components"][~countable] = np.nan
    return out


def answer_table(judge: Judge, pictures: np.ndarray, scenes: list[Scene]) -> np.ndarray:
    """[questions, n]"""
    found = answers(judge, pictures, scenes)
    return np.stack([found[name] for name in QUESTIONS])


def attributes(
    studio: Draws, compositor: Compositor, judge: Judge, sets: dict[str, list[Scene]], seeds: int, kept: Kept
) -> dict[str, object]:
    """Shares of every set; of those that training showed together, and of those held out, by scenes and by sets.

    "ceiling" is fresh renders of all scenes, "floor" the drawn pictures against each other's prompts.
    """
    rng = np.random.default_rng(0)
    everything = [scene for scenes in sets.values() for scene in scenes]
    pictures = []
    for k in range(seeds):
        pictures.append(np.concatenate([studio.draw([plain_wording(s) for s in scenes], SEED + k * NEXT) for scenes in sets.values()]))
    fit = trusted(compositor, everything)
    found = [judged(judge, shown, everything, fit, kept) for shown in pictures]
    fresh = judged(judge, renders(compositor, everything, RENDERS), everything, fit, kept)
    order = rng.permutation(len(everything))
    shuffled = judged(judge, pictures[0], [everything[i] for i in order], fit[order], kept)
    ends = np.cumsum([len(scenes) for scenes in sets.values()])
    rows = {name: np.arange(end - len(sets[name]), end) for name, end in zip(sets, ends, strict=True)}
    held_out = np.array(["held out" in name for name in sets]).repeat([len(scenes) for scenes in sets.values()])
    rows |= {title: np.flatnonzero(held_out == new) for title, new in ALIKE.items()}
    rows = {name: row for name, row in rows.items() if len(row)}
    drawn = {name: shares([{k: v[row] for k, v in f.items()} for f in found]) for name, row in rows.items()}
    ceiling = {name: shares([{k: v[row] for k, v in fresh.items()}]) for name, row in rows.items()}
    return {
        "seeds": seeds,
        "sets": drawn | weighed_equally(drawn),
        "ceiling of each set": ceiling | weighed_equally(ceiling),
        "ceiling": shares([fresh]),
        "floor": shares([shuffled]),
    }
