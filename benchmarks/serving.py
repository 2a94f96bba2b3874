"""Gateway and service figures, from real processes: start, memory, accepted jobs per core, time to the first picture."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx2

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
START_LIMIT_S = 120


@dataclass(frozen=True, slots=True)
class Gateway:
    start_s: float  # from exec to the first healthy answer
    rss_mb: float
    jobs_per_core_s: float  # accepted jobs per second of the gateway's own CPU time
    jobs: int


def measure_gateway(folder: Path, jobs: int, concurrency: int = 32) -> Gateway:
    """`celadon up` without workers would refuse unknown models, so one worker announces its card and is stopped first."""
    with service(folder, workers=1) as (url, _):
        wait_ready(url)
    with service(folder, workers=0) as (url, gateway_started):
        start_s = wait_healthy(url) - gateway_started
        pid = child_pid("celadon gateway", folder)
        before = cpu_seconds(pid)
        asyncio.run(submit_many(url, jobs, concurrency))
        spent = cpu_seconds(pid) - before
        return Gateway(start_s, rss_mb(pid), jobs / spent, jobs)


def first_picture_seconds(folder: Path) -> float:
    """From `celadon up` on an empty data directory to the answer that holds the first picture's URL."""
    with service(folder, workers=1) as (url, started):
        wait_ready(url)
        answer = httpx2.post(f"{url}/generate", json={"prompt": "a red apple", "seed": 1}, headers={"Prefer": "wait=60"}, timeout=90)
        answer.raise_for_status()
        if answer.json()["status"] != "succeeded":
            raise RuntimeError(f"the first job ended as {answer.json()['status']}: {answer.json()['error']}")
        return time.perf_counter() - started


@contextlib.contextmanager
def service(folder: Path, workers: int) -> Iterator[tuple[str, float]]:
    """`celadon up` on a free port; its URL and the time it was started."""
    port = free_port()
    command = [sys.executable, "-m", "celadon", "up", "--port", str(port), "--data-dir", str(folder), "--workers", str(workers)]
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield f"http://127.0.0.1:{port}", started
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)


async def submit_many(url: str, jobs: int, concurrency: int) -> None:
    """`jobs` accepted submits over keep-alive connections."""
    gate = asyncio.Semaphore(concurrency)
    async with httpx2.AsyncClient(base_url=url, timeout=30) as client:

        async def one(i: int) -> None:
            async with gate:
                answer = await client.post("/generate", json={"prompt": "a red apple", "seed": i, "steps": 20})
                if answer.status_code != 202:
                    raise RuntimeError(f"submit {i} was answered with {answer.status_code}: {answer.text}")

        await asyncio.gather(*(one(i) for i in range(jobs)))


def wait_healthy(url: str) -> float:
    return wait_for(f"{url}/healthz")


def wait_ready(url: str) -> float:
    return wait_for(f"{url}/readyz")


def wait_for(url: str) -> float:
    """The time at which the URL first answered 200."""
    limit = time.perf_counter() + START_LIMIT_S
    while time.perf_counter() < limit:
        with contextlib.suppress(httpx2.TransportError):
            if httpx2.get(url, timeout=5).status_code == 200:
                return time.perf_counter()
        time.sleep(0.02)
    raise TimeoutError(f"{url} did not answer within {START_LIMIT_S} s")


def child_pid(title: str, folder: Path) -> int:
    """The process whose command line says `title` and whose environment names our data directory."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            environment = (entry / "environ").read_bytes().decode(errors="replace")
            if title in words and f"CELADON_DATA_DIR={folder}" in environment:
                return int(entry.name)
    raise RuntimeError(f"no process says {title!r}")


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


def rss_mb(pid: int) -> float:
    line = next(x for x in Path(f"/proc/{pid}/status").read_text().splitlines() if x.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port: int = s.getsockname()[1]
        return port
