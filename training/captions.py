"""True English captions of a scene: names, synonyms, plurals, articles, colours, backgrounds, styles, in many wordings."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from training.compositor import BACKGROUND_NAMES, COLOUR_NAMES, Scene
from training.words import STYLES, THINGS, Thing

IRREGULAR = {
    "mouse": "mice", "sheep": "sheep", "fish": "fish", "tropical fish": "tropical fish", "pufferfish": "pufferfish", "blowfish": "blowfish",
    "wolf": "wolves", "maple leaf": "maple leaves", "squid": "squid", "dice": "dice", "snowman": "snowmen", "tomato": "tomatoes",
    "volcano": "volcanoes", "slice of pizza": "slices of pizza", "drop of water": "drops of water",
    "face with sunglasses": "faces with sunglasses",
}  # fmt: skip
AN_EXCEPTIONS = {"unicorn", "ufo"}
SILENT_H = {"hourglass"}
# Wordings of each style; unstyled ones belong to the first style alone, which so becomes the default look.
STYLED = {
    "3d": ("a 3d render of {}", "3d render of {}", "{}, 3d render", "{} in 3d", "a 3d icon of {}", "{}, 3d"),
    "flat": (
        "a flat icon of {}",
        "flat icon of {}",
        "{}, flat icon",
        "a cartoon of {}",
        "{}, cartoon",
        "a flat drawing of {}",
    ),
    "pencil": (
        "a pencil drawing of {}",
        "pencil drawing of {}",
        "{}, pencil drawing",
        "a pencil sketch of {}",
        "a sketch of {}",
        "{}, sketch",
        "a drawing of {}",
    ),
}
UNSTYLED = ("{}", "{}", "{}", "{}", "{}", "a picture of {}", "an image of {}", "a photo of {}")
NOT_SHOWN = frozenset({"photo"})  # people write it and get the default look; there are no photographs, so cards do not list it
ON = (
    " on {a} {} background",
    " on {a} {} background",
    " on {}",
    " with {a} {} background",
    ", {} background",
    " in front of {a} {} background",
)


def plural(noun: str) -> str:
    if noun in IRREGULAR:
        return IRREGULAR[noun]
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    if noun.endswith(("s", "x", "z", "ch", "sh")):
        return noun + "es"
    return noun + "s"


def article(words: str) -> str:
    first = words.split()[0]
    vowel = first[0] in "aeiou" and first not in AN_EXCEPTIONS
    return "an" if vowel or first in SILENT_H else "a"


def gray(word: str, rng: np.random.Generator) -> str:
    return "grey" if word == "gray" and rng.random() < 0.4 else word


def choose(options: tuple[str, ...], rng: np.random.Generator) -> str:
    return options[int(rng.integers(len(options)))]


def coloured(noun: str, colour: str) -> str:
    return f"{colour} {noun}" if colour else noun


def noun_phrase(thing: Thing, noun: str, colour: str, count: int, rng: np.random.Generator, *, bare: bool = True) -> str:
    """ "a red apple", "two red apples", "grapes", "some popcorn", and where it may be bare, one time in four without the article."""
    if count == 2:
        many = coloured(plural(noun), colour)
        return choose(("two {}", "two {}", "2 {}", "a pair of {}"), rng).format(many)
    words = coloured(noun, colour)
    if "2" in thing.flags and rng.random() < 0.3:
        return f"a pair of {words}"
    if ("m" in thing.flags and " " not in noun) or "p" in thing.flags:  # "coffee", but "a cup of coffee"
        return words if rng.random() < 0.8 else f"some {words}"
    return words if rng.random() < 0.25 and bare else f"{article(words)} {words}"


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """One wording of the scene. A background that is not named is white."""
    thing = THINGS[scene.thing]
    noun = thing.name if rng.random() < 0.7 else choose(thing.names, rng)
    colour = COLOUR_NAMES[scene.colour] if scene.colour >= 0 else ""
    style = STYLES[scene.style]
    wording = choose(UNSTYLED if style == STYLES[0] and rng.random() < 0.6 else STYLED[style], rng)
    words = noun_phrase(thing, noun, colour, scene.count, rng, bare=" of " not in wording)
    place = ""
    if scene.background >= 0:
        name = gray(BACKGROUND_NAMES[scene.background], rng)
        place = choose(ON, rng).format(name, a=article(name))
    return wording.format(words + place)


def shown_words() -> list[str]:
    """Those that mean something in a picture, sorted: what a card lists."""
    return [word for word in vocabulary() if word not in NOT_SHOWN]


def vocabulary() -> list[str]:
    """Every lower-case word a caption can hold, sorted."""
    text = " ".join(all_texts()).replace(",", " ").replace("{}", " ").replace("{a}", " ")
    return sorted(set(text.split()))


def all_texts() -> Iterator[str]:
    """Every noun in both numbers and every wording: what the tokenizer is trained on."""
    for thing in THINGS:
        for noun in thing.names:
            yield f"{article(noun)} {noun}"
            if thing.countable:
                yield plural(noun)
    yield from (*COLOUR_NAMES, *BACKGROUND_NAMES, "grey", "some", "two", "2", "a pair of", "a", "an")
    for group in (*STYLED.values(), UNSTYLED, ON):
        yield from group
