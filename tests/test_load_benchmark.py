"""The load benchmark: its arrivals, its percentiles, and that both servers answer it with pictures of their own."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.load import LONG, SHORT, Answer, Arrival, arrivals, percentile, plain_server, play
from benchmarks.serving import service, wait_for
from training.toy import write_toy


def test_arrivals_are_a_poisson_process_and_always_the_same() -> None:
    plan = arrivals(4.0, 4000)
    assert plan == arrivals(4.0, 4000) and plan != arrivals(4.0, 4000, seed=1)
    assert [a.at for a in plan] == sorted(a.at for a in plan)
    assert plan[-1].at == pytest.approx(1000, rel=0.05)
    gaps = [b.at - a.at for a, b in itertools.pairwise(plan)]
    assert sum(g > 0.25 for g in gaps) / len(gaps) == pytest.approx(0.368, abs=0.02)  # 1 / e
    assert sum(a.steps == LONG for a in plan) / len(plan) == pytest.approx(0.2, abs=0.02)


@pytest.mark.parametrize(("share", "wanted"), [(0.5, 50), (0.95, 95), (0.99, 99), (1.0, 100), (0.001, 1)])
def test_percentiles(share: float, wanted: int) -> None:
    assert percentile([float(i) for i in range(100, 0, -1)], share) == wanted
    with pytest.raises(ValueError):
        percentile([], share)


@contextlib.contextmanager
def celadon(folder: Path, model: Path) -> Iterator[str]:
    with service(folder, model) as (url, _):
        wait_for(f"{url}/readyz")
        yield url


@pytest.mark.parametrize("plain", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["plain server", "celadon"])
def test_the_servers_answer_with_pictures(plain: bool, tmp_path: Path) -> None:
    model = write_toy(tmp_path / "toy")
    plan = [Arrival(0.0, "a cat", SHORT, 1), Arrival(0.01, "a dog", LONG, 2), Arrival(0.02, "a car", SHORT, 3)]
    with plain_server(model, 1) if plain else celadon(tmp_path / "data", model) as url:
        answers: list[Answer] = asyncio.run(play(url, plan, plain=plain))
    assert [a.steps for a in answers] == [SHORT, LONG, SHORT] and all(0 < a.latency <= a.ended for a in answers)
