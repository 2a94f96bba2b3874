"""Hypothesis plays clients, workers, crashes and zombies against the real scripts (tests/queue_machine.py), on real Valkey."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.queue_machine import QueueMachine
from tests.queue_model import HAPPENS


def play(url: str, **limits: Any) -> Counter[str]:
    """What happened in all plays together."""
    machine = type("Machine", (QueueMachine,), {"url": url, "seen": Counter()})
    health = list(HealthCheck)
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        machine, settings=settings(deadline=None, suppress_health_check=health, database=None, **limits)
    )
    seen: Counter[str] = machine.seen  # type: ignore[attr-defined]
    return seen


@pytest.mark.timeout(240)
def test_whatever_happens_every_job_ends_once(redis_url: str) -> None:
    """The same plays each time; `make test-full` makes new ones. Where too little happened there are more of them."""
    for plays in (30, 100):
        seen = play(redis_url, max_examples=plays, stateful_step_count=40, derandomize=True)
        if set(seen) >= HAPPENS:
            return
    assert set(seen) >= HAPPENS, "plays in which little happens show little"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_whatever_happens_in_many_new_plays(redis_url: str) -> None:
    assert set(play(redis_url, max_examples=400, stateful_step_count=50)) >= HAPPENS | {"claim: overdue", "renew, and make room"}
