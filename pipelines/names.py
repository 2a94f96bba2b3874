"""Names of samplers and schedules in every dialect -> one canonical pair with its options. Standard library only.

The native door understands any of them (`find`); a door that speaks one dialect asks for that dialect's own meaning
(`a1111`, `comfyui`, `sdcpp`, `diffusers`), since some names mean different things to different programs.
"""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from pipelines.name_diffusers import CLASSES, FIXED, FLAGS, LU, LU_DIFFERS, OF_THE_MODEL, REFUSED, SPACING, SUFFIX, Class
from pipelines.name_tables import (
    A1111_SAMPLERS,
    A1111_SCHEDULES,
    COMFY_SAMPLERS,
    COMFY_SCHEDULES,
    FAMILIES,
    NEEDS,
    OTHER_SAMPLERS,
    SDCPP_SAMPLERS,
    SDCPP_SCHEDULES,
    Name,
    Value,
)

AUTOMATIC = ("auto", "automatic")
SHORT = {"ka": "Karras", "exp": "Exponential"}  # A1111's old endings, as in k_dpmpp_2m_ka
UNIFORM = "linspace"  # what A1111 means by Automatic where a sampler has no schedule of its own


class UnknownName(ValueError):
    """`kind` is "sampler" or "schedule"; `reason` says why a name that others know cannot run here, or is empty."""

    def __init__(self, kind: str, name: str, reason: str = "") -> None:
        super().__init__(f"the {kind} {name!r} cannot run here: {reason}" if reason else f"there is no {kind} {name!r}")
        self.kind, self.name, self.reason = kind, name, reason


class UnknownSetting(ValueError):
    """An option of a diffusers class that has no meaning here, or not with that value."""

    def __init__(self, option: str, message: str) -> None:
        super().__init__(message)
        self.option = option


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A canonical pair. A schedule of None was not named; `differs` tells how the other program's picture differs from ours."""

    sampler: str
    sampler_options: Mapping[str, object] = field(default_factory=dict)
    schedule: str | None = None
    schedule_options: Mapping[str, object] = field(default_factory=dict)
    differs: tuple[str, ...] = ()


def fold(name: str) -> str:
    """Case, and whether words are parted by spaces, dashes or underscores, do not matter."""
    return re.sub(r"[\s_-]+", " ", name.strip()).casefold()


def _by_name(names: Iterable[Name]) -> Mapping[str, Name]:
    return MappingProxyType({fold(one): name for name in names for one in (name.name, *name.also)})


SAMPLERS = {
    "a1111": _by_name(A1111_SAMPLERS),
    "comfyui": _by_name(COMFY_SAMPLERS),
    "sdcpp": _by_name(SDCPP_SAMPLERS),
    "others": _by_name(OTHER_SAMPLERS),
}
SCHEDULES = {"a1111": _by_name(A1111_SCHEDULES), "comfyui": _by_name(COMFY_SCHEDULES), "sdcpp": _by_name(SDCPP_SCHEDULES)}
_OF_CLASSES = tuple(case.id for of in CLASSES.values() for case in of.cases if case.id)
_CLASSES = {fold(one): name for name in (*CLASSES, *REFUSED) for one in (name, f"{name}{SUFFIX}")}


@functools.lru_cache(maxsize=64)  # of so many models
def _canonical(kind: str, ids: tuple[str, ...]) -> Mapping[str, str]:
    """Folded name -> id, of these and of all of ours."""
    return MappingProxyType({fold(id): id for id in (*ids, *IDS[kind])})


def find(sampler: str, schedule: str | None, ids: Iterable[str], options: Mapping[str, object] = MappingProxyType({})) -> Choice:
    """What a sampler's name means in whichever dialect knows it; our ids (and `ids`) come first, then A1111, ComfyUI, diffusers.

    `options` are what was asked for beside the name, and win over what the name says; where it is a diffusers class, the
    options of that class among them are translated. A schedule that the sampler's name says ("DPM++ 2M Karras",
    use_karras_sigmas) must agree with `schedule`, unless that is None or automatic.
    Raises UnknownName, UnknownSetting.
    """
    canonical = _canonical("sampler", tuple(ids))
    if fold(sampler) in canonical:
        return Choice(sampler=canonical[fold(sampler)], sampler_options=options, schedule=schedule)
    if fold(sampler) in _CLASSES:
        choice, free = diffusers(sampler, options), _flagged(options) is None and CLASSES[_CLASSES[fold(sampler)]].schedule == UNIFORM
        return _agreed(replace(choice, schedule=None) if free and schedule else choice, schedule)
    refusal: UnknownName | None = None
    for dialect in SAMPLERS:
        try:
            name, label = _sampler(dialect, sampler)
        except UnknownName as error:
            refusal = error if error.reason and not refusal else refusal
            continue
        return _agreed(_choice(name, label, options), schedule)
    family = (why for first, why in FAMILIES.items() if f"{fold(sampler)} ".startswith(f"{fold(first)} "))
    raise refusal or UnknownName("sampler", sampler, next(family, ""))


