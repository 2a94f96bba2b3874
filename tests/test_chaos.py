"""A short play of `make chaos`: everything is killed and stopped while jobs run."""

from __future__ import annotations

import pytest

from benchmarks.chaos import run


@pytest.mark.timeout(240)
def test_nothing_is_lost_doubled_or_changed_while_everything_breaks() -> None:
    tally = run(jobs=80, seed=1, harm_s=20, limit_s=150)
    assert sum(tally.faults.values()) >= 2, "nothing was broken, so nothing was shown"
    assert (tally.lost, tally.doubled, tally.failed, tally.changed) == (0, 0, 0, 0)
    assert sum(tally.attempts.values()) == 80
