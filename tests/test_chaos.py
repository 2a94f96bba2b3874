"""A short play of `make chaos`: everything is killed and stopped while jobs run."""

from __future__ import annotations

import pytest

from benchmarks.chaos import HAPPENS, missing, run


@pytest.mark.timeout(300)
def test_nothing_is_lost_doubled_or_changed_while_everything_breaks() -> None:
    tally = run(jobs=40, seed=1, rounds=0, limit_s=200)
    assert missing(tally, HAPPENS) == [], "what did not happen is not shown"
    assert tally.clean, tally
    assert sum(tally.attempts.values()) == 40 - tally.happened["deadline refused"]
