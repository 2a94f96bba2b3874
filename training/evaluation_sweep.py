"""Are the card's defaults good ones? The same scenes with other steps, guidance and rescale."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from training.artist import Artist
from training.compositor import Compositor, Scene
from training.evaluation_attributes import ASKED, SEED, Draws
from training.judge import Judge, answers
from training.measures import interval
from training.scene_sets import plain_wording, scene_sets

STEPS, GUIDANCE, RESCALE = (5, 7, 10, 15, 20), (1.0, 2.0, 3.0, 5.0), (0.0, 0.7)
FEW_STEPS, FEW_GUIDANCE = (1, 2, 4, 8), (1.0, 1.5, 2.0)  # for a distilled model


def settings(defaults: dict) -> list[dict]:
    """The grid; without guidance there is nothing to rescale. The card's own setting is one of it."""
    few = defaults["sampler"] == "lcm"
    grid = itertools.product(FEW_STEPS if few else STEPS, FEW_GUIDANCE if few else GUIDANCE, RESCALE)
    found = [{"steps": s, "guidance": g, "guidance_rescale": r} for s, g, r in grid if g > 1 or r == 0]
    own = {name: defaults[name] for name in ("steps", "guidance", "guidance_rescale")}
    return found if own in found else [own, *found]


def chosen(compositor: Compositor, count: int) -> list[Scene]:
    """Some scenes of every set."""
    sets = scene_sets(compositor, count)
    each = -(-count // len(sets))
    return [scene for scenes in sets.values() for scene in scenes[:each]]


def right(found: dict[str, np.ndarray]) -> np.ndarray:
    """The share of right answers to the asked questions about each picture [n]; left out are the two lenient questions."""
    table = np.stack([found[name] for name in ASKED if name not in ("thing in top 5", "count by components")], 1)
    return np.nanmean(table, axis=1)


def sweep(studio: Draws, artist: Artist, judge: Judge, scenes: Sequence[Scene]) -> list[dict]:
    """One record a setting: share of right answers with its interval, and the judge's certainty of the asked thing.

    `studio` draws with the artist, whose settings are changed meanwhile.
    """
    own, prompts, rows = dict(artist.defaults), [plain_wording(s) for s in scenes], []
    for setting in settings(own):
        artist.defaults = own | setting
        found = answers(judge, studio.draw(prompts, SEED), list(scenes))
        rows.append(setting | {
            "scenes": len(scenes), "right": list(interval(right(found)[:, None])), "certainty": float(found["certainty"].mean()),
            "default": all(setting[name] == own[name] for name in setting),
        })  # fmt: skip
    artist.defaults = own
    return rows