def find_schedule(name: str, ids: Iterable[str]) -> str:
    """The canonical id of a schedule's name in any dialect; our ids (and `ids`) come first. Raises UnknownName."""
    canonical = _canonical("schedule", tuple(ids))
    if fold(name) in canonical:
        return canonical[fold(name)]
    if fold(name) in AUTOMATIC:
        return "auto"
    found = [names[fold(name)] for names in SCHEDULES.values() if fold(name) in names]
    for known in found:
        if known.id:
            return known.id
    raise UnknownName("schedule", name, found[0].refused if found else "")


def a1111(sampler: str, schedule: str | None = None) -> Choice:
    """A1111's labels, or ids with k_. Automatic is its rule: karras for some, exponential for some SDEs, else uniform.

    Raises UnknownName.
    """
    name, label = _sampler("a1111", sampler)
    if schedule is not None and fold(schedule) not in AUTOMATIC:
        return _choice(name, _schedule("a1111", schedule))
    return _choice(name, label or name.auto or UNIFORM)


def comfyui(sampler: str, schedule: str) -> Choice:
    """ComfyUI's ids of its KSampler. Raises UnknownName."""
    return _choice(_exact("comfyui", sampler), _schedule("comfyui", schedule))


def sdcpp(sampler: str, schedule: str | None = None) -> Choice:
    """stable-diffusion.cpp's names. Raises UnknownName."""
    name = _exact("sdcpp", sampler)
    return _choice(name, _schedule("sdcpp", schedule) if schedule is not None else name.auto or None)


def diffusers(name: str, options: Mapping[str, object] = MappingProxyType({})) -> Choice:
    """A scheduler class of diffusers with options of its constructor; other options pass as the sampler's own.

    Raises UnknownName for a class, UnknownSetting for an option, that have no meaning here.
    """
    known = _CLASSES.get(fold(name))
    if known is None or known in REFUSED:
        raise UnknownName("sampler", name, REFUSED[known] if known else "")
    of_class = CLASSES[known]
    mine = {option: options.get(option, default) for option, default in of_class.defaults.items()}
    rest = {option: value for option, value in options.items() if option not in mine and not _is_fixed(known, option, value)}
    id, own = _case(known, of_class, mine)
    schedule, differs = _flagged(options) or of_class.schedule or None, (LU_DIFFERS,) if options.get(LU) else ()
    return Choice(sampler=id, sampler_options={**own, **rest}, schedule=schedule, differs=differs)


def names_of(kind: str, id: str) -> dict[str, tuple[str, ...]]:
    """Dialect -> the names that mean this sampler or schedule there."""
    tables = SAMPLERS if kind == "sampler" else SCHEDULES
    rows = {dialect: dict.fromkeys(n for n in names.values() if n.id == id) for dialect, names in tables.items()}
    found = {dialect: tuple(one for n in of_id for one in (n.name, *n.also)) for dialect, of_id in rows.items()}
    if kind == "sampler":
        found["diffusers"] = tuple(
            f"{c}{SUFFIX}" for c, of in CLASSES.items() if of.schedule != "flow" and any(case.id == id for case in of.cases)
        )
    else:
        found["diffusers"] = tuple(flag for flag, schedule in FLAGS.items() if schedule == id)
    return {dialect: names for dialect, names in found.items() if names}


def aliases(kind: str, id: str, name: str = "", own: Iterable[str] = ()) -> tuple[str, ...]:
    """`own` and every further name that `find` and `find_schedule` take for this id, each once, without id and `name` themselves."""
    every = [one for dialect, names in names_of(kind, id).items() if (kind, dialect) != ("schedule", "diffusers") for one in names]
    found: dict[str, str] = {}
    for one in (*own, *(one for one in every if _means(kind, one) == id)):
        if fold(one) not in (fold(id), fold(name)):
            found.setdefault(fold(one), one)
    return tuple(found.values())


def needs(id: str) -> str:
    """Why a model may lack a sampler or schedule that there is; empty for what every model can run."""
    return NEEDS.get(id, "")


def nearest(kind: str, name: str, ids: Collection[str]) -> list[str]:
    """Up to three known names that look like this one, ids first among equals; before them A1111's of a sampler with its schedule."""
    wanted, known = fold(name), {fold(one): one for id in ids for one in (*aliases(kind, id), id)}
    pairs = _nearest_pairs(wanted, ids) if kind == "sampler" and re.match(r"k_|.*[ +]", name) else []
    return [*pairs, *(known[close] for close in difflib.get_close_matches(wanted, known, n=3, cutoff=0.6))][:3]


def _nearest_pairs(wanted: str, ids: Collection[str]) -> list[str]:
    """ "DPM++ 2M Karras" for a slip in either part of it; the schedule may have two words or three."""
    samplers, schedules = ({key: n for key, n in of["a1111"].items() if n.id} for of in (SAMPLERS, SCHEDULES))
    words, found = wanted.split(" "), []
    for count in range(1, min(4, len(words))):
        parts = ((" ".join(words[:-count]), samplers), (" ".join(words[-count:]), schedules))
        close = [difflib.get_close_matches(part, known, n=1, cutoff=0.75) for part, known in parts]
        if all(close) and samplers[close[0][0]].id in ids:
            found.append(f"{samplers[close[0][0]].name} {schedules[close[1][0]].name}")
    return found


