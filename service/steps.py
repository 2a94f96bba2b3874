"""How many steps a draft takes: what the client said, be it by the length of a list, within the limits of sampler and schedule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipelines.card import ModelCard, SamplerInfo, ScheduleInfo
from service.errors import InvalidValue
from service.settings import Settings


def number_of_steps(
    said: int | None, schedule_options: Mapping[str, Any], card: ModelCard, sampler: SamplerInfo, schedule: ScheduleInfo, settings: Settings
) -> int:
    """Raises InvalidValue. A default of the model is no request: it bends to the limits."""
    low = max(1, sampler.min_steps, schedule.min_steps)
    high = min(settings.max_steps, card.max_steps, sampler.max_steps, schedule.max_steps)
    counts = [count for count in sampler.only_steps if low <= count <= high]
    if low > high or (sampler.only_steps and not counts):
        raise InvalidValue(f"{sampler.id} and {schedule.id} have no number of steps in common here.", param="steps")
    wanted = _wanted(said, schedule, schedule_options)
    if wanted is None:
        return min(counts, key=lambda count: abs(count - card.defaults.steps)) if counts else min(max(card.defaults.steps, low), high)
    if counts and wanted not in counts:
        raise InvalidValue(f"steps must be {' or '.join(map(str, counts))} for {sampler.id}.", param="steps")
    if not low <= wanted <= high:
        raise InvalidValue(f"steps must be from {low} to {high} for {sampler.id} on {schedule.id}.", param="steps")
    return wanted


def even_parts(evaluations: int, parts: int) -> tuple[int, ...]:
    """Evaluations k * n / (parts + 1), rounded, for k = 1 .. parts: each once, and before the last one."""
    whole = 2 * (parts + 1)
    rounded = {(2 * k * evaluations + parts + 1) // whole for k in range(1, parts + 1)}
    return tuple(sorted(step for step in rounded if 0 < step < evaluations))


def ends_open(schedule: ScheduleInfo, options: Mapping[str, Any]) -> bool:
    """Whether the last step lands above zero noise."""
    given = [options[key] for key, option in schedule.options.items() if option.falling]
    return bool(given[0][-1] > 0) if given else schedule.ends_open


def _wanted(said: int | None, schedule: ScheduleInfo, options: Mapping[str, Any]) -> int | None:
    """What the client said, or None."""
    for key, option in schedule.options.items():
        if option.falling:
            told = len(options[key]) - 1
            if said not in (None, told):
                raise InvalidValue(f"steps must be {told}, one less than the number of {key}, or be left out.", param="steps")
            return told
    return said
