"""A gateway whose Redis is full, read-only, without its replicas, or would lose jobs: a code for each, and /readyz is red."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from redis.client import Redis as BlockingRedis

from cards import card
from live_gateway import Live, assert_error, depth, running

PROMPT = {"prompt": "a red apple"}


@pytest.fixture
def gateway(redis_url: str, tmp_path: Path) -> Iterator[Live]:
    with running(redis_url, tmp_path, card()) as live:
        yield live


@contextmanager
def configured(redis_url: str, **changes: str) -> Iterator[None]:
    """A server with other settings for a while."""
    with BlockingRedis.from_url(redis_url, decode_responses=True) as client:
        names = {name.replace("_", "-"): value for name, value in changes.items()}
        before = {name: client.config_get(name)[name] for name in names}
        for name, value in names.items():
            client.config_set(name, value)
        try:
            yield
        finally:
            for name, value in before.items():
                client.config_set(name, value)


@contextmanager
def replica_of_nobody(redis_url: str) -> Iterator[None]:
    """A server that follows a master which is not there, as after a failover that went wrong."""
    with BlockingRedis.from_url(redis_url) as client:
        client.replicaof("127.0.0.1", "9")
        try:
            yield
        finally:
            client.replicaof("NO", "ONE")


def assert_refused(live: Live, code: str, said: str) -> None:
    """A job is refused with that code and a time to come back; readiness names Redis and why; what is alive stays alive."""
    answer = live.post(PROMPT)
    assert_error(answer, 503, code)
    assert int(answer.headers["retry-after"]) >= 1
    answer = live.http.get("/readyz")
    assert assert_error(answer, 503, "not_ready") == f"Not ready: redis ({said})."
    assert int(answer.headers["retry-after"]) >= 1
    assert live.http.get("/healthz").status_code == 200


def test_a_full_server_takes_no_job_and_those_inside_can_be_asked_for_and_canceled(gateway: Live, redis_url: str) -> None:
    job = gateway.post(PROMPT).json()
    with configured(redis_url, maxmemory="1"):
        assert_refused(gateway, "queue_out_of_memory", "out of memory")
        assert gateway.http.get(f"/jobs/{job['id']}").json()["status"] == "queued"
        assert gateway.http.delete(f"/jobs/{job['id']}").json()["status"] == "canceled"
    assert gateway.http.get("/readyz").status_code == 200
    assert gateway.post(PROMPT).status_code == 202
    assert depth(redis_url) == {"queued": 1, "running": 0}


def test_a_read_only_server_takes_no_job_and_tells_those_inside(gateway: Live, redis_url: str) -> None:
    job = gateway.post(PROMPT).json()
    with replica_of_nobody(redis_url):
        assert_refused(gateway, "queue_read_only", "read-only")
        assert gateway.http.get(f"/jobs/{job['id']}").json()["status"] == "queued"
        assert_error(gateway.http.delete(f"/jobs/{job['id']}"), 503, "queue_read_only")
    assert gateway.http.get("/readyz").status_code == 200
    assert gateway.http.delete(f"/jobs/{job['id']}").json()["status"] == "canceled"


def test_a_server_whose_master_is_down_and_that_tells_nothing_old(gateway: Live, redis_url: str) -> None:
    with configured(redis_url, replica_serve_stale_data="no"), replica_of_nobody(redis_url):
        assert_error(gateway.http.get("/jobs/abc"), 503, "queue_unavailable")
        assert_error(gateway.post(PROMPT), 503, "queue_unavailable")
        assert "redis" in assert_error(gateway.http.get("/readyz"), 503, "not_ready")


def test_a_server_without_the_replicas_that_it_must_have(gateway: Live, redis_url: str) -> None:
    with configured(redis_url, min_replicas_to_write="1"):
        assert_refused(gateway, "queue_read_only", "read-only")


def test_a_server_that_begins_to_evict_is_no_longer_ready(gateway: Live, redis_url: str) -> None:
    with configured(redis_url, maxmemory_policy="allkeys-lru"):
        assert assert_error(gateway.http.get("/readyz"), 503, "not_ready") == "Not ready: redis (may lose jobs)."
    assert gateway.http.get("/readyz").status_code == 200


def test_asking_whether_it_is_ready_leaves_nothing_behind(gateway: Live, redis_url: str) -> None:
    with BlockingRedis.from_url(redis_url, decode_responses=True) as client:
        before = set(client.keys("*"))
        assert gateway.http.get("/readyz").json() == {"status": "ready", "checks": {"redis": "ok", "storage": "ok", "model": "ok"}}
        assert set(client.keys("*")) == before
