"""Options of samplers, schedules and guidance, checked in one way."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pipelines.card import OptionInfo, falling_fault

Option = float | int | str | tuple[float, ...]
Options = Mapping[str, Option]


def checked_options(kind: str, id: str, given: Options, known: Mapping[str, OptionInfo]) -> dict[str, Option]:
    """All options of a sampler, schedule or guidance: the given ones, the defaults for the rest.

    Raises ValueError with one sentence that names the option and what would be legal.
    """
    for name in given:
        if name not in known:
            legal = f"its options are {', '.join(known)}" if known else "it has none"
            raise ValueError(f"the {kind} {id!r} has no option {name!r}: {legal}")
        needs = known[name].needs
        if needs and given.get(needs, known[needs].default) == known[needs].default:
            raise ValueError(f"the option {name!r} of the {kind} {id!r} means nothing without {needs!r}")
    subject = f"of the {kind} {id!r}"
    return {name: _checked(f"the option {name!r} {subject}", given.get(name, info.default), info) for name, info in known.items()}


def _checked(subject: str, value: Any, info: OptionInfo) -> Option:
    if info.falling:
        return _falling(subject, value, info)
    if info.many:
        if not isinstance(value, list | tuple):
            raise ValueError(f"{subject} must be a list of numbers, not {value!r}")
        return tuple(float(_number(subject, number, info)) for number in value)
    if info.choices:
        if value not in info.choices:
            raise ValueError(f"{subject} must be one of {', '.join(info.choices)}, not {value!r}")
        return str(value)
    return _number(subject, value, info)


def _falling(subject: str, values: Any, info: OptionInfo) -> tuple[float, ...]:
    if fault := falling_fault(values, info):
        raise ValueError(f"{subject} must be {fault}")
    return tuple(map(float, values))


def _number(subject: str, value: object, info: OptionInfo) -> float | int:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{subject} must be a number, not {value!r}")
    if info.integer and value != int(value):
        raise ValueError(f"{subject} must be a whole number, not {value!r}")
    if (info.minimum is not None and value < info.minimum) or (info.maximum is not None and value > info.maximum):
        raise ValueError(f"{subject} must lie between {info.minimum} and {info.maximum}, not {value!r}")
    return int(value) if info.integer else float(value)
