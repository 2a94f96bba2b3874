"""Which models a worker draws with when they do not all fit: the whole policy, a pure function.

A model that is here draws for `stay_s` at least while others wait; then the one whose jobs have waited longest takes the place of the one
that is idle, else of the one that has been here longest. So there is at most one change in `stay_s`, and with k models in turn nobody waits
for more than k times that, what is in flight, and the loading.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Plan:
    """`leaving` take no new jobs; where `load` is named, they go now and it comes."""

    leaving: tuple[str, ...] = ()
    load: str = ""


def plan(
    sizes: Mapping[str, int], here: Mapping[str, float], waiting: Mapping[str, float], busy: Set[str], *, budget: int, stay_s: float
) -> Plan:
    """`here`: model -> seconds since it came; `waiting`: model -> age of its oldest queued job; `busy`: models with jobs in flight here.

    `sizes` are those of all models that may be drawn with, in bytes; a budget of 0 has no bound.
    """
    absent = [model for model in waiting if model in sizes and model not in here]
    if not absent:
        return Plan()
    wanted = max(absent, key=lambda model: waiting[model])
    room = budget - sum(sizes[model] for model in here)
    if not budget or sizes[wanted] <= room:
        return Plan(load=wanted)
    leaving: list[str] = []
    for model in sorted(here, key=lambda m: (m in busy or m in waiting, -here[m])):
        idle = model not in busy and model not in waiting
        if room >= sizes[wanted] or not (idle or here[model] >= stay_s):
            break
        leaving.append(model)
        room += sizes[model]
    if room < sizes[wanted]:
        return Plan()
    return Plan(tuple(leaving), "" if busy & set(leaving) else wanted)
