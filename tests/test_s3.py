"""Pictures on a real S3 server: through gateway and worker, by presigned URLs, while it is away, and swept."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx2
import pytest
from pydantic import ValidationError
from redis.asyncio import Redis

from cards import card
from job_samples import MODEL, sample_image, sample_job
from jobs.image_store import ImageStore, Signer, StoreAway, StoreUnfit, image_key
from jobs.job import JobStatus
from jobs.job_queue import JobQueue, connect
from jobs.registry import Registry
from jobs.s3_store import S3ImageStore
from jobs.stores import check_reachable, open_store
from live_gateway import Live, assert_error, run_apart, running
from picture_samples import as_file, sample_picture
from s3_server import BUCKET, SECRET, S3Server, free_ports
from service.chores import SHARED_S, SWEEP_EVERY_S, sweep
from service.settings import Settings
from worker_bench import Bench, draw_at_once, job

pytestmark = pytest.mark.timeout(200)  # the first test starts the server
KEY = "3f9a0c/1-0.png"
PICTURE = bytes(range(256)) * 40


@pytest.fixture
def place() -> str:
    """A prefix of this test alone."""
    return f"s3://{BUCKET}/{uuid.uuid4().hex}"


@pytest.fixture
def store(s3: S3Server, place: str) -> ImageStore:
    return open_store(place, Path(), endpoint=s3.endpoint)


@contextmanager
def gateway(redis_url: str, folder: Path, s3: S3Server, place: str, **settings: str) -> Iterator[Live]:
    with running(redis_url, folder, card(), storage=place, s3_endpoint=s3.endpoint, **settings) as live:
        yield live


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="Linux tells who listens where")
def test_the_server_listens_on_its_own_ports_alone(s3: S3Server) -> None:
    """Two test processes have one each: a port that is always the same would end the second one."""
    sockets = {os.readlink(entry) for entry in Path(f"/proc/{s3.process.pid}/fd").iterdir() if entry.is_symlink()}
    rows = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]]
    listening = {int(row[1].rpartition(":")[2], 16) for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in sockets}
    assert listening and listening <= s3.ports


def signed(live: Live, key: str = KEY, ttl_s: int = 600) -> str:
    async def ask() -> bytes:
        redis = connect(live.settings.redis_url)
        try:
            return await Registry(redis).image_secret()
        finally:
            await redis.aclose()

    return f"/images/{key}?{Signer(run_apart(ask)).sign(key, int(time.time()) + ttl_s)}"


def test_a_gateway_streams_what_lies_on_s3(redis_url: str, tmp_path: Path, s3: S3Server, place: str, store: ImageStore) -> None:
    run_apart(lambda: store.put(KEY, PICTURE))
    with gateway(redis_url, tmp_path, s3, place) as live:
        answer = live.http.get(signed(live), headers={"Range": "bytes=256-511"})
        assert answer.status_code == 206 and answer.content == bytes(range(256))
        assert live.http.get("/readyz").json()["checks"]["storage"] == "ok"
        assert_error(live.http.get(signed(live, "3f9a0c/1-1.png")), 410, "image_erased")
    assert not (tmp_path / "images").exists()


def test_a_gateway_sends_on_to_a_presigned_url(redis_url: str, tmp_path: Path, s3: S3Server, place: str, store: ImageStore) -> None:
    run_apart(lambda: store.put(KEY, PICTURE))
    with gateway(redis_url, tmp_path, s3, place, image_delivery="redirect") as live:
        answer = live.http.get(signed(live, ttl_s=100))
        assert answer.status_code == 307 and answer.content == b""
        there = answer.headers["location"]
        assert there.startswith(f"{s3.endpoint}/{BUCKET}/") and SECRET not in there
        assert 0 < int(parse_qs(urlsplit(there).query)["X-Amz-Expires"][0]) <= 100, "no longer than the URL that led there"
        picture = httpx2.get(there)
        assert picture.content == PICTURE and picture.headers["content-type"] == "image/png"
        assert picture.headers["content-disposition"] == 'inline; filename="celadon-3f9a0c-1-0.png"'
        head = live.http.head(signed(live), follow_redirects=True)
        assert head.status_code == 200 and head.headers["content-length"] == str(len(PICTURE))
        assert httpx2.get(there.replace("1-0.png", "1-1.png")).status_code == 403, "it opens that picture alone"
        assert_error(live.http.get(f"/images/{KEY}"), 403, "bad_signature")
        assert_error(live.http.get(signed(live, ttl_s=-1)), 410, "link_expired")
        assert_error(live.http.get(signed(live, "3f9a0c/1-1.png")), 410, "image_erased")
        policy = live.http.get("/").headers["content-security-policy"]
        assert f"img-src 'self' data: {s3.endpoint};" in policy


async def test_a_presigned_url_expires_and_may_name_another_host(s3: S3Server, place: str, store: ImageStore) -> None:
    await store.put(KEY, PICTURE)
    short = await store.link(KEY, "GET", 1)
    assert short
    until = time.monotonic() + 10
    while (status := httpx2.get(short).status_code) == 200 and time.monotonic() < until:
        await asyncio.sleep(0.1)
    assert status == 403
    public = open_store(place, Path(), endpoint="http://127.0.0.1:1", public_endpoint=s3.endpoint)
    link = await public.link(KEY, "GET", 60)
    assert link and httpx2.get(link).content == PICTURE
    assert await open_store("", Path("unused")).link(KEY, "GET", 60) is None


def test_while_s3_is_away_the_gateway_says_503_and_then_goes_on(redis_url: str, tmp_path: Path, s3: S3Server, place: str) -> None:
    (gone,) = free_ports(1)
    with running(redis_url, tmp_path, card(), storage=place, s3_endpoint=f"http://127.0.0.1:{gone}") as live:
        assert_error(live.http.get(signed(live)), 503, "storage_unavailable")
        assert assert_error(live.http.get("/readyz"), 503, "not_ready") == "Not ready: storage (away)."
        with gateway(redis_url, tmp_path, s3, place) as other:
            assert other.http.get("/readyz").status_code == 200
            s3.stop()
            try:
                assert assert_error(other.http.get("/readyz"), 503, "not_ready") == "Not ready: storage (away)."
            finally:
                s3.go_on()
            assert other.http.get("/readyz").status_code == 200


def test_uploads_lie_on_s3_too(redis_url: str, tmp_path: Path, s3: S3Server, place: str, store: ImageStore) -> None:
    picture = {"file": as_file(sample_picture())}
    with gateway(redis_url, tmp_path, s3, place, image_delivery="redirect") as live:
        key = live.http.post("/uploads", files=picture).json()["key"]
        assert run_apart(lambda: store.read(key)) == live.http.get(f"/uploads/{key}").content, "to its client alone, and never by a link"
        assert live.post({"prompt": "a boat", "image": key}).status_code == 202
        assert live.http.delete(f"/uploads/{key}").status_code == 204
        assert_error(live.post({"prompt": "a boat", "image": key}), 404, "picture_not_found", "image")
    (gone,) = free_ports(1)
    with running(redis_url, tmp_path, card(), storage=place, s3_endpoint=f"http://127.0.0.1:{gone}") as live:
        assert_error(live.http.post("/uploads", files=picture), 503, "storage_unavailable")
        assert_error(live.http.get(f"/uploads/{key}"), 503, "storage_unavailable")


async def test_a_worker_waits_for_s3(redis: Redis, tmp_path: Path, s3: S3Server, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is stopped until a write has failed, and the picture is there in the end."""
    queue, failed, put = JobQueue(redis), asyncio.Event(), S3ImageStore.put

    async def watched(*args: Any) -> None:
        try:
            await put(*args)
        except OSError:
            failed.set()
            raise

    monkeypatch.setattr(S3ImageStore, "put", watched)
    bench = Bench(queue, redis, tmp_path, draw_at_once, open_store(place, tmp_path, endpoint=s3.endpoint, timeout_s=0.5))
    s3.stop()
    try:
        await queue.submit(job("a"))
        await asyncio.wait_for(failed.wait(), 20)
    finally:
        s3.go_on()
    done = await bench.ended("a")
    await bench.stop()
    assert done.status is JobStatus.SUCCEEDED
    stored = await open_store(place, tmp_path, endpoint=s3.endpoint).read(done.images[0].key)
    assert stored.startswith(b"\x89PNG")