def _means(kind: str, name: str) -> str:
    return find(name, None, ()).sampler if kind == "sampler" else find_schedule(name, ())


def _ids(tables: Mapping[str, Mapping[str, Name]], *more: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys([*more, *(name.id for names in tables.values() for name in names.values() if name.id)]))


def _exact(dialect: str, sampler: str) -> Name:
    name = SAMPLERS[dialect].get(fold(sampler))
    if name is None or name.refused:
        raise UnknownName("sampler", sampler, name.refused if name else "")
    return name


def _sampler(dialect: str, sampler: str) -> tuple[Name, str | None]:
    """The sampler, and the schedule that its name says, as A1111 wrote it until 1.8: "LMS Karras", "k_lms_ka"."""
    if fold(sampler) in SAMPLERS[dialect] or dialect != "a1111":
        name = _exact(dialect, sampler)
        return name, name.auto if dialect == "sdcpp" and name.auto else None  # ddim_trailing
    if not re.match(r"k_|.*[ +]", sampler):  # a word of its own: ddim_uniform is no DDIM
        raise UnknownName("sampler", sampler)
    endings = {fold(n): n for n in SCHEDULES[dialect]} | SHORT
    for ending in sorted(endings, key=len, reverse=True):  # SGM Uniform before Uniform
        if fold(sampler).endswith(f" {ending}"):
            return _exact(dialect, fold(sampler)[: -len(ending) - 1]), _schedule(dialect, endings[ending])
    raise UnknownName("sampler", sampler)


def _schedule(dialect: str, schedule: str) -> str:
    name = SCHEDULES[dialect].get(fold(schedule))
    if name is None or name.refused:
        raise UnknownName("schedule", schedule, name.refused if name else "")
    return name.id


def _choice(name: Name, schedule: str | None, options: Mapping[str, object] = MappingProxyType({})) -> Choice:
    differs = (name.differs,) if name.differs else ()
    return Choice(sampler=name.id, sampler_options={**name.options, **options}, schedule=schedule, differs=differs)


def _agreed(choice: Choice, schedule: str | None) -> Choice:
    """The schedule of the sampler's name and the one that was asked for, where they are one."""
    if choice.schedule is None or schedule is None or fold(schedule) in AUTOMATIC:
        named = schedule if choice.schedule is None else choice.schedule
    elif find_schedule(schedule, (choice.schedule,)) == choice.schedule:
        named = choice.schedule
    else:
        raise UnknownSetting("schedule", f"the sampler's name says {choice.schedule}; leave the schedule out or name the same")
    return replace(choice, schedule=named)


def _flagged(options: Mapping[str, object]) -> str | None:
    """The schedule that options of diffusers choose."""
    for flag in FLAGS:
        if not isinstance(options.get(flag, False), bool):
            raise UnknownSetting(flag, f"{flag} is true or false")
    on = [flag for flag in FLAGS if options.get(flag)]
    if len(on) > 1:
        raise UnknownSetting(on[1], f"{on[1]} cannot be chosen together with {on[0]}")
    chosen = FLAGS[on[0]] if on else None
    spacing = options.get(SPACING)
    if spacing not in (None, "linspace", "leading", "trailing"):
        raise UnknownSetting(SPACING, f"{SPACING} is linspace, leading or trailing")
    if chosen and spacing:
        raise UnknownSetting(SPACING, f"{SPACING} cannot be chosen together with {chosen}, which spans the checkpoint's own levels")
    return chosen or (str(spacing) if spacing else None)


def _is_fixed(known: str, option: str, value: object) -> bool:
    """Whether it is an option of diffusers that chooses the schedule, or says what is done here anyway."""
    if option in OF_THE_MODEL:
        raise UnknownSetting(option, f"{option} belongs to the model, not to a request")
    if option in FIXED and not _same(value, FIXED[option]):
        raise UnknownSetting(option, f"{option} of {known}{SUFFIX} can only be {FIXED[option]!r} here")
    return option in FIXED or option in FLAGS or option == SPACING


def _same(a: object, b: object) -> bool:
    """Equal, and both or neither of them true or false: 1 is not true here."""
    return a == b and isinstance(a, bool) == isinstance(b, bool)


def _case(known: str, of_class: Class, settings: Mapping[str, object]) -> tuple[str, Mapping[str, Value]]:
    for case in of_class.cases:
        if all(_same(settings[option], value) for option, value in case.when.items()):
            if case.refused:
                raise UnknownName("sampler", f"{known}{SUFFIX}", case.refused)
            return case.id, case.options or {}
    raise UnknownName("sampler", f"{known}{SUFFIX}", f"it has no table for that {', '.join(settings)}")


IDS = {"sampler": _ids(SAMPLERS, *_OF_CLASSES), "schedule": _ids(SCHEDULES, "auto", "leading", "trailing", *FLAGS.values())}
