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
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx2

from jobs import valkey
from jobs.connection import connect
from jobs.registry import Registry
from pipelines.card import ModelCard

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
START_LIMIT_S = 120
CROWD = 16  # jobs


@dataclass(frozen=True, slots=True)
class Gateway:
    start_s: float  # from starting the process to its first healthy answer
    rss_mb: float
    jobs_per_core_s: float  # accepted jobs per second of the gateway's own CPU time
    jobs: int


def measure_gateway(folder: Path, card: ModelCard, jobs: int, concurrency: int = 32) -> Gateway:
    """One gateway process on an embedded server; the model is announced, so that jobs are accepted, and no worker draws them."""
    folder.mkdir(parents=True)
    server = valkey.start(folder)
    port = free_port()
    environment = os.environ | {"CELADON_REDIS_URL": valkey.url(folder), "CELADON_DATA_DIR": str(folder), "CELADON_PORT": str(port)}
    asyncio.run(announce(valkey.url(folder), card))
    started = time.perf_counter()
    command = [sys.executable, "-m", "celadon", "gateway"]
    gateway = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        url = f"http://127.0.0.1:{port}"
        start_s = wait_for(f"{url}/healthz") - started
        before = cpu_seconds(gateway.pid)
        asyncio.run(submit_many(url, jobs, concurrency))
        spent = cpu_seconds(gateway.pid) - before
        return Gateway(start_s, rss_mb(gateway.pid), jobs / spent, jobs)
    finally:
        for process in (gateway, server):
            process.terminate()
            process.wait(timeout=60)


async def announce(url: str, card: ModelCard) -> None:
    async with connect(url) as redis:
        await Registry(redis).announce(card)


@dataclass(frozen=True, slots=True)
class Memory:
    """Of a worker, in megabytes."""

    resident: float
    own: float  # what of it is no page of a file


@dataclass(frozen=True, slots=True)
class Start:
    first_s: float  # from `celadon up` on an empty data directory to the answer that holds the first picture's URL
    again_s: float  # the same on that directory, with the compiled model in its cache
    alone: Memory  # of its worker once it has settled and drawn one more
    crowd: Memory  # after sixteen jobs of several lengths at once


def measure_start(folder: Path, model: Path) -> Start:
    log = folder / "logs" / "worker-1.log"
    with service(folder, model) as (url, started):
        first_s = first_picture(url) - started
        settled(log)
    with service(folder, model) as (url, started):
        again_s = first_picture(url) - started
        settled(log)
        draw(url, 0)
        alone = memory(url, folder)
        with ThreadPoolExecutor(CROWD) as crowd:
            list(crowd.map(draw, [url] * CROWD, range(CROWD)))
        return Start(first_s, again_s, alone, memory(url, folder))


def first_picture(url: str) -> float:
    """The time at which it was there."""
    wait_for(f"{url}/readyz")
    draw(url, 0)
    return time.perf_counter()


def draw(url: str, further: int) -> None:
    """A picture of so many steps more than ten."""
    asked = {"prompt": "a red apple", "seed": 1, "steps": 10 + further}
    answer = httpx2.post(f"{url}/generate", json=asked, headers={"Prefer": "wait=60"}, timeout=90)
    answer.raise_for_status()
    if answer.json()["status"] != "succeeded":
        raise RuntimeError(f"a job ended as {answer.json()['status']}: {answer.json()['error']}")


def settled(log: Path) -> None:
    """Until the worker of this start says so."""
    limit = time.perf_counter() + START_LIMIT_S
    while "settled" not in log.read_text().rpartition("event='ready'")[2]:
        if time.perf_counter() > limit:
            raise TimeoutError(f"the worker did not settle within {START_LIMIT_S} s")
        time.sleep(0.1)


def memory(url: str, folder: Path) -> Memory:
    """Of the largest worker."""
    found = [Memory(rss_mb(pid), rss_mb(pid, "RssAnon")) for pid in workers(url, folder)]
    return max(found, key=lambda m: m.resident)


def workers(url: str, folder: Path) -> list[int]:
    """Processes of `celadon worker` on that data directory."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command, environment = (path / "cmdline").read_bytes().split(b"\0"), (path / "environ").read_bytes()
            if b"worker" in command and str(folder).encode() in environment:
                found.append(int(path.name))
    if not found:
        raise RuntimeError(f"{url} drew a picture, but no process of a worker was found")
    return found


@contextlib.contextmanager
def service(folder: Path, model: Path, **settings: str) -> Iterator[tuple[str, float]]:
    """`celadon up` on a free port, with more settings as CELADON_ variables; its URL and the time it was started."""
    port = free_port()
    command = [sys.executable, "-m", "celadon", "up", "--port", str(port), "--data-dir", str(folder)]
    started = time.perf_counter()
    environment = os.environ | {"CELADON_MODEL": str(model)} | {f"CELADON_{name.upper()}": value for name, value in settings.items()}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
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


def wait_for(url: str) -> float:
    """The time at which the URL first answered 200."""
    limit = time.perf_counter() + START_LIMIT_S
    while time.perf_counter() < limit:
        with contextlib.suppress(httpx2.TransportError):
            if httpx2.get(url, timeout=5).status_code == 200:
                return time.perf_counter()
        time.sleep(0.02)
    raise TimeoutError(f"{url} did not answer within {START_LIMIT_S} s")


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


def rss_mb(pid: int, what: str = "VmRSS") -> float:
    line = next(x for x in Path(f"/proc/{pid}/status").read_text().splitlines() if x.startswith(what))
    return int(line.split()[1]) / 1024


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port: int = s.getsockname()[1]
        return port
