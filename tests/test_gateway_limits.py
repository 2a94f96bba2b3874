"""Bounds of one client and of all: 429 with a code, when to come back, and what the bound is."""

from __future__ import annotations

import re
from pathlib import Path

from cards import card
from job_samples import Clock
from live_gateway import assert_error, depth, running

PROMPT = {"prompt": "a red apple"}


def test_a_client_that_has_too_much_waiting_is_429(redis_url: str, tmp_path: Path) -> None:
    with running(redis_url, tmp_path, card(), max_queued_per_client=2) as live:
        jobs = [live.post(PROMPT).json() for _ in range(2)]
        answer = live.post(PROMPT)
        assert_error(answer, 429, "client_queue_full")
        seconds = int(answer.headers["retry-after"])
        assert seconds >= 1
        assert answer.headers["ratelimit-policy"] == '"queued";q=2'
        assert answer.headers["ratelimit"] == f'"queued";r=0;t={seconds}'
        assert depth(redis_url)["queued"] == 2
        live.http.delete(f"/jobs/{jobs[0]['id']}")
        assert live.post(PROMPT).status_code == 202


def test_a_queue_that_is_full_names_its_bound(redis_url: str, tmp_path: Path) -> None:
    with running(redis_url, tmp_path, card(), max_queued=1) as live:
        assert live.post(PROMPT).status_code == 202
        answer = live.post(PROMPT)
        assert_error(answer, 429, "queue_full")
        assert answer.headers["ratelimit-policy"] == '"all-queued";q=1'


async def test_a_client_that_is_too_fast_is_429_until_the_time_it_was_told(redis_url: str, tmp_path: Path, clock: Clock) -> None:
    with running(redis_url, tmp_path, card(), rate_per_s=0.5, rate_burst=3) as live:
        assert [live.post(PROMPT).status_code for _ in range(3)] == [202] * 3
        answer = live.post(PROMPT)
        assert_error(answer, 429, "rate_limited")
        assert answer.headers["ratelimit-policy"] == '"rate";q=3;w=6'
        assert re.fullmatch(r'"rate";r=0;t=2', answer.headers["ratelimit"])
        assert answer.headers["retry-after"] == "2"
        assert depth(redis_url)["queued"] == 3
        await clock.advance(1.9)
        assert live.post(PROMPT).status_code == 429
        await clock.advance(0.2)
        assert live.post(PROMPT).status_code == 202
        assert live.post(PROMPT).status_code == 429


async def test_a_repeat_with_the_same_key_is_never_too_fast(redis_url: str, tmp_path: Path, clock: Clock) -> None:
    with running(redis_url, tmp_path, card(), rate_per_s=0.1, rate_burst=1, max_queued_per_client=1) as live:
        first = live.post(PROMPT, Idempotency_Key="k")
        assert live.post(PROMPT).status_code == 429
        assert live.post(PROMPT, Idempotency_Key="k").json()["id"] == first.json()["id"]


async def test_what_is_refused_for_itself_costs_nothing(redis_url: str, tmp_path: Path, clock: Clock) -> None:
    with running(redis_url, tmp_path, card(), rate_per_s=0.1, rate_burst=1) as live:
        assert_error(live.post(PROMPT | {"steps": 0}), 400, "invalid_value")
        assert live.http.post("/generate?dry_run=true", json=PROMPT).status_code == 200
        assert live.post(PROMPT).status_code == 202