async def test_pictures_on_s3_go_with_their_record(queue: JobQueue, store: ImageStore) -> None:
    await queue.submit(sample_job())
    (kept,) = await queue.claim("w", [MODEL], 1)
    await queue.finish("w", kept.attempt, kept.id, [sample_image(kept)])
    for job_id in (kept.id, "gone"):
        await store.put(image_key(job_id, 1, 0, "png"), b"x")
    later = time.time() + 60 + SHARED_S + SWEEP_EVERY_S
    assert await sweep(store, queue, retention_s=60, now=later - 30) == 0
    assert await sweep(store, queue, retention_s=60, now=later + 30) == 1
    assert await store.untouched_since(later) == [kept.id]


@pytest.mark.parametrize("changes, code", [({"AWS_SECRET_ACCESS_KEY": "x" * 40}, "SignatureDoesNotMatch"), ({}, "AccessDenied")])
async def test_a_store_that_refuses_us_is_told_apart_from_one_that_is_away(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch, changes: dict[str, str], code: str
) -> None:
    """The second: a bucket that is not there, and that we may not make."""
    for name, value in changes.items():
        monkeypatch.setenv(name, value)
    bucket = BUCKET if changes else "no-such-bucket"
    with pytest.raises(StoreUnfit, match=f"s3://{bucket} at {s3.endpoint} cannot be used: {code}") as refused:
        await check_reachable(f"s3://{bucket}", s3.endpoint)
    assert "x" * 40 not in str(refused.value) and SECRET not in str(refused.value)
    (port,) = free_ports(1)
    with pytest.raises(StoreAway, match="cannot be reached: no answer") as away:
        await check_reachable(f"s3://{BUCKET}", f"http://127.0.0.1:{port}")
    assert not isinstance(away.value, StoreUnfit)


