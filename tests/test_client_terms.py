"""What a client may, by its key: class, rate, depth and pictures of a day."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cards import card
from job_samples import Clock
from keyed import asking, make_key
from live_gateway import Live, assert_error, running

PROMPT = {"prompt": "a red apple"}


@pytest.fixture
def gateway(redis_url: str, tmp_path: Path) -> Iterator[Live]:
    with running(redis_url, tmp_path, card(), keys="required", door_wait_s=1) as live:
        yield live


def test_a_class_is_that_of_the_client_and_no_better_one(gateway: Live, redis_url: str) -> None:
    with asking(gateway, make_key(redis_url, "night", service_class="batch")) as night, asking(gateway, make_key(redis_url, "ada")) as ada:
        assert night.post("/generate", json=PROMPT).json()["service_class"] == "batch"
        for better in ("interactive", "normal"):
            for path in ("/generate", "/generate?dry_run=true"):
                assert_error(night.post(path, json=PROMPT | {"service_class": better}), 403, "class_not_allowed", "service_class")
        assert night.post("/v1/images/generations", json=PROMPT).status_code == 504  # queued; nobody draws here
        assert [job["service_class"] for job in night.get("/jobs").json()["jobs"]] == ["batch"] * 2
        assert ada.post("/generate", json=PROMPT).json()["service_class"] == "normal"
        assert ada.post("/generate", json=PROMPT | {"service_class": "interactive"}).status_code == 202


async def test_rate_and_depth_are_the_clients_own(gateway: Live, redis_url: str, clock: Clock) -> None:
    slow = make_key(redis_url, "slow", rate_per_s=0.5, burst=2)
    small = make_key(redis_url, "small", max_queued=1)
    with asking(gateway, slow) as first, asking(gateway, small) as second:
        assert [first.post("/generate", json=PROMPT).status_code for _ in range(3)] == [202, 202, 429]
        refused = first.post("/generate", json=PROMPT)
        assert_error(refused, 429, "rate_limited")
        assert refused.headers["ratelimit-policy"] == '"rate";q=2;w=4'
        assert [second.post("/generate", json=PROMPT).status_code for _ in range(2)] == [202, 429]
        assert second.post("/generate", json=PROMPT).headers["ratelimit-policy"] == '"queued";q=1'


async def test_pictures_of_a_day_are_counted_exactly(gateway: Live, redis_url: str, clock: Clock) -> None:
    """The clock stands at 13:46:40 UTC."""
    with asking(gateway, make_key(redis_url, "ada", per_day=5)) as ada, asking(gateway, make_key(redis_url, "bob", per_day=5)) as bob:
        shared = PROMPT | {"num_images": 3, "seed": 1, "reuse": True}
        assert [ada.post("/generate", json=shared).status_code for _ in range(2)] == [202, 202]  # drawn once
        again = {"Idempotency-Key": "k"}
        assert [ada.post("/generate", json=PROMPT, headers=again).status_code for _ in range(2)] == [202, 202]
        refused = ada.post("/generate", json=PROMPT | {"num_images": 2})
        assert_error(refused, 429, "quota_spent")
        assert refused.headers["ratelimit-policy"] == '"pictures";q=5;w=86400'
        assert refused.headers["retry-after"] == "36800"
        assert ada.post("/generate", json=PROMPT).status_code == 202 and ada.post("/generate", json=PROMPT).status_code == 429
        assert bob.post("/generate", json=PROMPT).status_code == 202
        await clock.advance(36_800)
        assert ada.post("/generate", json=PROMPT | {"num_images": 5}).status_code == 202
