"""What an evaluation asks for: named sets of scenes, and the one plain wording of each scene."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from training.captions import STYLED, article, plural
from training.compositor import BACKGROUND_NAMES, COLOUR_NAMES, Compositor, Scene, allowed
from training.words import STYLES, THINGS


def plain_wording(scene: Scene) -> str:
    """ "a flat icon of two red apples on a blue background". The first style is the default and is not named."""
    thing = THINGS[scene.thing]
    words = thing.name if scene.count == 1 else plural(thing.name)
    words = f"{COLOUR_NAMES[scene.colour]} {words}" if scene.colour >= 0 else words
    if scene.count == 2:
        words = f"two {words}"
    elif thing.countable:
        words = f"{article(words)} {words}"
    if scene.background >= 0:
        name = BACKGROUND_NAMES[scene.background]
        words += f" on {article(name)} {name} background"
    return words if scene.style == 0 else STYLED[STYLES[scene.style]][0].format(words)


def everything_at_once(compositor: Compositor, style: int, rng: np.random.Generator) -> list[Scene]:
    """Three attributes beside the thing: style, background, and colour; a style that has no colours gets the count instead."""
    colours = bool(compositor.recolourable[style].any())
    scenes = []
    for thing in range(len(THINGS)):
        ground, colour = int(rng.integers(len(BACKGROUND_NAMES))), int(rng.integers(len(COLOUR_NAMES)))
        if colours and compositor.recolourable[style, thing] and COLOUR_NAMES[colour] != BACKGROUND_NAMES[ground]:
            scenes.append(Scene(style, thing, colour, ground))
        elif not colours and THINGS[thing].countable:
            scenes.append(Scene(style, thing, background=ground, count=2))
    return scenes


def scene_sets(compositor: Compositor, size: int, seed: int = 7) -> dict[str, list[Scene]]:
    """At most `size` scenes of each set, by name of the table row. "Held out" means pairs that are never drawn in training."""
    rng = np.random.default_rng(seed)
    things = [t for t in range(len(THINGS)) if compositor.present[0, t]]
    coloured = [Scene(0, t, colour=c) for t in things for c in range(len(COLOUR_NAMES)) if compositor.recolourable[0, t]]

    def some(scenes: list[Scene], keep: Callable[[Scene], bool] = lambda scene: True) -> list[Scene]:
        kept = [s for s in scenes if keep(s) and compositor.present[s.style, s.thing]]
        return [kept[i] for i in rng.permutation(len(kept))[:size]]

    def new(scene: Scene) -> bool:
        return not allowed(scene)

    sets = {"thing": some([Scene(0, t) for t in things])}
    for style in range(1, len(STYLES)):
        scenes = [Scene(style, t) for t in range(len(THINGS))]
        sets[f"thing, {STYLES[style]} style"] = some(scenes, allowed)
        sets[f"thing, {STYLES[style]} style, held out"] = some(scenes, new)
    sets["thing on background"] = some([Scene(0, t, background=int(rng.integers(len(BACKGROUND_NAMES)))) for t in things])
    sets["coloured thing"] = some(coloured, allowed)
    sets["coloured thing, held out"] = some(coloured, new)
    sets["two things"] = some([Scene(0, t, count=2) for t in things if THINGS[t].countable])
    mixed = [scene for style in range(1, len(STYLES)) for scene in everything_at_once(compositor, style, rng)]
    sets["all at once"], sets["all at once, held out"] = some(mixed, allowed), some(mixed, new)
    return {name: scenes for name, scenes in sets.items() if scenes}


def random_scenes(compositor: Compositor, count: int, seed: int) -> list[Scene]:
    """Scenes as training draws them."""
    rng = np.random.default_rng(seed)
    return [compositor.random_scene(rng) for _ in range(count)]


def renders(compositor: Compositor, scenes: list[Scene], seed: int) -> np.ndarray:
    """[n, 128, 128, 3] uint8: a fresh picture of each scene; picture i depends on the seed and on i alone."""
    return np.stack([compositor.draw(scene, np.random.default_rng((seed, i))) for i, scene in enumerate(scenes)])
