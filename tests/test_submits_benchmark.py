"""The benchmark of submits counts what happens to each of them, once."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import submits
from cards import card
from live_gateway import Live, depth, running


@pytest.fixture
def gateway(redis_url: str, tmp_path: Path) -> Iterator[Live]:
    with running(redis_url, tmp_path, card(), max_queued_per_client=25) as live:
        yield live


def test_every_submit_is_a_job_of_its_own_or_an_error_by_its_kind(gateway: Live) -> None:
    tally = asyncio.run(submits.load(gateway.port, 100, 0.3))
    assert +tally.answers == {"202": 25, "429": 5} and len(tally.latencies) == 25
    jobs = gateway.http.get("/jobs?limit=100").json()["jobs"]
    assert len({job["params"]["prompt"] for job in jobs}) == 25 == depth(gateway.settings.redis_url)["queued"]
    said = submits.report(tally, submits.Spent(0.01, 0.01, 0.01, 0.3), 100, 0.3)
    assert "accepted 25" in said and "{'429': 5}" in said and "99%" in said


def test_a_server_that_falls_silent_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submits, "GIVE_UP_S", 0.1)
    with socket.create_server(("127.0.0.1", 0), backlog=128) as silent:
        tally = asyncio.run(submits.load(silent.getsockname()[1], 100, 0.1))
    assert +tally.answers == {"given up": 10}
