"""Options by name, as clients give them, against what a card says of them."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from pipelines.card import GuidanceInfo, ModelCard, OptionInfo, SamplerInfo, ScheduleInfo, falling_fault
from pipelines.params import GenerationParams
from service.errors import InvalidValue, UnknownOption, shown


def nearest(wanted: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: what may have been meant, and all there is."""
    names = sorted(known)
    close = difflib.get_close_matches(wanted.lower(), names, n=3, cutoff=0.5)
    meant = f" Did you mean {' or '.join(close)}?" if close else ""
    return f"{meant} Known: {', '.join(names) or 'none'}."


def checked_options(name: str, given: Mapping[str, Any], info: SamplerInfo | ScheduleInfo | GuidanceInfo) -> dict[str, Any]:
    """Every option of the sampler, schedule or guidance: the given value, or its default."""
    for key in given:
        if key not in info.options:
            raise UnknownOption(f"{info.id} has no option {shown(key)!r}.{nearest(key, info.options)}", param=f"{name}.{shown(key)}")
    for key, option in info.options.items():
        if option.falling and key not in given:
            raise InvalidValue(f"{info.id} needs {name}.{key}: {_option_fault(None, option)}.", param=f"{name}.{key}")
    return {key: _option(f"{name}.{key}", given[key], option) if key in given else option.default for key, option in info.options.items()}


def idle_options(params: GenerationParams, card: ModelCard) -> list[str]:
    """Options of the sampler's noise that were changed although `s_churn` or `eta` is 0, or no level lies from `s_tmin` to `s_tmax`."""
    options, info = params.sampler_options, card.sampler(params.sampler)
    source = next((name for name in ("s_churn", "eta") if name in options), "")
    empty = options.get("s_tmin", 0.0) > options.get("s_tmax", 1.0)
    if info is None or not source or (options[source] and not empty):
        return []
    changed = [name for name, option in info.options.items() if options[name] != option.default]
    return [name for name in changed if name.startswith("s_")]


def _option(name: str, value: object, option: OptionInfo) -> Any:
    if option.many:
        if not isinstance(value, list):
            raise InvalidValue(f"{name} must be a list of numbers.", param=name)
        one = replace(option, default=0.0, many=False)
        return [_option(f"{name}.{i}", number, one) for i, number in enumerate(value)]
    fault = _option_fault(value, option)
    if fault is not None:
        raise InvalidValue(f"{name} must be {fault}.", param=name)
    if isinstance(value, list):
        return [float(number) for number in value]
    assert isinstance(value, (int, float, str))
    return float(value) if isinstance(option.default, float) and not option.choices else value


def _option_fault(value: object, option: OptionInfo) -> str | None:
    """What the value should have been, or None when it is good."""
    if option.choices:
        return None if isinstance(value, str) and value in option.choices else f"one of {', '.join(option.choices)}"
    if option.falling:
        return falling_fault(value, option)
    kinds = int if option.integer else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds) or not _is_finite(value):
        return "a whole number" if option.integer else "a finite number"
    if option.minimum is not None and value < option.minimum:
        return f"at least {option.minimum:g}"
    if option.maximum is not None and value > option.maximum:
        return f"at most {option.maximum:g}"
    return None


def _is_finite(value: int | float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an int beyond every float
        return False