@pytest.mark.parametrize("command", ["gateway", "worker"])
@pytest.mark.parametrize("bucket, status", [("no-such-bucket", 2), (BUCKET, 3)])
def test_no_process_starts_without_its_bucket(redis_url: str, tmp_path: Path, s3: S3Server, command: str, bucket: str, status: int) -> None:
    (port,) = free_ports(1)
    told = {"STORAGE": f"s3://{bucket}", "S3_ENDPOINT": s3.endpoint if status == 2 else f"http://127.0.0.1:{port}", "PORT": "0"}
    told |= {"REDIS_URL": redis_url, "DATA_DIR": str(tmp_path)}
    environment = dict(os.environ) | {f"CELADON_{name}": value for name, value in told.items()}
    ran = subprocess.run([sys.executable, "-m", "celadon", command], env=environment, capture_output=True, text=True, timeout=50)
    assert ran.returncode == status, ran.stderr
    assert f"CELADON_STORAGE: s3://{bucket} at " in ran.stderr and SECRET not in ran.stderr + ran.stdout


def test_settings_that_lead_nowhere_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (
        ("storage", "S3://bucket"),
        ("storage", "s3://b"),
        ("storage", "s3://bucket/../x"),
        ("storage", "/tmp/x"),
        ("s3_endpoint", "minio:9000"),
        ("s3_endpoint", "http://user:secret@minio:9000"),
        ("s3_endpoint", "http://minio:9000"),  # without CELADON_STORAGE
        ("image_delivery", "redirect"),
    ):
        with pytest.raises(ValidationError):
            Settings(**{name: value})
    assert Settings(storage="s3://bucket/a/b", s3_endpoint="http://minio:9000/").s3_endpoint == "http://minio:9000"
